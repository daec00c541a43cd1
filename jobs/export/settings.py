"""Settings of an export: which texts and which clips go out, and how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from recaption.captions.mixture import MIXTURE_KINDS
from recaption.errors import UsageError
from recaption.run_folder import recipe_hash

CUTS = ("auto", "encode")
AUDIO = ("keep", "drop")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What of a run is exported; also flags of the command."""

    to: str
    """Layout: folder, jsonl, hf, webdataset, energon, fastvideo, ltx, diffsynth, automodel, cosmos, lance or fiftyone."""
    captions: str = ""
    """The caption set; default: the set of the shards, else the last."""
    kinds: tuple[str, ...] = ("descriptive",)
    """The caption is the first of these that a clip has: descriptive, short, original, main_object, ..."""
    model: str = ""
    """Model for --fit and the configs: wan2.1, wan2.2-5b, ltx, hunyuan, ...; default: the layout's."""
    fit: bool = False
    """Give clips the rate, frame count and size of the model; default: native."""
    fps: int = 0
    """Another rate than the model's."""
    max_frames: int = 0
    """Another longest clip than the model's."""
    area_px: int = 0
    """Another area, height x width, than the model's."""
    cut: str = "auto"
    """auto: without encoding where keyframes allow; encode: every clip is encoded, audio too."""
    quality: int = 12
    """CRF of encoded clips (x264): 0 lossless, 12 hard to tell from the source, 18 half the bytes."""
    audio: str = "keep"
    """keep: clips have the audio of their span; drop: they are silent."""
    licence: str = ""
    """Licence of the clips for the card, as the Hub names it: cc-by-4.0."""
    local_paths: bool = False
    """Name local sources by their whole path; default: by the name of the file."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in MIXTURE_KINDS:
                raise UsageError(f"--kinds {kind!r}: there are {', '.join(MIXTURE_KINDS)}")
        if not self.kinds:
            raise UsageError(f"--kinds is empty: there are {', '.join(MIXTURE_KINDS)}")
        if self.cut not in CUTS:
            raise UsageError(f"--cut {self.cut!r}: there are {', '.join(CUTS)}")
        if self.audio not in AUDIO:
            raise UsageError(f"--audio {self.audio!r}: there are {', '.join(AUDIO)}")
        if not 0 <= self.quality <= 51:
            raise UsageError(f"--quality {self.quality}: the CRF of x264 is from 0 (lossless) to 51")
        if self.cut == "encode" and self.fit:
            raise UsageError("--cut has no effect with --fit, which encodes every clip: leave it out")
        for name, value in self._sizes().items():
            if value < 0:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be positive")

    def _sizes(self) -> dict[str, int]:
        return {"fps": self.fps, "max_frames": self.max_frames, "area_px": self.area_px}

    @property
    def video_hash(self) -> str:
        """Hash of the settings that the bytes of the clips depend on."""
        settings = {"layout": self.to, "cut": self.cut, "quality": self.quality, "fit": self.fit}
        if self.fit:
            settings |= {"model": self.model, **self._sizes()}
        if self.audio != "keep":
            settings |= {"audio": self.audio}
        return recipe_hash(settings)

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)
