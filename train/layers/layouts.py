"""Other groupings of a pack's tokens: by frame, by place along time, by window. Attention within them is packed attention.

    layouts = Layouts(segments, position_L3)                   # once per batch, on the CPU, where lengths are read
    places = layouts[("places",)]                              # tokens of one place, in the order of time
    x_LD = places.scatter(attention(places.gather(x_LD), places.segments), x_LD)

| key | tokens that attend to each other |
| --- | --- |
| ("frames",) | of one frame of a sample |
| ("places",) | of one (row, column) of a sample, over its frames |
| ("places", "videos") | the same, of samples with several frames only: images are left out |
| ("windows", h, w) | of one window of h x w tokens of one frame; windows at the rim are smaller |
| ("windows", h, w, top, left) | the same, the windows moved up and left by that many tokens |

A layout is a permutation of the pack and `Segments` over it, so that dropped tokens, any size and any length are its usual
case: nothing is padded. Shape suffixes: L tokens of a pack, D width, 3 = (frame, row, column).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from train.layers.segments import Segments
from train.parallel.transfer import copied


class BuiltLayout(Protocol):
    """What `Layouts` keeps."""

    def to(self, device: torch.device | str) -> Any: ...

    def repeated(self, times: int, num_tokens: int) -> Any:
        """Of the same samples `times` times in one pack of `num_tokens` each time."""


class LayoutBuilder(Protocol):
    """A key that builds something else for its backbone, a pyramid of grids for example; hashable."""

    def build(self, segments: Segments, position_L3: Tensor) -> BuiltLayout:
        """On the CPU."""


LayoutKey = tuple[str | int, ...] | LayoutBuilder
"""("frames",), ("places",), ("places", "videos"), ("windows", h, w), ("windows", h, w, top, left), or a builder."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a pack, or those of some of its samples, in another order, with the segments of that order."""

    segments: Segments
    samples: Segments
    """The samples of the pack in this order, which keeps them together; one that is left out has no tokens."""
    index_L: Tensor | None
    """int64: token of the pack at each place of the layout; None: the order of the pack."""
    inverse_L: Tensor | None
    """int64: place in the layout of each token of the pack; None: the order of the pack, or samples are left out."""

    def gather(self, x_LD: Tensor) -> Tensor:
        """Tokens of the pack in the order of the layout."""
        return x_LD if self.index_L is None else x_LD[self.index_L]

    def scatter(self, x_LD: Tensor, pack_LD: Tensor | None = None) -> Tensor:
        """Tokens of the layout in the order of the pack: the inverse of `gather`.

        Args:
            pack_LD: the pack as it was, for tokens that the layout leaves out.
        """
        if self.index_L is None:
            return x_LD
        if self.inverse_L is not None:
            return x_LD[self.inverse_L]
        assert pack_LD is not None, "the layout leaves tokens out"
        return pack_LD.index_copy(0, self.index_L, x_LD)

    def to(self, device: torch.device | str) -> Layout:
        index, inverse = (None if one is None else copied(one, device) for one in (self.index_L, self.inverse_L))
        return Layout(self.segments.to(device), self.samples.to(device), index, inverse)

    def repeated(self, times: int, num_tokens: int) -> Layout:
        """Of the same samples `times` times in one pack of `num_tokens` each time."""

        def of(index_L: Tensor | None) -> Tensor | None:
            if index_L is None:
                return None
            return torch.cat([index_L + copy * num_tokens for copy in range(times)])

        segments, samples = self.segments.repeated(times), self.samples.repeated(times)
        return Layout(segments, samples, of(self.index_L), of(self.inverse_L))


class Layouts:
    """The layouts of one pack by key, each built once."""

    def __init__(self, segments: Segments, position_L3: Tensor) -> None:
        """
        Args:
            position_L3: int, (frame, row, column) of each token; on a GPU it is read back with each new layout (a host
                sync), so build those that a model needs (`built`) before the batch is moved.
        """
        self.segments, self.position_L3 = segments, position_L3
        self._layouts: dict[LayoutKey, Any] = {}
        self._repeated: dict[int, Layouts] = {}

    def __getitem__(self, key: LayoutKey) -> Any:
        """A `Layout`, or what the builder builds. Raises ValueError where the key names no layout."""
        if key not in self._layouts:
            position_L3 = self.position_L3.cpu()
            made = (
                layout_of(self.segments, position_L3, key)
                if isinstance(key, tuple)
                else key.build(self.segments, position_L3)
            )
            self._layouts[key] = made.to(self.segments.cu_seqlens.device)
        return self._layouts[key]

    def built(self, keys: Iterable[LayoutKey]) -> Layouts:
        """The same, with these layouts built."""
        for key in keys:
            self[key]
        return self

    def to(self, device: torch.device | str, segments: Segments, position_L3: Tensor) -> Layouts:
        """On another device, with what has been built; `segments` and `position_L3` are the ones moved there already."""
        moved = Layouts(segments, position_L3)
        moved._layouts = {key: layout.to(device) for key, layout in self._layouts.items()}
        return moved

    def repeated(self, times: int) -> Layouts:
        """Of the same samples `times` times in one pack, for classifier-free guidance. Built once."""
        if times == 1:
            return self
        if times not in self._repeated:
            again = Layouts(self.segments.repeated(times), self.position_L3.repeat(times, 1))
            num_tokens = self.segments.num_tokens
            again._layouts = {key: layout.repeated(times, num_tokens) for key, layout in self._layouts.items()}
            self._repeated[times] = again
        return self._repeated[times]


def layout_of(segments: Segments, position_L3: Tensor, key: tuple[str | int, ...]) -> Layout:
    """Tokens sorted by (sample, group) and, within a group, in the order of the pack."""
    samples, token_L = segments, torch.arange(segments.num_tokens)
    if key[1:] == ("videos",):
        samples, token_L = _videos(segments, position_L3)
    position_L3, number_L = position_L3[token_L], segments.segment_ids_L.cpu()[token_L]
    for axis_L in _groups(position_L3, key).unbind(1):  # one number per group, in lexicographic order
        number_L = number_L * (int(axis_L.max()) + 1 if len(axis_L) else 1) + axis_L
    _, group_L, count_G = torch.unique(number_L, return_inverse=True, return_counts=True)
    index_L = token_L[torch.argsort(group_L, stable=True)]
    lengths, is_whole = Segments.from_lengths(count_G.tolist()), len(index_L) == segments.num_tokens
    if is_whole and bool((index_L == torch.arange(len(index_L))).all()):
        return Layout(lengths, samples, None, None)
    return Layout(lengths, samples, index_L, torch.argsort(index_L) if is_whole else None)


def _videos(segments: Segments, position_L3: Tensor) -> tuple[Segments, Tensor]:
    """The samples with tokens of several frames, the others with no tokens, and the tokens of the former."""
    frames = position_L3[:, 0].split(list(segments.lengths))
    is_video = [bool((frame_L != frame_L[:1]).any()) for frame_L in frames]
    videos = Segments.from_lengths([n if several else 0 for n, several in zip(segments.lengths, is_video)])
    return videos, torch.tensor(is_video)[segments.segment_ids_L.cpu()].nonzero()[:, 0]


def _groups(position_L3: Tensor, key: tuple[str | int, ...]) -> Tensor:
    """(L, K) int64: tokens of one sample with equal rows are one group."""
    frame_L, row_L, column_L = position_L3.unbind(1)
    match key:
        case ("frames",):
            return frame_L[:, None]
        case ("places",) | ("places", "videos"):
            return position_L3[:, 1:]
        case ("windows", int(height), int(width)):
            top = left = 0
        case ("windows", int(height), int(width), int(top), int(left)):
            pass
        case _:
            raise ValueError(
                f"{key} names no layout: use ('frames',), ('places'[, 'videos'],) or ('windows', h, w[, top, left])"
            )
    if height < 1 or width < 1:
        raise ValueError(f"windows of {height} x {width} tokens")
    return torch.stack([frame_L, (row_L + top) // height, (column_L + left) // width], dim=1)
