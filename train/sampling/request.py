"""One video that is asked for, and how far it is: which window of it is to be denoised next, until none is.

    request = Request(text="it moves left", timeline=animated(image_HWC, 17, codec.grid))
    work = Work(request, 0, codec, longest=5, overlap=2, is_rolled=True)
    while (piece := work.next_piece()) is not None:
        work.take(codec.decode(denoised_LD, piece.token_shape))
    work.made().video_THWC

Several works share the model's rows (`in_rows`); none of them notices.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from packing.grid import Grid, Shape3
from packing.loader.batch import patchify, unpatchify
from train.compressors.interface import Compressor
from train.sampling.conditioning_frames import Timeline, looped
from train.sampling.denoise import Piece
from train.sampling.windows import Canvas, Window, overlapping


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video that is asked for."""

    text: str
    """Blank: whatever the given frames suggest."""
    timeline: Timeline
    seed: int = 0
    closing_frames: int = 0
    """Frames made at the end of the whole that lead back to its start: a loop out of a text or an image."""

    def digest(self) -> str:
        """Equal for requests that ask for the same."""
        timeline = self.timeline
        digest = hashlib.sha256(repr((self.text, self.seed, timeline.mode, timeline.noise_share)).encode())
        for array in (timeline.frames_THWC, timeline.given_T):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Made:
    """One video that was made."""

    video_THWC: np.ndarray
    """uint8 RGB."""
    given_T: np.ndarray
    """bool: frames that were given."""


class TokenCodec:
    """Frames to the transformer's tokens and back."""

    def __init__(self, compressor: Compressor, patch: Shape3, device: torch.device) -> None:
        self.compressor, self.device = compressor, device
        self.grid = Grid(frame_stride=compressor.frame_stride, spatial_stride=compressor.spatial_stride, patch=patch)

    @property
    def frames_per_token(self) -> int:
        """Of every token but the first of a video, which holds the first frame alone, or that and groups after it."""
        return self.grid.frame_stride * self.grid.patch[0]

    def encode(self, frames_THWC: np.ndarray) -> Tensor:
        """tokens_LD of frames, on the CPU."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames_THWC)).to(self.device)
        latents_BCTHW = self.compressor.encode(pixels.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
        return patchify(latents_BCTHW[0].float().cpu().contiguous(), self.grid.patch)

    def decode(self, tokens_LD: Tensor, token_shape: tuple[int, int, int]) -> np.ndarray:
        """The inverse: frames_THWC uint8."""
        latents_BCTHW = unpatchify(tokens_LD.to(self.device), token_shape, self.grid.patch)[None]
        pixels_CTHW = self.compressor.decode(latents_BCTHW)[0].float().clamp(-1, 1)
        return ((pixels_CTHW + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().contiguous().numpy()


class Work:
    """One request on its way: the window that is due, until none is."""

    def __init__(
        self,
        request: Request,
        repetition: int,
        codec: TokenCodec,
        *,
        longest: int,
        overlap: int,
        is_rolled: bool,
    ) -> None:
        """
        Args:
            longest, overlap: of windows, in token frames.
            is_rolled: windows are made one after the other; otherwise all at once, and averaged.
        """
        self.request, self.codec, self.is_rolled = request, codec, is_rolled
        self.longest, self.overlap = longest, overlap
        self.noise_key: tuple[str | int, ...] = ("sample", request.seed, repetition)
        self.canvas = Canvas(request.timeline, codec.grid, longest=longest, overlap=overlap)
        self.windows = self._due()
        self.num_windows = len(self.windows) + (1 if request.closing_frames else 0)
        self._opening_THWC = request.timeline.frames_THWC[:0]
        self._piece: Piece | None = None

    def _due(self) -> list[Window]:
        """Windows yet to be made: one after the other, or one that is seen in pieces (see windows.py)."""
        windows = self.canvas.windows
        if len(windows) > 1 and not self.is_rolled:
            return [Window(0, len(self.canvas.given_K))]
        return list(windows)

    def next_piece(self) -> Piece | None:
        """What is to be denoised next; None where all is done."""
        if self._piece is None and self.windows:
            self._piece = self._piece_of(self.windows[0])
        return self._piece

    def _piece_of(self, window: Window) -> Piece:
        timeline, codec = self.canvas.timeline, self.codec
        frames_THWC, given_K = self.canvas.before(window)
        needs_clean = bool(given_K.any()) or timeline.noise_share < 1
        is_long = window.length > self.longest
        return Piece(
            text=self.request.text,
            noise_key=self.noise_key if window.start == 0 else (*self.noise_key, "window", window.start),
            token_shape=codec.grid.token_shape(*frames_THWC.shape[:3]),
            clean_LD=codec.encode(frames_THWC) if needs_clean else None,
            given_K=tuple(given_K.tolist()) if given_K.any() else (),
            noise_share=timeline.noise_share,
            windows=tuple(overlapping(window.length, self.longest, self.overlap)) if is_long else (),
        )

    def take(self, decoded_THWC: np.ndarray) -> None:
        self.canvas.take(self.windows.pop(0), decoded_THWC)
        self._piece = None
        if not self.windows:
            self._show_given()
            if self.request.closing_frames and self.canvas.timeline.mode != "loop":
                self._close()

    def _show_given(self) -> None:
        """Given frames that no window has seen go through the compressor too: all of a video looks alike."""
        grid = self.codec.grid
        for window in self.canvas.unshown(self.longest):
            frames_THWC = self.canvas.timeline.frames_THWC[window.frames(grid)]
            shape = grid.token_shape(*frames_THWC.shape[:3])
            self.canvas.take(window, self.codec.decode(self.codec.encode(frames_THWC), shape))

    def _close(self) -> None:
        """What was made is now given, and led back to its start."""
        self._opening_THWC = self._result()
        timeline = looped(
            self._opening_THWC, self.request.closing_frames, self.overlap * self.codec.frames_per_token, self.codec.grid
        )
        self.canvas = Canvas(timeline, self.codec.grid, longest=self.longest, overlap=self.overlap)
        self.noise_key = (*self.noise_key, "closing")
        self.windows = self._due()

    def _result(self) -> np.ndarray:
        timeline = self.canvas.timeline
        video_THWC = self.canvas.frames_THWC[timeline.start : timeline.end]
        # What was made before the loop is closed is not compressed a second time.
        return np.concatenate([self._opening_THWC, video_THWC[len(self._opening_THWC) :]])

    def made(self, *, is_original: bool = False) -> Made:
        """What became of the request.

        Args:
            is_original: given frames with the pixels they came with, not as the compressor shows them.
        """
        timeline, video_THWC = self.request.timeline, self._result()
        span = slice(timeline.start, timeline.end)
        given_T = timeline.given_T[span]
        given_T = np.append(given_T, np.zeros(len(video_THWC) - len(given_T), bool))
        if is_original:
            video_THWC[given_T] = timeline.frames_THWC[span][timeline.given_T[span]]
        return Made(video_THWC=video_THWC, given_T=given_T)


def with_repetitions(requests: Sequence[Request]) -> list[tuple[Request, int]]:
    """(request, how often the same came before).

    The second number and the seed make the noise: a prompt gives the same video alone and in company, two prompts of
    one seed can be compared, and the same prompt twice gives two videos.
    """
    seen: Counter[str] = Counter()
    keyed = []
    for request in requests:
        digest = request.digest()
        keyed.append((request, seen[digest]))
        seen[digest] += 1
    return keyed


def in_rows(works: Sequence[Work], max_tokens: int) -> list[list[Work]]:
    """Works whose next pieces share a row; one that the model sees in several windows has a row of its own."""
    rows: list[list[Work]] = []
    num_tokens = max_tokens
    for work in works:
        piece = work.next_piece()
        assert piece is not None
        length = max_tokens if piece.windows else piece.num_tokens
        if num_tokens + length > max_tokens:
            rows.append([])
            num_tokens = 0
        rows[-1].append(work)
        num_tokens += length
    return rows
