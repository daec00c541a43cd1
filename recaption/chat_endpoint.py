"""Client of an OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, a hosted service) with retries and backoff.

    endpoint = ChatEndpoint.at("http://localhost:8000/v1#Qwen/Qwen3-VL-8B-Instruct", EndpointSettings(concurrency=16))
    message = {"role": "user", "content": "Describe a red circle."}
    (response,) = endpoint.complete([ChatRequest(key=clip_sha256, messages=[message], max_tokens=80)])
    response.text, response.ended, response.num_tokens, response.mean_logprob        or response.error: why there is none

A failure of one request (invalid response, rejected, all tries failed) is the `error` of its response, never an exception,
so that no other response is lost. A failure of all (endpoint down, wrong key, no such model) is one `UsageError`.
The key comes from RECAPTION_API_KEY or OPENAI_API_KEY; it is in no message and is never sent to the target of a redirect.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

from recaption.errors import EndpointDownError, UsageError

API_KEY_VARIABLES = ("RECAPTION_API_KEY", "OPENAI_API_KEY")
"""Environment variables, by precedence."""


MAX_RESPONSE_BYTES = 4 << 20
"""A completion is a few kB; a longer response is not one."""


MODEL_LIST_TIMEOUT_SECONDS = 10.0
"""Of the request for the list of models, which every server has in memory."""


MAX_RETRY_WAIT_SECONDS = 120.0
"""Upper limit of the wait before a retry, also for a longer Retry-After."""


MAX_CONSECUTIVE_FAILURES = 3
"""After so many consecutive requests whose tries all failed, none succeeding in between, the endpoint counts as down."""


MAX_INITIAL_REJECTIONS = 4
"""After so many rejected requests before any succeeded, the server is taken to accept no such requests at all."""


RETRYABLE_STATUS_CODES = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes after which the same request may succeed."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Concurrency, timeouts and retries; none of it changes the content of responses."""

    concurrency: int = 8
    """Requests in flight at a time, per worker."""
    timeout_seconds: float = 120.0
    """For one whole response."""
    max_tries: int = 5
    backoff_seconds: float = 1.0
    """Wait before the second try; doubled before each further one, times a jitter of 0.5 to 1.5 that depends on the key."""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.max_tries < 1 or self.timeout_seconds <= 0 or self.backoff_seconds < 0:
            raise UsageError(f"concurrency and max_tries are at least 1, times positive: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """One chat completion request."""

    key: str
    """Seeds the jitter of the waits between tries."""
    messages: Sequence[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatResponse:
    """The completion of one request, or the error that it ended with."""

    text: str = ""
    ended: bool = False
    """False where `max_tokens` cut it (finish_reason "length")."""
    num_tokens: int = 0
    mean_logprob: float | None = None
    """None where the server returns no logprobs."""
    error: str = ""
    """Why there is no text."""
    num_tries: int = 1


class ChatEndpoint:
    """One model at one base URL. Thread-safe."""

    def __init__(self, base_url: str, model: str, settings: EndpointSettings | None = None) -> None:
        self.base_url, self.model = base_url, model
        self.settings = settings or EndpointSettings()
        self._key = _api_key_for(base_url)
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._api_variant = {"limit": "max_tokens", "logprobs": True}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._num_completed = self._num_consecutive_failures = self._num_rejected = 0

    @classmethod
    def at(cls, spec: str, settings: EndpointSettings | None = None) -> ChatEndpoint:
        """The endpoint of `http://HOST/v1#MODEL`; raises UsageError where it is not of that form."""
        return cls(*split_spec(spec), settings)

    def check(self) -> dict[str, Any]:
        """The model's entry in the server's list of models, {} where it has no list.

        Raises:
            EndpointDownError: unreachable, or the key is rejected.
            UsageError: it serves other models.
        """
        request = urllib.request.Request(f"{self.base_url}/models", headers=self._headers())
        try:
            status, body, _ = self._fetch(request, min(MODEL_LIST_TIMEOUT_SECONDS, self.settings.timeout_seconds))
        except _NoResponseError as error:
            raise EndpointDownError(f"no endpoint responds at {self.base_url}: {error}") from error
        if status in (401, 403):
            raise self._key_rejected_error(status)
        models = _parse_models(body) if status == 200 else None
        if models is None:
            return {}
        if self.model not in models:
            served = ", ".join(sorted(models)[:10]) or "none"
            raise UsageError(f"{self.base_url} serves no model {self.model!r}; it serves {served}")
        return models[self.model]

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatResponse]:
        """A response to each request, in order, `concurrency` in flight at a time.

        Raises:
            EndpointDownError: the endpoint is down, or rejects all requests; see the module.
        """
        if not requests:
            return []
        with ThreadPoolExecutor(min(self.settings.concurrency, len(requests))) as pool:
            futures = [pool.submit(self._complete_one, request) for request in requests]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise

    def _complete_one(self, request: ChatRequest) -> ChatResponse:
        tries = self.settings.max_tries
        for number in range(1, tries + 1):
            result = self._attempt(request)
            if result.response is not None:
                self._count_outcome(completed=True)
                return replace(result.response, num_tries=number)
            if not result.is_retryable:
                self._count_outcome(rejected=result.error_text)
                return ChatResponse(error=result.error_text, num_tries=number)
            if number < tries:
                self._stop.wait(
                    min(MAX_RETRY_WAIT_SECONDS, result.wait_seconds or self._backoff_wait_seconds(request, number))
                )
            if self._stop.is_set():
                break
        error_text = f"{result.error_text} (gave up after {number} tries)"
        if result.is_unreachable:
            raise self._down_error(error_text)
        if result.is_server_failure:
            self._count_outcome(server_failure=error_text)
        return ChatResponse(error=error_text, num_tries=number)

    def _attempt(self, request: ChatRequest) -> _Attempt:
        """Send the request once; raises EndpointDownError where no request can succeed."""
        try:
            status, body, headers = self._fetch(self._build_request(request), self.settings.timeout_seconds)
        except _NoResponseError as error:
            return _Attempt(error_text=str(error), is_server_failure=True, is_unreachable=error.is_unreachable)
        if status == 200:
            try:
                return _Attempt(response=_parse_completion(body))
            except ValueError as error:
                return _Attempt(error_text=f"invalid response: {error}")
        error_text = self._redact(f"status {status}: {_parse_error_message(body)}")
        if status in (401, 403):
            raise self._key_rejected_error(status)
        if status == 404 or 300 <= status < 400:
            raise EndpointDownError(f"{self.base_url} does not serve {self.model!r}: {error_text}")
        if status in RETRYABLE_STATUS_CODES:
            return _Attempt(error_text=error_text, is_server_failure=status != 429, wait_seconds=_retry_after(headers))
        # servers differ in two parameters; from the first rejection on, the alternative is used
        if "max_completion_tokens" in error_text and self._api_variant["limit"] == "max_tokens":
            self._api_variant["limit"] = "max_completion_tokens"
            return self._attempt(request)
        if "logprob" in error_text and self._api_variant["logprobs"]:
            self._api_variant["logprobs"] = False
            return self._attempt(request)
        return _Attempt(error_text=error_text, is_retryable=False)

    def _backoff_wait_seconds(self, request: ChatRequest, number: int) -> float:
        digest = hashlib.sha256(f"{request.seed}:{request.key}:{number}".encode()).digest()[:4]
        jitter = 0.5 + int.from_bytes(digest, "big") / 2**32
        return min(self.settings.backoff_seconds * 2 ** (number - 1) * jitter, MAX_RETRY_WAIT_SECONDS)

    def _count_outcome(self, *, completed: bool = False, server_failure: str = "", rejected: str = "") -> None:
        """Count outcomes; raise EndpointDownError where the endpoint is at fault rather than one request."""
        with self._lock:
            if completed:
                self._num_completed += 1
                self._num_consecutive_failures = 0
            self._num_consecutive_failures += bool(server_failure)
            self._num_rejected += bool(rejected)
            if server_failure and self._num_consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                raise self._down_error(server_failure)
            if rejected and not self._num_completed and self._num_rejected >= MAX_INITIAL_REJECTIONS:
                raise EndpointDownError(f"{self.base_url} rejects every request to {self.model!r}: {rejected}")

    def _build_request(self, request: ChatRequest) -> urllib.request.Request:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            str(self._api_variant["limit"]): request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.temperature > 0:
            body["top_p"] = request.top_p
        if self._api_variant["logprobs"]:
            body["logprobs"] = True
        headers = {**self._headers(), "Content-Type": "application/json"}
        return urllib.request.Request(
            f"{self.base_url}/chat/completions", data=json.dumps(body).encode(), headers=headers, method="POST"
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "recaption"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _fetch(self, request: urllib.request.Request, timeout_seconds: float) -> tuple[int, bytes, Any]:
        """Status, body and headers. The timeout covers the whole response, also one that arrives in small pieces."""
        deadline = time.monotonic() + timeout_seconds
        try:
            try:
                response = self._opener.open(request, timeout=timeout_seconds)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                parts, size = [], 0
                while part := response.read1(1 << 16):
                    parts.append(part)
                    size += len(part)
                    if size > MAX_RESPONSE_BYTES:
                        raise _NoResponseError(f"a response of more than {MAX_RESPONSE_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise TimeoutError
                return response.status, b"".join(parts), response.headers
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
                raise _NoResponseError(f"no response within {timeout_seconds:g} s") from error
            is_unreachable = isinstance(reason, (ConnectionRefusedError, socket.gaierror))
            raise _NoResponseError(
                self._redact(f"{type(error).__name__}: {reason}"), is_unreachable=is_unreachable
            ) from error

    def _key_rejected_error(self, status: int) -> EndpointDownError:
        what = "the key is rejected" if self._key else f"it requires a key: set {API_KEY_VARIABLES[0]}"
        return EndpointDownError(f"{self.base_url} responds with status {status}: {what}")

    def _down_error(self, error_text: str) -> EndpointDownError:
        return EndpointDownError(
            f"the endpoint {self.base_url} is down: {error_text}; start it and run the same command again"
        )

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "...") if self._key else text


def split_spec(spec: str) -> tuple[str, str]:
    """("http://HOST/v1", "MODEL") from `http://HOST/v1#MODEL`.

    Raises:
        UsageError: not of that form, or with a user name and password in it.
    """
    base, _, model = spec.partition("#")
    try:
        parts = urllib.parse.urlsplit(base)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError(f"{base} is not an address: write http://HOST:PORT/v1#MODEL") from None
    if parts.username or parts.password:
        raise UsageError(
            f"no user name or password in the address of an endpoint: put the key into {API_KEY_VARIABLES[0]}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine or parts.query or not model:
        raise UsageError(f"{spec!r} is not an endpoint: write http://HOST:PORT/v1#MODEL")
    return base.rstrip("/"), model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    """Result of one try: a response, or why there is none."""

    response: ChatResponse | None = None
    error_text: str = ""
    is_retryable: bool = True
    is_server_failure: bool = False
    """Timeout, broken connection or server error, as opposed to an invalid response."""
    is_unreachable: bool = False
    """Nothing listens at the address, or there is no such host."""
    wait_seconds: float | None = None


class _NoResponseError(Exception):
    """No complete response arrived."""

    def __init__(self, error_text: str, *, is_unreachable: bool = False) -> None:
        super().__init__(error_text)
        self.is_unreachable = is_unreachable


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects: that would send the key to another host, and a POST as a GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _api_key_for(base_url: str) -> str:
    """RECAPTION_API_KEY for any endpoint; OPENAI_API_KEY never over plain HTTP to another machine."""
    parts = urllib.parse.urlsplit(base_url)
    is_private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    return os.environ.get(API_KEY_VARIABLES[0]) or (os.environ.get(API_KEY_VARIABLES[1], "") if is_private else "")


def _parse_models(body: bytes) -> dict[str, dict[str, Any]] | None:
    try:
        rows = json.loads(body)["data"]
        return {row["id"]: row for row in rows}
    except (ValueError, KeyError, TypeError):
        return None


def _parse_completion(body: bytes) -> ChatResponse:
    """The response in the body of a chat completion; raises ValueError where there is none."""
    try:
        tree = json.loads(body)
    except ValueError:
        raise ValueError(f"not JSON: {body[:60]!r}") from None
    choices = tree.get("choices") if isinstance(tree, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no choices in the response")
    choice = choices[0]
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise ValueError("no text in the response")
    logprobs = _parse_logprobs(choice)
    usage = tree.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return ChatResponse(
        text=content,
        ended=choice.get("finish_reason") != "length",
        num_tokens=counted if isinstance(counted, int) else len(logprobs),
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )


def _parse_logprobs(choice: dict[str, Any]) -> list[float]:
    try:
        return [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError):
        return []


def _parse_error_message(body: bytes) -> str:
    """The server's error message, on one line."""
    text = body.decode("utf-8", "replace")
    try:
        tree = json.loads(text)
        error = tree.get("error", tree.get("detail", tree.get("message", tree)))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:200]


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait by the Retry-After header (a number or a date); None where it has none."""
    value = headers.get("Retry-After") if headers else None
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
