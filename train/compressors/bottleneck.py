"""What lies between encoder and decoder: a narrow normal distribution (KL), or vectors of a learned list (VQ).

    found = bottleneck(encoded_BCthw)       # found.latents_BCthw go on to the decoder, found.loss_B is added to the loss
    bottleneck.latents(encoded_BCthw)       # the same without noise, losses or learning: what is stored

Both take `num_inputs` channels and give `num_channels`; the latents stand in the first ones.

Shapes: B clips, C channels, t, h, w the latent grid; G groups of channels, K codes, D numbers per code, N vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import UsageError
from train.parallel import process_group as distributed
from train.parallel.collectives import sum_over_ranks

INITIAL_LOGVAR = -8.0
"""Of the latents around their mean: at a standard deviation of 1 the decoder would learn to ignore them."""


COMMITMENT = 0.25
"""Weight of the pull of vectors to their codes (van den Oord et al., arXiv 1711.00937)."""


CODEBOOK_DECAY = 0.98
"""Codes follow the mean of the vectors nearest to them over about the last fifty batches."""


DEAD_SHARE = 0.02
"""A code that fewer vectors choose than this share of an even split is moved to a vector of the batch."""


@dataclass(frozen=True, kw_only=True)
class Bottled:
    latents_BCthw: Tensor
    loss_B: Tensor
    """Per clip; the KL divergence per latent number, or the commitment."""
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class KlBottleneck(nn.Module):
    """Mean and log variance in, one draw out (Kingma and Welling, arXiv 1312.6114)."""

    kind = "kl"
    initial_bias: float = INITIAL_LOGVAR
    """Of the input channels behind the latents."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels, self.num_inputs = num_channels, 2 * num_channels
        self.config: dict[str, Any] = {}

    def forward(self, encoded_BCthw: Tensor) -> Bottled:
        mean, logvar = encoded_BCthw.float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        kl_B = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.training else mean
        return Bottled(latents_BCthw=latents, loss_B=kl_B, logs={"kl": kl_B.detach().mean()})

    def latents(self, encoded_BCthw: Tensor) -> Tensor:
        return encoded_BCthw[:, : self.num_channels].float()

    def snap(self, latents_BCthw: Tensor) -> Tensor:
        """The latents that a decoder may see nearest to these: all of them."""
        return latents_BCthw


class VqBottleneck(nn.Module):
    """Each group of channels is replaced by the nearest of its own list of codes.

    Gradients pass straight through; the codes are running means of the vectors that chose them, and codes that nobody
    chooses are moved to vectors of the batch. The lists are buffers: they are averaged over ranks, saved and resumed.

    Args:
        groups: lists side by side: one latent place has codes ** groups values, log2(codes) * groups bits.
    """

    kind = "vq"
    initial_bias = 0.0
    codes_GKD: Tensor
    sums_GKD: Tensor
    counts_GK: Tensor
    num_updates: Tensor

    def __init__(self, num_channels: int, *, codes: int = 512, groups: int = 1) -> None:
        super().__init__()
        if codes < 2 or groups < 1 or num_channels % groups:
            raise UsageError(
                f"a VQ bottleneck of {num_channels} channels cannot have {codes} codes in {groups} groups; "
                "codes are at least 2 and the groups divide the channels"
            )
        self.num_channels = self.num_inputs = num_channels
        self.num_groups = groups
        self.config: dict[str, Any] = {"codes": codes, "groups": groups}
        shape = (groups, codes, num_channels // groups)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("codes_GKD", torch.randn(shape, generator=generator))
        self.register_buffer("sums_GKD", torch.zeros(shape))
        self.register_buffer("counts_GK", torch.zeros(shape[:2]))
        self.register_buffer("num_updates", torch.zeros(()))

    def forward(self, encoded_BCthw: Tensor) -> Bottled:
        encoded = encoded_BCthw.float()
        vectors_GND = self._vectors(encoded)
        if self.training:
            self._start(vectors_GND.detach())
        chosen_GN = self._nearest(vectors_GND.detach())
        codes = self._places(self._codes(chosen_GN), encoded.shape)
        logs = {}
        if self.training:
            logs = self._follow(vectors_GND.detach(), chosen_GN)
        commitment_B = COMMITMENT * (encoded - codes).square().flatten(1).mean(1)
        return Bottled(latents_BCthw=encoded + (codes - encoded).detach(), loss_B=commitment_B, logs=logs)

    def latents(self, encoded_BCthw: Tensor) -> Tensor:
        encoded = encoded_BCthw.float()
        return self._places(self._codes(self._nearest(self._vectors(encoded))), encoded.shape)

    def snap(self, latents_BCthw: Tensor) -> Tensor:
        """Generated latents lie between codes; the decoder has only seen codes."""
        return self.latents(latents_BCthw)

    def _vectors(self, x_BCthw: Tensor) -> Tensor:
        """(G, N, D), N = B t h w."""
        return x_BCthw.unflatten(1, (self.num_groups, -1)).permute(1, 0, 3, 4, 5, 2).flatten(1, 4)

    def _places(self, vectors_GND: Tensor, shape: torch.Size) -> Tensor:
        batch, _, frames, rows, columns = shape
        return vectors_GND.unflatten(1, (batch, frames, rows, columns)).permute(1, 0, 5, 2, 3, 4).flatten(1, 2)

    def _nearest(self, vectors_GND: Tensor) -> Tensor:
        with torch.autocast(vectors_GND.device.type, enabled=False):  # half precision confuses neighbouring codes
            products = vectors_GND @ self.codes_GKD.transpose(1, 2)
        return (self.codes_GKD.square().sum(-1)[:, None] - 2 * products).argmin(-1)

    def _codes(self, chosen_GN: Tensor) -> Tensor:
        return torch.gather(self.codes_GKD, 1, chosen_GN[..., None].expand(-1, -1, self.codes_GKD.shape[-1]))

    @torch.no_grad()
    def _start(self, vectors_GND: Tensor) -> None:
        """The first codes are vectors of the first batch."""
        is_first = self.num_updates == 0
        self.codes_GKD.copy_(torch.where(is_first, self._drawn(vectors_GND), self.codes_GKD))

    def _drawn(self, vectors_GND: Tensor) -> Tensor:
        """(G, K, D) vectors of rank 0's batch, a little apart from each other."""
        num_codes, rank = self.codes_GKD.shape[1], distributed.rank()
        number = torch.randint(vectors_GND.shape[1], (num_codes,), device=vectors_GND.device)
        vectors = vectors_GND[:, number]
        vectors = vectors + 0.01 * vectors_GND.std(1, keepdim=True) * torch.randn_like(vectors)
        return sum_over_ranks(vectors if rank == 0 else torch.zeros_like(vectors))

    @torch.no_grad()
    def _follow(self, vectors_GND: Tensor, chosen_GN: Tensor) -> dict[str, Tensor]:
        """One step of the running means; returns how many of the codes are in use."""
        num_codes = self.codes_GKD.shape[1]
        counts = torch.zeros_like(self.counts_GK).scatter_add_(1, chosen_GN, torch.ones_like(chosen_GN).float())
        sums = torch.zeros_like(self.sums_GKD)
        sums.scatter_add_(1, chosen_GN[..., None].expand_as(vectors_GND), vectors_GND)
        sum_over_ranks(counts)
        sum_over_ranks(sums)
        is_fine = torch.isfinite(sums).all()  # a broken batch is left out of the codes as of the weights
        share = torch.where(self.num_updates == 0, 1.0, 1 - CODEBOOK_DECAY)
        share = torch.where(is_fine, share, 0.0)
        self.counts_GK.lerp_(counts, share)
        self.sums_GKD.lerp_(torch.nan_to_num(sums), share)
        self.num_updates += is_fine
        even = self.counts_GK.sum(-1, keepdim=True) / num_codes
        is_dead = (self.counts_GK < DEAD_SHARE * even) & is_fine
        means = self.sums_GKD / self.counts_GK.clamp(min=1e-6)[..., None]
        drawn = self._drawn(torch.nan_to_num(vectors_GND))
        self.codes_GKD.copy_(torch.where(is_dead[..., None], drawn, torch.where(is_fine, means, self.codes_GKD)))
        # A moved code starts as if an even share had chosen it, so that it is not moved again at once.
        self.counts_GK.copy_(torch.where(is_dead, even, self.counts_GK))
        self.sums_GKD.copy_(torch.where(is_dead[..., None], drawn * even[..., None], self.sums_GKD))
        probabilities = counts / counts.sum(-1, keepdim=True)
        entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1)
        return {
            "codes_used_share": (counts > 0).float().mean(),
            "code_perplexity": entropy.exp().mean(),
            "codes_revived_share": is_dead.float().mean(),
        }


Bottleneck = KlBottleneck | VqBottleneck


BOTTLENECKS = ("kl", "vq")


def build(kind: str, num_channels: int, *, codes: int = 512, groups: int = 1) -> Bottleneck:
    """Raises UsageError where there is none of that kind."""
    if kind == "kl":
        return KlBottleneck(num_channels)
    if kind == "vq":
        return VqBottleneck(num_channels, codes=codes, groups=groups)
    raise UsageError(f"bottleneck {kind!r} is unknown; there are: {', '.join(BOTTLENECKS)}")
