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
    """What of a run is exported."""

    layout: str
    """One of `layouts.LAYOUTS`."""
    captions: str = ""
    """The caption set; "": the set of the shards, else the last."""
    kinds: tuple[str, ...] = ("descriptive",)
    """Of these kinds of text (`mixture.MIXTURE_KINDS`) the first that a clip has is its caption."""
    model: str = ""
    """One of `video_models.VIDEO_MODELS`; "": the layout's."""
    fit: bool = False
    """Whether clips get the model's rate, length and size."""
    fps: int = 0
    """0, here and below: the model's."""
    max_frames: int = 0
    area_px: int = 0
    cut: str = "auto"
    """`auto`: clips are copied or cut as they are stored where that is possible; `encode`: every clip is encoded."""
    quality: int = 12
    """CRF of x264 where a clip is encoded."""
    audio: str = "keep"
    """`keep`: clips have the audio of their span, encoded anew where `cut` is `encode`; `drop`: none."""
    licence: str = ""
    local_paths: bool = False

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
        settings = {"layout": self.layout, "cut": self.cut, "quality": self.quality, "fit": self.fit}
        if self.fit:
            settings |= {"model": self.model, **self._sizes()}
        if self.audio != "keep":
            settings |= {"audio": self.audio}
        return recipe_hash(settings)

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)
