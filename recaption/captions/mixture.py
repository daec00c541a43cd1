"""Which of its texts a sample shows to training: mostly what a captioner says, now and then what people wrote.

    ratios = parse_ratios(["descriptive=0.95", "original=0.05"])
    choose("clip-1", epoch=3, ratios=ratios, seed=0)                 # "descriptive", or one time in twenty "original"

Captions that were all written by one model teach its habits: the first word, the length, the full stop at the end.
DALL-E 3's recipe leaves 5 % of the original texts in for that.

The rule. For each sample and each epoch one number from 0 to 1 is drawn, from sha256 of (seed, clip id, epoch): the same
on every machine, whatever the number of ranks and the order of reading. The kind whose span of the ratios, in the order in
which they are given, holds that number is shown. Each epoch draws anew, so a sample shows its original in 5 % of its
epochs, rather than 5 % of the samples in all of them. A sample that does not have the text drawn shows its descriptive one:
what others show does not depend on it. Shards are not touched: texts are read from the caption set beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from recaption.captions.text import KINDS
from recaption.captions.windows import caption_for_window
from recaption.errors import UsageError
from recaption.records import Caption

SOURCES = (*KINDS, "original")
"""What a ratio may be given for."""


DEFAULT_RATIOS = ("descriptive=0.95", "original=0.05")


@dataclass(frozen=True, kw_only=True)
class BlendSettings:
    """Which texts training sees."""

    ratios: tuple[str, ...] = DEFAULT_RATIOS
    """KIND=SHARE of descriptive, short, original or a field (main_object, ...); shares are divided by their sum."""
    captions: str = ""
    """Caption set that the texts are from; "": the set that the shards were made from."""
    seed: int = 0


def parse_ratios(ratios: Iterable[str]) -> dict[str, float]:
    """Kind -> share, in the order given; they sum to 1.

    Raises:
        UsageError: as `parse_shares`, also where none is given.
    """
    shares = parse_shares(ratios, what="blend ratio", kinds=SOURCES)
    if not shares:
        raise UsageError("blend ratios: at least one share must be above 0")
    return shares


def parse_shares(entries: Iterable[str], *, what: str, kinds: Sequence[str]) -> dict[str, float]:
    """Entries KIND=SHARE as kind -> share, in the order given, without those of 0; they sum to 1. Nothing given: {}.

    Args:
        what: an entry is called in messages.

    Raises:
        UsageError: not KIND=SHARE, an unknown kind, one given twice, or shares that are negative or all 0.
    """
    shares: dict[str, float] = {}
    for entry in entries:
        kind, equals, text = entry.partition("=")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not equals or not 0 <= share < float("inf"):
            raise UsageError(f"{what} {entry!r}: write KIND=SHARE, such as {kinds[0]}=0.5")
        if kind not in kinds or kind in shares:
            raise UsageError(f"{what} {entry!r}: each kind once, out of {', '.join(kinds)}")
        shares[kind] = share
    total = sum(shares.values())
    if shares and total <= 0:
        raise UsageError(f"{what}s: at least one share must be above 0")
    return {kind: share / total for kind, share in shares.items() if share > 0}


def choose(clip_id: str, *, epoch: int, ratios: Mapping[str, float], seed: int = 0) -> str:
    """The kind that this sample shows in this epoch.

    Args:
        ratios: of `parse_ratios`.
    """
    digest = hashlib.sha256(f"blend\n{seed}\n{clip_id}\n{epoch}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    for kind, share in ratios.items():
        reached += share
        if drawn < reached:
            return kind
    return list(ratios)[-1]


@dataclass(frozen=True)
class Blend:
    """The texts of each sample, and which of them it shows when."""

    clip_ids: Sequence[str]
    captions: Sequence[str]
    """What a sample shows that has no other text."""
    others: Mapping[int, Mapping[str, str]]
    """Sample -> kind -> text, where any of them differs from its caption."""
    ratios: Mapping[str, float]
    seed: int
    windows: Mapping[int, tuple[float, Sequence[Caption]]] = field(default_factory=dict)
    """Sample -> second at which it starts, and the captions of its clip; where these are of several windows and parts of a
    sample are shown."""

    def text(self, index: int, epoch: int, *, number: int = 0, seconds: tuple[float, float] | None = None) -> str:
        """What a sample shows.

        Args:
            number: counts its appearances in the epoch, each with a draw of its own.
            seconds: the part that is shown, since the start of the sample; None: all of it.
        """
        others = self.others.get(index)
        if seconds is not None and index in self.windows:
            start, captions = self.windows[index]
            others = texts_of_sample(captions, {*self.ratios, "descriptive"}, start + seconds[0], start + seconds[1])
        if not others:
            return self.captions[index]
        name = f"{self.clip_ids[index]}#{number}" if number else self.clip_ids[index]
        kind = choose(name, epoch=epoch, ratios=self.ratios, seed=self.seed)
        return others.get(kind) or others.get("descriptive") or self.captions[index]

    @property
    def fingerprint(self) -> str:
        """Changes when what training sees does, in any epoch."""
        digest = hashlib.sha256(json.dumps([list(self.ratios.items()), self.seed]).encode())
        for index, texts in sorted(self.others.items()):
            digest.update(json.dumps([self.clip_ids[index], sorted(texts.items())]).encode())
        for index, (start, captions) in sorted(self.windows.items()):
            rows = [(c.kind, c.source, c.start_seconds, c.end_seconds, c.text) for c in captions]
            digest.update(json.dumps([self.clip_ids[index], start, rows]).encode())
        return digest.hexdigest()[:16]


def texts_of_sample(
    captions: Sequence[Caption], kinds: Iterable[str], start_seconds: float, end_seconds: float
) -> dict[str, str]:
    """Kind -> the good text that a sample showing these seconds of its clip has, of all rows about the clip.

    Of captions of windows it is the one of the sample's own frames (`caption_windows.caption_for_window`).
    """
    found = {}
    for kind in kinds:
        rows = [c for c in captions if (c.source if kind == "original" else c.kind) == kind]
        chosen = caption_for_window(rows, start_seconds, end_seconds)
        if chosen is not None:
            found[kind] = chosen.text
    return found
