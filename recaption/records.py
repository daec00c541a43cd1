"""Records that stages pass to each other: frozen dataclasses and their Arrow schemas.

Each stage returns new records keyed by `clip_id`; a stage never adds fields to another stage's record.

    >>> table = to_table([Clip(clip_id="00c0ffee00c0ffee-0000000-0000048", ...)], Clip)
    >>> from_table(table, Clip)[0].start_frame
    0
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import pyarrow as pa

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One input, readable or not."""

    video_id: str
    """First 16 hex digits of the sha256 of the file's bytes; empty where the file could not be read at all."""
    uri: str
    num_bytes: int = 0
    mtime_ns: int = 0
    """Of a local file when it was hashed, like the two below: what tells later that its bytes are the same. 0: not local."""
    ctime_ns: int = 0
    inode: int = 0
    etag: str = ""
    """The same of a remote file, where its storage has one."""
    width_px: int = 0
    """As displayed: rotation and sample aspect ratio applied."""
    height_px: int = 0
    num_frames: int = 0
    """Frames that really decode and are displayed, not the number in the header."""
    fps_num: int = 0
    fps_den: int = 1
    duration_seconds: float = 0.0
    codec: str = ""
    rotation_degrees: int = 0
    """Clockwise rotation of the display matrix, already applied to width and height."""
    transfer: str = ""
    """Transfer characteristic of the first frame, as ffprobe names it: `smpte2084` (PQ) and `arib-std-b67` (HLG) are HDR,
    which is read as SDR; "" = not stated."""
    sample_aspect: str = ""
    """Width:height of a stored pixel, already applied to the width: `64:45`; `1:1` = square; "" = not decoded."""
    is_interlaced: bool = False
    """At least a tenth of the frames are flagged interlaced; those are read deinterlaced."""
    has_alpha: bool = False
    """Some pixels are transparent; they are read on white."""
    truncated_seconds: float = 0.0
    """Length of what lies behind the first damage and is left out, as far as it is known (`on_damage = trim`); not part of
    `duration_seconds`."""
    list_hash: str = ""
    """Hash of what lists say of it: spans, texts, metadata (RUN/spans); "" where none does."""
    is_cut_by_list: bool = False
    """Its clips are the spans that lists name: they may overlap, and need not cover it."""
    outside_seconds: float = 0.0
    """Length of what no such span covers; part of `duration_seconds`."""
    has_audio: bool = False
    """There is sound within the time of the video, be it silent. Of several streams the default one with the most channels
    counts, here and below."""
    audio_codec: str = ""
    audio_channels: int = 0
    audio_rate_hz: int = 0
    """Samples per second."""
    num_audio_streams: int = 0
    audio_detail: str = ""
    """What of the audio is damaged. It costs the audio of the clips that it lies in, never the video."""
    status: str = "ok"
    """`ok`, `failed` or, where its bytes are those of a video that was taken out of the run, `removed`."""
    reason: str | None = None
    """One of `errors.FAILURE_REASONS` where status is `failed`; `removed` where it is that."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A span of one video: with no cut inside it, or as a list names it. The clips of a video cover it exactly, unless they
    are those of a list."""

    clip_id: str
    """`<video_id>-<start_frame:07d>-<end_frame:07d>`. No dots: it is the WebDataset key, which ends at the first dot."""
    video_id: str
    uri: str
    shot_index: int
    start_frame: int
    end_frame: int
    """One past the last frame, in the source video's own numbering."""
    start_seconds: float
    end_seconds: float
    """Presentation time of the first frame after the clip, or the end of the video."""
    width_px: int
    height_px: int
    fps: float
    """Average over the clip: frames / seconds."""

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.start_frame

    @property
    def duration_seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScores:
    """Raw scores of a whole clip; None = not computed (never 0). Drop reasons are computed from them, never stored."""

    clip_id: str
    motion: float | None = None
    """Mean length of optical flow between frames about 1/8 s apart, in frame heights per second."""
    camera_motion: float | None = None
    """The part of `motion` explained by one global affine map, same unit."""
    sharpness: float | None = None
    """Variance of the Laplacian of the luma (0..255), median over frames resized to 256 px short side."""
    luma: float | None = None
    """Mean luma, 0..1."""
    text_area: float | None = None
    """Fraction of the frame covered by drawn or overlaid text, mean over frames, 0..1."""
    letterbox: float | None = None
    """Fraction of the frame that is constant dark bars in every frame, 0..1."""
    flicker: float | None = None
    """Amplitude of changes of mean luma (0..1) that revert within 0.5 s, mean over the clip; fades have none."""
    blockiness: float | None = None
    """Luma change across the edges of 8x8 coding blocks divided by that inside them, minus 1; None for sources whose
    blocks are not visible at 256 px (more than about 580 lines)."""
    static_text: float | None = None
    """Fraction of the frame covered by text or marks (watermarks, logos) that stay while the picture under them moves,
    0..1; None where too little moves."""
    text_area_ocr: float | None = None
    """As `text_area`, from a text detector (scorer `ocr`): mean over frames, 0..1."""
    static_text_ocr: float | None = None
    """Fraction of the frame covered by detected text that stays in place through the clip, 0..1; text in the scene of a
    fixed camera counts too."""
    aesthetic: float | None = None
    """Mean over frames of a LAION-style aesthetic head, about 1 to 10 (scorer `aesthetic`)."""
    nsfw: float | None = None
    """Largest over frames of an NSFW classifier, 0..1 (scorer `nsfw`)."""
    loudness_lufs: float | None = None
    """Integrated loudness, in LUFS (ITU-R BS.1770-5); None without sound above -70 LUFS, or for less than 0.4 s."""
    silence_fraction: float | None = None
    """Fraction of the clip's hundredths of a second in which no channel is louder than -60 dB of full scale, 0..1; 1 without
    audio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPreview:
    """One preview image per clip: the middle frame."""

    clip_id: str
    jpeg: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionFields:
    """The descriptive fields of a caption (DALL-E 3's list plus the action). Empty = not mentioned."""

    main_object: str = ""
    action: str = ""
    surroundings: str = ""
    background: str = ""
    text: str = ""
    style: str = ""
    colour: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One caption of one window of one clip, with provenance (frame hash, model hash, seed)."""

    clip_id: str = ""
    text: str = ""
    fields: CaptionFields = CaptionFields()
    clip_sha256: str = ""
    """sha256 of the uint8 frames given to the captioner: proves which pixels the text describes."""
    start_seconds: float = 0.0
    """Start of the described window, in the source video's time."""
    end_seconds: float = 0.0
    captioner: str = ""
    """`name@first 12 hex digits of the weights' sha256`."""
    recipe_hash: str = ""
    num_tokens: int = 0
    mean_logprob: float | None = None
    clip_score: float | None = None
    """Cosine similarity of text and clip in the captioner's contrastive space."""
    source: str = "model"
    """`model` or `original` (text that came with the video)."""
    seed: int = 0
    reason: str | None = None
    """`bad_caption` where the text failed a gate; `no_answer` where the endpoint gave none and will be asked again; one of
    `errors.FAILURE_REASONS` where the frames could not be read; else None."""
    kind: str = "descriptive"
    """One of `recaption.captions.text.CAPTION_KINDS`: the caption type that was requested. "" for an original text."""
    window: int = 0
    """0: the whole clip; 1, 2, ...: its consecutive windows."""
    fault: str = ""
    """One of `recaption.captions.text.FAULTS` where the text failed a gate."""
    stripped: str = ""
    """Phrases before and after the caption ("The video shows", "Let me know") that were removed from the text."""

    @property
    def is_main(self) -> bool:
        """The main caption of its clip: shards contain it, and it decides whether the clip has a caption."""
        return self.source == "model" and self.kind == "descriptive" and self.window == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipEmbedding:
    """Embedding of a clip in its captioner's contrastive space, for semantic near-duplicates."""

    clip_id: str
    embedding: bytes
    """float16, little endian, unit length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One row of RUN/index.parquet: the position of a clip in the shards."""

    clip_id: str
    shard: str
    """Path of the tar, relative to the run folder."""
    offset_bytes: int
    """Start of the sample's first tar header; its members are contiguous."""
    num_bytes: int
    """Headers and padding included: this span alone is readable by `tarfile`."""
    bucket: str
    num_frames: int
    height_px: int
    width_px: int
    fps: int
    num_latent_tokens: int
    num_caption_tokens: int
    caption: str
    sha256: str
    """Of the .mp4 member's bytes."""
    audio: str = ""
    """Codecs of the audio tracks in the .mp4: `aac` where packets were copied, `aac from ac3` where they were encoded again;
    "" = no audio."""


def _arrow_type(annotation: Any) -> pa.DataType:
    if isinstance(annotation, types.UnionType):
        (annotation,) = [a for a in typing.get_args(annotation) if a is not type(None)]
    if dataclasses.is_dataclass(annotation):
        return pa.struct(list(schema_of(typing.cast(type, annotation))))
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}[annotation]


@cache
def schema_of(record: type) -> pa.Schema:
    """Arrow schema of a record class: same names and order, nullable only where the annotation allows None."""
    hints = typing.get_type_hints(record)
    return pa.schema(
        [
            pa.field(f.name, _arrow_type(hints[f.name]), nullable=isinstance(hints[f.name], types.UnionType))
            for f in dataclasses.fields(record)
        ]
    )


def shard_schema(record: type = Sample) -> pa.Schema:
    """Columns of the parquet of a tar: the record's, plus status (`ok` or `failed`), reason and detail."""
    status = pa.field("status", pa.string(), nullable=False)
    return pa.schema([*schema_of(record), status, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, in its order and types; other columns are dropped.

    Raises:
        KeyError: a column is missing.
    """
    return table.select(schema.names).cast(schema)


def to_table(rows: Sequence[Record], record: type[Record]) -> pa.Table:
    """Records of one class as a table with its fixed schema (also for an empty list)."""
    schema = schema_of(typing.cast(type, record))
    dicts = [dataclasses.asdict(row) for row in rows]  # type: ignore[call-overload]
    return pa.Table.from_pylist(dicts, schema=schema)


def from_table(table: pa.Table, record: type[Record]) -> list[Record]:
    """The inverse of `to_table`; columns that the record does not have are ignored.

    Raises:
        KeyError: a column of the record is missing.
    """
    names = [f.name for f in dataclasses.fields(record)]  # type: ignore[arg-type]
    nested = {name: hint for name, hint in typing.get_type_hints(record).items() if dataclasses.is_dataclass(hint)}
    rows = []
    for row in table.select(names).to_pylist():
        for name, hint in nested.items():
            row[name] = typing.cast(type, hint)(**row[name])
        rows.append(record(**row))
    return rows
