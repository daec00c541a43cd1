"""A model behind an OpenAI-compatible endpoint as captioner: frames travel as JPEGs, nothing runs here.

    captioner = load_captioner("http://localhost:8000/v1#Qwen/Qwen3-VL-8B-Instruct")

A clip that the endpoint has no answer for, after all tries, gets an empty caption, which fails its gate: one marked row.
An endpoint that is down is one `EndpointDownError`. See `recaption.chat_endpoint` for both.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from recaption.captioners.backends.instructions import QUESTIONS, question_for
from recaption.captioners.base import Batch, Describing, Said, Told
from recaption.captioners.preprocess import choose_frames
from recaption.chat_endpoint import Answer, ChatEndpoint, EndpointSettings, Question

NUM_FRAMES = 8


FRAME_PX = 448
"""Shorter side: at 8 frames of 16:9 some 4,000 tokens for the models of 2025, and 50 kB a frame."""


JPEG_QUALITY = 90


MAX_TOKENS = 512


class HttpCaptioner(Describing):
    """One question per clip, many at a time."""

    kinds = tuple(QUESTIONS)
    has_beams = False

    def __init__(self, endpoint: ChatEndpoint, *, prompt: str, num_frames: int, weights_hash: str) -> None:
        """
        Args:
            weights_hash: of what is known about the weights, which is their name.
        """
        self.endpoint, self.prompt = endpoint, prompt
        self.name, self.weights_hash = f"http:{endpoint.model}", weights_hash
        self.num_frames, self.frame_px, self.max_tokens = num_frames or NUM_FRAMES, FRAME_PX, MAX_TOKENS
        self.clips_per_batch = (
            2 * endpoint.settings.concurrency
        )  # the next ones are encoded while answers are waited for

    def tell(self, batch: Batch) -> Told:
        questions = [
            Question(
                key=key,
                messages=self._messages(clip, batch.kind),
                max_tokens=batch.decoding.max_tokens,
                temperature=batch.decoding.temperature,
                top_p=batch.decoding.top_p,
                seed=_seed(batch.seed, key),
            )
            for clip, key in zip(batch.clips, batch.keys, strict=True)
        ]
        return Told(said=[_said(answer) for answer in self.endpoint.ask(questions)])

    def _messages(self, clip_THWC: np.ndarray, kind: str) -> list[dict[str, Any]]:
        frames = clip_THWC[choose_frames(len(clip_THWC), self.num_frames, repeat=False)]
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in frames]
        words = f"These are {len(frames)} frames of one video clip, in order. {question_for(kind, self.prompt)}"
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": words}]}]


def open_http(
    spec: str,
    *,
    device: str,
    dtype: torch.dtype | None,
    prompt: str,
    num_frames: int,
    endpoint: EndpointSettings | None,
) -> HttpCaptioner:
    """Raises as `ChatEndpoint.check`. `device` and `dtype` are the endpoint's own affair."""
    chat = ChatEndpoint.at(spec, endpoint)
    listed = chat.check()
    known = f"{chat.model} {listed.get('root', '')} {listed.get('max_model_len', '')}"
    digest = hashlib.sha256(known.encode()).hexdigest()[:12]
    return HttpCaptioner(chat, prompt=prompt, num_frames=num_frames, weights_hash=digest)


def _seed(seed: int, key: str) -> int:
    """A seed for each clip and sample: with one for all, a server draws alike for clips that look alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "big") >> 1


def _said(answer: Answer) -> Said:
    return Said(
        text=answer.text,
        num_tokens=answer.num_tokens,
        mean_logprob=answer.mean_logprob,
        ended=answer.ended,
        fault="no_answer" if answer.fault else "",
    )


def _data_url(frame_HWC: np.ndarray) -> str:
    """A frame as JPEG, no larger than `FRAME_PX` on its shorter side."""
    picture = Image.fromarray(np.ascontiguousarray(frame_HWC))
    short = min(picture.size)
    if short > FRAME_PX:
        picture = picture.resize(_scaled(picture.size, FRAME_PX / short), Image.Resampling.BICUBIC)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
