"""Throughput of `PackLoader` against plain webdataset over the same local tars: samples per CPU second, and per second.

    python tests/benchmarks/packing/bench_loader.py [--num-samples 2000] [--dtype int8]

webdataset reads the tars sequentially, unshuffled, and loads the .npy members; where these are not float16, once as stored
and once decoded to floats, as every trainer has to. The loader reads the same samples in the order of its plan, by ranged
reads, and packs the tokens; in its first epoch it also checks every sha256. Both in one process, interleaved.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Callable

import numpy as np
import webdataset

from packing.grid import Grid
from packing.loader.loader import PackLoader
from packing.plan.settings import PlanSettings
from packing.shards.index import build_latents_index
from packing.shards.latent_codec import LATENT_DTYPES
from packing.shards.samples import latent_entry
from packing.shards.write import write_latents_shard
from recaption.records import Sample
from recaption.run_folder import RunFolder

SAMPLES_PER_SHARD = 100
SHAPES = ((1, 18, 32), (3, 18, 32), (5, 18, 32), (5, 32, 18), (5, 30, 52))
"""Of latents of 16 channels: 18 kB to 250 kB a sample."""


def write(run: RunFolder, num_samples: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for first in range(0, num_samples, SAMPLES_PER_SHARD):
        number = first // SAMPLES_PER_SHARD
        entries = []
        for i in range(first, first + SAMPLES_PER_SHARD):
            latent = rng.standard_normal((16, *SHAPES[number % len(SHAPES)])).astype(np.float16)
            sample = Sample(
                clip_id=f"clip-{i:06d}", shard=f"shards/b/{number:06d}.tar", offset_bytes=0, num_bytes=0, bucket="b",
                num_frames=1, height_px=8, width_px=8, fps=8, num_latent_tokens=1, num_caption_tokens=1,
                caption="a caption", sha256="",
            )  # fmt: skip
            entries.append(latent_entry(sample, latent, num_latent_tokens=latent[0].size, dtype=dtype))
        write_latents_shard(run, f"latents/patch/b/{number:06d}", entries, plan_hash="p")
    build_latents_index(run, "patch")


def read_webdataset(run: RunFolder) -> int:
    tars = [run.path(name) for name in run.list("latents/patch/*/*.tar")]
    samples = webdataset.WebDataset(tars, shardshuffle=False)
    return sum(np.load(io.BytesIO(sample["npy"])).nbytes for sample in samples)


def read_webdataset_decoded(run: RunFolder) -> int:
    """`read_webdataset`, decoded to floats as in the table of latent_codec.py."""
    tars = [run.path(name) for name in run.list("latents/patch/*/*.tar")]
    num_bytes = 0
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        latent = np.load(io.BytesIO(sample["npy"]))
        if "scale.npy" in sample:
            scale, zero_point = np.load(io.BytesIO(sample["scale.npy"])).reshape(2, -1, 1, 1, 1)
            latent = latent * scale + zero_point
        else:
            latent = (latent.astype(np.uint32) << 16).view(np.float32)
        num_bytes += latent.nbytes
    return num_bytes


class ReadEpoch:
    """Reads the next epoch of one loader at each call."""

    def __init__(self, run: RunFolder) -> None:
        self.loader = PackLoader(
            run, settings=PlanSettings(capacity=8192, policy="best_fit"), grid=Grid(patch=(1, 2, 2)), prefetch=0
        )
        self.batches = iter(self.loader)

    def __call__(self, run: RunFolder) -> int:
        epoch = itertools.islice(self.batches, self.loader.num_packs_per_epoch)
        return sum(batch.tokens_LD.nbytes // 2 for batch in epoch)  # float32 of what was float16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=LATENT_DTYPES, default="float16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        write(run, arguments.num_samples, arguments.dtype)
        read_epoch = ReadEpoch(run)
        started = time.process_time()
        read_epoch(run)
        first_epoch = time.process_time() - started
        sides: dict[str, Callable[[RunFolder], int]] = {"webdataset": read_webdataset, "PackLoader": read_epoch}
        if arguments.dtype != "float16":
            sides["webdataset, decoded"] = read_webdataset_decoded
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                cpu, wall = time.process_time(), time.perf_counter()
                num_bytes = side(run)
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_of = {name: sorted(c for c, _ in taken)[len(taken) // 2] for name, taken in seconds.items()}
    wall_of = {name: sorted(w for _, w in taken)[len(taken) // 2] for name, taken in seconds.items()}
    print(f"{arguments.num_samples} samples, {num_bytes / 1e6:.0f} MB; medians of {arguments.rounds}")
    rates = {**cpu_of, "PackLoader, first epoch": first_epoch}
    for name, taken_s in rates.items():
        print(f"{name:<24}{arguments.num_samples / taken_s:8.0f} samples per CPU-s")
    for name in sides.keys() - {"PackLoader"}:
        by_cpu, by_clock = (of[name] / of["PackLoader"] for of in (cpu_of, wall_of))
        print(f"PackLoader / {name}: {by_cpu:.2f} by CPU, {by_clock:.2f} by clock")


if __name__ == "__main__":
    main()
