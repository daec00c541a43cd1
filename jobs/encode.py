"""`recaption encode`: shards -> RUN/latents/<compressor>/<bucket>/<nnnnnn>.tar, so that training never touches pixels.

One shard of video is one part and one shard of latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from jobs import attempts
from jobs.cluster import Cluster
from jobs.encode_text import encode_texts
from jobs.run_state import write_recipe
from jobs.settings import Recipe, grid_of, stage_hashes
from packing.grid import Grid
from packing.latents import check_dtype
from packing.reader import read_sample
from packing.shards import (
    Entry,
    build_latents_index,
    failed_latent,
    is_committed,
    latent_entry,
    latent_shard_name,
    remove_stale,
    write_latents_shard,
)
from recaption.errors import UsageError, VideoError
from recaption.latent_statistics import STATISTICS
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder, recipe_hash
from recaption.video_io import decode_bytes


def encode(run: RunFolder, recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """Encode every shard whose latents are not there yet.

    Raises:
        UsageError: no shards, or a compressor or text encoder that cannot be loaded.
    """
    from train.compressors import load

    if not run.exists("index.parquet"):
        raise UsageError(f"{run.uri} has no shards: run `recaption shard --run {run.uri}` first")
    check_dtype(recipe.encode.dtype)
    spec = recipe.encode.compressor
    compressor = load(spec)
    _check_strides(compressor, recipe)
    write_recipe(run, recipe)
    keys = planned_latents(run, recipe, compressor.name)
    planned = {name: shard for shard, name, _ in keys}
    parts = [
        {"shard": shard, "name": name, "plan_hash": key}
        for shard, name, key in keys
        if not is_committed(run, name, key)
    ]
    device = recipe.encode.device
    settings = {
        "run_uri": run.uri,
        "spec": spec,
        "device": device,
        "grid": grid_of(recipe),
        "dtype": recipe.encode.dtype,
    }
    for _ in cluster.run_parts(EncodeWorker, settings, parts, title="encode", device=device, unit="samples"):
        pass
    throughput = cluster.throughput()
    remove_stale(run, planned, folder=f"latents/{compressor.name}")
    index = build_latents_index(run, compressor.name)
    statistics = json.loads(run.read_bytes(f"latents/{compressor.name}/{STATISTICS}"))
    return {
        "latents": compressor.name,
        "samples": index.num_rows,
        "tokens": int(np.sum(index["num_latent_tokens"].to_numpy())) if index.num_rows else 0,
        "dtype": recipe.encode.dtype,
        "round_trip_psnr_db": statistics["round_trip_psnr_db"],
        "computed_parts": len(parts),
        "skipped_parts": len(planned) - len(parts),
        "throughput": throughput,
        "text": encode_texts(run, recipe, cluster),
    }


def planned_latents(run: RunFolder, recipe: Recipe, compressor: str) -> list[tuple[str, str, str]]:
    """(shard of video, shard of latents, hash of what the latents are made from), for every shard in the index."""
    planned = []
    for shard in sorted(set(run.read_table("index.parquet")["shard"].to_pylist())):
        made_from = run.table_metadata(shard.removesuffix(".tar") + ".parquet")["tar_sha256"]
        key = recipe_hash([stage_hashes(recipe)["encode"], compressor, made_from])
        planned.append((shard, latent_shard_name(compressor, shard), key))
    return planned


def _check_strides(compressor: Any, recipe: Recipe) -> None:
    promised = recipe.encode.frame_stride, recipe.encode.spatial_stride
    found = compressor.frame_stride, compressor.spatial_stride
    if promised != found:
        raise UsageError(
            f"compressor {compressor.name} has strides {found} (frames, pixels), the recipe counts tokens with "
            f"{promised}: set --encode.frame-stride and --encode.spatial-stride"
        )


class EncodeWorker:
    """One per actor: the compressor is loaded once."""

    def __init__(self, run_uri: str, spec: str, device: str, grid: Grid, dtype: str) -> None:
        import torch

        from train.compressors import load
        from train.distributed import choose_device

        torch.set_num_threads(1)
        self.run = RunFolder(run_uri)
        self.device = choose_device(device)
        self.compressor = load(spec, device=str(self.device))
        self.grid = grid
        self.dtype = dtype

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        table = self.run.read_table(part["shard"].removesuffix(".tar") + ".parquet")
        rows = [s for s, status in zip(from_table(table, Sample), table["status"].to_pylist()) if status == "ok"]
        report = write_latents_shard(self.run, part["name"], self._entries(rows), plan_hash=part["plan_hash"])
        return {"name": report.name, "samples": report.num_samples}

    def _entries(self, rows: list[Sample]) -> Iterator[Entry]:
        import torch

        for row in rows:
            try:
                attempts.begin(row.clip_id)
            except VideoError as error:
                yield failed_latent(row, reason=error.reason, detail=error.detail)
                continue
            pixels_THWC = decode_bytes(read_sample(self.run, row)["mp4"]).pixels_THWC
            pixels_BCTHW = torch.from_numpy(pixels_THWC).to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.inference_mode():
                latent_BCthw = self.compressor.encode(pixels_BCTHW)
            yield latent_entry(
                row,
                latent_BCthw[0].float().cpu().numpy(),
                num_latent_tokens=self.grid.num_tokens(row.num_frames, row.height_px, row.width_px),
                dtype=self.dtype,
                measure=partial(self._round_trip_psnr_db, pixels_BCTHW),
                details={"compressor": self.compressor.name},
            )
        attempts.begin()

    def _round_trip_psnr_db(self, pixels_BCTHW: Any, latent_CTHW: np.ndarray) -> float:
        """Of the latent as it will be read, rounding included."""
        import torch

        with torch.inference_mode():
            latent_BCthw = torch.from_numpy(latent_CTHW)[None].to(self.device).float()
            return _psnr_db(self.compressor.decode(latent_BCthw), pixels_BCTHW)


def _psnr_db(decoded: Any, pixels: Any) -> float:
    """Peak signal to noise ratio of the round trip; pixels lie in -1..1, so the peak is 2."""
    error = (decoded.clamp(-1, 1) - pixels).square().mean().item()
    return float(10 * np.log10(4.0 / max(error, 1e-10)))
