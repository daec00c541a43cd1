"""Requests and responses of a chat endpoint, and what lies between them: the JSON that is sent and the JSON that comes back.

    body = request_body("Qwen/Qwen3-VL-8B-Instruct", ChatRequest(key="a", messages=[...], max_tokens=80), Dialect())
    response = parse_completion(b'{"choices": [{"message": {"content": "A red circle."}, "finish_reason": "stop"}]}')

What a server sends is not trusted: any bytes give a response or a ValueError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

FINISHED = ("stop", "length", "content_filter")
"""What a server says of a completion that ended, as opposed to one that failed."""


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
    """None where the server returns no logprobs, or not finite ones."""
    error: str = ""
    """Why there is no text."""
    is_final: bool = False
    """Whether the same request would end with the same error: the server rejects it, as opposed to failing."""
    num_tries: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """The two parameters in which servers differ."""

    limit_name: str = "max_tokens"
    has_logprobs: bool = True

    def after_rejection(self, error_text: str) -> Dialect:
        """With the alternative to the parameter that a server names in its rejection, if it names one."""
        if "max_completion_tokens" in error_text and self.limit_name == "max_tokens":
            return replace(self, limit_name="max_completion_tokens")
        return replace(self, has_logprobs=self.has_logprobs and "logprob" not in error_text)


def request_body(model: str, request: ChatRequest, dialect: Dialect) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": list(request.messages),
        dialect.limit_name: request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if request.temperature > 0:
        body["top_p"] = request.top_p
    if dialect.has_logprobs:
        body["logprobs"] = True
    return json.dumps(body).encode()


def parse_models(body: bytes) -> dict[str, dict[str, Any]] | None:
    """The entries of a list of models by their ids; None where it is none."""
    try:
        return {str(row["id"]): row for row in _parse_json(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return None


def parse_completion(body: bytes) -> ChatResponse:
    """The response in the body of a chat completion; raises ValueError where there is none."""
    tree = _parse_json(body)
    choices = tree.get("choices") if isinstance(tree, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = f": {parse_error_message(body)}" if isinstance(tree, dict) and tree.get("error") else ""
        raise ValueError(f"no choices in the response{error}")
    choice = choices[0]
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None and isinstance(message, dict) and choice.get("finish_reason") in FINISHED:
        content = ""  # all of it was reasoning, or was filtered
    if not isinstance(content, str):
        raise ValueError("no text in the response")
    logprobs = _parse_logprobs(choice)
    mean_logprob = sum(logprobs) / len(logprobs) if logprobs else math.nan
    usage = tree.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return ChatResponse(
        text=content,
        ended=choice.get("finish_reason") != "length",
        num_tokens=counted if isinstance(counted, int) and 0 <= counted < 1 << 31 else len(logprobs),
        mean_logprob=mean_logprob if math.isfinite(mean_logprob) else None,
    )


def parse_error_message(body: bytes) -> str:
    """The server's error message, on one line."""
    text = body.decode("utf-8", "replace")
    try:
        tree = _parse_json(body)
        error = tree.get("error", tree.get("detail", tree.get("message", tree)))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:200]


def _parse_logprobs(choice: dict[str, Any]) -> list[float]:
    try:
        return [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


def _parse_json(body: bytes) -> Any:
    """Raises ValueError, also where it is nested too deep. A lone surrogate, which no file can hold, becomes "?"."""
    try:
        return json.loads(json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON: {body[:60]!r}") from None
