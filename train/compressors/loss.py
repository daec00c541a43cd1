"""Training loss of the compressor: pixel, bottleneck, perceptual and adversarial terms.

    criterion = CompressorLoss(CompressorLossSettings(perceptual_weight=0.1), model)
    loss_B, logs = criterion(model(pixels_BCTHW), pixels_BCTHW, batch_number=120)

    parts = adversarial_loss(discriminator, pixels_BCTHW, recon_BCTHW, reconstruction_loss=loss, last_weight=last_weight)
    (loss + parts.generator + parts.discriminator).backward()

Loss of a clip: L1 + weighted RMSE, L1 of image gradients, KL or commitment loss, perceptual distance and adversarial loss.

Compressor and discriminator (PatchGAN, of frames or of clips) are trained with one loss and one optimizer: the generator
term detaches the discriminator's weights, the discriminator term detaches the reconstruction, so that a single backward pass
gives each its own gradient. Hinge losses and the adaptive weight are those of VQGAN (Esser et al., arXiv 2012.09841).

Shapes: B clips, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from recaption.errors import UsageError
from train.compressors.autoencoder import Reconstruction
from train.compressors.picture_quality import PerceptualDistance

MAX_ADAPTIVE_WEIGHT = 1e4
"""Upper bound as in VQGAN, for a discriminator with vanishing gradient."""
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

    def __init__(self, settings: CompressorLossSettings, model: nn.Module, *, sees_time: bool = False) -> None:
        """
        Args:
            model: `Autoencoder`, or `TemporalDecoder`.
            sees_time: the discriminator judges clips, not frames.
        """
        self.settings = settings
        self.model = model
        self.perceptual = PerceptualDistance() if settings.perceptual_weight else None
        if settings.discriminator_weight:
            made = VideoDiscriminator if sees_time else Discriminator
            model.discriminator = made(settings.discriminator_width)

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
        bottleneck = getattr(self.model, "bottleneck", None)  # none where the latents are frozen
        is_kl = bottleneck is None or bottleneck.kind == "kl"
        loss_B = (
            loss_B
            + (settings.kl_weight if is_kl else settings.commitment_weight) * reconstruction.bottleneck_output.loss_B
        )
        if settings.discriminator_weight and batch_number >= settings.discriminator_start:
            parts = adversarial_loss(
                self.model.discriminator,  # type: ignore[arg-type]
                pixels_BCTHW,
                recon_BCTHW,
                reconstruction_loss=reconstruction_B.mean(),
                last_weight=self.model.last_weight,  # type: ignore[arg-type]
            )
            loss_B = loss_B + settings.discriminator_weight * parts.generator + parts.discriminator
            logs["discriminator"] = parts.discriminator.detach()
            logs["adversarial"] = parts.generator.detach()
        return loss_B, logs


class Discriminator(nn.Module):
    """PatchGAN: three convolutions of stride 2 and an output convolution; receptive field 35 px or more."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out_channels in (width, 2 * width, 4 * width):
            layers.append(nn.Conv2d(channels, out_channels, 4, stride=2, padding=1))
            if channels > 3:
                layers.append(nn.GroupNorm(4, out_channels))
            layers.append(nn.LeakyReLU(0.2))
            channels = out_channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        return self.layers(frames_NCHW)  # type: ignore[no-any-return]


class VideoDiscriminator(nn.Module):
    """The same over clips: each convolution also sees three frames, so that flicker gives a reconstruction away."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out_channels in (width, 2 * width, 4 * width):
            layers.append(nn.Conv3d(channels, out_channels, (3, 4, 4), stride=(1, 2, 2), padding=1))
            if channels > 3:
                layers.append(nn.GroupNorm(4, out_channels))
            layers.append(nn.LeakyReLU(0.2))
            channels = out_channels
        self.layers = nn.Sequential(*layers, nn.Conv3d(channels, 1, 3, padding=1))

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """(B, 1, T, H/8, W/8) logits: positive = real."""
        return self.layers(clips_BCTHW)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """Scalars: means over the batch."""

    generator: Tensor
    """Gradients reach the compressor only; already weighted."""
    discriminator: Tensor
    """Gradients reach the discriminator only."""


def adversarial_loss(
    discriminator: nn.Module,
    real_BCTHW: Tensor,
    recon_BCTHW: Tensor,
    *,
    reconstruction_loss: Tensor,
    last_weight: Tensor,
) -> AdversarialLoss:
    """Generator and discriminator losses of one batch.

    The generator loss is scaled so that its gradient at `last_weight` has the norm of that of `reconstruction_loss`.
    """
    real, fake = real_BCTHW, recon_BCTHW
    if not isinstance(discriminator, VideoDiscriminator):
        real, fake = (clips.transpose(1, 2).flatten(0, 1) for clips in (real, fake))
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    generator_loss = -functional_call(discriminator, constants, (fake,)).float().mean()
    (reconstruction_gradient,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (generator_gradient,) = torch.autograd.grad(generator_loss, last_weight, retain_graph=True)
    weight = (
        (reconstruction_gradient.norm() / (generator_gradient.norm() + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
    )
    hinge = F.relu(1 - discriminator(real).float()).mean() + F.relu(1 + discriminator(fake.detach()).float()).mean()
    return AdversarialLoss(generator=weight * generator_loss, discriminator=0.5 * hinge)
