"""`recaption sample`: a checkpoint and prompts -> mp4s, a contact sheet and a line in the run folder's gallery."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.recipes import Recipe, SampleSettings
from recaption.errors import UsageError
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
        UsageError: no such checkpoint, or a size that the model's grid does not have.
        CheckpointMismatchError: a checkpoint of something else.
    """
    from train.checkpoint import find
    from train.distributed import choose_device
    from train.sampler import Sampler, write

    path = find(checkpoint).path
    sampler = Sampler.from_checkpoint(path, device=str(choose_device(device)))
    size = sampler.size(settings.num_frames or None, settings.height_px or None, settings.width_px or None)
    folder = out or _gallery_folder(path)
    description = {
        "checkpoint": os.path.relpath(path, folder),
        "prompts": list(prompts),
        "num_frames": size.num_frames,
        "height_px": size.height_px,
        "width_px": size.width_px,
        "fps": sampler.fps,
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
        "seed": settings.seed,
    }
    listing = Path(folder) / SAMPLES_JSON
    existing = json.loads(listing.read_text()) if listing.exists() else {}
    if existing.get("hash") != recipe_hash(description):
        videos = sampler.sample(
            prompts,
            size=size,
            num_steps=settings.num_steps,
            guidance=settings.guidance,
            seed=settings.seed,
            progress=progress,
        )
        files = write(videos, folder, prompts, fps=sampler.fps)
        existing = {
            **description,
            "videos": [os.path.relpath(v, folder) for v in files.videos],
            "contact_sheet": os.path.relpath(files.contact_sheet, folder),
            "hash": recipe_hash(description),
        }
        listing.write_text(json.dumps(existing, indent=1))  # last: without it the folder is sampled anew
    prompt = list(prompts) if len(prompts) > 1 else prompts[0]
    return {
        "videos": [os.path.join(folder, v) for v in existing["videos"]],
        "contact_sheet": os.path.join(folder, existing["contact_sheet"]),
        "prompt": prompt,
        "expanded_prompt": prompt,  # prompts go to the model as they are
    }


def sample_run(run: RunFolder, training: str, recipe: Recipe, *, progress: bool = True) -> dict[str, Any]:
    """The recipe's prompts with the newest checkpoint of a training; without prompts, captions of the shards."""
    prompts = list(recipe.sample.prompts) or _captions(run)
    return sample_videos(run.path("train", training), prompts, recipe.sample, progress=progress)


def _captions(run: RunFolder, count: int = 2) -> list[str]:
    texts = run.read_table("index.parquet")["caption"].to_pylist() if run.exists("index.parquet") else []
    if not texts:
        raise UsageError(f"{run.uri} has no captions to sample from; pass --sample.prompts")
    return list(dict.fromkeys(texts))[:count]


def _gallery_folder(checkpoint_path: str) -> str:
    """RUN/train/NAME/checkpoints/step-000500 -> RUN/samples/NAME-step-000500; elsewhere ./samples/step-000500."""
    path = Path(checkpoint_path).resolve()
    if path.parent.name == "checkpoints" and path.parents[2].name == "train":
        return str(path.parents[3] / "samples" / f"{path.parents[1].name}-{path.name}")
    return str(Path("samples") / path.name)
