"""PatchGAN discriminator and adversarial loss for training the compressor (VQGAN).

    discriminator = Discriminator(width=32)
    discriminator(frames_NCHW)                            # (N, 1, H/8, W/8) logits: positive = real
    parts = adversarial_loss(discriminator, pixels_BCTHW, recon_BCTHW, reconstruction_loss=loss, last_weight=last_weight)
    (loss + parts.generator + parts.discriminator).backward()

Both are trained with one loss and one optimizer: the generator term detaches the discriminator's weights, the
discriminator term detaches the reconstruction, so that a single backward pass gives each its own gradient. Hinge losses
and the adaptive weight are those of VQGAN (Esser et al., arXiv 2012.09841).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

MAX_ADAPTIVE_WEIGHT = 1e4
"""Upper bound as in VQGAN, for a discriminator with vanishing gradient."""


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
    real, fake = (clips.transpose(1, 2).flatten(0, 1) for clips in (real_BCTHW, recon_BCTHW))
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    generator_loss = -functional_call(discriminator, constants, (fake,)).float().mean()
    (reconstruction_gradient,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (generator_gradient,) = torch.autograd.grad(generator_loss, last_weight, retain_graph=True)
    weight = (
        (reconstruction_gradient.norm() / (generator_gradient.norm() + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
    )
    hinge = F.relu(1 - discriminator(real).float()).mean() + F.relu(1 + discriminator(fake.detach()).float()).mean()
    return AdversarialLoss(generator=weight * generator_loss, discriminator=0.5 * hinge)
