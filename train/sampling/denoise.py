"""From noise to clean tokens, for several videos at once: one packed row, with and without its texts.

    pieces = [Piece(text="a red circle", noise_key=("sample", 0, 0), token_shape=(5, 8, 8))]
    tokens = denoise(model, pieces, encoder=encoder, path=path, num_steps=40, guidance=Guidance(), solver="auto")

A piece may come with tokens that are given (they are put back before every model call, so that any solver will do), start
from something else than noise alone, or be longer than the model should see: then it is seen in overlapping windows,
whose answers are averaged.

Shape suffixes: L tokens of a row, S pieces of a row, V windows of a row, D numbers per token, K points in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from packing.grid import Shape3, positions
from train.diffusion.guidance import Guidance
from train.diffusion.noise_schedules import NUM_DISCRETE_STEPS
from train.diffusion.process import PathDraws, PathSettings, path_point
from train.diffusion.rng import generator_for
from train.diffusion.solvers import integrate, sampling_times
from train.layers.segments import Segments
from train.sampling.windows import Window, ramp
from train.text.encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is denoised as one: a video, or a window of one."""

    text: str
    noise_key: tuple[str | int, ...]
    """Everything that its noise depends on."""
    token_shape: Shape3
    """Tokens along (frames, rows, columns)."""
    clean_LD: Tensor | None = None
    """Its tokens where they are given, or where it starts from them."""
    given_K: tuple[bool, ...] = ()
    """Per token frame: whether `clean_LD` stays as it is there. Empty: nowhere."""
    noise_share: float = 1.0
    """Noise at the start; below 1 the rest is `clean_LD`."""
    windows: tuple[Window, ...] = field(default=())
    """Of token frames, as of `canvas.overlapping`; none: all frames are seen at once."""

    @property
    def tokens_per_frame(self) -> int:
        return self.token_shape[1] * self.token_shape[2]

    @property
    def num_tokens(self) -> int:
        return self.token_shape[0] * self.tokens_per_frame

    @property
    def seen(self) -> tuple[Window, ...]:
        return self.windows or (Window(0, self.token_shape[0]),)


def denoise(
    model: nn.Module,
    pieces: Sequence[Piece],
    *,
    encoder: TextEncoder,
    path: PathSettings,
    num_steps: int,
    guidance: Guidance,
    solver: str,
    max_row_tokens: int,
    on_step: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Clean tokens of every piece.

    Args:
        max_row_tokens: of one model call; only windows of one piece are called for one after the other.
    """
    row = _Row(model, pieces, encoder, guidance, max_row_tokens)
    times_KS = _times(pieces, num_steps, path, row.device)
    x_LD = integrate(
        row.answer,
        row.start(path, times_KS[0]),
        row.segments,
        times_KS,
        path=path,
        solver=solver,
        noise_of=lambda number: row.noise("step", number),
        on_step=on_step,
    )
    return list(row.with_given(x_LD).split([piece.num_tokens for piece in pieces]))


def _times(pieces: Sequence[Piece], num_steps: int, path: PathSettings, device: torch.device) -> Tensor:
    """(K+1, S): the schedule of what the model sees of each piece, from where the piece starts."""
    shapes = [(piece.seen[0].length, *piece.token_shape[1:]) for piece in pieces]
    seen = Segments.from_lengths([frames * rows * columns for frames, rows, columns in shapes], device)
    share_S = torch.tensor([piece.noise_share for piece in pieces], device=device)
    times_KS = sampling_times(num_steps, seen, path, token_shapes=shapes) * share_S
    return (times_KS * NUM_DISCRETE_STEPS).ceil() / NUM_DISCRETE_STEPS if path.discrete else times_KS


class _Row:
    """The tensors of some pieces, and the model's answer for them."""

    def __init__(
        self, model: nn.Module, pieces: Sequence[Piece], encoder: TextEncoder, guidance: Guidance, max_row_tokens: int
    ) -> None:
        self.model, self.pieces, self.guidance = model, pieces, guidance
        self.device = next(model.parameters()).device
        self.segments = Segments.from_lengths([piece.num_tokens for piece in pieces], self.device)
        self.clean_LD, self.given_L = self._clean(), self._given()
        windows = [(index, window) for index, piece in enumerate(pieces) for window in piece.seen]
        self.calls = [_Call(pieces, some, encoder, self.device) for some in _in_calls(pieces, windows, max_row_tokens)]
        self.is_averaged = any(len(piece.seen) > 1 for piece in pieces)

    def _clean(self) -> Tensor | None:
        if all(piece.clean_LD is None for piece in self.pieces):
            return None
        width = self.model.config["token_width"]
        parts = [torch.zeros(p.num_tokens, width) if p.clean_LD is None else p.clean_LD for p in self.pieces]
        return torch.cat([part.to(self.device) for part in parts])

    def _given(self) -> Tensor | None:
        if not any(any(piece.given_K) for piece in self.pieces):
            return None
        masks = [
            torch.tensor(piece.given_K or (False,) * piece.token_shape[0]).repeat_interleave(piece.tokens_per_frame)
            for piece in self.pieces
        ]
        return torch.cat(masks).to(self.device)

    def start(self, path: PathSettings, timestep_S: Tensor) -> Tensor:
        """Noise, mixed into what the pieces start from."""
        noise_LD = self.noise()
        if all(piece.noise_share == 1 for piece in self.pieces):
            return noise_LD
        assert self.clean_LD is not None, "a piece that starts below 1 has something to start from"
        mixed_LD = path_point(self.clean_LD, PathDraws(timestep_S, noise_LD), self.segments, path).x_LD
        is_mixed_S = torch.tensor([piece.noise_share < 1 for piece in self.pieces], device=self.device)
        return torch.where(is_mixed_S[self.segments.index_L, None], mixed_LD, noise_LD)

    def noise(self, *step: str | int) -> Tensor:
        """Of the start, or of one step: every piece's own, whatever the others are."""
        width = self.model.config["token_width"]
        return torch.cat(
            [torch.randn(p.num_tokens, width, generator=generator_for(*p.noise_key, *step)) for p in self.pieces]
        ).to(self.device)

    def with_given(self, x_LD: Tensor) -> Tensor:
        if self.given_L is None:
            return x_LD
        assert self.clean_LD is not None
        return torch.where(self.given_L[:, None], self.clean_LD, x_LD)

    def answer(self, x_LD: Tensor, timestep_S: Tensor) -> Tensor:
        """The model's guided answer. 0 at given tokens, which are put back before the next call anyway."""
        x_LD = self.with_given(x_LD)
        if not self.is_averaged:
            (call,) = self.calls
            return self._answer(call, x_LD, timestep_S)
        answer_LD, weight_L1 = torch.zeros_like(x_LD), x_LD.new_zeros(len(x_LD), 1)
        for call in self.calls:
            part_LD = self._answer(call, x_LD[call.index_L], timestep_S)
            answer_LD.index_add_(0, call.index_L, part_LD * call.weight_L1)
            weight_L1.index_add_(0, call.index_L, call.weight_L1)
        return answer_LD / weight_L1

    def _answer(self, call: _Call, x_LD: Tensor, timestep_S: Tensor) -> Tensor:
        """Of the windows of one call."""
        timestep_V = timestep_S[call.piece_V]
        given_L = None if self.given_L is None else self.given_L[call.index_L]
        if bool((self.guidance.weights(timestep_V) == 1).all()):
            return call.ask(self.model, x_LD, timestep_V, given_L, copies=1)
        with_text_LD, without_LD = call.ask(self.model, x_LD, timestep_V, given_L, copies=2).chunk(2)
        return self.guidance.combine(with_text_LD, without_LD, timestep_V, call.segments)


class _Call:
    """The windows that the model sees at once. Each is a sample of its own, with its own positions from 0."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        windows: Sequence[tuple[int, Window]],
        encoder: TextEncoder,
        device: torch.device,
    ) -> None:
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + piece.num_tokens)
        index, position, weight, lengths = [], [], [], []
        for number, window in windows:
            piece = pieces[number]
            per_frame = piece.tokens_per_frame
            first = starts[number] + window.start * per_frame
            index.append(torch.arange(first, first + window.length * per_frame))
            position.append(torch.from_numpy(positions((window.length, *piece.token_shape[1:]))))
            weight.append(torch.from_numpy(ramp(window)).repeat_interleave(per_frame))
            lengths.append(window.length * per_frame)
        self.index_L = torch.cat(index).to(device)
        self.weight_L1 = torch.cat(weight)[:, None].to(device)
        self.position_L3 = torch.cat(position).to(device)
        self.segments = Segments.from_lengths(lengths, device)
        self.piece_V = torch.tensor([number for number, _ in windows], device=device)
        self.text = encoder.encode([pieces[number].text for number, _ in windows]).to(device)

    def ask(self, model: nn.Module, x_LD: Tensor, timestep_V: Tensor, given_L: Tensor | None, *, copies: int) -> Tensor:
        """With the texts; in a second copy of the row, without. 0 at given tokens."""
        num_windows = len(self.segments)
        answer_LD = model(
            x_LD.repeat(copies, 1),
            self.position_L3.repeat(copies, 1),
            self.segments.repeated(copies),
            timestep_V.repeat(copies),
            self.text.text_MC.repeat(copies, 1),
            self.text.segments.repeated(copies),
            self.text.pooled_SC.repeat(copies, 1),
            drop_text_S=[False] * num_windows + [True] * (num_windows * (copies - 1)),
            given_L=None if given_L is None else given_L.repeat(copies),
        )
        return answer_LD if given_L is None else answer_LD.masked_fill(given_L.repeat(copies)[:, None], 0)


def _in_calls(
    pieces: Sequence[Piece], windows: Sequence[tuple[int, Window]], max_row_tokens: int
) -> list[list[tuple[int, Window]]]:
    """One call where no piece has several windows; else as many as the cap on tokens asks for."""
    if all(len(piece.seen) == 1 for piece in pieces):
        return [list(windows)]
    calls: list[list[tuple[int, Window]]] = [[]]
    num_tokens = 0
    for number, window in windows:
        length = window.length * pieces[number].tokens_per_frame
        if calls[-1] and num_tokens + length > max_row_tokens:
            calls.append([])
            num_tokens = 0
        calls[-1].append((number, window))
        num_tokens += length
    return calls
