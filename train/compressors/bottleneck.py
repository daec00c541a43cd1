"""Bottlenecks of the autoencoder: KL (Gaussian posterior) and VQ (codebooks by EMA, straight-through gradients).

    output = bottleneck(encoded_BCthw)      # output.latents_BCthw go to the decoder, output.loss_B is added to the loss
    bottleneck.latents(encoded_BCthw)       # without noise, loss or codebook update: what is stored

Both map `num_inputs` channels to `num_channels`; the first `num_channels` inputs are the latents.

Shapes: B clips, C channels, t, h, w the latent grid; G codebooks, K codes, D values per code, N vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.parallel.collectives import sum_over_ranks
from train.parallel.process_group import rank

INITIAL_LOGVAR = -8.0
"""Initial posterior log variance: at a standard deviation of 1 the decoder would learn to ignore the latents."""
COMMITMENT = 0.25
"""Weight of the commitment loss (van den Oord et al., arXiv 1711.00937)."""
CODEBOOK_DECAY = 0.98
"""EMA decay of the codes: about the last fifty batches."""
DEAD_CODE_FRACTION = 0.02
"""A code used less than this fraction of uniform usage is reset to a vector of the batch."""


@dataclass(frozen=True, kw_only=True)
class BottleneckOutput:
    latents_BCthw: Tensor
    loss_B: Tensor
    """Per clip: KL divergence per latent value, or commitment loss."""
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class KlBottleneck(nn.Module):
    """Gaussian posterior from mean and log variance, sampled in training (Kingma and Welling, arXiv 1312.6114)."""

    kind = "kl"
    initial_bias: float = INITIAL_LOGVAR
    """Initial bias of the input channels after the latents."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels, self.num_inputs = num_channels, 2 * num_channels
        self.config: dict[str, Any] = {}

    def forward(self, encoded_BCthw: Tensor) -> BottleneckOutput:
        mean, logvar = encoded_BCthw.float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        kl_B = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.training else mean
        return BottleneckOutput(latents_BCthw=latents, loss_B=kl_B, logs={"kl": kl_B.detach().mean()})

    def latents(self, encoded_BCthw: Tensor) -> Tensor:
        return encoded_BCthw[:, : self.num_channels].float()

    def quantize(self, latents_BCthw: Tensor) -> Tensor:
        """Project onto the decoder's input space: the identity for KL."""
        return latents_BCthw


class VqBottleneck(nn.Module):
    """Product VQ: each group of channels is replaced by the nearest code of its own codebook.

    Straight-through gradients; codes are EMAs of the vectors assigned to them, and dead codes are reset to vectors of the
    batch. Codebooks are buffers, updated with the vectors of all ranks, saved and resumed.

    Args:
        num_codebooks: a latent cell carries log2(codebook_size) * num_codebooks bits.
    """

    kind = "vq"
    initial_bias = 0.0
    codebook_GKD: Tensor
    ema_sums_GKD: Tensor
    ema_counts_GK: Tensor
    num_updates: Tensor

    def __init__(self, num_channels: int, *, codebook_size: int = 512, num_codebooks: int = 1) -> None:
        super().__init__()
        if codebook_size < 2 or num_codebooks < 1 or num_channels % num_codebooks:
            raise UsageError(
                f"a VQ bottleneck of {num_channels} channels cannot have {codebook_size = }, {num_codebooks = }; "
                "a codebook has 2 codes or more, and the number of codebooks divides the channels"
            )
        self.num_channels = self.num_inputs = num_channels
        self.num_codebooks = num_codebooks
        self.config: dict[str, Any] = {"codebook_size": codebook_size, "num_codebooks": num_codebooks}
        shape = (num_codebooks, codebook_size, num_channels // num_codebooks)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("codebook_GKD", torch.randn(shape, generator=generator))
        self.register_buffer("ema_sums_GKD", torch.zeros(shape))
        self.register_buffer("ema_counts_GK", torch.zeros(shape[:2]))
        self.register_buffer("num_updates", torch.zeros(()))

    def forward(self, encoded_BCthw: Tensor) -> BottleneckOutput:
        encoded = encoded_BCthw.float()
        vectors_GND = self._vectors(encoded)
        if self.training:
            self._initialise(vectors_GND.detach())
        index_GN = self._nearest(vectors_GND.detach())
        quantized = self._to_grid(self._codes(index_GN), encoded.shape)
        logs = {}
        if self.training:
            logs = self._update_codebooks(vectors_GND.detach(), index_GN)
        commitment_B = COMMITMENT * (encoded - quantized).square().flatten(1).mean(1)
        return BottleneckOutput(latents_BCthw=encoded + (quantized - encoded).detach(), loss_B=commitment_B, logs=logs)

    def latents(self, encoded_BCthw: Tensor) -> Tensor:
        encoded = encoded_BCthw.float()
        return self._to_grid(self._codes(self._nearest(self._vectors(encoded))), encoded.shape)

    def quantize(self, latents_BCthw: Tensor) -> Tensor:
        """Nearest codes: generated latents lie between codes, but the decoder was trained on codes only."""
        return self.latents(latents_BCthw)

    def _vectors(self, x_BCthw: Tensor) -> Tensor:
        """(G, N, D), N = B t h w."""
        return x_BCthw.unflatten(1, (self.num_codebooks, -1)).permute(1, 0, 3, 4, 5, 2).flatten(1, 4)

    def _to_grid(self, vectors_GND: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `_vectors`, to (B, C, t, h, w)."""
        batch, _, frames, rows, columns = shape
        return vectors_GND.unflatten(1, (batch, frames, rows, columns)).permute(1, 0, 5, 2, 3, 4).flatten(1, 2)

    def _nearest(self, vectors_GND: Tensor) -> Tensor:
        """Index of the nearest code, (G, N)."""
        with torch.autocast(vectors_GND.device.type, enabled=False):  # half precision would mix up close codes
            products = vectors_GND @ self.codebook_GKD.transpose(1, 2)
        return (self.codebook_GKD.square().sum(-1)[:, None] - 2 * products).argmin(-1)

    def _codes(self, index_GN: Tensor) -> Tensor:
        """Codes by index, (G, N, D)."""
        return torch.gather(self.codebook_GKD, 1, index_GN[..., None].expand(-1, -1, self.codebook_GKD.shape[-1]))

    @torch.no_grad()
    def _initialise(self, vectors_GND: Tensor) -> None:
        """Initialise the codes with vectors of the first batch."""
        is_first = self.num_updates == 0
        self.codebook_GKD.copy_(torch.where(is_first, self._random_vectors(vectors_GND), self.codebook_GKD))

    def _random_vectors(self, vectors_GND: Tensor) -> Tensor:
        """(G, K, D) random vectors of rank 0's batch, with a little noise so that no two are equal."""
        num_codes = self.codebook_GKD.shape[1]
        index = torch.randint(vectors_GND.shape[1], (num_codes,), device=vectors_GND.device)
        vectors = vectors_GND[:, index]
        vectors = vectors + 0.01 * vectors_GND.std(1, keepdim=True) * torch.randn_like(vectors)
        return sum_over_ranks(vectors if rank() == 0 else torch.zeros_like(vectors))

    @torch.no_grad()
    def _update_codebooks(self, vectors_GND: Tensor, index_GN: Tensor) -> dict[str, Tensor]:
        """One EMA step; returns codebook usage for the log."""
        num_codes = self.codebook_GKD.shape[1]
        counts = torch.zeros_like(self.ema_counts_GK).scatter_add_(1, index_GN, torch.ones_like(index_GN).float())
        sums = torch.zeros_like(self.ema_sums_GKD)
        sums.scatter_add_(1, index_GN[..., None].expand_as(vectors_GND), vectors_GND)
        sum_over_ranks(counts)
        sum_over_ranks(sums)
        is_finite = torch.isfinite(sums).all()  # a batch that is not finite changes neither codes nor weights
        weight = torch.where(self.num_updates == 0, 1.0, 1 - CODEBOOK_DECAY)
        weight = torch.where(is_finite, weight, 0.0)
        self.ema_counts_GK.lerp_(counts, weight)
        self.ema_sums_GKD.lerp_(torch.nan_to_num(sums), weight)
        self.num_updates += is_finite
        uniform = self.ema_counts_GK.sum(-1, keepdim=True) / num_codes
        is_dead = (self.ema_counts_GK < DEAD_CODE_FRACTION * uniform) & is_finite
        means = self.ema_sums_GKD / self.ema_counts_GK.clamp(min=1e-6)[..., None]
        random = self._random_vectors(torch.nan_to_num(vectors_GND))
        self.codebook_GKD.copy_(
            torch.where(is_dead[..., None], random, torch.where(is_finite, means, self.codebook_GKD))
        )
        # A reset code starts with uniform usage, so that it is not reset again at once.
        self.ema_counts_GK.copy_(torch.where(is_dead, uniform, self.ema_counts_GK))
        self.ema_sums_GKD.copy_(torch.where(is_dead[..., None], random * uniform[..., None], self.ema_sums_GKD))
        probabilities = counts / counts.sum(-1, keepdim=True)
        entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1)
        return {
            "codes_used_share": (counts > 0).float().mean(),
            "code_perplexity": entropy.exp().mean(),
            "codes_revived_share": is_dead.float().mean(),
        }


Bottleneck = KlBottleneck | VqBottleneck
BOTTLENECKS = ("kl", "vq")


def build_bottleneck(kind: str, num_channels: int, *, codebook_size: int = 512, num_codebooks: int = 1) -> Bottleneck:
    """A bottleneck by kind, `kl` or `vq`. Raises UsageError for any other."""
    if kind == "kl":
        return KlBottleneck(num_channels)
    if kind == "vq":
        return VqBottleneck(num_channels, codebook_size=codebook_size, num_codebooks=num_codebooks)
    raise UsageError(f"unknown bottleneck {kind!r}; choose from: {', '.join(BOTTLENECKS)}")
