"""One clip of an export: as planned, as written (a row of clips.parquet), and the texts beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from packing.shards.plan import BYTES_PER_PIXEL

BYTES_PER_PIXEL_CRF, CRF_PER_HALVING = 12, 6
"""`BYTES_PER_PIXEL` holds at crf 12; x264's files are half as large for every 6 more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportClip:
    """One clip to be written, with all that a worker needs to know (JSON-able)."""

    clip_id: str
    uri: str
    start_frame: int
    end_frame: int
    start_seconds: float
    end_seconds: float
    source_width_px: int
    source_height_px: int
    num_frames: int
    """Of the exported clip, like the next three."""
    width_px: int
    height_px: int
    fps: str
    """A fraction: `30000/1001`."""
    may_copy: bool
    """Other readers see the video as it was captioned (`clips.is_read_as_stored`), and nothing is to be changed."""
    is_whole: bool
    """The clip is its whole video."""
    source_bytes: int
    """Of the whole video."""
    audio_codec: str
    """Of the video's best audio stream, where the clip keeps its audio; else ""."""
    may_copy_audio: bool
    """Whether its packets may be copied."""
    source_audio_channels: int
    source_audio_rate_hz: int
    """Of that stream; 0 without audio."""
    caption: str
    captions: dict[str, str]
    """Kind -> text, of all kinds that the clip has."""
    captioner: str
    source: str
    """Where the video came from: its URI, of a local file only the name."""
    id: str
    """That a list has for it."""
    licence: str
    metadata: str
    """JSON: what the list of the video says besides; "" where there is none."""
    scores: dict[str, float | None]
    """Those of plug-ins too."""

    @property
    def seconds(self) -> float:
        """Length of the exported clip."""
        return float(self.num_frames / Fraction(self.fps))

    @property
    def source_seconds(self) -> float:
        return self.end_seconds - self.start_seconds

    def estimated_bytes(self, crf: int) -> int:
        """Of the mp4: exact where the video is copied, else an estimate that may be wrong by a factor of three."""
        if self.may_copy and self.is_whole:
            return self.source_bytes
        per_pixel = BYTES_PER_PIXEL * 2 ** ((BYTES_PER_PIXEL_CRF - crf) / CRF_PER_HALVING)
        return round(self.num_frames * self.width_px * self.height_px * per_pixel)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedClip:
    """One row of EXPORT/clips.parquet; in the files, status, reason and detail follow."""

    clip_id: str
    file: str
    """Of the clip, relative to the export; "" in a tar."""
    shard: str
    """Tar with the clip; "" where clips are files."""
    offset_bytes: int
    """In the tar, like num_bytes: of the sample with its texts, headers and padding."""
    num_bytes: int
    num_video_bytes: int
    sha256: str
    """Of the mp4."""
    cut: str
    """`copied` byte for byte, `cut` (the packets of the source) or `encoded`."""
    audio: str = ""
    """Codecs of its audio tracks, as `records.Sample.audio`."""
    source_audio_channels: int = 0
    source_audio_rate_hz: int = 0
    """Of the source's best audio stream; 0 where the clip has no audio."""
    num_frames: int
    width_px: int
    height_px: int
    fps: str
    seconds: float
    caption: str
    captions: str
    """JSON: kind -> text."""
    captioner: str
    source: str
    id: str = ""
    """Of the list of the video, like the next two."""
    licence: str
    metadata: str
    """JSON: all columns of the list that have no other place."""
    source_start_seconds: float
    """In the source, like the next three. A table with `start_seconds` would be a list of spans of the exported files."""
    source_end_seconds: float
    source_start_frame: int
    source_end_frame: int
    scores: str
    """JSON: name -> number or null."""


def described(clip: ExportClip) -> dict[str, Any]:
    """The columns of `ExportedClip` that are known before the clip is written."""
    return {
        "clip_id": clip.clip_id,
        "num_frames": clip.num_frames,
        "width_px": clip.width_px,
        "height_px": clip.height_px,
        "fps": clip.fps,
        "seconds": clip.seconds,
        "caption": clip.caption,
        "captions": _json(clip.captions),
        "captioner": clip.captioner,
        "source": clip.source,
        "id": clip.id,
        "licence": clip.licence,
        "metadata": clip.metadata,
        "source_start_seconds": clip.start_seconds,
        "source_end_seconds": clip.end_seconds,
        "source_start_frame": clip.start_frame,
        "source_end_frame": clip.end_frame,
        "source_audio_channels": clip.source_audio_channels,
        "source_audio_rate_hz": clip.source_audio_rate_hz,
        "scores": _json(clip.scores),
    }


def metadata_of(row: dict[str, Any] | ExportedClip) -> dict[str, Any]:
    """What a reader of the dataset wants to know of a clip, JSON-simple; `captions` and `scores` by kind and name.

    `frame_span` are its frames in its own file, all of them: a list with that column has each file as one clip, uncut.

    Args:
        row: columns of `ExportedClip`.
    """
    values = row if isinstance(row, dict) else {name: getattr(row, name) for name in row.__dataclass_fields__}
    return {
        "clip_id": values["clip_id"],
        "caption": values["caption"],
        "captions": json.loads(values["captions"]),
        "captioner": values["captioner"],
        "source": values["source"],
        "id": values["id"],
        "licence": values["licence"],
        "metadata": values["metadata"],
        "source_start_seconds": values["source_start_seconds"],
        "source_end_seconds": values["source_end_seconds"],
        "frame_span": [0, values["num_frames"]],
        "num_frames": values["num_frames"],
        "width_px": values["width_px"],
        "height_px": values["height_px"],
        "fps": round(float(Fraction(values["fps"])), 6),
        "seconds": round(values["seconds"], 6),
        "audio": values["audio"],
        "source_audio_channels": values["source_audio_channels"],
        "source_audio_rate_hz": values["source_audio_rate_hz"],
        "scores": json.loads(values["scores"]),
    }


def sidecar(extension: str, row: dict[str, Any]) -> bytes:
    """The file of a clip with this extension: txt, its caption; json, `metadata_of` with the texts and scores as lists.

    Readers of WebDataset tars take the columns from the first samples: keys that only some clips have would break them.
    """
    if extension == "txt":
        return row["caption"].encode()
    metadata = metadata_of(row)
    captions, scores = metadata["captions"].items(), metadata["scores"].items()
    metadata["captions"] = [{"kind": kind, "text": text} for kind, text in captions]
    metadata["scores"] = [{"name": name, "value": value} for name, value in scores if value is not None]
    return _json(metadata).encode()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
