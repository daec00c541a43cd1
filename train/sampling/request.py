"""A sampling request and its state: yields the next window to denoise until the video is complete.

    request = Request(text="it moves left", conditioning=image_to_video(image_HWC, 17, tokenizer.grid))
    state = SamplingState(request, 0, tokenizer, window_length=5, overlap=2, is_autoregressive=True)
    while (window_input := state.next_input()) is not None:
        state.commit(tokenizer.decode(denoised_LD, window_input.token_shape))
    state.result().video_THWC

Several requests can share a pack (`pack_requests`); results do not depend on which ones do.
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
from train.compressors.pixels import to_frames, to_pixels
from train.sampling.conditioning_frames import ConditioningFrames, loop
from train.sampling.denoise import DenoiseInput
from train.sampling.windows import Window, WindowedVideo, overlapping_windows


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to sample."""

    text: str
    """The prompt; may be empty."""
    conditioning: ConditioningFrames
    seed: int = 0
    loop_frames: int = 0
    """Frames to sample after the video that lead back to its start: a loop from a text or an image."""
    long: str = "windows"
    """A video longer than a window is sampled window by window, or by `keyframes` (key_frames.py)."""
    noise_words: tuple[str | int, ...] = ()
    """Seed the noise beside the seed: parts of one video must not have equal noise."""

    def digest(self) -> str:
        """Hash of everything but `loop_frames` and `long`: equal for repeats of a request."""
        conditioning = self.conditioning
        words = self.text, self.seed, *self.noise_words, conditioning.mode, conditioning.strength
        digest = hashlib.sha256(repr((*words, *filter(None, [conditioning.source_text]))).encode())
        for array in (conditioning.frames_THWC, conditioning.condition_mask_T):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SampledVideo:
    """A sampled video."""

    video_THWC: np.ndarray
    """uint8 RGB."""
    condition_mask_T: np.ndarray
    """bool: its conditioning frames."""


class LatentTokenizer:
    """Frames <-> tokens of the transformer: compressor and patchify."""

    def __init__(self, compressor: Compressor, patch: Shape3, device: torch.device) -> None:
        self.compressor, self.device = compressor, device
        self.grid = Grid(frame_stride=compressor.frame_stride, spatial_stride=compressor.spatial_stride, patch=patch)

    @property
    def frames_per_token(self) -> int:
        """Frames of a token along time; the first token of a video has frame_stride - 1 fewer."""
        return self.grid.frame_stride * self.grid.patch[0]

    def encode(self, frames_THWC: np.ndarray) -> Tensor:
        """frames_THWC uint8 -> tokens_LD on the CPU."""
        return patchify(self.encode_latent(frames_THWC).cpu().contiguous(), self.grid.patch)

    def encode_latent(self, frames_THWC: np.ndarray) -> Tensor:
        """frames_THWC uint8 -> float32 latent (C, t, h, w), on the device."""
        frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).to(self.device)
        return self.compressor.encode(to_pixels(frames)[None])[0].float()

    def decode(self, tokens_LD: Tensor, token_shape: tuple[int, int, int]) -> np.ndarray:
        """tokens_LD -> frames_THWC uint8."""
        latents_BCTHW = unpatchify(tokens_LD.to(self.device), token_shape, self.grid.patch)[None]
        return to_frames(self.compressor.decode(latents_BCTHW)[0])


class SamplingState:
    """The state of one request: windows that are left to denoise, and the frames so far."""

    def __init__(
        self,
        request: Request,
        repetition: int,
        tokenizer: LatentTokenizer,
        *,
        window_length: int,
        overlap: int,
        is_autoregressive: bool,
    ) -> None:
        """
        Args:
            repetition: as of `number_repeats`; seeds the noise together with the request's seed.
            window_length, overlap: of windows, in token frames.
            is_autoregressive: windows are sampled one after the other; otherwise all at once, and averaged.
        """
        self.request, self.tokenizer, self.is_autoregressive = request, tokenizer, is_autoregressive
        self.window_length, self.overlap = window_length, overlap
        self.noise_key: tuple[str | int, ...] = ("sample", request.seed, repetition, *request.noise_words)
        self.video = self._windowed(request.conditioning)
        self.windows = self._plan()
        self.num_windows = len(self.windows) + (1 if request.loop_frames else 0)
        self.is_inverted = request.conditioning.source_text is not None
        self._before_loop_THWC = request.conditioning.frames_THWC[:0]
        self._input: DenoiseInput | None = None

    @property
    def num_passes(self) -> int:
        """How often the solver runs: twice for a window that is inverted first."""
        return self.num_windows * (1 + self.is_inverted)

    @property
    def has_context(self) -> bool:
        """Whether any of its windows has conditioning frames: given, or sampled by the window before."""
        is_chained = self.is_autoregressive and self.num_windows > 1
        return is_chained or bool(self.request.conditioning.condition_mask_T.any())

    def _windowed(self, conditioning: ConditioningFrames) -> WindowedVideo:
        grid = self.tokenizer.grid
        return WindowedVideo(conditioning, grid, window_length=self.window_length, overlap=self.overlap)

    def _plan(self) -> list[Window]:
        """Windows to denoise one after the other, or the whole video as one, whose predictions are averaged."""
        windows = self.video.windows
        if len(windows) > 1 and not self.is_autoregressive:
            return [Window(0, len(self.video.condition_mask_K))]
        return list(windows)

    def next_input(self) -> DenoiseInput | None:
        """The next window to denoise; None once the video is complete."""
        if self._input is None and self.windows:
            self._input = self._input_of(self.windows[0])
        return self._input

    def _input_of(self, window: Window) -> DenoiseInput:
        conditioning, tokenizer = self.video.conditioning, self.tokenizer
        frames_THWC, mask_K = self.video.window_inputs(window)
        needs_clean = bool(mask_K.any()) or conditioning.starts_from_frames
        windows = overlapping_windows(window.length, self.window_length, self.overlap)
        return DenoiseInput(
            text=self.request.text,
            noise_key=self.noise_key if window.start == 0 else (*self.noise_key, "window", window.start),
            token_shape=tokenizer.grid.token_shape(*frames_THWC.shape[:3]),
            clean_LD=tokenizer.encode(frames_THWC) if needs_clean else None,
            condition_mask_K=tuple(mask_K.tolist()) if mask_K.any() else (),
            strength=conditioning.strength,
            source_text=conditioning.source_text,
            windows=tuple(windows) if window.length > self.window_length else (),
        )

    def commit(self, decoded_THWC: np.ndarray) -> None:
        """Store the decoded frames of the window of `next_input`, and go on to the one after it."""
        self.video.commit(self.windows.pop(0), decoded_THWC)
        self._input = None
        if not self.windows:
            self._decode_conditioning()
            if self.request.loop_frames and self.video.conditioning.mode != "loop":
                self._start_loop()

    def _decode_conditioning(self) -> None:
        """Pass the conditioning frames that no window contained through the compressor, so that the video looks uniform."""
        grid = self.tokenizer.grid
        for window in self.video.undecoded(self.window_length):
            frames_THWC = self.video.conditioning.frames_THWC[window.frames(grid)]
            shape = grid.token_shape(*frames_THWC.shape[:3])
            self.video.commit(window, self.tokenizer.decode(self.tokenizer.encode(frames_THWC), shape))

    def _start_loop(self) -> None:
        """Take the sampled video as conditioning for the frames that lead back to its start."""
        self._before_loop_THWC = self._frames()
        repeated_frames = self.overlap * self.tokenizer.frames_per_token
        conditioning = loop(self._before_loop_THWC, self.request.loop_frames, repeated_frames, self.tokenizer.grid)
        self.video = self._windowed(conditioning)
        self.noise_key = (*self.noise_key, "closing")  # seeds the noise: another word would be another video
        self.windows = self._plan()

    def _frames(self) -> np.ndarray:
        conditioning = self.video.conditioning
        video_THWC = self.video.frames_THWC[conditioning.start : conditioning.end]
        # The frames before the loop are kept as sampled, not compressed a second time.
        return np.concatenate([self._before_loop_THWC, video_THWC[len(self._before_loop_THWC) :]])

    def result(self, *, original_pixels: bool = False) -> SampledVideo:
        """The sampled video.

        Args:
            original_pixels: conditioning frames with their original pixels, not as the compressor decodes them.
        """
        conditioning, video_THWC = self.request.conditioning, self._frames()
        span = slice(conditioning.start, conditioning.end)
        mask_T = conditioning.condition_mask_T[span]
        mask_T = np.append(mask_T, np.zeros(len(video_THWC) - len(mask_T), bool))
        if original_pixels:
            video_THWC[mask_T] = conditioning.frames_THWC[span][conditioning.condition_mask_T[span]]
        return SampledVideo(video_THWC=video_THWC, condition_mask_T=mask_T)


def number_repeats(requests: Sequence[Request]) -> list[tuple[Request, int]]:
    """(request, number of equal requests before it).

    Seed and number seed the noise: a request gives the same video alone and among others, two prompts of one seed can be
    compared, and a repeated request gives another video.
    """
    counts: Counter[str] = Counter()
    numbered = []
    for request in requests:
        digest = request.digest()
        numbered.append((request, counts[digest]))
        counts[digest] += 1
    return numbered


def pack_requests(states: Sequence[SamplingState], max_tokens: int) -> list[list[SamplingState]]:
    """Group requests whose next windows share a pack."""
    inputs = [one for state in states if (one := state.next_input())]
    return [[states[index] for index in pack] for pack in pack_inputs(inputs, max_tokens)]


def pack_inputs(inputs: Sequence[DenoiseInput], max_tokens: int) -> list[list[int]]:
    """Indices of inputs that share a pack, in their order; an input of several windows gets a pack of its own."""
    packs: list[list[int]] = []
    num_tokens = max_tokens
    for index, one in enumerate(inputs):
        length = max_tokens if one.windows else one.num_tokens
        if num_tokens + length > max_tokens:
            packs.append([])
            num_tokens = 0
        packs[-1].append(index)
        num_tokens += length
    return packs
