"""What video models train on: frame rate, frame counts, area and size multiple of each, and how clips fit them.

model = video_model("wan2.1")
model.longest(67)                               # 65: the longest 4k+1
model.size_of(1080, 1920)                       # (464, 832): 16:9 in multiples of 16, within 480 x 832
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from packing.buckets import fit_size
from recaption.errors import UsageError

MAX_CROP_FRACTION = 0.2
"""A clip that would lose a larger fraction of its pixels to the crop does not fit; as in `BucketTable`."""


@dataclass(frozen=True, kw_only=True)
class VideoModel:
    """Sizes and lengths that a pretrained video model was trained on."""

    name: str
    fps: int
    frame_step: int
    """Frame counts are k x frame_step + 1, as its video autoencoder has them."""
    max_frames: int
    area_px: int
    size_multiple_px: int
    """Of height and width: spatial stride of the autoencoder x patch of the transformer."""

    def __post_init__(self) -> None:
        if self.max_frames % self.frame_step != 1 % self.frame_step:
            below = (self.max_frames - 1) // self.frame_step * self.frame_step + 1
            raise UsageError(
                f"--max-frames {self.max_frames}: {self.name} takes {self.frame_step}k+1 frames; "
                f"use {max(1, below)} or {below + self.frame_step}"
            )
        if self.fps < 1 or self.area_px < self.size_multiple_px**2:
            raise UsageError(
                f"--fps {self.fps}, --area-px {self.area_px}: {self.name} needs at least 1 frame per second and "
                f"{self.size_multiple_px} x {self.size_multiple_px} pixels"
            )

    def longest(self, num_frames: int, *, is_image: bool = False) -> int:
        """As many of these frames as the model takes; 0 where they are fewer than its second count.

        Args:
            num_frames: at the model's rate.
            is_image: one frame is enough.
        """
        longest = (min(num_frames, self.max_frames) - 1) // self.frame_step * self.frame_step + 1
        return longest if longest > 1 or is_image or self.max_frames == 1 else 0

    def size_of(self, height_px: int, width_px: int) -> tuple[int, int] | None:
        """Height and width of a clip, scaled down and cropped by less than one multiple; None where none fits."""
        return fit_size(height_px, width_px, (self.area_px,), self.size_multiple_px, MAX_CROP_FRACTION)


VIDEO_MODELS = {
    model.name: model
    for model in (
        VideoModel(name="wan2.1", fps=16, frame_step=4, max_frames=81, area_px=480 * 832, size_multiple_px=16),
        VideoModel(name="wan2.2-5b", fps=24, frame_step=4, max_frames=121, area_px=704 * 1280, size_multiple_px=32),
        VideoModel(name="ltx", fps=24, frame_step=8, max_frames=121, area_px=544 * 960, size_multiple_px=32),
        VideoModel(name="hunyuan", fps=24, frame_step=4, max_frames=129, area_px=544 * 960, size_multiple_px=16),
        VideoModel(name="cogvideox", fps=8, frame_step=8, max_frames=49, area_px=480 * 720, size_multiple_px=16),
        VideoModel(name="cogvideox1.5", fps=16, frame_step=8, max_frames=81, area_px=768 * 1360, size_multiple_px=16),
        VideoModel(
            name="cosmos-predict2", fps=16, frame_step=4, max_frames=93, area_px=704 * 1280, size_multiple_px=16
        ),
    )
}
"""As their authors publish them; `wan2.1` is also Wan 2.2 14B."""


def video_model(name: str, *, fps: int = 0, max_frames: int = 0, area_px: int = 0) -> VideoModel:
    """A model of `VIDEO_MODELS`, with other numbers where they are not 0.

    Raises:
        UsageError: no model of that name, or numbers that it cannot take.
    """
    if name not in VIDEO_MODELS:
        raise UsageError(f"--model {name!r}: there are {', '.join(VIDEO_MODELS)}")
    model = VIDEO_MODELS[name]
    return dataclasses.replace(
        model, fps=fps or model.fps, max_frames=max_frames or model.max_frames, area_px=area_px or model.area_px
    )
