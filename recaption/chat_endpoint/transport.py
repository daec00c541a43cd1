"""HTTP requests to a chat endpoint, with one time limit and one size limit for a whole response.

    transport = Transport("http://localhost:8000/v1")
    async with transport.open_client() as client:
        reply = await transport.fetch(client, "POST", "chat/completions", content=body, timeout_seconds=120)
        reply.status, reply.body

The key comes from RECAPTION_API_KEY or OPENAI_API_KEY; it is in no message and is never sent to the target of a redirect.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from recaption.errors import UsageError

API_KEY_VARIABLES = ("RECAPTION_API_KEY", "OPENAI_API_KEY")
"""Environment variables, by precedence."""
MAX_RESPONSE_BYTES = 4 << 20
"""A completion is a few kB; a longer response is not one."""


class NoResponseError(Exception):
    """No complete response arrived."""

    def __init__(self, error_text: str, *, is_unreachable: bool = False) -> None:
        """
        Args:
            is_unreachable: no connection at all: nothing listens at the address, no such host, no valid certificate.
        """
        super().__init__(error_text)
        self.is_unreachable = is_unreachable


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A complete response, of any status."""

    status: int
    body: bytes
    """As sent: nothing is decompressed, and no compression is asked for."""
    retry_after_seconds: float | None
    """By the Retry-After header (a number or a date); None where it has none."""


class Transport:
    """HTTP to one base URL. Thread-safe."""

    def __init__(self, base_url: str) -> None:
        self.base_url, self.key = base_url, api_key_for(base_url)
        for name in ("httpx2", "httpcore2"):  # below this level they log what a server sends, which may be the key
            logging.getLogger(name).setLevel(logging.WARNING)

    def open_client(self) -> httpx2.AsyncClient:
        """With the proxies of the environment; without redirects, cookies and reuse of connections.

        Raises:
            UsageError: a proxy of a kind that is not supported.
        """
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "recaption"}
        try:
            return httpx2.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {}),
                follow_redirects=False,  # that would send the key to another host, and a POST as a GET
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                timeout=None,  # of a single read; `fetch` limits all of them together
                limits=httpx2.Limits(max_keepalive_connections=0),  # a server may close one just when it is used again
            )
        except (ImportError, ValueError) as error:
            raise UsageError(f"the proxy that the environment names cannot be used: {error}") from error

    async def fetch(
        self, client: httpx2.AsyncClient, method: str, path: str, *, content: bytes = b"", timeout_seconds: float
    ) -> Reply:
        """Send a request; the timeout covers all until the last byte of the response, however slowly they arrive.

        Raises:
            NoResponseError: not in time, too long, or not at all.
        """
        headers = {"Content-Type": "application/json"} if content else {}
        url, body = f"{self.base_url}/{path}", bytearray()
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                client.stream(method, url, content=content, headers=headers) as response,
            ):
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_RESPONSE_BYTES:
                        raise NoResponseError(f"a response of more than {MAX_RESPONSE_BYTES >> 20} MiB")
        except TimeoutError:
            raise NoResponseError(f"no response within {timeout_seconds:g} s") from None
        except httpx2.HTTPError as error:
            error_text = self.redact(f"{type(error).__name__}: {error}")
            raise NoResponseError(error_text, is_unreachable=isinstance(error, httpx2.ConnectError)) from None
        wait_seconds = _parse_retry_after(response.headers.get("Retry-After", ""))
        return Reply(status=response.status_code, body=bytes(body), retry_after_seconds=wait_seconds)

    def redact(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "...") if self.key else text


def api_key_for(base_url: str) -> str:
    """RECAPTION_API_KEY for any endpoint; OPENAI_API_KEY never over plain HTTP to another machine."""
    url = httpx2.URL(base_url)
    is_private = url.scheme == "https" or url.host in ("localhost", "127.0.0.1", "::1")
    for name in API_KEY_VARIABLES if is_private else API_KEY_VARIABLES[:1]:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UsageError(f"{name} holds a character that no HTTP header can hold")
            return key
    return ""


def _parse_retry_after(value: str) -> float | None:
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
