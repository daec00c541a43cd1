"""Settings of the training of a compressor."""

from __future__ import annotations

from dataclasses import dataclass, field

from recaption.errors import UsageError
from train.compressors.autoencoder import KINDS
from train.compressors.interface import latent_shape
from train.compressors.loss import CompressorLossSettings
from train.compressors.patch_transform import SPATIAL_STRIDE

FIRST_HELD_OUT_SCENE = 1_000_000
"""Scenes with seeds from here on are only looked at, never trained on."""


SCENE_FPS = 8


@dataclass(frozen=True, kw_only=True)
class CompressorSettings:
    kind: str = "causal3d"
    """`causal3d`: a latent frame for the first frame and for every 4 after it; `spatial`: one for every frame (then
    train the transformer with --encode.frame-stride 1)."""
    bottleneck: str = "kl"
    """`kl`: normal distributions; `vq`: vectors of learned lists."""
    latent_channels: int = 0
    """Numbers per latent place, which stands for 8 x 8 px of one frame (192 numbers) or of 4 (768); 0 = 56 or 192."""
    width: int = 96
    """Channels on squares of 4x4 px; twice that on those of 8x8."""
    blocks: tuple[int, int] = (1, 1)
    """Residual blocks of the encoder on squares of 4x4 and of 8x8 px."""
    decoder_blocks: tuple[int, int] = (1, 1)
    vq_codes: int = 512
    """Length of each list. Only with `vq`."""
    vq_groups: int = 16
    """Lists side by side, each for its share of the channels. Only with `vq`."""
    batch_size: int = 4
    """Clips per batch and rank."""
    num_frames: int = 9
    """Of each training clip, 4k+1; longer ones are cut at a random place. Any length can be encoded later."""
    height_px: int = 64
    width_px: int = 64
    """Of each training clip, multiples of 8; larger ones are cut at a random place. Any size can be encoded later."""
    loss: CompressorLossSettings = field(default_factory=CompressorLossSettings)
    num_scenes: int = 20000
    """Rendered scenes trained on, where no run is given."""
    num_validation_scenes: int = 16
    cache_bytes: int = 256 << 20
    """Decoded or rendered clips kept in memory, at most."""
    seed: int = 0
    """Of the first weights and of the order and place of the cuts."""

    def check(self) -> None:
        """Raises UsageError where the settings make no sense."""
        if self.kind not in KINDS:
            raise UsageError(f"compressor kind {self.kind!r} is unknown; there are: {', '.join(KINDS)}")
        latent_shape(
            self.num_frames,
            self.height_px,
            self.width_px,
            frame_stride=KINDS[self.kind],
            spatial_stride=SPATIAL_STRIDE,
            name=self.kind,
        )
        for name in ("batch_size", "num_scenes", "num_validation_scenes"):
            if getattr(self, name) < 1:
                raise UsageError(f"compressor setting {name} = {getattr(self, name)}, it must be at least 1")
        self.loss.check()
