"""Training loss of the compressor: pixel, bottleneck, perceptual and adversarial terms.

    criterion = CompressorLoss(CompressorLossSettings(perceptual_weight=0.1), model)
    loss_B, logs = criterion(model(pixels_BCTHW), pixels_BCTHW, batch_number=120)

Loss of a clip: L1 + weighted RMSE, L1 of image gradients, KL or commitment loss, perceptual distance and adversarial loss.

Shapes: B clips, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recaption.errors import UsageError
from train.compressors.autoencoder import Autoencoder, Reconstruction
from train.compressors.discriminator import Discriminator, adversarial_loss
from train.compressors.picture_quality import PerceptualDistance

MIN_SQUARED_ERROR = 1e-6
"""Keeps the gradient of the square root finite; corresponds to 66 dB."""


@dataclass(frozen=True, kw_only=True)
class CompressorLossSettings:
    """Loss weights relative to the L1 loss of pixels in -1..1."""

    square_weight: float = 1.0
    """Of a clip's RMSE, which is what PSNR measures."""
    gradient_weight: float = 0.0
    """Of the L1 loss of image gradients (neighbouring pixels): sharper edges, lower PSNR."""
    kl_weight: float = 1e-5
    """Of the KL divergence per latent value. Only with `kl`."""
    commitment_weight: float = 0.1
    """Of the commitment loss. Only with `vq`."""
    perceptual_weight: float = 0.0
    """Of the perceptual distance (frozen EfficientNet-Lite0 features)."""
    discriminator_weight: float = 0.0
    """Of the adversarial loss, after adaptive scaling; 0 = no discriminator."""
    discriminator_start: int = 1000
    """First batch with adversarial loss."""
    discriminator_width: int = 32

    def check(self) -> None:
        """Raises UsageError for invalid settings."""
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
    """Holds the frozen perceptual network; the discriminator is added to the model, so that it is optimised and saved."""

    def __init__(self, settings: CompressorLossSettings, model: Autoencoder) -> None:
        self.settings = settings
        self.model = model
        self.perceptual = PerceptualDistance() if settings.perceptual_weight else None
        if settings.discriminator_weight:
            model.discriminator = Discriminator(settings.discriminator_width)

    def __call__(
        self, reconstruction: Reconstruction, pixels_BCTHW: Tensor, *, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss per clip (B,), and scalars for the log."""
        settings = self.settings
        recon_BCTHW = reconstruction.pixels_BCTHW.float()
        difference = recon_BCTHW - pixels_BCTHW
        l1_B = difference.abs().flatten(1).mean(1)
        logs = {"l1": l1_B.detach().mean(), **reconstruction.bottleneck_output.logs}
        loss_B = l1_B
        if settings.square_weight:
            loss_B = (
                loss_B + settings.square_weight * (difference.square().flatten(1).mean(1) + MIN_SQUARED_ERROR).sqrt()
            )
        if settings.gradient_weight:
            gradients = (difference.diff(dim=dim).abs().flatten(1).mean(1) for dim in (-1, -2))
            loss_B = loss_B + settings.gradient_weight * sum(gradients)
        if self.perceptual is not None:
            distance_B = self.perceptual.to(recon_BCTHW.device)(recon_BCTHW, pixels_BCTHW)
            loss_B = loss_B + settings.perceptual_weight * distance_B
            logs["perceptual"] = distance_B.detach().mean()
        reconstruction_B = loss_B
        is_kl = self.model.bottleneck.kind == "kl"
        loss_B = (
            loss_B
            + (settings.kl_weight if is_kl else settings.commitment_weight) * reconstruction.bottleneck_output.loss_B
        )
        if settings.discriminator_weight and batch_number >= settings.discriminator_start:
            parts = adversarial_loss(
                self.model.discriminator,
                pixels_BCTHW,
                recon_BCTHW,
                reconstruction_loss=reconstruction_B.mean(),
                last_weight=self.model.decoder.conv_out.weight,
            )
            loss_B = loss_B + settings.discriminator_weight * parts.generator + parts.discriminator
            logs["discriminator"] = parts.discriminator.detach()
            logs["adversarial"] = parts.generator.detach()
        return loss_B, logs
