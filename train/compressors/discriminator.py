"""A patch discriminator for the compressor: it tells reconstructions from pictures, and the decoder learns to fool it.

    critic = Discriminator(width=32)
    critic(frames_NCHW)                            # (N, 1, H/8, W/8): above 0 where a patch looks real
    parts = adversarial(critic, pixels_BCTHW, made_BCTHW, reconstruction_loss=loss, last_weight=decoder.leave.weight)
    (loss + parts.compressor + parts.critic).backward()

One loss and one optimizer for both: the compressor's part sees the critic's weights as constants, the critic's part sees
the reconstruction as a constant, so one backward pass gives each its own gradient and the training loop knows nothing
of it. Hinge losses and the adaptive weight are those of VQGAN (Esser et al., arXiv 2012.09841).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

MAX_ADAPTIVE_WEIGHT = 1e4
"""As in VQGAN: where the critic has no gradient at all the ratio would be endless."""


class Discriminator(nn.Module):
    """Three convolutions of stride 2 and one that judges: every judgement sees 35 px or more."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for further in (width, 2 * width, 4 * width):
            layers.append(nn.Conv2d(channels, further, 4, stride=2, padding=1))
            if channels > 3:
                layers.append(nn.GroupNorm(4, further))
            layers.append(nn.LeakyReLU(0.2))
            channels = further
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        return self.layers(frames_NCHW)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Scalars: means over the batch."""

    compressor: Tensor
    """Has gradients for the compressor only, already weighted."""
    critic: Tensor
    """Has gradients for the critic only."""
    adaptive_weight: Tensor


def adversarial(
    critic: nn.Module, real_BCTHW: Tensor, made_BCTHW: Tensor, *, reconstruction_loss: Tensor, last_weight: Tensor
) -> Adversarial:
    """Both sides' losses for one batch.

    The compressor's is weighted so that at `last_weight` its gradient is as long as that of `reconstruction_loss`.
    """
    real, made = (clips.transpose(1, 2).flatten(0, 1) for clips in (real_BCTHW, made_BCTHW))
    constants = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    fooled = -functional_call(critic, constants, (made,)).float().mean()
    (wanted,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (found,) = torch.autograd.grad(fooled, last_weight, retain_graph=True)
    weight = (wanted.norm() / (found.norm() + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
    hinge = F.relu(1 - critic(real).float()).mean() + F.relu(1 + critic(made.detach()).float()).mean()
    return Adversarial(compressor=weight * fooled, critic=0.5 * hinge, adaptive_weight=weight)
