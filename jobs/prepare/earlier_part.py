"""Rows of a part that was computed before, of the inputs whose bytes are still the same.

earlier = EarlierPart.read(run, 3)
earlier.unchanged(uri, is_suspect=True)       # its rows, or None: read the input again
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from jobs.prepare.listed_clips import has_spans
from jobs.recipe.part_names import part_name
from recaption.dedup.fingerprints import ClipFingerprint
from recaption.errors import VideoError
from recaption.inputs.lists.listed import ListedSpan
from recaption.inputs.names import TAR, local_path
from recaption.inputs.open_input import InputState, open_input
from recaption.ledger.ledger import CLIPS_SCHEMA
from recaption.ledger.spans import failed_rows, list_hash, span_row
from recaption.records import ClipPreview, Video, conform, from_table
from recaption.run_folder import RunFolder


@dataclass
class PreparedVideo:
    """The rows of one input in the four files of its part."""

    video: Video
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Columns of `CLIPS_SCHEMA`."""
    fingerprints: list[ClipFingerprint] = field(default_factory=list)
    previews: list[ClipPreview] = field(default_factory=list)
    plugin_rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """(plug-in, row of its table of scores), of clips that were scored now."""
    spans: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `SPANS_SCHEMA`."""


@dataclass
class EarlierPart:
    """What the files of a part hold; empty where one of them cannot be read."""

    videos: dict[str, Video] = field(default_factory=dict)
    """By uri."""
    clips: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By uri."""
    fingerprints: dict[str, ClipFingerprint] = field(default_factory=dict)
    previews: dict[str, ClipPreview] = field(default_factory=dict)
    spans: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By uri."""

    @classmethod
    def read(cls, run: RunFolder, number: int) -> EarlierPart:
        """The part as it is, whatever it was made of."""
        earlier = cls()
        try:
            clips = conform(run.read_table(part_name("clips", number)), CLIPS_SCHEMA).to_pylist()
            fingerprints = from_table(run.read_table(part_name("fingerprints", number)), ClipFingerprint)
            previews = from_table(run.read_table(part_name("previews", number)), ClipPreview)
            videos = from_table(run.read_table(part_name("videos", number)), Video)
            spans = run.read_table(name).to_pylist() if run.exists(name := part_name("spans", number)) else []
        except (pa.ArrowException, KeyError, ValueError, OSError):
            return earlier
        for clip in clips:
            earlier.clips.setdefault(clip["uri"], []).append(clip)
        for row in spans:
            earlier.spans.setdefault(row["uri"], []).append(row)
        earlier.videos = {video.uri: video for video in videos}
        earlier.fingerprints = {row.clip_id: row for row in fingerprints}
        earlier.previews = {row.clip_id: row for row in previews}
        return earlier

    def unchanged(self, uri: str, listed: Sequence[ListedSpan] = (), *, is_suspect: bool) -> PreparedVideo | None:
        """The rows of an input, with the stat that it has now; None where it has to be read.

        Args:
            listed: what lists say of it now. If they name the same spans with other texts, only those change.
            is_suspect: its stat is not the recorded one: keep the rows only if a hash says that the bytes are.
        """
        video = self.videos.get(uri)
        if video is None:
            return None
        rows = self.clips.get(uri, [])
        ids = [row["clip_id"] for row in rows]
        may_be_empty = video.status != "ok" or video.is_cut_by_list
        is_whole = all(row["video_id"] == video.video_id for row in rows) and (bool(rows) or may_be_empty)
        is_whole &= not rows or video.status == "ok"
        spans = self.spans.get(uri, [])
        if listed:
            again = _with_texts_of(spans, listed) if video.status == "ok" else failed_rows(video, listed)
            if again is None:
                return None
            spans = again
            video = dataclasses.replace(video, list_hash=list_hash(listed), is_cut_by_list=has_spans(listed))
        if not is_whole or any(i not in self.fingerprints or i not in self.previews for i in ids):
            return None
        if is_suspect:
            state = _same_bytes(video)
            if state is None:
                return None
            video = dataclasses.replace(video, **dataclasses.asdict(state))
        return PreparedVideo(
            video,
            rows,
            [self.fingerprints[clip_id] for clip_id in ids],
            [self.previews[clip_id] for clip_id in ids],
            spans=spans,
        )


def _with_texts_of(before: list[dict[str, Any]], listed: Sequence[ListedSpan]) -> list[dict[str, Any]] | None:
    """Rows of `SPANS_SCHEMA` with the texts and metadata that lists have now; None where they name other spans."""
    found = {_times(row["unit"], row["start"], row["end"]): row for row in before}
    times = [_times(span.unit, span.start, span.end) for span in listed]
    if {*times} != found.keys() or any(span.refusal for span in listed):
        return None
    kept = ("video_id", "start_frame", "end_frame", "clip_ids", "status", "reason", "detail")
    return [
        span_row(span, **{name: found[key][name] for name in kept}) for span, key in zip(listed, times, strict=True)
    ]


def _times(unit: str, start: float | None, end: float | None) -> tuple[Any, ...]:
    return unit, start, end


def _same_bytes(video: Video) -> InputState | None:
    """The state of a local input, or a member of a local tar, now, if its bytes are those of a video that was readable."""
    is_local = local_path(video.uri) is not None or video.uri.startswith(f"{TAR}file:")
    if video.status != "ok" or not is_local:
        return None
    try:
        with open_input(video.uri, expected=InputState.of(video)) as opened:
            return opened.state()
    except VideoError:
        return None
