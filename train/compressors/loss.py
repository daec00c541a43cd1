"""What a compressor is trained for: pixels first, then what lies between, then what pictures look like.

    criterion = CompressorLoss(CompressorLossSettings(perceptual_weight=0.1), model)
    loss_B, logs = criterion(model(pixels_BCTHW), pixels_BCTHW, batch_number=120)

Loss of a clip: mean |difference| of pixels, its root mean square, the mean of differences between neighbouring pixels, the
bottleneck's own loss, a distance of frozen features and a discriminator's judgement, each but the first with a weight.

Shapes: B clips, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recaption.errors import UsageError
from train.compressors.autoencoder import Autoencoder, Reconstruction
from train.compressors.discriminator import Discriminator, adversarial
from train.compressors.picture_quality import PerceptualDistance

SMALLEST_SQUARE = 1e-6
"""Keeps the root's slope finite; 66 dB."""


@dataclass(frozen=True, kw_only=True)
class CompressorLossSettings:
    """Weights against the mean |difference| per pixel, of values in -1..1."""

    square_weight: float = 1.0
    """Of the root mean square of a clip's difference, which is what PSNR measures."""
    gradient_weight: float = 0.0
    """Of the differences between neighbouring pixels: sharper edges, lower PSNR."""
    kl_weight: float = 1e-5
    """Of the KL divergence per latent number. Only with `kl`."""
    commitment_weight: float = 0.1
    """Of the pull of vectors to their codes. Only with `vq`."""
    perceptual_weight: float = 0.0
    """Of the distance of frozen features (EfficientNet-Lite0)."""
    discriminator_weight: float = 0.0
    """Of the discriminator's judgement, after its gradient is scaled to that of the rest; 0 = no discriminator."""
    discriminator_start: int = 1000
    """Batches before the discriminator is asked."""
    discriminator_width: int = 32

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense."""
        for name in (
            "square_weight",
            "gradient_weight",
            "kl_weight",
            "commitment_weight",
            "perceptual_weight",
            "discriminator_weight",
        ):
            if getattr(self, name) < 0:
                raise UsageError(f"compressor setting loss.{name} = {getattr(self, name)} is negative")
        if self.discriminator_width < 4 or self.discriminator_width % 4:
            raise UsageError(f"loss.discriminator_width = {self.discriminator_width} must be a multiple of 4")


class CompressorLoss:
    """Holds the frozen network; a discriminator becomes a part of the model, so that it is optimised and saved."""

    def __init__(self, settings: CompressorLossSettings, model: Autoencoder) -> None:
        self.settings = settings
        self.model = model
        self.perceptual = PerceptualDistance() if settings.perceptual_weight else None
        if settings.discriminator_weight:
            model.discriminator = Discriminator(settings.discriminator_width)

    def __call__(
        self, made: Reconstruction, pixels_BCTHW: Tensor, *, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) and what the log shows."""
        settings = self.settings
        back_BCTHW = made.pixels_BCTHW.float()
        difference = back_BCTHW - pixels_BCTHW
        l1_B = difference.abs().flatten(1).mean(1)
        logs = {"l1": l1_B.detach().mean(), **made.bottled.logs}
        loss_B = l1_B
        if settings.square_weight:
            loss_B = loss_B + settings.square_weight * (difference.square().flatten(1).mean(1) + SMALLEST_SQUARE).sqrt()
        if settings.gradient_weight:
            sides = (difference.diff(dim=dim).abs().flatten(1).mean(1) for dim in (-1, -2))
            loss_B = loss_B + settings.gradient_weight * sum(sides)
        if self.perceptual is not None:
            distance_B = self.perceptual.to(back_BCTHW.device)(back_BCTHW, pixels_BCTHW)
            loss_B = loss_B + settings.perceptual_weight * distance_B
            logs["perceptual"] = distance_B.detach().mean()
        reconstruction_B = loss_B
        is_kl = self.model.bottleneck.kind == "kl"
        loss_B = loss_B + (settings.kl_weight if is_kl else settings.commitment_weight) * made.bottled.loss_B
        if settings.discriminator_weight and batch_number >= settings.discriminator_start:
            parts = adversarial(
                self.model.discriminator,
                pixels_BCTHW,
                back_BCTHW,
                reconstruction_loss=reconstruction_B.mean(),
                last_weight=self.model.decoder.leave.weight,
            )
            loss_B = loss_B + settings.discriminator_weight * parts.compressor + parts.critic
            logs["discriminator"] = parts.critic.detach()
            logs["adversarial"] = parts.compressor.detach()
        return loss_B, logs
