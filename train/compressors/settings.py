"""Settings of compressor training."""

from __future__ import annotations

from dataclasses import dataclass, field

from recaption.errors import UsageError
from train.compressors.autoencoder import KINDS
from train.compressors.interface import latent_shape
from train.compressors.loss import CompressorLossSettings
from train.compressors.patch_transform import SPATIAL_STRIDE


@dataclass(frozen=True, kw_only=True)
class CompressorSettings:
    init_from: str = ""
    """SPEC of the image autoencoder whose decoder gets temporal layers. Only with `temporal`."""
    temporal: bool = False
    """Train temporal layers in the decoder of `init_from` (kind `spatial`, or an AutoencoderKL of diffusers) and nothing
    else; what describes a model here has no effect then."""
    kind: str = "causal3d"
    """`causal3d`: a latent frame for the first frame and for every 4 after it; `spatial`: one per frame (then encode
    with --encode.frame-stride 1)."""
    bottleneck: str = "kl"
    """`kl` (Gaussian posterior) or `vq` (codebooks)."""
    latent_channels: int = 0
    """Channels per latent cell, which covers 8 x 8 px of one frame (192 values) or of 4 (768); 0 = 56 or 192."""
    width: int = 96
    """Channels at 4x4 px patches; twice that at 8x8 px."""
    blocks: tuple[int, int] = (1, 1)
    """Encoder residual blocks at 4x4 px and at 8x8 px patches."""
    decoder_blocks: tuple[int, int] = (1, 1)
    codebook_size: int = 512
    """Codes per codebook. Only with `vq`."""
    num_codebooks: int = 16
    """Codebooks (product quantisation), each for an equal number of channels. Only with `vq`."""
    batch_size: int = 4
    """Clips per batch and rank."""
    num_frames: int = 9
    """Per training clip, 4k+1; random temporal crop of longer clips. Any length can be encoded later."""
    height_px: int = 64
    """As `width_px`."""
    width_px: int = 64
    """Per training clip, multiples of 8; random crop of larger clips. Any size can be encoded later."""
    loss: CompressorLossSettings = field(default_factory=CompressorLossSettings)
    num_scenes: int = 20000
    """Rendered training scenes, if no run is given."""
    num_validation_scenes: int = 16
    cache_bytes: int = 256 << 20
    """Size limit of the cache of decoded or rendered clips."""
    seed: int = 0
    """Seed of the initial weights, the clip order and the crops."""

    def check(self) -> None:
        """Raises UsageError for invalid settings."""
        if self.temporal != bool(self.init_from):
            raise UsageError(
                "temporal layers go into the decoder of an image autoencoder: --temporal and --init-from go together"
            )
        if self.kind not in KINDS:
            raise UsageError(f"unknown compressor kind {self.kind!r}; choose from: {', '.join(KINDS)}")
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
