"""`recaption sample`: samples videos from a checkpoint; writes mp4s, a contact sheet and samples.json."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.recipe.settings import Recipe, SampleSettings
from jobs.sample.expansion import expanded_prompts, run_of
from jobs.sample.requests import SampleRequest, requests_from_flags
from recaption.errors import UsageError
from recaption.prompts.expand import ExpandedPrompt
from recaption.run_folder import RunFolder, recipe_hash

if TYPE_CHECKING:
    from jobs.sample.conditioning_media import ConditioningMedia
    from train.sampling.cascade import Cascade
    from train.sampling.request import SampledVideo
    from train.sampling.sampler import Sampler
    from train.sampling.solver_settings import SolverSettings

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
    """Sample one video per prompt. Writes and raises as `sample_requests`."""
    return sample_requests(
        checkpoint, requests_from_flags(prompts, settings), settings, out=out, device=device, progress=progress
    )


def sample_requests(
    checkpoint: str | Sequence[str],
    requests: Sequence[SampleRequest],
    settings: SampleSettings,
    *,
    out: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Sample one video per request; write the videos, a contact sheet and samples.json with all settings.

    Args:
        checkpoint: of the model; or of the base of a cascade and then of its super-resolution stages, in their order.

    Raises:
        UsageError: no such checkpoint or expander, a size off the model's grid, unreadable files, or a mode that the model
            was not trained for.
        CheckpointMismatchError: not a checkpoint of a diffusion transformer.
    """
    from jobs.sample.conditioning_media import ConditioningMedia, with_source_prompts
    from train.checkpoint.step_folder import find
    from train.parallel.process_group import choose_device
    from train.sampling.contact_sheet import write

    path, *stages = (find(one).path for one in ((checkpoint,) if isinstance(checkpoint, str) else checkpoint))
    prompts = [request.prompt for request in requests]
    solver = solver_settings(settings)
    expanded = _expanded(requests, path, settings, is_shown=progress)
    cascade = _cascade((path, *stages), settings, str(choose_device(device)))
    sampler = cascade.base
    media = [ConditioningMedia.read(request, sampler) for request in requests]
    requests, media = with_source_prompts(requests, media, settings.captioner, device=str(choose_device(device)))
    _check_effects(media, settings, sampler)
    for note in dict.fromkeys(note for one in media for note in one.notes) if progress else ():
        print(f"note: {note}", file=sys.stderr)
    folder = out or gallery_folder(path, settings.base)
    description = _description(os.path.relpath(path, folder), requests, media, expanded, settings, sampler)
    description |= {"stages": [os.path.relpath(stage, folder) for stage in stages]} if stages else {}
    listing, existing = _existing(folder)
    if existing.get("hash") != recipe_hash(description):
        sampled = _sample(cascade, requests, media, expanded, solver, settings, progress=progress)
        files = write(
            [one.video_THWC for one in sampled],
            folder,
            [_title(request) for request in requests],
            fps=sampler.fps,
            condition_masks=[one.condition_mask_T for one in sampled],
            sources=[one.source_THWC for one in media],
        )
        existing = {
            **description,
            "videos": [os.path.relpath(v, folder) for v in files.videos],
            "contact_sheet": os.path.relpath(files.contact_sheet, folder),
            "hash": recipe_hash(description),
            "expanders": [one.expander for one in expanded],
            "notes": [one.note for one in expanded],
            **_media_fields(requests, media, sampled),
        }
        listing.write_text(json.dumps(existing, indent=1))  # written last: without it the folder is sampled again
    texts = [one.text for one in expanded]
    return {
        "videos": [os.path.join(folder, v) for v in existing["videos"]],
        "contact_sheet": os.path.join(folder, existing["contact_sheet"]),
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "expanded_prompt": texts if len(texts) > 1 else texts[0],
        "mode": [request.mode for request in requests] if len(requests) > 1 else requests[0].mode,
        "notes": [*(one.note for one in expanded if one.note), *(note for one in media for note in one.notes)],
    }


def _cascade(paths: Sequence[str], settings: SampleSettings, device: str) -> Cascade:
    """The models of the checkpoints: a base, over the image model of the settings if they name one, and its stages."""
    from train.sampling.cascade import Cascade
    from train.sampling.sampler import Sampler

    base = Sampler.from_checkpoint(paths[0], device=device, base=settings.base, decoder=settings.decoder)
    return Cascade([base, *(Sampler.from_checkpoint(path, device=device) for path in paths[1:])], snr=settings.hint_snr)


def _expanded(
    requests: Sequence[SampleRequest], path: str, settings: SampleSettings, *, is_shown: bool
) -> list[ExpandedPrompt]:
    """The expanded prompts; those of edits by inversion as they are: details of one of its two prompts would be edits."""
    prompts = ["" if request.invert else request.prompt for request in requests]
    expanded = expanded_prompts(prompts, path, settings, is_shown=is_shown)
    return [
        ExpandedPrompt(request.prompt, request.prompt, "none") if request.invert else one
        for request, one in zip(requests, expanded, strict=True)
    ]


def _check_effects(media: Sequence[ConditioningMedia], settings: SampleSettings, sampler: Sampler) -> None:
    """Raises UsageError where a setting has no effect on any of the videos."""
    if settings.conditioning_pixels != "decoded" and not any(one.conditioning.condition_mask_T.any() for one in media):
        raise UsageError(
            f"conditioning_pixels = {settings.conditioning_pixels} has no effect without conditioning frames; leave it out"
        )
    max_frames = sampler.window_frames(settings.window_frames)
    if settings.long != "windows" and all(one.conditioning.num_frames <= max_frames for one in media):
        raise UsageError(
            f"long = {settings.long} has no effect on videos that fit into one window of {max_frames} frames; leave it out, "
            "or ask for longer ones with --seconds"
        )


def _existing(folder: str) -> tuple[Path, dict[str, Any]]:
    """The listing of a folder of samples, and what is in it."""
    listing = Path(folder) / SAMPLES_JSON
    return listing, json.loads(listing.read_text()) if listing.exists() else {}


def _sample(
    cascade: Cascade,
    requests: Sequence[SampleRequest],
    media: Sequence[ConditioningMedia],
    expanded: Sequence[ExpandedPrompt],
    solver: SolverSettings,
    settings: SampleSettings,
    *,
    progress: bool,
) -> list[SampledVideo]:
    from train.sampling.request import Request

    model_requests = [
        Request(
            text=prompt.text,
            conditioning=one.conditioning,
            seed=request.seed,
            loop_frames=one.loop_frames,
            long=settings.long,
        )
        for request, one, prompt in zip(requests, media, expanded, strict=True)
    ]
    return cascade.sample_requests(
        model_requests,
        solver,
        window_frames=settings.window_frames,
        overlap_frames=settings.overlap_frames,
        conditioning_pixels=settings.conditioning_pixels,
        progress=progress,
    )


def solver_settings(settings: SampleSettings) -> SolverSettings:
    """Raises UsageError where a setting of the guidance is invalid."""
    from train.diffusion.guidance import Guidance
    from train.sampling.solver_settings import SolverSettings

    guidance = Guidance(
        scale=settings.guidance,
        interval=settings.guidance_interval,
        rescale=settings.guidance_rescale,
        power=settings.guidance_power,
        oscillation_steps=settings.guidance_oscillation_steps,
        oscillation_scale=settings.guidance_oscillation_scale,
        dynamic_threshold=settings.dynamic_threshold,
        context=settings.guidance_context,
    )
    guidance.check()
    return SolverSettings(
        num_steps=settings.num_steps, guidance=guidance, solver=settings.solver, precision=settings.precision
    )


def _description(
    checkpoint: str,
    requests: Sequence[SampleRequest],
    media: Sequence[ConditioningMedia],
    expanded: Sequence[ExpandedPrompt],
    settings: SampleSettings,
    sampler: Sampler,
) -> dict[str, Any]:
    """Everything that the videos depend on; media fields only if a request has media."""
    sizes = [one.conditioning.frames_THWC.shape[1:3] for one in media]
    heights, widths = zip(*sizes)
    frames = [one.conditioning.end or one.conditioning.num_frames for one in media]
    description: dict[str, Any] = {
        "checkpoint": checkpoint,
        "prompts": [request.prompt for request in requests],
        "expanded_prompts": [one.text for one in expanded],
        "num_frames": _one_or_all(frames),
        "height_px": _one_or_all(heights),
        "width_px": _one_or_all(widths),
        "fps": sampler.fps,
        "num_steps": sampler.num_steps(settings.num_steps),
        "guidance": settings.guidance,
        "seed": _one_or_all([request.seed for request in requests]),
    }
    if any(request.mode != "text" for request in requests):
        description["requests"] = [
            {
                **{name: value for name, value in dataclasses.asdict(request).items() if value},
                "media_ids": list(one.media_ids),
                "new_frames": one.new_frames,
            }
            for request, one in zip(requests, media)
        ]
    return description | non_default(settings)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _media_fields(
    requests: Sequence[SampleRequest], media: Sequence[ConditioningMedia], sampled: Sequence[SampledVideo]
) -> dict[str, Any]:
    """Fields of samples.json for the report: mode, media files and conditioning frames of each video."""
    return {
        "modes": [request.mode for request in requests],
        "media": [[os.path.basename(uri) for uri in (*request.image, *request.video)] for request in requests],
        "conditioning_frames": [_spans(one.condition_mask_T) for one in sampled],
        "lengths": [len(one.video_THWC) for one in sampled],
        "media_notes": [list(one.notes) for one in media],
    }


def _spans(condition_mask_T: np.ndarray) -> list[list[int]]:
    """Half-open [start, end) spans of conditioning frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], condition_mask_T, [False]]).astype(int)))
    return edges.reshape(-1, 2).tolist()


def _title(request: SampleRequest) -> str:
    return request.prompt if request.mode == "text" else f"[{request.mode}] {request.prompt}".strip()


def sample_run(run: RunFolder, training: str, recipe: Recipe, *, progress: bool = True) -> dict[str, Any]:
    """Sample the recipe's prompts, or else captions of the shards, with the newest checkpoint of a training run."""
    settings = recipe.sample
    if not settings.prompts:
        settings = dataclasses.replace(settings, expander="none")  # captions have their own style
    prompts = list(settings.prompts) or _captions(run)
    return sample_videos(run.path("train", training), prompts, settings, progress=progress)


def non_default(settings: SampleSettings) -> dict[str, Any]:
    """Solver, guidance and window settings that differ from the defaults."""
    defaults = SampleSettings()
    names = (
        *(
            "solver",
            "precision",
            "guidance_interval",
            "guidance_rescale",
            "guidance_power",
            "guidance_context",
            "base",
            "decoder",
        ),
        *("guidance_oscillation_steps", "guidance_oscillation_scale", "dynamic_threshold", "hint_snr"),
        *("window_frames", "overlap_frames", "conditioning_pixels", "long"),
    )
    return {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(defaults, name)}


def _captions(run: RunFolder, count: int = 2) -> list[str]:
    texts = run.read_table("index.parquet")["caption"].to_pylist() if run.exists("index.parquet") else []
    if not texts:
        raise UsageError(f"{run.uri} has no captions to sample from; pass --sample.prompts")
    return list(dict.fromkeys(texts))[:count]


def gallery_folder(checkpoint_path: str, base: str = "") -> str:
    """RUN/train/NAME/checkpoints/step-000500 -> RUN/samples/NAME-step-000500; elsewhere ./samples/step-000500.

    Args:
        base: another image model under its temporal layers; its name is part of the folder's.
    """
    path = Path(checkpoint_path).resolve()
    run_root = run_of(checkpoint_path)
    over = f"-over-{Path(base).resolve().name}" if base else ""
    folder = run_root / "samples" / f"{path.parents[1].name}-{path.name}" if run_root else Path("samples") / path.name
    return f"{folder}{over}"
