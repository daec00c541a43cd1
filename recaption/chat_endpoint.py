"""An OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, a hosted service): many questions, an answer to each.

    endpoint = ChatEndpoint.at("http://localhost:8000/v1#Qwen/Qwen3-VL-8B-Instruct", EndpointSettings(concurrency=16))
    question = Question(key=clip_sha256, messages=[{"role": "user", "content": "Describe a red circle."}], max_tokens=80)
    (answer,) = endpoint.ask([question])
    answer.text, answer.ended, answer.num_tokens, answer.mean_logprob        or answer.fault: why there is none

What concerns one question (garbage, refused, given up after all tries) is that answer's `fault`, never an exception, so
that no other answer is lost. What concerns all of them (nobody there, wrong key, no such model) is one `UsageError`.
The key comes from RECAPTION_API_KEY or OPENAI_API_KEY and is in no message; it is never sent on to where a redirect leads.
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

KEY_NAMES = ("RECAPTION_API_KEY", "OPENAI_API_KEY")


MAX_ANSWER_BYTES = 4 << 20
"""An answer is a few kB; more is something else than an answer."""


CHECK_SECONDS = 10.0
"""For the list of models, which every server has in memory."""


MAX_WAIT_SECONDS = 120.0
"""A server that says Retry-After: 3600 is asked sooner than that."""


MAX_DEAD_IN_A_ROW = 3
"""Questions given up one after the other, none answered in between: the endpoint is down, not the question odd."""


MAX_REFUSED_AT_FIRST = 4
"""Questions refused before any was answered: the server does not take such questions at all."""


BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes after which the same question may succeed."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """How an endpoint is asked; none of it changes what it answers."""

    concurrency: int = 8
    """Questions on their way at a time, per worker."""
    timeout_seconds: float = 120.0
    """For one whole answer."""
    max_tries: int = 5
    backoff_seconds: float = 1.0
    """Before the second try; doubled before each further one, times 0.5 to 1.5 by the question's own draw."""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.max_tries < 1 or self.timeout_seconds <= 0 or self.backoff_seconds < 0:
            raise UsageError(f"concurrency and max_tries are at least 1, times positive: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    key: str
    """By which the waits between tries are drawn."""
    messages: Sequence[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    text: str = ""
    ended: bool = False
    """False where the length limit cut it short."""
    num_tokens: int = 0
    mean_logprob: float | None = None
    """None where the server does not say."""
    fault: str = ""
    """Why there is no text."""
    num_tries: int = 1


class ChatEndpoint:
    """One model at one address. Thread-safe."""

    def __init__(self, base_url: str, model: str, settings: EndpointSettings | None = None) -> None:
        self.base_url, self.model = base_url, model
        self.settings = settings or EndpointSettings()
        self._key = _key_for(base_url)
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._dialect = {"limit": "max_tokens", "logprobs": True}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._num_answered = self._num_dead = self._num_refused = 0

    @classmethod
    def at(cls, spec: str, settings: EndpointSettings | None = None) -> ChatEndpoint:
        """The endpoint of `http://HOST/v1#MODEL`; raises UsageError where it is not of that form."""
        return cls(*split_spec(spec), settings)

    def check(self) -> dict[str, Any]:
        """What the server lists about the model, {} where it has no list.

        Raises:
            EndpointDownError: nobody there, or the key is refused.
            UsageError: it serves other models.
        """
        request = urllib.request.Request(f"{self.base_url}/models", headers=self._headers())
        try:
            status, body, _ = self._fetch(request, min(CHECK_SECONDS, self.settings.timeout_seconds))
        except _NoAnswerError as error:
            raise EndpointDownError(f"no endpoint answers at {self.base_url}: {error}") from error
        if status in (401, 403):
            raise self._key_refused(status)
        models = _models_in(body) if status == 200 else None
        if models is None:
            return {}
        if self.model not in models:
            served = ", ".join(sorted(models)[:10]) or "none"
            raise UsageError(f"{self.base_url} serves no model {self.model!r}; it serves {served}")
        return models[self.model]

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question, in order, `concurrency` at a time.

        Raises:
            EndpointDownError: the endpoint is down, or takes no question of this kind; see the module.
        """
        if not questions:
            return []
        with ThreadPoolExecutor(min(self.settings.concurrency, len(questions))) as pool:
            futures = [pool.submit(self._answer, question) for question in questions]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise

    def _answer(self, question: Question) -> Answer:
        tries = self.settings.max_tries
        for number in range(1, tries + 1):
            result = self._try(question)
            if result.answer is not None:
                self._note(answered=True)
                return replace(result.answer, num_tries=number)
            if not result.is_worth_another:
                self._note(refused=result.fault)
                return Answer(fault=result.fault, num_tries=number)
            if number < tries:
                self._stop.wait(min(MAX_WAIT_SECONDS, result.wait_seconds or self._wait_seconds(question, number)))
            if self._stop.is_set():
                break
        fault = f"{result.fault} (given up after {number} tries)"
        if result.is_nobody:
            raise self._down(fault)
        if result.is_dead:
            self._note(dead=fault)
        return Answer(fault=fault, num_tries=number)

    def _try(self, question: Question) -> _Result:
        """Ask once. Raises EndpointDownError where no question at all can be answered."""
        try:
            status, body, headers = self._fetch(self._request(question), self.settings.timeout_seconds)
        except _NoAnswerError as error:
            return _Result(fault=str(error), is_dead=True, is_nobody=error.is_nobody)
        if status == 200:
            try:
                return _Result(answer=_answer_in(body))
            except ValueError as error:
                return _Result(fault=f"garbage: {error}")
        fault = self._scrubbed(f"status {status}: {_message_in(body)}")
        if status in (401, 403):
            raise self._key_refused(status)
        if status == 404 or 300 <= status < 400:
            raise EndpointDownError(f"{self.base_url} does not answer for {self.model!r}: {fault}")
        if status in BUSY:
            return _Result(fault=fault, is_dead=status != 429, wait_seconds=_retry_after(headers))
        # servers differ in two words of the question; what one refuses is said in the other way from then on
        if "max_completion_tokens" in fault and self._dialect["limit"] == "max_tokens":
            self._dialect["limit"] = "max_completion_tokens"
            return self._try(question)
        if "logprob" in fault and self._dialect["logprobs"]:
            self._dialect["logprobs"] = False
            return self._try(question)
        return _Result(fault=fault, is_worth_another=False)

    def _wait_seconds(self, question: Question, number: int) -> float:
        drawn = hashlib.sha256(f"{question.seed}:{question.key}:{number}".encode()).digest()[:4]
        jitter = 0.5 + int.from_bytes(drawn, "big") / 2**32
        return min(self.settings.backoff_seconds * 2 ** (number - 1) * jitter, MAX_WAIT_SECONDS)

    def _note(self, *, answered: bool = False, dead: str = "", refused: str = "") -> None:
        """Count, and stop everything where it is not this one question."""
        with self._lock:
            if answered:
                self._num_answered += 1
                self._num_dead = 0
            self._num_dead += bool(dead)
            self._num_refused += bool(refused)
            if dead and self._num_dead >= MAX_DEAD_IN_A_ROW:
                raise self._down(dead)
            if refused and not self._num_answered and self._num_refused >= MAX_REFUSED_AT_FIRST:
                raise EndpointDownError(f"{self.base_url} refuses every question to {self.model!r}: {refused}")

    def _request(self, question: Question) -> urllib.request.Request:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": list(question.messages),
            str(self._dialect["limit"]): question.max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
        }
        if question.temperature > 0:
            asked["top_p"] = question.top_p
        if self._dialect["logprobs"]:
            asked["logprobs"] = True
        headers = {**self._headers(), "Content-Type": "application/json"}
        return urllib.request.Request(
            f"{self.base_url}/chat/completions", data=json.dumps(asked).encode(), headers=headers, method="POST"
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "recaption"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _fetch(self, request: urllib.request.Request, timeout_seconds: float) -> tuple[int, bytes, Any]:
        """Status, body and headers. The limit holds for the whole answer, also for one that comes drop by drop."""
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
                    if size > MAX_ANSWER_BYTES:
                        raise _NoAnswerError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise TimeoutError
                return response.status, b"".join(parts), response.headers
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
                raise _NoAnswerError(f"no answer within {timeout_seconds:g} s") from error
            is_nobody = isinstance(reason, (ConnectionRefusedError, socket.gaierror))
            raise _NoAnswerError(self._scrubbed(f"{type(error).__name__}: {reason}"), is_nobody=is_nobody) from error

    def _key_refused(self, status: int) -> EndpointDownError:
        what = "the key is refused" if self._key else f"it wants a key: set {KEY_NAMES[0]}"
        return EndpointDownError(f"{self.base_url} answers {status}: {what}")

    def _down(self, fault: str) -> EndpointDownError:
        return EndpointDownError(f"the endpoint {self.base_url} is down: {fault}; start it and run this again")

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "...") if self._key else text


def split_spec(spec: str) -> tuple[str, str]:
    """("http://HOST/v1", "MODEL") of `http://HOST/v1#MODEL`.

    Raises:
        UsageError: not of that form, or with a name and password in it.
    """
    base, _, model = spec.partition("#")
    try:
        parts = urllib.parse.urlsplit(base)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError(f"{base} is not an address: write http://HOST:PORT/v1#MODEL") from None
    if parts.username or parts.password:
        raise UsageError(f"no name or password in the address of an endpoint: put the key into {KEY_NAMES[0]}")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine or parts.query or not model:
        raise UsageError(f"{spec!r} is not an endpoint: write http://HOST:PORT/v1#MODEL")
    return base.rstrip("/"), model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Result:
    """Of one try: an answer, or why there is none."""

    answer: Answer | None = None
    fault: str = ""
    is_worth_another: bool = True
    is_dead: bool = False
    """Nobody seems to be there, as opposed to somebody who answers badly."""
    is_nobody: bool = False
    """Nobody is there: nothing listens at the address, or there is no such host."""
    wait_seconds: float | None = None


class _NoAnswerError(Exception):
    """Nothing came back, or nothing whole."""

    def __init__(self, fault: str, *, is_nobody: bool = False) -> None:
        super().__init__(fault)
        self.is_nobody = is_nobody


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Following one would send the key to another host, and a POST as a GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _key_for(base_url: str) -> str:
    """The user's key for any endpoint; the one of a hosted service is not sent over the open network in plain text."""
    parts = urllib.parse.urlsplit(base_url)
    is_private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    return os.environ.get(KEY_NAMES[0]) or (os.environ.get(KEY_NAMES[1], "") if is_private else "")


def _models_in(body: bytes) -> dict[str, dict[str, Any]] | None:
    try:
        rows = json.loads(body)["data"]
        return {row["id"]: row for row in rows}
    except (ValueError, KeyError, TypeError):
        return None


def _answer_in(body: bytes) -> Answer:
    """Raises ValueError where there is no text in it."""
    try:
        tree = json.loads(body)
    except ValueError:
        raise ValueError(f"not JSON: {body[:60]!r}") from None
    choices = tree.get("choices") if isinstance(tree, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no choices in the answer")
    choice = choices[0]
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise ValueError("no text in the answer")
    logprobs = _logprobs_in(choice)
    usage = tree.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Answer(
        text=content,
        ended=choice.get("finish_reason") != "length",
        num_tokens=counted if isinstance(counted, int) else len(logprobs),
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )


def _logprobs_in(choice: dict[str, Any]) -> list[float]:
    try:
        return [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError):
        return []


def _message_in(body: bytes) -> str:
    """The server's own words, one line."""
    text = body.decode("utf-8", "replace")
    try:
        tree = json.loads(text)
        error = tree.get("error", tree.get("detail", tree.get("message", tree)))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:200]


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait: a number, or a date."""
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
