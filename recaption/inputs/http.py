"""Reads http:// inputs: every hop of a redirect is checked, no redirect leaves http, and nothing is sent but the URL.

    with open_http("https://host/a.mp4") as response:
        for block in response.blocks(): ...

Whether a failure is final depends on its kind: 404 is what the server has to say about this file (`unreadable`), 503 and a
dropped line are not (`fetch_failed`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from recaption.errors import VideoError
from recaption.inputs.names import HTTP

MAX_REDIRECTS = 10
CONNECT_SECONDS, READ_SECONDS = 20.0, 60.0
"""How long a server may take to accept a connection, and between two pieces of a response."""
PASSING_STATUSES = frozenset({408, 421, 425, 429})
"""Besides 5xx: timeouts and "too many requests"."""


USER_AGENT = "recaption"
"""Some servers refuse requests without one."""
MAX_WAIT_SECONDS = 120.0
"""What a server may ask us to wait before the next try."""


class BusyError(VideoError):
    """A server that cannot answer now, and says when to come again."""

    def __init__(self, detail: str, uri: str, retry_after: str = "") -> None:
        super().__init__("fetch_failed", detail, uri=uri)
        is_number = retry_after.isascii() and retry_after.isdigit()
        self.wait_seconds = min(float(retry_after), MAX_WAIT_SECONDS) if is_number else 0.0


@dataclass(frozen=True)
class HttpFile:
    """An open response with status 200."""

    response: Any
    num_bytes: int | None
    """Of the whole file, by its header; None where the server does not say."""
    etag: str
    """What changes with the bytes: ETag, else Last-Modified, else ""."""
    is_range: bool = False
    """Only the bytes that were asked for follow, not all."""
    has_ranges: bool = False
    """The server says that it can send parts of this file."""

    def blocks(self) -> Iterator[bytes]:
        """The body, piece by piece.

        Raises:
            VideoError: fetch_failed, where the line drops.
        """
        with _as_video_error(str(self.response.url)):
            yield from self.response.iter_bytes()


@contextlib.contextmanager
def open_http(
    uri: str, *, method: str = "GET", first_byte: int | None = None, last_byte: int | None = None, etag: str = ""
) -> Iterator[HttpFile]:
    """
    Args:
        first_byte: ask for the bytes from here on; a server may send all.
        last_byte: up to and with this one.
        etag: ask for a range only if this is the version still.

    Raises:
        VideoError: unreadable or fetch_failed; `BusyError` where the server says how long to wait.
    """
    import httpx2  # 0.1 s, and most inputs are local files

    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    wanted = {"User-Agent": USER_AGENT}
    if first_byte is not None:
        wanted["Range"] = f"bytes={first_byte}-{'' if last_byte is None else last_byte}"
        wanted |= {"If-Range": etag} if etag else {}
    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    with contextlib.ExitStack() as stack:
        with _as_video_error(uri):
            client = stack.enter_context(
                httpx2.Client(timeout=timeout, follow_redirects=False, headers={"Accept-Encoding": "identity"})
            )
            url = uri
            for _ in range(MAX_REDIRECTS):
                _check_host(url, uri)
                response = stack.enter_context(client.stream(method, url, headers=wanted))
                if response.next_request is None:
                    break
                url = str(response.next_request.url)
                if urlsplit(url).scheme not in HTTP:
                    raise VideoError("unreadable", f"it redirects to {url}, which is not http", uri=uri)
            else:
                raise VideoError("unreadable", f"more than {MAX_REDIRECTS} redirects", uri=uri)
            status = response.status_code
            if status >= 500 or status in PASSING_STATUSES:
                wait = response.headers.get("Retry-After", "")
                raise BusyError(f"the server answers {status} {response.reason_phrase}", uri, wait)
            if status != 200 and not (status == 206 and first_byte is not None):
                raise VideoError("unreadable", f"the server answers {status} {response.reason_phrase}", uri=uri)
            length = response.headers.get("Content-Length", "")
            if status == 206:
                length = response.headers.get("Content-Range", "").rpartition("/")[2]
            found = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            num_bytes = int(length) if length.isascii() and length.isdigit() else None
            has_ranges = status == 206 or response.headers.get("Accept-Ranges", "").lower() == "bytes"
        yield HttpFile(response, num_bytes, found, is_range=status == 206, has_ranges=has_ranges)


@contextlib.contextmanager
def _as_video_error(uri: str) -> Iterator[None]:
    import httpx2

    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
        raise VideoError("unreadable", f"not a URL: {error}", uri=uri) from None
    except (httpx2.HTTPError, OSError) as error:
        raise VideoError("fetch_failed", f"{type(error).__name__}: {error}", uri=uri) from None


def _check_host(url: str, uri: str) -> None:
    """Refuse link-local addresses: the metadata services of clouds, which hand out keys."""
    for address in addresses_of(urlsplit(url).hostname or ""):
        if address.is_link_local:
            raise VideoError("unreadable", f"{address} is link-local, which inputs are not read from", uri=uri)


def is_own_machine(url: str) -> bool:
    """Whether the host of a URL is this machine, or an address that only works on it."""
    addresses = addresses_of(urlsplit(url).hostname or "")
    return any(a.is_loopback or a.is_link_local or a.is_unspecified for a in addresses)


@lru_cache(4096)
def addresses_of(host: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """The addresses of a host; () where its name cannot be resolved, as behind a proxy."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return ()
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in dict.fromkeys(found)]
    return tuple(getattr(address, "ipv4_mapped", None) or address for address in addresses)
