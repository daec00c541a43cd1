"""Settings of the stages whose workers read them: prepare, caption, shard and encode.

Nothing here imports torch: a worker that needs none starts in half a second, not in three.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from packing.buckets import BucketTable
from recaption.captions.repeated import RepeatedCaptionSettings
from recaption.chat_endpoint.endpoint import EndpointSettings
from recaption.dedup.near_duplicates import DuplicateSettings
from recaption.quality.scores import ScoreSettings
from recaption.shots.settings import ShotSettings
from recaption.video_io.frames import DecodeLimits


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Raw videos -> clips with scores."""

    part_size: int = 16
    """Inputs per part; a part is committed as a whole, and a killed run loses at most one part per worker."""
    min_clip_seconds: float = 1.0
    """Shots are cut so that no clip is shorter, unless the shot itself is."""
    max_clip_seconds: float = 10.0
    """Longer shots are cut into clips of at most this length."""
    cut_spans: bool = False
    """Cut the spans that lists name where shots change, and to `max_clip_seconds`; else a span is one clip."""
    preview_px: int = 240
    """Short side of the preview image of each clip in the report."""
    max_failed_share: float = 1.0
    """Stop with an error if a larger fraction of the inputs failed; 1 never stops."""
    shots: ShotSettings = field(default_factory=ShotSettings)
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Clips -> captions."""

    captioner: str = "tiny"
    """SPEC: `tiny`, `open_clip:MODEL/PRETRAINED`, `git:`, `vlm:`, `frozenbilm:`, `mplug2:` with an id or folder,
    `http://HOST/v1#MODEL`, or the folder of a captioner trained here."""
    scorer: str = ""
    """SPEC of a second captioner (`tiny`, `open_clip:...`) for clip scores, where the first has no contrastive space."""
    prompt: str = ""
    """Instruction for prompted captioners (`vlm:`, `http:`); empty: the captioner's default. Captioners without
    instructions use it as a prefix of the caption, if they can."""
    num_frames: int = 0
    """Number of frames for such a captioner; 0: its default."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    max_tokens: int = 76
    """Longest caption, in the captioner's tokens."""
    num_beams: int = 0
    """Beam search width; 1: greedy; 0: the captioner's own default (3 for `tiny`, 1 for others)."""
    num_samples: int = 1
    """Above 1: best-of-n, this many captions are sampled per clip and the one with the highest clip score is used."""
    batch_size: int = 16
    """Clips captioned at a time."""
    seed: int = 0
    """Seed of sampled captions."""
    snap_seconds: float = 0.0
    """Use a keyframe within this distance instead of the evenly spaced frame: faster to decode where keyframes are dense."""
    kinds: tuple[str, ...] = ("descriptive",)
    """Caption kinds per clip, all from one encoding of its frames: descriptive (which shards hold), short, main_object,
    action, surroundings, background, text, style, colour; only those that the captioner was trained on."""
    window_seconds: float = 0.0
    """Clips longer than this also get captions of consecutive windows of at most this length; 0: whole clips only."""
    min_clip_score: float | None = None
    """Captions with a lower clip score are bad. Scores differ between captioners: the default is the captioner's calibrated
    threshold, or none."""
    min_score_margin: float | None = None
    """Captions whose clip score exceeds that of other clips' captions in the batch by less than this margin are bad."""
    text_encoder: str = ""
    """Text encoder of the training (`captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +): captions longer
    than its context are bad. "": no length check."""
    max_text_tokens: int = 0
    """Token limit in that encoder's tokens; 0: its context length."""
    repeats: RepeatedCaptionSettings = field(default_factory=RepeatedCaptionSettings)
    precision: str = "auto"
    """`fp32` or `bf16`; auto: bf16 on a GPU, fp32 on a CPU."""
    cache_encoder_tokens: bool = False
    """Store the captioner's image tokens of each clip (261 kB with CoCa ViT-B/32): later captions by the same weights, with
    other settings, decode no video. The embedding of each clip for duplicate detection is stored in any case."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Captioned clips -> WebDataset shards."""

    buckets: BucketTable = field(default_factory=BucketTable)
    audio: Literal["keep", "encode", "drop"] = "keep"
    """Audio streams of the clips: `keep` copies packets, and encodes as AAC what an mp4 does not hold exactly; `encode`
    encodes all, so that no byte of a source is in a shard; `drop` leaves them out (docs/audio.md)."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Texts of the shards -> stored text encoder outputs, which training reads."""

    encoder: str = ""
    """Text encoder whose outputs are stored: `captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +; "": none,
    training encodes texts on the fly."""
    dtype: str = "float16"
    """`float16` or `bfloat16`."""
    max_gigabytes: float = 100.0
    """An error before any encoding if the outputs would take more than this."""


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Shards -> latents."""

    compressor: str = "patch"
    """SPEC: `patch`, the folder of a compressor trained here, or `diffusers:ID[#subfolder]`."""
    frame_stride: int = 4
    """Frames per latent frame after the first. With `spatial_stride`, used by `shard` to count tokens before a compressor
    is loaded; `encode` raises an error if the compressor has other strides."""
    spatial_stride: int = 8
    """Pixels per latent position."""
    dtype: str = "float16"
    """Storage type of latents: `float16`, `bfloat16`, or `int8` with scale and zero point per channel and sample (half the
    bytes)."""
    text: TextSettings = field(default_factory=TextSettings)
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""
