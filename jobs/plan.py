"""`recaption plan`: what packing costs and gives, from token counts alone, before any GPU is booked."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from jobs.recipes import Recipe
from jobs.run_state import open_run
from packing.plan import plan_steps
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

PLAN_JSON = "plan.json"
MAX_PACKS_SHOWN = 2000


def plan(
    recipe: Recipe, *, run_uri: str | None = None, lengths: str | None = None, num_ranks: int = 1
) -> dict[str, Any]:
    """Pack one epoch; with a run folder, also write RUN/plan.json for the report.

    Raises:
        UsageError: neither or both sources, or no samples.
    """
    if (run_uri is None) == (lengths is None):
        raise UsageError("pass either --run RUN or --lengths FILE.npy")
    run = open_run(run_uri)[0] if run_uri else None
    num_tokens = _tokens_of_run(run, recipe) if run else _tokens_of_file(str(lengths))
    started = time.perf_counter()
    made = plan_steps(
        num_tokens,
        num_ranks=num_ranks,
        capacity=recipe.plan.capacity,
        policy=recipe.plan.policy,
        pool=recipe.plan.pool,
        seed=recipe.plan.seed,
        width=recipe.plan.cost_width,
        too_long="reject",
    )
    summary = {
        **made.summary(),
        "tokens": int(num_tokens.sum()),
        "tokens_per_pack_mean": float(made.row_tokens.mean()) if made.num_packs else 0.0,
        "plan_seconds": time.perf_counter() - started,
    }
    if run:
        shown = {**summary, "pack_tokens": made.row_tokens[:MAX_PACKS_SHOWN].tolist()}
        shown.pop("plan_seconds")
        run.write_bytes(PLAN_JSON, json.dumps(shown, indent=1).encode())
    return summary


def _tokens_of_run(run: RunFolder, recipe: Recipe) -> np.ndarray:
    if not run.exists("index.parquet"):
        raise UsageError(f"{run.uri} has no shards: run `recaption shard --run {run.uri}` first")
    tokens = run.read_table("index.parquet")["num_latent_tokens"].to_numpy()
    if not len(tokens):
        raise UsageError(f"{run.uri} has shards without samples; `recaption report` says where the clips went")
    return tokens


def _tokens_of_file(path: str) -> np.ndarray:
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--lengths {path}: not a .npy file of token counts ({error})") from error
    if tokens.ndim != 1 or not len(tokens) or not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"--lengths {path}: wants a list of whole numbers, holds {tokens.shape} of {tokens.dtype}")
    return tokens
