"""`recaption encode`: encodes the shards into RUN/latents/<compressor>/<bucket>/<nnnnnn>.tar, so training decodes no video.

One video shard is one part and becomes one latent shard.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from jobs.cluster.cluster import Cluster
from jobs.encode.texts import encode_texts
from jobs.encode.worker import EncodeWorker
from jobs.recipe.run_inputs import write_recipe
from jobs.recipe.settings import Recipe, grid_of, stage_hashes
from packing.shards.index import build_latents_index, is_committed, remove_stale_shards
from packing.shards.latent_codec import check_latent_dtype
from packing.shards.samples import latent_shard_name
from recaption.errors import UsageError
from recaption.ledger.latent_statistics import STATISTICS_FILE
from recaption.run_folder import RunFolder, recipe_hash


def encode(run: RunFolder, recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """Encode every shard that has no latents yet, and the texts of the recipe's text encoder.

    Raises:
        UsageError: no shards, or a compressor or text encoder that cannot be loaded.
    """
    from train.compressors.registry import load

    if not run.exists("index.parquet"):
        raise UsageError(f"{run.uri} has no shards: run `recaption shard --run {run.uri}` first")
    check_latent_dtype(recipe.encode.dtype)
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
    remove_stale_shards(run, planned, folder=f"latents/{compressor.name}")
    index = build_latents_index(run, compressor.name)
    statistics = json.loads(run.read_bytes(f"latents/{compressor.name}/{STATISTICS_FILE}"))
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
    """(video shard, latent shard, hash of the inputs of the latent shard) for every shard in the index."""
    planned = []
    for shard in sorted(set(run.read_table("index.parquet")["shard"].to_pylist())):
        tar_sha256 = run.table_metadata(shard.removesuffix(".tar") + ".parquet")["tar_sha256"]
        planned.append((shard, latent_shard_name(compressor, shard), latents_key(recipe, compressor, tar_sha256)))
    return planned


def latents_key(recipe: Recipe, compressor: str, tar_sha256: str) -> str:
    """Hash of the inputs of the latents of one shard."""
    return recipe_hash([stage_hashes(recipe)["encode"], compressor, tar_sha256])


def _check_strides(compressor: Any, recipe: Recipe) -> None:
    expected = recipe.encode.frame_stride, recipe.encode.spatial_stride
    found = compressor.frame_stride, compressor.spatial_stride
    # clips of the recipe's strides fit finer ones too: the stages of a cascade differ in their strides
    if expected[0] % found[0] or expected[1] % found[1]:
        raise UsageError(
            f"compressor {compressor.name} has strides {found} (frames, pixels), the recipe cuts clips for "
            f"{expected}: set --encode.frame-stride and --encode.spatial-stride"
        )
