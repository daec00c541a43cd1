"""A captioner behind an OpenAI-compatible endpoint: frames are sent as JPEGs, the model runs on the server.

    captioner = load_captioner("http://localhost:8000/v1#Qwen/Qwen3-VL-8B-Instruct")

A clip whose request fails after all retries gets an empty caption with fault `no_answer`: the next run asks again. One that
the server rejects (too long for its context, filtered) has the fault `rejected`, which is final. An endpoint that is down
raises one `EndpointDownError`. See `recaption.chat_endpoint.endpoint` for both.
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

from recaption.captioners.backends.instructions import INSTRUCTIONS, instruction_for
from recaption.captioners.base import BaseCaptioner, ClipBatch, GeneratedText, GenerationOutput
from recaption.captioners.preprocess import uniform_frame_indices
from recaption.chat_endpoint.endpoint import ChatEndpoint, EndpointSettings
from recaption.chat_endpoint.messages import ChatRequest, ChatResponse

NUM_FRAMES = 8
"""Default number of frames per clip."""
FRAME_PX = 448
"""Largest shorter side that is sent: 8 frames of 16:9 are some 4,000 tokens for the models of 2025, and 50 kB each."""
JPEG_QUALITY = 90
MAX_TOKENS = 512


class HttpCaptioner(BaseCaptioner):
    """One request per clip, many concurrent."""

    kinds = tuple(INSTRUCTIONS)
    supports_beam_search = False

    def __init__(self, endpoint: ChatEndpoint, *, prompt: str, num_frames: int, weights_hash: str) -> None:
        """
        Args:
            weights_hash: a hash of the model name and what the server lists about it; the weights are not visible.
        """
        self.endpoint, self.prompt = endpoint, prompt
        self.name, self.weights_hash = f"http:{endpoint.model}", weights_hash
        self.num_frames, self.frame_px, self.max_tokens = num_frames or NUM_FRAMES, FRAME_PX, MAX_TOKENS
        # twice the concurrency: the next clips are encoded as JPEGs while responses are pending
        self.clips_per_batch = 2 * endpoint.settings.concurrency

    def generate(self, batch: ClipBatch) -> GenerationOutput:
        requests = [
            ChatRequest(
                key=key,
                messages=self._messages(clip, batch.kind),
                max_tokens=batch.decoding.max_tokens,
                temperature=batch.decoding.temperature,
                top_p=batch.decoding.top_p,
                seed=_request_seed(batch.seed, key),
            )
            for clip, key in zip(batch.clips, batch.rng_keys, strict=True)
        ]
        return GenerationOutput(texts=[_generated_text(answer) for answer in self.endpoint.complete(requests)])

    def _messages(self, clip_THWC: np.ndarray, kind: str) -> list[dict[str, Any]]:
        frames = clip_THWC[uniform_frame_indices(len(clip_THWC), self.num_frames, repeat=False)]
        images = [{"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in frames]
        text = f"These are {len(frames)} frames of one video clip, in order. {instruction_for(kind, self.prompt)}"
        return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def open_http(
    spec: str,
    *,
    device: str,
    dtype: torch.dtype | None,
    prompt: str,
    num_frames: int,
    endpoint: EndpointSettings | None,
) -> HttpCaptioner:
    """Connect to an endpoint and check its model; raises as `ChatEndpoint.check`.

    `device` and `dtype` are ignored: the model runs on the server.
    """
    chat = ChatEndpoint.at(spec, endpoint)
    model_entry = chat.check()
    identity = f"{chat.model} {model_entry.get('root', '')} {model_entry.get('max_model_len', '')}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return HttpCaptioner(chat, prompt=prompt, num_frames=num_frames, weights_hash=digest)


def _request_seed(seed: int, key: str) -> int:
    """A seed per clip and sample: with one seed for all, a server may sample the same for similar clips."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "big") >> 1


def _generated_text(answer: ChatResponse) -> GeneratedText:
    return GeneratedText(
        text=answer.text,
        num_tokens=answer.num_tokens,
        mean_logprob=answer.mean_logprob,
        ended=answer.ended,
        fault=("rejected" if answer.is_final else "no_answer") if answer.error else "",
    )


def _data_url(frame_HWC: np.ndarray) -> str:
    """A frame as JPEG data URL, its shorter side at most `FRAME_PX`."""
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    short = min(image.size)
    if short > FRAME_PX:
        image = image.resize(_scaled(image.size, FRAME_PX / short), Image.Resampling.BICUBIC)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
