"""Error of storing latents in fewer bits: against float32, symmetric and affine 8 bit, bytes, PSNR of decoded frames.

    python tests/benchmarks/packing/bench_latents.py [--compressor patch:24,whitening=0.5] [--num-scenes 24]

Latents of rendered scenes. Affine has a scale and a zero point for each channel of each sample, symmetric a scale alone.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from packing.shards.latent_codec import LATENT_DTYPES, decode_latent, encode_latent
from recaption.scenes.renderer import render
from train.compressors.picture_quality import psnr_db
from train.compressors.pixels import to_pixels
from train.compressors.registry import load


def symmetric(latent_CTHW: np.ndarray) -> np.ndarray:
    """8 bit with -127 to 127 over the largest magnitude of each channel."""
    step_C = np.abs(latent_CTHW.reshape(len(latent_CTHW), -1)).max(axis=1).reshape(-1, 1, 1, 1) / 127
    return np.rint(latent_CTHW / np.where(step_C > 0, step_C, 1)) * step_C


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compressor", default="patch:24,whitening=0.5")
    parser.add_argument("--num-scenes", type=int, default=24)
    arguments = parser.parse_args()
    compressor = load(arguments.compressor)
    errors: dict[str, list[float]] = {}
    psnrs_db: dict[str, list[float]] = {}
    num_bytes: dict[str, int] = {}
    for seed in range(arguments.num_scenes):
        frames_THWC = render(9000 + seed, num_frames=17, height_px=64, width_px=96, fps=8).frames_THWC
        pixels_BCTHW = to_pixels(torch.from_numpy(frames_THWC))[None]
        latent = compressor.encode(pixels_BCTHW)[0].numpy()
        variants = {"float32": latent, "int8 symmetric": symmetric(latent)}
        for dtype in LATENT_DTYPES:
            members = encode_latent(latent, dtype)
            num_bytes[dtype] = num_bytes.get(dtype, 0) + sum(map(len, members.values()))
            variants[dtype] = decode_latent(members, dtype, latent.shape)
        for name, values in variants.items():
            decoded = compressor.decode(torch.from_numpy(np.float32(values))[None])
            psnrs_db.setdefault(name, []).append(psnr_db(decoded, pixels_BCTHW))
            errors.setdefault(name, []).append(float(np.square(values - latent).mean() / np.square(latent).mean()))
    for name in errors:
        root = np.sqrt(np.mean(errors[name]))
        size = f"{num_bytes[name] / num_bytes['float16']:.3f} of float16's bytes" if name in num_bytes else ""
        print(f"{name:<16} relative error {root:.2e}   decoded {np.mean(psnrs_db[name]):.3f} dB   {size}")


if __name__ == "__main__":
    main()
