"""`recaption plan`: fill, rank efficiency and memory of the packing plan, computed from token counts alone."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import numpy as np

from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import Recipe, grid_of
from packing.mixture.sample_sizes import SampleSizes
from packing.plan.epochs import EpochPlans
from packing.plan.settings import POLICIES, PlanSettings
from packing.plan.steps import Plan
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

PLAN_JSON = "plan.json"
MAX_PACKS_SHOWN = 2000
MAX_STEPS_SHOWN = 400
MAX_EPOCHS = 1000


@dataclasses.dataclass(frozen=True)
class PlanInput:
    """Sizes of the samples to plan."""

    sizes: SampleSizes
    seconds_N: np.ndarray | None
    """(N,) seconds of video per sample; None if only token counts are known."""


def plan(
    recipe: Recipe,
    *,
    run_uri: str | None = None,
    lengths: str | None = None,
    num_ranks: int = 1,
    depth: int | None = None,
    num_epochs: int = 1,
    compare: bool = False,
) -> dict[str, Any]:
    """Plan the first epoch of training; with a run folder, also write RUN/plan.json for the report.

    Args:
        depth: layers of the transformer of width `plan.cost_model_width`; adds an estimate of its training memory.
        num_epochs: above 1, adds a summary of each epoch (mixture rules make epochs differ).
        compare: also plan with every other policy.

    Raises:
        UsageError: neither or both sources, or no samples.
    """
    if (run_uri is None) == (lengths is None):
        raise UsageError("pass either --run RUN or --lengths FILE.npy")
    if num_ranks < 1:
        raise UsageError(f"--ranks {num_ranks} must be at least 1")
    if not 1 <= num_epochs <= MAX_EPOCHS:
        raise UsageError(f"--epochs {num_epochs} must be from 1 to {MAX_EPOCHS}")
    run = open_run(run_uri)[0] if run_uri else None
    source = _sizes_of_run(run, recipe) if run else _sizes_of_file(str(lengths))
    width = recipe.plan.cost_model_width or recipe.train_dit.dit.width
    if not recipe.plan.cost_model_width:
        costs = recipe.plan.with_cost_model_width(_cost_model_width(recipe))
        recipe = dataclasses.replace(recipe, plan=costs)
    summary, epoch_plan, plans = _plan_first_epoch(source, recipe.plan, num_ranks)
    if num_epochs > 1:
        summary["epochs"] = [epoch_summary(epoch_plan, source.sizes)]
        for epoch in range(1, num_epochs):
            summary["epochs"].append(
                epoch_summary(dataclasses.replace(plans[epoch], num_ranks=num_ranks), source.sizes)
            )
    if depth:
        summary["memory"] = _memory(recipe, width, depth, num_ranks)
    if compare:
        others = (dataclasses.replace(recipe.plan, policy=policy) for policy in POLICIES if policy != epoch_plan.policy)
        summary["compared"] = [
            _compared(one) for one in (summary, *(_plan_first_epoch(source, s, num_ranks)[0] for s in others))
        ]
    if run:
        shown = {key: value for key, value in summary.items() if key != "plan_seconds"}
        shown["pack_tokens"] = epoch_plan.pack_tokens[:MAX_PACKS_SHOWN].tolist()
        shown["step_flops"] = _step_flops(epoch_plan.pack_flops, num_ranks)[:MAX_STEPS_SHOWN].tolist()
        run.write_bytes(PLAN_JSON, json.dumps(shown, indent=1).encode())
    return summary


def _plan_first_epoch(
    source: PlanInput, settings: PlanSettings, num_ranks: int
) -> tuple[dict[str, Any], Plan, EpochPlans]:
    sizes = source.sizes
    started = time.process_time()
    plans = EpochPlans(sizes, settings)
    if plans.global_batch_packs % num_ranks:  # as training with this many ranks would plan
        plans = EpochPlans(sizes, dataclasses.replace(settings, global_batch_packs=num_ranks))
    epoch_plan = dataclasses.replace(plans[0], num_ranks=num_ranks)
    plan_seconds = time.process_time() - started
    if not epoch_plan.num_packs:
        raise UsageError("the first epoch has no sample: the weights of --plan.sampling-weights leave none")
    mix = epoch_plan.length_mix(sizes.num_tokens)
    mean_max_S2 = _step_flops(epoch_plan.pack_flops, num_ranks)
    summary = {
        **epoch_plan.summary(),
        "global_rows": plans.global_batch_packs,
        "tokens": int(sizes.num_tokens.sum()),
        "tokens_per_pack_mean": float(epoch_plan.pack_tokens.mean()),
        "tokens_per_rank_and_step": _min_mean_max(epoch_plan.pack_tokens),
        "samples_per_rank_and_step": _min_mean_max(np.diff(epoch_plan.starts)),
        "relative_flops_per_rank_and_step": _min_mean_max(epoch_plan.pack_flops / epoch_plan.pack_flops.mean()),
        "slowest_rank_over_mean": _min_mean_max(mean_max_S2[:, 1] / mean_max_S2[:, 0]) if len(mean_max_S2) else [],
        "size_mix_of_steps": mix.per_step,
        "size_mix_of_random_packs": mix.random_baseline,
        "plan_seconds": plan_seconds,
    }
    if epoch_plan.segments is not None:
        summary |= {name: value for name, value in epoch_summary(epoch_plan, sizes).items() if name in RULE_KEYS}
        summary["by_rule"] = {rule: len(samples) for rule, samples in epoch_plan.by_rule.items()}
    if source.seconds_N is not None:
        summary["rejected_seconds"] = _seconds_by_name(source.seconds_N, epoch_plan.rejected)
        if epoch_plan.segments is not None:
            summary["by_rule_seconds"] = _seconds_by_name(source.seconds_N, epoch_plan.by_rule)
    return summary, epoch_plan, plans


RULE_KEYS = ("num_segments", "kept_tokens", "dropped_token_fraction")


def epoch_summary(epoch_plan: Plan, sizes: SampleSizes) -> dict[str, Any]:
    """Summary of one epoch. A segment is the part of a sample that is packed; a sample has none, one or several."""
    kept_tokens = segment_tokens = int(epoch_plan.pack_tokens.sum())
    if epoch_plan.segments is not None:
        tokens = np.asarray(sizes.num_tokens[epoch_plan.samples])
        if sizes.num_frames is not None:
            tokens = tokens * epoch_plan.segments.num_frames // sizes.num_frames[epoch_plan.samples]
        segment_tokens = int(tokens.sum())
    return {
        "epoch": epoch_plan.epoch,
        "num_steps": epoch_plan.num_steps,
        "num_samples": epoch_plan.num_samples,
        "num_segments": len(epoch_plan.samples),
        "kept_tokens": kept_tokens,
        "dropped_token_fraction": 1 - kept_tokens / segment_tokens if segment_tokens else 0.0,
        "fill": epoch_plan.fill,
        "rank_efficiency": epoch_plan.rank_efficiency,
        "rejected": {reason: len(samples) for reason, samples in epoch_plan.rejected.items()},
        "by_rule": {rule: len(samples) for rule, samples in epoch_plan.by_rule.items()},
    }


def _seconds_by_name(seconds_N: np.ndarray, named: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(seconds_N[samples].sum()) for name, samples in named.items()}


def _step_flops(pack_flops: np.ndarray, num_ranks: int) -> np.ndarray:
    """(num_steps, 2): mean and largest FLOPs over the ranks of each full step."""
    num_steps = len(pack_flops) // num_ranks
    flops_SR = pack_flops[: num_steps * num_ranks].reshape(num_steps, num_ranks)
    return np.stack([flops_SR.mean(axis=1), flops_SR.max(axis=1)], axis=1) if num_steps else np.zeros((0, 2))


def _min_mean_max(values: np.ndarray) -> list[float]:
    """[min, mean, max], rounded; [] without values."""
    return [round(float(value), 4) for value in (values.min(), values.mean(), values.max())] if len(values) else []


def _cost_model_width(recipe: Recipe) -> int:
    """Of the backbone that the recipe trains."""
    import torch

    from train.backbones.flops import cost_model_width
    from train.backbones.registry import build
    from train.generator.settings import backbone_settings

    dit = recipe.train_dit.dit
    sizes = {"width": dit.width, "depth": dit.depth, "num_heads": dit.num_heads}
    with torch.device("meta"):
        return cost_model_width(
            build(dit.backbone, token_width=8, text_width=8, pooled_width=8, **sizes, **backbone_settings(dit))
        )


def _memory(recipe: Recipe, width: int, depth: int, num_ranks: int) -> dict[str, int]:
    from train.backbones.activation_memory import training_memory

    return dataclasses.asdict(
        training_memory(
            width=width,
            depth=depth,
            backbone=recipe.train_dit.dit.backbone,
            capacity=recipe.plan.capacity,
            num_ranks=num_ranks,
            precision=recipe.train_dit.trainer.precision,
            activation_checkpointing=recipe.train_dit.trainer.activation_checkpointing,
        )
    )


def _compared(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("policy", "num_packs", "num_steps", "fill", "rank_efficiency", "size_mix_of_steps", "plan_seconds")
    return {name: summary[name] for name in names}


def as_text(compared: list[dict[str, Any]]) -> str:
    """Table of the packing policies, one per line."""
    lines = ["policy        packs     steps    fill   ranks   size mix   CPU s"]
    for row in compared:
        lines.append(
            f"{row['policy']:<11}{row['num_packs']:>8,}{row['num_steps']:>10,}{row['fill']:>8.2%}"
            f"{row['rank_efficiency']:>8.2%}{row['size_mix_of_steps']:>11.3f}{row['plan_seconds']:>8.2f}"
        )
    return "\n".join(lines)


def epochs_as_text(epochs: list[dict[str, Any]]) -> str:
    """Table of the epochs, one per line."""
    lines = ["epoch    steps   samples  segments          tokens  dropped    fill   ranks"]
    for row in epochs:
        lines.append(
            f"{row['epoch']:>5}{row['num_steps']:>9,}{row['num_samples']:>10,}{row['num_segments']:>10,}"
            f"{row['kept_tokens']:>16,}{row['dropped_token_fraction']:>9.2%}{row['fill']:>8.2%}{row['rank_efficiency']:>8.2%}"
        )
    return "\n".join(lines)


def _sizes_of_run(run: RunFolder, recipe: Recipe) -> PlanInput:
    if not run.exists("index.parquet"):
        raise UsageError(f"{run.uri} has no shards: run `recaption shard --run {run.uri}` first")
    index = run.read_table("index.parquet")
    if not index.num_rows:
        raise UsageError(f"{run.uri} has shards without samples; `recaption report` shows why clips were dropped")
    grid = grid_of(recipe)
    num_frames = index["num_frames"].to_numpy()
    sizes = SampleSizes(
        index["num_latent_tokens"].to_numpy(),
        num_frames=1 + (num_frames - 1) // grid.frame_stride,
        buckets=index["bucket"].to_numpy(),
        clip_ids=index["clip_id"].to_pylist(),
        patch_frames=grid.patch[0],
    )
    return PlanInput(sizes, num_frames / np.maximum(1, index["fps"].to_numpy()))


def _sizes_of_file(path: str) -> PlanInput:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--lengths {path}: not a .npy file of token counts ({error})") from error
    if tokens.ndim != 1 or not len(tokens) or not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"--lengths {path}: needs a 1-D array of integers, has {tokens.shape} of {tokens.dtype}")
    return PlanInput(SampleSizes(tokens), None)
