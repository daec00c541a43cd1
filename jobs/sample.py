"""`recaption sample`: a checkpoint and prompts -> mp4s, a contact sheet and a line in the run folder's gallery."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.recipes import Recipe, SampleSettings
from jobs.run_state import open_run
from recaption.errors import UsageError
from recaption.prompts import Example, expand, read_examples
from recaption.run_folder import RunFolder, recipe_hash

SAMPLES_JSON = "samples.json"


def sample_videos(
    checkpoint: str,
    prompts: Sequence[str],
    settings: SampleSettings,
    *,
    out: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Sample one video per prompt and write them with what made them.

    Raises:
        UsageError: no such checkpoint or expander, or a size that the model's grid does not have.
        CheckpointMismatchError: a checkpoint of something else.
    """
    from train.checkpoint import find
    from train.distributed import choose_device
    from train.guidance import Guidance
    from train.sampler import Sampler, write

    path = find(checkpoint).path
    expanded = expand(prompts, _examples(path, settings), settings.expander)
    texts = [one.text for one in expanded]
    for one in expanded if progress else ():
        if one.text != one.prompt:
            print(f"prompt: {one.prompt}\nexpanded by {one.expander}: {one.text}", file=sys.stderr)
        if one.note:
            print(f"note: {one.note}", file=sys.stderr)
    guidance = Guidance(
        scale=settings.guidance,
        interval=settings.guidance_interval,
        rescale=settings.guidance_rescale,
        power=settings.guidance_power,
    )
    guidance.check()
    sampler = Sampler.from_checkpoint(path, device=str(choose_device(device)))
    size = sampler.size(settings.num_frames or None, settings.height_px or None, settings.width_px or None)
    folder = out or _gallery_folder(path)
    description = {
        "checkpoint": os.path.relpath(path, folder),
        "prompts": list(prompts),
        "expanded_prompts": texts,
        "num_frames": size.num_frames,
        "height_px": size.height_px,
        "width_px": size.width_px,
        "fps": sampler.fps,
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
        "seed": settings.seed,
    } | _unusual(settings)
    listing = Path(folder) / SAMPLES_JSON
    existing = json.loads(listing.read_text()) if listing.exists() else {}
    if existing.get("hash") != recipe_hash(description):
        videos = sampler.sample(
            texts,
            size=size,
            num_steps=settings.num_steps,
            guidance=guidance,
            solver=settings.solver,
            seed=settings.seed,
            progress=progress,
        )
        files = write(videos, folder, prompts, fps=sampler.fps)
        existing = {
            **description,
            "videos": [os.path.relpath(v, folder) for v in files.videos],
            "contact_sheet": os.path.relpath(files.contact_sheet, folder),
            "hash": recipe_hash(description),
            "expanders": [one.expander for one in expanded],
            "notes": [one.note for one in expanded],
        }
        listing.write_text(json.dumps(existing, indent=1))  # last: without it the folder is sampled anew
    return {
        "videos": [os.path.join(folder, v) for v in existing["videos"]],
        "contact_sheet": os.path.join(folder, existing["contact_sheet"]),
        "prompt": list(prompts) if len(prompts) > 1 else prompts[0],
        "expanded_prompt": texts if len(texts) > 1 else texts[0],
        "notes": [one.note for one in expanded if one.note],
    }


def sample_run(run: RunFolder, training: str, recipe: Recipe, *, progress: bool = True) -> dict[str, Any]:
    """The recipe's prompts with the newest checkpoint of a training; without prompts, captions of the shards."""
    settings = recipe.sample
    if not settings.prompts:
        settings = dataclasses.replace(settings, expander="none")  # captions have their own style
    prompts = list(settings.prompts) or _captions(run)
    return sample_videos(run.path("train", training), prompts, settings, progress=progress)


def _examples(checkpoint_path: str, settings: SampleSettings) -> list[Example]:
    """Captions of the run folder that the settings name, or that the checkpoint lies in; none elsewhere."""
    if settings.expander == "none":
        return []
    if settings.examples:
        return read_examples(open_run(settings.examples)[0])
    home = _run_of(checkpoint_path)
    return read_examples(RunFolder(str(home))) if home else []


def _unusual(settings: SampleSettings) -> dict[str, Any]:
    """Settings of solver and guidance that are not the default: samples made before they existed keep their hash."""
    usual = SampleSettings()
    names = ("solver", "guidance_interval", "guidance_rescale", "guidance_power")
    return {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(usual, name)}


def _captions(run: RunFolder, count: int = 2) -> list[str]:
    texts = run.read_table("index.parquet")["caption"].to_pylist() if run.exists("index.parquet") else []
    if not texts:
        raise UsageError(f"{run.uri} has no captions to sample from; pass --sample.prompts")
    return list(dict.fromkeys(texts))[:count]


def _gallery_folder(checkpoint_path: str) -> str:
    """RUN/train/NAME/checkpoints/step-000500 -> RUN/samples/NAME-step-000500; elsewhere ./samples/step-000500."""
    path = Path(checkpoint_path).resolve()
    home = _run_of(checkpoint_path)
    return str(home / "samples" / f"{path.parents[1].name}-{path.name}" if home else Path("samples") / path.name)


def _run_of(checkpoint_path: str) -> Path | None:
    """RUN of RUN/train/NAME/checkpoints/step-000500; None elsewhere."""
    path = Path(checkpoint_path).resolve()
    is_inside = path.parent.name == "checkpoints" and path.parents[2].name == "train"
    return path.parents[3] if is_inside else None
