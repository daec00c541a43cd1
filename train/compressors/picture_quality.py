"""Reconstruction quality: PSNR, SSIM and a perceptual distance.

    ssim(reconstruction_BCTHW, pixels_BCTHW)             # 0.94
    PerceptualDistance()(reconstruction_BCTHW, pixels_BCTHW)    # (B,), 0 for equal clips

Shapes: B clips, C channels, T frames, H rows, W columns; N frames of all clips. Pixels are -1..1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.captioners.videococa.efficientnet import MEAN, STD, STRIDE_PX, load_backbone
from recaption.errors import UsageError

MIN_MEAN_SQUARE = 1e-10
"""Equal clips have a PSNR of 106 dB, not of infinity, which JSON does not have."""


def psnr_db(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak of pixels in -1..1 is 2."""
    mean_square = (one.double() - other.double()).square().mean().item()
    return 10 * math.log10(4 / max(mean_square, MIN_MEAN_SQUARE))


SSIM_SIGMA_PX, SSIM_RADIUS_PX = 1.5, 5
"""The 11x11 Gaussian window of Wang et al., IEEE TIP 2004."""
PERCEPTUAL_PX = 96
"""Smaller frames are enlarged first: the network has a stride of 32 px."""


def ssim(one_BCTHW: Tensor, other_BCTHW: Tensor, *, data_range: float = 2.0) -> float:
    """Structural similarity of two batches of clips: the mean over frames, channels and full windows.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", IEEE TIP 2004: K1 = 0.01, K2 = 0.03, a Gaussian window,
    population (co)variances; skimage.metrics.structural_similarity gives the same with gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False and its border of 5 px left out.

    Raises:
        UsageError: frames smaller than the window.
    """
    size = 2 * SSIM_RADIUS_PX + 1
    if min(one_BCTHW.shape[-2:]) < size:
        raise UsageError(f"SSIM needs frames of at least {size}x{size} px, not {tuple(one_BCTHW.shape[-2:])}")
    position = torch.arange(size, dtype=torch.float64, device="cpu") - SSIM_RADIUS_PX
    weights = torch.exp(-0.5 * (position / SSIM_SIGMA_PX).square())
    weights = (weights / weights.sum()).to(one_BCTHW.device)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

    x, y = (frames.double().transpose(1, 2).flatten(0, 2)[:, None] for frames in (one_BCTHW, other_BCTHW))
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


class PerceptualDistance(nn.Module):
    """Perceptual distance: squared difference of normalised features of a frozen ImageNet network, as in LPIPS.

    Features are normalised per position (Zhang et al., arXiv 1801.03924), without LPIPS' learned channel weights. The
    network is EfficientNet-Lite0 (Apache-2.0, a dependency of the captioner anyway), at 1/16 and 1/32 resolution.

    Raises:
        WeightsUnreachableError: the package with its weights is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tower = load_backbone()
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(-1, 1, 1), persistent=False)

    def forward(self, one_BCTHW: Tensor, other_BCTHW: Tensor) -> Tensor:
        """(B,): mean over frames and positions, summed over the two feature maps; differentiable in both arguments."""
        batch = len(one_BCTHW)
        maps = zip(self._features(one_BCTHW), self._features(other_BCTHW))
        distances = [(one - other).square().sum(1).unflatten(0, (batch, -1)).flatten(1).mean(1) for one, other in maps]
        return torch.stack(distances).sum(0)

    def _features(self, pixels_BCTHW: Tensor) -> list[Tensor]:
        frames_NCHW = pixels_BCTHW.transpose(1, 2).flatten(0, 1).float()
        height_px, width_px = frames_NCHW.shape[-2:]
        factor = max(1.0, PERCEPTUAL_PX / min(height_px, width_px))
        size = [max(STRIDE_PX, round(side * factor / STRIDE_PX) * STRIDE_PX) for side in (height_px, width_px)]
        if size != [height_px, width_px]:
            frames_NCHW = F.interpolate(frames_NCHW, size=size, mode="bilinear", antialias=True)
        normalised = (frames_NCHW.clamp(-1, 1) * 0.5 + 0.5 - self.mean) / self.std
        return [F.normalize(features, dim=1) for features in self.tower(normalised)]
