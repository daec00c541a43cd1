"""Builds the three training tasks from a recipe and a run folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.recipe.settings import Recipe
from recaption.errors import UsageError
from recaption.run_folder import RunFolder
from train.engine.settings import TrainerSettings
from train.engine.task import Task
from train.generator.task import DitTask

if TYPE_CHECKING:
    from train.compressors.interface import Compressor
    from train.text.encoder import TextEncoder


def _captioner_task(run: RunFolder, recipe: Recipe, trainer: TrainerSettings) -> Task:
    from jobs.train.captioned_clips import captioned_clips
    from train.captioner.run_clips import RunClips, split
    from train.captioner.task import CaptionerTask

    settings = recipe.train_captioner
    clips = held_out = None
    if settings.captions:
        decode = recipe.prepare.decode
        training_clips, held_out_clips = split(captioned_clips(run, recipe, settings.captions))
        clips, held_out = (
            RunClips(part, name=name, decode=decode)
            for part, name in ((training_clips, "run"), (held_out_clips, "held_out"))
        )
    return CaptionerTask(
        settings.captioner, num_batches=trainer.num_steps * trainer.accumulation, clips=clips, held_out=held_out
    )


def _compressor_task(run: RunFolder, recipe: Recipe, trainer: TrainerSettings) -> Task:
    from train.compressors.task import CompressorTask

    return CompressorTask(recipe.train_compressor.compressor, run=run if run.exists("index.parquet") else None)


def dit_task(
    run: RunFolder,
    recipe: Recipe,
    trainer: TrainerSettings,
    *,
    compressor: Compressor | None = None,
    encoder: TextEncoder | None = None,
) -> DitTask:
    """The generator's task.

    Args:
        compressor, encoder: those of the recipe's specs, where the caller has them already; they are large.
    """
    from train import compressors
    from train.parallel.process_group import choose_device
    from train.text import encoder as text_encoder

    if trainer.sample_every and not recipe.train_dit.dit.sample_prompts:
        raise UsageError("sample_every needs prompts: set --train-dit.dit.sample-prompts")
    device = str(choose_device(trainer.device))
    compressor = compressor or compressors.load(recipe.encode.compressor)
    return DitTask(
        run,
        recipe.train_dit.dit,
        recipe.plan,
        latents=compressor.name,
        compressor=recipe.encode.compressor,
        loaded_compressor=compressor,
        encoder=encoder or text_encoder.load(recipe.train_dit.dit.text_encoder, device=device, run=run),
        seed=trainer.seed,
        device=device,
    )


TASKS: dict[str, Callable[[RunFolder, Recipe, TrainerSettings], Task]] = {
    "captioner": _captioner_task,
    "compressor": _compressor_task,
    "dit": dit_task,
}
