"""`recaption train dit --eval`: evaluates the newest checkpoint of a training run into RUN/train/NAME/evaluation.json.

    evaluate_training(run, "main", recipe)      # {"step": 800, "measures": {...}, "evaluation": PATH, ...}

Prompts are captions of clips, and samples are compared with these clips: of the training run folder, or of a held-out
one. The same checkpoint and settings give the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
import torch

from jobs.caption.worker import open_captioner
from jobs.recipe.flags import changed
from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import Recipe
from jobs.train.tasks import dit_task
from packing.buckets import Bucket, bucket_name
from packing.shards.read import read_sample
from recaption.captioners.interface import Captioner
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.video_io.reader import decode_bytes
from train.checkpoint import step_folder as checkpoint
from train.engine.metrics import read_lines
from train.evaluation.metrics import (
    Evaluation,
    EvaluationSettings,
    Metric,
    RealClips,
    Samples,
    draw_samples,
    evaluate,
    loss_metrics,
)
from train.generator.bucket_loss import loss_per_bucket
from train.generator.task import DitTask
from train.parallel.process_group import choose_device, choose_precision
from train.sampling.contact_sheet import contact_sheet_png
from train.sampling.sampler import Sampler

EVALUATION_JSON = "evaluation.json"
EVALUATION_SHEET = "evaluation.png"
EVALUATIONS_JSONL = "evaluations.jsonl"
"""One line per evaluated step, values only; the report draws curves from it."""
SHEET_PROMPTS = 8
"""Rows of the contact sheet."""
INDEX = "index.parquet"
MUST_MATCH = ("text_encoder", "compressor", "patch", "diffusion", "loss_norm")
"""Config keys that change the flow loss: they must be the same in the checkpoint and in the recipe."""


def evaluate_training(
    run: RunFolder, name: str, recipe: Recipe, *, device: str = "auto", progress: bool = True
) -> dict[str, Any]:
    """Evaluate the newest checkpoint of RUN/train/NAME; writes evaluation.json, evaluations.jsonl and a contact sheet.

    Raises:
        UsageError: no checkpoint, no captions to use as prompts, no such held-out run, or invalid settings.
        CheckpointMismatchError: the checkpoint was trained with another compressor, text encoder or loss than the recipe's.
    """
    settings, sampling = recipe.train_dit.evaluation, recipe.sample
    settings.check()
    folder = run.path("train", name)
    found = checkpoint.find(folder)
    source = open_run(settings.held_out)[0] if settings.held_out else run
    device = str(choose_device(device))
    sampler = Sampler.from_checkpoint(found.path, device=device)
    task = _task(source, recipe, sampler, found)
    size = sampler.size(sampling.num_frames or None, sampling.height_px or None, sampling.width_px or None)
    prompts, real = _prompts_and_clips(source, size, settings)
    captioner = _captioner(recipe, settings, device)
    samples = draw_samples(
        lambda texts: sampler.sample(
            texts,
            size=size,
            num_steps=sampling.num_steps,
            guidance=sampling.guidance,
            precision=sampling.precision,
            seed=settings.seed,
            progress=progress,
        ),
        prompts,
        settings,
    )
    evaluation = evaluate(samples, real, captioner, sampler.compressor, device=device)
    precision = choose_precision(sampling.precision, device)
    with torch.autocast(sampler.device.type, torch.bfloat16, enabled=precision == "bf16"):
        losses = loss_per_bucket(task, sampler.model, num_clips=settings.num_loss_clips, seed=settings.seed)
    measures = evaluation.metrics | loss_metrics(losses, held_out=bool(settings.held_out))
    evaluation = dataclasses.replace(evaluation, metrics=measures)
    document = {
        "step": found.step,
        "checkpoint": os.path.relpath(found.path, folder),
        "captioner": f"{captioner.name}@{captioner.weights_hash}",
        "size": bucket_name(size),
        "precision": precision,
        "num_steps": sampler.num_steps(sampling.num_steps),
        "guidance": sampling.guidance,
        "settings": dataclasses.asdict(settings),
        **_document(evaluation, samples),
    }
    _write(folder, document, samples)
    return {
        "steps": found.step,
        "checkpoint": found.path,
        "measures": {key: measure["value"] for key, measure in document["measures"].items()},
        "evaluation": os.path.join(folder, EVALUATION_JSON),
        "contact_sheet": os.path.join(folder, EVALUATION_SHEET),
        "model": "dit",
        "name": name,
    }


def _task(source: RunFolder, recipe: Recipe, sampler: Sampler, found: checkpoint.Checkpoint) -> DitTask:
    """The recipe's task with the checkpoint's encoder and compressor, which are loaded once; attention as it runs here.

    Raises:
        CheckpointMismatchError: the recipe has others.
    """
    trained, dit = found.config, recipe.train_dit.dit
    has_encoder = trained["text_encoder"]["spec"] == dit.text_encoder
    has_compressor = trained["compressor"]["spec"] == recipe.encode.compressor
    recipe = changed(recipe, "train_dit.dit", attention_backend="auto")
    task = dit_task(
        source,
        recipe,
        recipe.train_dit.trainer,
        encoder=sampler.encoder if has_encoder else None,
        compressor=sampler.compressor if has_compressor else None,
    )
    _check_same_settings(found, task)
    return task


def _check_same_settings(found: checkpoint.Checkpoint, task: DitTask) -> None:
    trained, current = found.config, checkpoint.as_json(task.config)
    for key in MUST_MATCH:
        if trained.get(key) != current.get(key):
            raise CheckpointMismatchError(
                f"{found.path} was trained with {key} = {trained.get(key)}, the recipe has {current.get(key)}; "
                "evaluate with the settings of the training"
            )


def _captioner(recipe: Recipe, settings: EvaluationSettings, device: str) -> Captioner:
    """The captioner that judges the samples: the recipe's, or another one by its SPEC."""
    chosen = recipe.caption
    if settings.captioner:
        chosen = dataclasses.replace(chosen, captioner=settings.captioner, prompt="", num_frames=0)
    return open_captioner(chosen, device=device)


def _prompts_and_clips(run: RunFolder, size: Bucket, settings: EvaluationSettings) -> tuple[list[str], RealClips]:
    """(distinct captions of the run in an order drawn by the seed, real clips of the sampled size with their captions)."""
    rows = from_table(run.read_table(INDEX), Sample) if run.exists(INDEX) else []
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    shuffled = [rows[i] for i in order]
    prompts = list(dict.fromkeys(row.caption for row in shuffled if row.caption))[: settings.num_prompts]
    if not prompts:
        raise UsageError(f"{run.uri} has no captions to use as prompts; run `recaption shard` first")
    of_size = [row for row in shuffled if row.bucket == bucket_name(size)][: settings.num_real]
    videos = [decode_bytes(read_sample(run, row)["mp4"]).pixels_THWC for row in of_size]
    return prompts, RealClips(videos=videos, captions=[row.caption for row in of_size])


def _document(evaluation: Evaluation, samples: Samples) -> dict[str, Any]:
    return {
        "measures": {key: _rounded(measure) for key, measure in evaluation.metrics.items()},
        "prompts": list(samples.prompts),
        "sample_captions": list(evaluation.sample_captions),
    }


def _rounded(measure: Metric) -> dict[str, Any]:
    """Values rounded to six decimals; further digits differ between machines."""
    return {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in dataclasses.asdict(measure).items()
    }


def _write(folder: str, document: dict[str, Any], samples: Samples) -> None:
    """Write the contact sheet, evaluations.jsonl (lines of other steps stay) and, last, evaluation.json."""
    target = RunFolder(folder)
    shown = slice(SHEET_PROMPTS)
    target.write_bytes(EVALUATION_SHEET, contact_sheet_png(samples.videos[shown], samples.prompts[shown]))
    values = {key: measure["value"] for key, measure in document["measures"].items()}
    line = {"step": document["step"], **{key: value for key, value in values.items() if value is not None}}
    others = [other for other in read_lines(target.path(EVALUATIONS_JSONL)) if other["step"] != line["step"]]
    lines = sorted([*others, line], key=lambda one: one["step"])
    target.write_bytes(EVALUATIONS_JSONL, "".join(json.dumps(one) + "\n" for one in lines).encode())
    target.write_bytes(EVALUATION_JSON, json.dumps(document, indent=1).encode())
