"""Reconstruction quality of compressors on held-out scenes.

    python tests/benchmarks/train/bench_compressors.py patch:48 runs/a/train/vae [--scenes 24 --size-px 64 --frames 9]

One line per SPEC: latent channels, frames and pixels per latent cell, compression ratio (pixel values per latent value),
mean PSNR and SSIM (and the worst clip's PSNR), perceptual distance (picture_quality.py, x 1000; lower is better), RMS of
the latents, CPU milliseconds per clip to encode and decode. All compressors get the same clips, in turn.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from recaption.scenes.splits import held_out_scene
from train.compressors.picture_quality import PerceptualDistance, psnr_db, ssim
from train.compressors.pixels import to_pixels
from train.compressors.registry import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="SPEC")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--frames", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compressors = {spec: load(spec) for spec in options.specs}
    results: dict[str, list[tuple[float, ...]]] = {spec: [] for spec in compressors}
    distance = PerceptualDistance()
    for number in range(options.scenes):
        scene = held_out_scene(number, size=(options.frames, options.size_px, options.size_px))
        pixels_BCTHW = to_pixels(torch.from_numpy(scene.frames_THWC)[None])
        for spec, compressor in compressors.items():
            start = time.process_time()
            latents = compressor.encode(pixels_BCTHW)
            recon_BCTHW = compressor.decode(latents)
            seconds = time.process_time() - start
            square = float(latents.square().mean())
            with torch.inference_mode():
                features = 1000 * float(distance(recon_BCTHW, pixels_BCTHW))
            quality = (psnr_db(recon_BCTHW, pixels_BCTHW), ssim(recon_BCTHW, pixels_BCTHW), features)
            results[spec].append((*quality, square, 1000 * seconds))
    print(f"{options.scenes} scenes of {options.frames} frames, {options.size_px}x{options.size_px} px, held out")
    print(f"{'spec':<44} {'latent':>10}  ratio  PSNR dB  worst   SSIM  features    rms  CPU ms")
    for spec, compressor in compressors.items():
        psnrs, ssims, features, squares, milliseconds = np.array(results[spec]).T
        stride, side = compressor.frame_stride, compressor.spatial_stride
        latent = f"{compressor.num_channels}@{stride}x{side}x{side}"
        ratio = 3 * stride * side**2 / compressor.num_channels
        print(
            f"{spec[-44:]:<44} {latent:>10} {ratio:>6.1f} {psnrs.mean():>8.2f} {psnrs.min():>6.2f} {ssims.mean():>6.3f} "
            f"{features.mean():>9.1f} {np.sqrt(squares.mean()):>6.2f} {np.median(milliseconds):>7.0f}"
        )


if __name__ == "__main__":
    main()
