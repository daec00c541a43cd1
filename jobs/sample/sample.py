"""`recaption sample`: a checkpoint and prompts -> mp4s, a contact sheet and a line in the run folder's gallery."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import Recipe, SampleSettings
from jobs.sample.requests import Ask, asked
from recaption.errors import UsageError
from recaption.prompts.examples import read_examples
from recaption.prompts.expand import ExpandedPrompt, expand
from recaption.prompts.style import Example
from recaption.run_folder import RunFolder, recipe_hash

if TYPE_CHECKING:
    from jobs.sample.conditioning_media import GivenMedia
    from train.sampling.request import SampledVideo
    from train.sampling.sampler import Sampler, SolverSettings


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
    """Sample one video per text and write them with what made them. Raises as `sample_asks`."""
    return sample_asks(checkpoint, asked(prompts, settings), settings, out=out, device=device, progress=progress)


def sample_asks(
    checkpoint: str,
    asks: Sequence[Ask],
    settings: SampleSettings,
    *,
    out: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Sample one video per ask and write them with what made them.

    Raises:
        UsageError: no such checkpoint or expander, a size that the model's grid does not have, files that cannot be used,
            or a kind of prompt that the model was not trained for.
        CheckpointMismatchError: a checkpoint of something else.
    """
    from jobs.sample.conditioning_media import GivenMedia
    from train.checkpoint.step_folder import find
    from train.parallel.process_group import choose_device
    from train.sampling.contact_sheet import write
    from train.sampling.sampler import Sampler

    path = find(checkpoint).path
    prompts = [ask.prompt for ask in asks]
    solver = _solver_settings(settings)
    expanded = _expanded(prompts, path, settings, is_shown=progress)
    sampler = Sampler.from_checkpoint(path, device=str(choose_device(device)))
    given = [GivenMedia.read(ask, sampler) for ask in asks]
    if settings.conditioning_pixels != "decoded" and not any(one.conditioning.condition_mask_T.any() for one in given):
        raise UsageError(
            f"conditioning_pixels = {settings.conditioning_pixels} has no effect: no frame is given; leave it out"
        )
    for note in dict.fromkeys(note for one in given for note in one.notes) if progress else ():
        print(f"note: {note}", file=sys.stderr)
    folder = out or _gallery_folder(path)
    description = _description(os.path.relpath(path, folder), asks, given, expanded, settings, sampler)
    listing = Path(folder) / SAMPLES_JSON
    existing = json.loads(listing.read_text()) if listing.exists() else {}
    if existing.get("hash") != recipe_hash(description):
        made = _make(sampler, asks, given, expanded, solver, settings, progress=progress)
        files = write(
            [one.video_THWC for one in made],
            folder,
            [_titled(ask) for ask in asks],
            fps=sampler.fps,
            condition_masks=[one.condition_mask_T for one in made],
            sources=[one.source_THWC for one in given],
        )
        existing = {
            **description,
            "videos": [os.path.relpath(v, folder) for v in files.videos],
            "contact_sheet": os.path.relpath(files.contact_sheet, folder),
            "hash": recipe_hash(description),
            "expanders": [one.expander for one in expanded],
            "notes": [one.note for one in expanded],
            **_about_media(asks, given, made),
        }
        listing.write_text(json.dumps(existing, indent=1))  # last: without it the folder is sampled anew
    texts = [one.text for one in expanded]
    return {
        "videos": [os.path.join(folder, v) for v in existing["videos"]],
        "contact_sheet": os.path.join(folder, existing["contact_sheet"]),
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "expanded_prompt": texts if len(texts) > 1 else texts[0],
        "mode": [ask.mode for ask in asks] if len(asks) > 1 else asks[0].mode,
        "notes": [*(one.note for one in expanded if one.note), *(note for one in given for note in one.notes)],
    }


def _make(
    sampler: Sampler,
    asks: Sequence[Ask],
    given: Sequence[GivenMedia],
    expanded: Sequence[ExpandedPrompt],
    solver: SolverSettings,
    settings: SampleSettings,
    *,
    progress: bool,
) -> list[SampledVideo]:
    from train.sampling.request import Request

    requests = [
        Request(text=one.text, conditioning=media.conditioning, seed=ask.seed, loop_frames=media.loop_frames)
        for ask, media, one in zip(asks, given, expanded, strict=True)
    ]
    return sampler.sample_requests(
        requests,
        solver,
        window_frames=settings.window_frames,
        overlap_frames=settings.overlap_frames,
        conditioning_pixels=settings.conditioning_pixels,
        progress=progress,
    )


def _solver_settings(settings: SampleSettings) -> SolverSettings:
    from train.diffusion.guidance import Guidance
    from train.sampling.sampler import SolverSettings

    guidance = Guidance(
        scale=settings.guidance,
        interval=settings.guidance_interval,
        rescale=settings.guidance_rescale,
        power=settings.guidance_power,
    )
    guidance.check()
    return SolverSettings(num_steps=settings.num_steps, guidance=guidance, solver=settings.solver)


def _expanded(prompts: Sequence[str], path: str, settings: SampleSettings, *, is_shown: bool) -> list[ExpandedPrompt]:
    expanded = expand(prompts, _examples(path, settings), settings.expander)
    for one in expanded if is_shown else ():
        if one.text != one.prompt:
            print(f"prompt: {one.prompt}\nexpanded by {one.expander}: {one.text}", file=sys.stderr)
        if one.note:
            print(f"note: {one.note}", file=sys.stderr)
    return expanded


def _description(
    checkpoint: str,
    asks: Sequence[Ask],
    given: Sequence[GivenMedia],
    expanded: Sequence[ExpandedPrompt],
    settings: SampleSettings,
    sampler: Sampler,
) -> dict[str, Any]:
    """Everything that the videos depend on. Of text alone it is what it was before there were other kinds of prompt."""
    sizes = [one.conditioning.frames_THWC.shape[:3] for one in given]
    frames, heights, widths = zip(*sizes)
    description: dict[str, Any] = {
        "checkpoint": checkpoint,
        "prompts": [ask.prompt for ask in asks],
        "expanded_prompts": [one.text for one in expanded],
        "num_frames": _one_or_all(frames),
        "height_px": _one_or_all(heights),
        "width_px": _one_or_all(widths),
        "fps": sampler.fps,
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
        "seed": _one_or_all([ask.seed for ask in asks]),
    }
    if any(ask.mode != "text" for ask in asks):
        description["asks"] = [
            {
                **{name: value for name, value in dataclasses.asdict(ask).items() if value},
                "media_ids": list(one.media_ids),
                "new_frames": one.new_frames,
            }
            for ask, one in zip(asks, given)
        ]
    return description | _unusual(settings)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _about_media(asks: Sequence[Ask], given: Sequence[GivenMedia], made: Sequence[SampledVideo]) -> dict[str, Any]:
    """What the page says beside each video: kind of prompt, files, which frames were given."""
    return {
        "modes": [ask.mode for ask in asks],
        "media": [[os.path.basename(uri) for uri in (*ask.image, *ask.video)] for ask in asks],
        "given_frames": [_spans(one.condition_mask_T) for one in made],
        "lengths": [len(one.video_THWC) for one in made],
        "media_notes": [list(one.notes) for one in given],
    }


def _spans(condition_mask_T: np.ndarray) -> list[list[int]]:
    """Half-open spans of given frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], condition_mask_T, [False]]).astype(int)))
    return edges.reshape(-1, 2).tolist()


def _titled(ask: Ask) -> str:
    return ask.prompt if ask.mode == "text" else f"[{ask.mode}] {ask.prompt}".strip()


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
    names = (
        *("solver", "guidance_interval", "guidance_rescale", "guidance_power"),
        *("window_frames", "overlap_frames", "conditioning_pixels"),
    )
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
