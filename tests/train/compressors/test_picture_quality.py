from __future__ import annotations

import numpy as np
import pytest
import torch

from recaption.errors import UsageError
from recaption.scenes.renderer import render
from train.compressors.picture_quality import PerceptualDistance, ssim
from train.compressors.pixels import to_pixels


def clips_BCTHW(*seeds: int, size_px: int = 64) -> torch.Tensor:
    frames = [render(seed, num_frames=2, height_px=size_px, width_px=size_px, fps=8).frames_THWC for seed in seeds]
    return to_pixels(torch.from_numpy(np.stack(frames)))


def noisy(clips: torch.Tensor, amount: float) -> torch.Tensor:
    return clips + amount * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))


def ssim_of_one_window(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one 11x11 px window, from its definition."""
    position = np.arange(11) - 5
    weights = np.exp(-(position[:, None] ** 2 + position**2) / (2 * 1.5**2))
    weights /= weights.sum()
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def test_ssim_matches_its_definition():
    clips = clips_BCTHW(3)
    x, y = clips[:, :, :1, :12, :11], noisy(clips, 0.2)[:, :, :1, :12, :11]
    windows = [
        ssim_of_one_window(x[0, c, 0, row : row + 11].numpy(), y[0, c, 0, row : row + 11].numpy())
        for c in range(3)
        for row in range(2)
    ]
    assert ssim(x, y) == pytest.approx(np.mean(windows), abs=1e-6)


def test_ssim_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x = clips_BCTHW(3)
    y = noisy(x, 0.2)
    options = {"data_range": 2.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    full = [
        metrics.structural_similarity(x[0, c, t].numpy(), y[0, c, t].numpy(), full=True, **options)[1][5:-5, 5:-5]
        for c in range(3)
        for t in range(2)
    ]
    assert ssim(x, y) == pytest.approx(np.mean(full), abs=1e-5)


def test_ssim_falls_from_one_with_noise():
    clips = clips_BCTHW(1, 2)
    values = [ssim(clips, noisy(clips, amount)) for amount in (0.0, 0.02, 0.1, 0.5)]
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    with pytest.raises(UsageError, match="at least 11x11 px"):
        ssim(clips[..., :8], clips[..., :8])


def test_perceptual_distance_is_per_clip_and_grows_with_blur():
    distance = PerceptualDistance()
    clips = clips_BCTHW(1, 2)
    blurred = torch.nn.functional.avg_pool3d(clips, (1, 5, 5), stride=1, padding=(0, 2, 2))
    more = torch.nn.functional.avg_pool3d(clips, (1, 9, 9), stride=1, padding=(0, 4, 4))
    none, some, much = (distance(clips, other) for other in (clips, blurred, more))
    assert none.shape == (2,)
    assert none.max() < 1e-6
    assert (some > 0.01).all()
    assert (much > some).all()
    torch.testing.assert_close(distance(clips[1:], blurred[1:]), some[1:], rtol=1e-3, atol=1e-4)
