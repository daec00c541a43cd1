"""Client of an OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, a hosted service) with retries and backoff.

    endpoint = ChatEndpoint.at("http://localhost:8000/v1#Qwen/Qwen3-VL-8B-Instruct", EndpointSettings(concurrency=16))
    message = {"role": "user", "content": "Describe a red circle."}
    (response,) = endpoint.complete([ChatRequest(key=clip_sha256, messages=[message], max_tokens=80)])
    response.text, response.ended, response.num_tokens, response.mean_logprob        or response.error: why there is none

A failure of one request (invalid response, rejected, all tries failed) is the `error` of its response, never an exception,
so that no other response is lost. A failure of all (endpoint down, wrong key, no such model) is one `UsageError`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from anyio.from_thread import start_blocking_portal

from recaption import rng
from recaption.chat_endpoint.messages import (
    ChatRequest,
    ChatResponse,
    Dialect,
    parse_completion,
    parse_error_message,
    parse_models,
    request_body,
)
from recaption.chat_endpoint.transport import API_KEY_VARIABLES, NoResponseError, Reply, Transport
from recaption.errors import EndpointDownError, UsageError

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


class ChatEndpoint:
    """One model at one base URL. Thread-safe."""

    def __init__(self, base_url: str, model: str, settings: EndpointSettings | None = None) -> None:
        self.base_url, self.model = base_url, model
        self.settings = settings or EndpointSettings()
        self._transport = Transport(base_url)
        self._dialect = Dialect()
        self._lock = threading.Lock()
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
        try:
            with start_blocking_portal() as portal:
                reply = portal.call(self._fetch_models)
        except NoResponseError as error:
            raise EndpointDownError(f"no endpoint responds at {self.base_url}: {error}") from None
        if reply.status in (401, 403):
            raise self._key_rejected_error(reply.status)
        models = parse_models(reply.body) if reply.status == 200 else None
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
        with start_blocking_portal() as portal:  # an event loop in a thread: this one may run a loop, as in a notebook
            return portal.call(self._complete_all, requests)

    async def _fetch_models(self) -> Reply:
        timeout_seconds = min(MODEL_LIST_TIMEOUT_SECONDS, self.settings.timeout_seconds)
        async with self._transport.open_client() as client:
            return await self._transport.fetch(client, "GET", "models", timeout_seconds=timeout_seconds)

    async def _complete_all(self, requests: Sequence[ChatRequest]) -> list[ChatResponse]:
        in_flight = asyncio.Semaphore(self.settings.concurrency)

        async def complete(request: ChatRequest) -> ChatResponse:
            async with in_flight:
                return await self._complete_one(client, request)

        try:
            async with self._transport.open_client() as client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(complete(request)) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _complete_one(self, client: httpx2.AsyncClient, request: ChatRequest) -> ChatResponse:
        tries = self.settings.max_tries
        for number in range(1, tries + 1):
            result = await self._attempt(client, request)
            if result.response is not None:
                self._count_outcome(completed=True)
                return replace(result.response, num_tries=number)
            if not result.is_retryable:
                self._count_outcome(rejected=result.error_text)
                return ChatResponse(error=result.error_text, is_final=True, num_tries=number)
            if number < tries:
                wait_seconds = result.wait_seconds or self._backoff_wait_seconds(request, number)
                await asyncio.sleep(min(MAX_RETRY_WAIT_SECONDS, wait_seconds))
        error_text = f"{result.error_text} (gave up after {tries} tries)"
        if result.is_unreachable:
            raise self._down_error(error_text)
        if result.is_server_failure:
            self._count_outcome(server_failure=error_text)
        return ChatResponse(error=error_text, num_tries=tries)

    async def _attempt(self, client: httpx2.AsyncClient, request: ChatRequest) -> _Attempt:
        """Send the request once; raises EndpointDownError where no request can succeed."""
        dialect = self._dialect
        content = request_body(self.model, request, dialect)
        timeout_seconds = self.settings.timeout_seconds
        try:
            reply = await self._transport.fetch(
                client, "POST", "chat/completions", content=content, timeout_seconds=timeout_seconds
            )
        except NoResponseError as error:
            return _Attempt(error_text=str(error), is_server_failure=True, is_unreachable=error.is_unreachable)
        if reply.status == 200:
            try:
                return _Attempt(response=parse_completion(reply.body))
            except ValueError as error:
                return _Attempt(error_text=self._transport.redact(f"invalid response: {error}"))
        error_text = self._transport.redact(f"status {reply.status}: {parse_error_message(reply.body)}")
        if reply.status in (401, 403):
            raise self._key_rejected_error(reply.status)
        if reply.status == 404 or 300 <= reply.status < 400:
            raise EndpointDownError(f"{self.base_url} does not serve {self.model!r}: {error_text}")
        if reply.status in RETRYABLE_STATUS_CODES:
            is_server_failure = reply.status != 429
            return _Attempt(
                error_text=error_text, is_server_failure=is_server_failure, wait_seconds=reply.retry_after_seconds
            )
        self._dialect = self._dialect.after_rejection(error_text)
        if self._dialect != dialect:  # changed by this rejection, or by that of another request in flight
            return await self._attempt(client, request)
        return _Attempt(error_text=error_text, is_retryable=False)

    def _backoff_wait_seconds(self, request: ChatRequest, number: int) -> float:
        jitter = 0.5 + rng.sample_uniform(rng.keys_from_names([request.key]), request.seed, number, "retry wait").item()
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

    def _key_rejected_error(self, status: int) -> EndpointDownError:
        what = "the key is rejected" if self._transport.key else f"it requires a key: set {API_KEY_VARIABLES[0]}"
        return EndpointDownError(f"{self.base_url} responds with status {status}: {what}")

    def _down_error(self, error_text: str) -> EndpointDownError:
        return EndpointDownError(
            f"the endpoint {self.base_url} is down: {error_text}; start it and run the same command again"
        )


def split_spec(spec: str) -> tuple[str, str]:
    """("http://HOST/v1", "MODEL") from `http://HOST/v1#MODEL`.

    Raises:
        UsageError: not of that form, or with a user name and password in it.
    """
    base, _, model = spec.partition("#")
    try:
        url = httpx2.URL(base)
    except httpx2.InvalidURL:
        raise UsageError(f"{base} is not an address: write http://HOST:PORT/v1#MODEL") from None
    if url.userinfo:
        raise UsageError(
            f"no user name or password in the address of an endpoint: put the key into {API_KEY_VARIABLES[0]}"
        )
    if url.scheme not in ("http", "https") or not url.host or url.port == 0 or url.query or not model:
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
    """See `NoResponseError`."""
    wait_seconds: float | None = None
