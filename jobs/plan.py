"""`recaption plan`: what packing costs and gives, from token counts alone, before any GPU is booked."""

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
class Known:
    """What the plan is made from."""

    sizes: SampleSizes
    seconds_N: np.ndarray | None
    """Of video; None where only token counts are known."""


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
    """Pack one epoch, the very one that training starts with; with a run folder, also write RUN/plan.json for the report.

    Args:
        depth: layers of the transformer that is to be trained, of width `plan.cost_model_width`; adds the memory it takes.
        num_epochs: above 1, also what each of so many epochs comes to, as rules make them differ.
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
    known = _known_of_run(run, recipe) if run else _known_of_file(str(lengths))
    summary, made, plans = _planned(known, recipe.plan, num_ranks)
    if num_epochs > 1:
        summary["epochs"] = [of_epoch(made, known.sizes)]
        for epoch in range(1, num_epochs):
            summary["epochs"].append(of_epoch(dataclasses.replace(plans[epoch], num_ranks=num_ranks), known.sizes))
    if depth:
        summary["memory"] = _memory(recipe, depth, num_ranks)
    if compare:
        others = (dataclasses.replace(recipe.plan, policy=policy) for policy in POLICIES if policy != made.policy)
        summary["compared"] = [
            _compared(each) for each in (summary, *(_planned(known, s, num_ranks)[0] for s in others))
        ]
    if run:
        shown = {key: value for key, value in summary.items() if key != "plan_seconds"}
        shown["pack_tokens"] = made.pack_tokens[:MAX_PACKS_SHOWN].tolist()
        shown["step_flops"] = _of_steps(made.pack_flops, num_ranks)[:MAX_STEPS_SHOWN].tolist()
        run.write_bytes(PLAN_JSON, json.dumps(shown, indent=1).encode())
    return summary


def _planned(known: Known, settings: PlanSettings, num_ranks: int) -> tuple[dict[str, Any], Plan, EpochPlans]:
    sizes = known.sizes
    started = time.process_time()
    plans = EpochPlans(sizes, settings)
    if plans.global_batch_packs % num_ranks:  # rows that training would make if it were told of these ranks
        plans = EpochPlans(sizes, dataclasses.replace(settings, global_batch_packs=num_ranks))
    made = dataclasses.replace(plans[0], num_ranks=num_ranks)
    plan_seconds = time.process_time() - started
    if not made.num_packs:
        raise UsageError("the first epoch shows no sample: the weights of --plan.sampling-weights leave none")
    mix = made.length_mix(sizes.num_tokens)
    flops_RS = _of_steps(made.pack_flops, num_ranks)
    summary = {
        **made.summary(),
        "global_rows": plans.global_batch_packs,
        "tokens": int(sizes.num_tokens.sum()),
        "tokens_per_pack_mean": float(made.pack_tokens.mean()),
        "tokens_per_rank_and_step": _spread(made.pack_tokens),
        "samples_per_rank_and_step": _spread(np.diff(made.starts)),
        "relative_flops_per_rank_and_step": _spread(made.pack_flops / made.pack_flops.mean()),
        "slowest_rank_over_mean": _spread(flops_RS[:, 1] / flops_RS[:, 0]) if len(flops_RS) else [],
        "size_mix_of_steps": mix.per_step,
        "size_mix_of_random_rows": mix.random_baseline,
        "plan_seconds": plan_seconds,
    }
    if made.segments is not None:
        summary |= {name: value for name, value in of_epoch(made, sizes).items() if name in RULES_SHOWN}
        summary["by_rule"] = {rule: len(samples) for rule, samples in made.by_rule.items()}
    if known.seconds_N is not None:
        summary["rejected_seconds"] = _seconds(known.seconds_N, made.rejected)
        if made.segments is not None:
            summary["by_rule_seconds"] = _seconds(known.seconds_N, made.by_rule)
    return summary, made, plans


RULES_SHOWN = ("num_excerpts", "kept_tokens", "dropped_token_share")


def of_epoch(made: Plan, sizes: SampleSizes) -> dict[str, Any]:
    """What one epoch comes to. Segments are what it shows of samples: none, one or several of each."""
    kept_tokens = shown_tokens = int(made.pack_tokens.sum())
    if made.segments is not None:
        shown = np.asarray(sizes.num_tokens[made.samples])
        if sizes.num_frames is not None:
            shown = shown * made.segments.num_frames // sizes.num_frames[made.samples]
        shown_tokens = int(shown.sum())
    return {
        "epoch": made.epoch,
        "num_steps": made.num_steps,
        "num_samples": made.num_samples,
        "num_excerpts": len(made.samples),
        "kept_tokens": kept_tokens,
        "dropped_token_share": 1 - kept_tokens / shown_tokens if shown_tokens else 0.0,
        "fill": made.fill,
        "rank_efficiency": made.rank_efficiency,
        "rejected": {reason: len(samples) for reason, samples in made.rejected.items()},
        "by_rule": {rule: len(samples) for rule, samples in made.by_rule.items()},
    }


def _seconds(seconds_N: np.ndarray, named: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(seconds_N[samples].sum()) for name, samples in named.items()}


def _of_steps(pack_flops: np.ndarray, num_ranks: int) -> np.ndarray:
    """(steps, 2): mean and largest FLOPs among the ranks of each whole step."""
    num_steps = len(pack_flops) // num_ranks
    of_steps = pack_flops[: num_steps * num_ranks].reshape(num_steps, num_ranks)
    return np.stack([of_steps.mean(axis=1), of_steps.max(axis=1)], axis=1) if num_steps else np.zeros((0, 2))


def _spread(values: np.ndarray) -> list[float]:
    """Smallest, mean, largest."""
    return [round(float(value), 4) for value in (values.min(), values.mean(), values.max())] if len(values) else []


def _memory(recipe: Recipe, depth: int, num_ranks: int) -> dict[str, int]:
    from train.backbones.activation_memory import training_memory

    return dataclasses.asdict(
        training_memory(
            width=recipe.plan.cost_model_width,
            depth=depth,
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
    """The policies side by side."""
    lines = ["policy        packs     steps    fill   ranks   size mix   CPU s"]
    for row in compared:
        lines.append(
            f"{row['policy']:<11}{row['num_packs']:>8,}{row['num_steps']:>10,}{row['fill']:>8.2%}"
            f"{row['rank_efficiency']:>8.2%}{row['size_mix_of_steps']:>11.3f}{row['plan_seconds']:>8.2f}"
        )
    return "\n".join(lines)


def epochs_as_text(epochs: list[dict[str, Any]]) -> str:
    """The epochs one below the other."""
    lines = ["epoch    steps   samples  segments          tokens  dropped    fill   ranks"]
    for row in epochs:
        lines.append(
            f"{row['epoch']:>5}{row['num_steps']:>9,}{row['num_samples']:>10,}{row['num_excerpts']:>10,}"
            f"{row['kept_tokens']:>16,}{row['dropped_token_share']:>9.2%}{row['fill']:>8.2%}{row['rank_efficiency']:>8.2%}"
        )
    return "\n".join(lines)


def _known_of_run(run: RunFolder, recipe: Recipe) -> Known:
    if not run.exists("index.parquet"):
        raise UsageError(f"{run.uri} has no shards: run `recaption shard --run {run.uri}` first")
    index = run.read_table("index.parquet")
    if not index.num_rows:
        raise UsageError(f"{run.uri} has shards without samples; `recaption report` says where the clips went")
    grid = grid_of(recipe)
    num_frames = index["num_frames"].to_numpy()
    sizes = SampleSizes(
        index["num_latent_tokens"].to_numpy(),
        num_frames=1 + (num_frames - 1) // grid.frame_stride,
        buckets=index["bucket"].to_numpy(),
        clip_ids=index["clip_id"].to_pylist(),
        patch_frames=grid.patch[0],
    )
    return Known(sizes, num_frames / np.maximum(1, index["fps"].to_numpy()))


def _known_of_file(path: str) -> Known:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--lengths {path}: not a .npy file of token counts ({error})") from error
    if tokens.ndim != 1 or not len(tokens) or not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"--lengths {path}: wants a list of whole numbers, holds {tokens.shape} of {tokens.dtype}")
    return Known(SampleSizes(tokens), None)
