"""`recaption sample --script | --story`: a film of several shots, planned, sampled shot by shot, joined, and read back.

OUT/script.jsonl                 the shots as they are sampled; edit it, and pass it with --script
OUT/film.mp4, film.png           the film, and its contact sheet with a row per shot
OUT/shot-0000.mp4, shot-0000.png one pair per shot, as the film has it
OUT/story.json                   plan, prompts, lengths, and what the captioner read
OUT/frames/<hash>.npz            the frames of each shot, before it is joined: what is there is not sampled again
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.recipe.settings import SampleSettings
from jobs.sample.expansion import expanded_prompts, style_examples
from jobs.sample.read_back import ReadShot, caption_shots, read_back
from jobs.sample.requests import FilmFlags
from jobs.sample.sample import SAMPLES_JSON, gallery_folder, non_default, solver_settings
from recaption.errors import UsageError
from recaption.prompts.expand import ExpandedPrompt
from recaption.prompts.script import Shot, read_script, write_script
from recaption.prompts.story import FilmLengths, StoryPlan, plan_story, vocabulary_notes
from recaption.prompts.style import Style
from recaption.run_folder import RunFolder, recipe_hash

if TYPE_CHECKING:
    from train.sampling.request import Request
    from train.sampling.sampler import Sampler
    from train.sampling.solver_settings import SolverSettings
    from train.sampling.story import Film

STORY_JSON = "story.json"
DEFAULT_CAPTIONER = "tiny"


def sample_story(
    checkpoint: str | Sequence[str],
    film: FilmFlags,
    settings: SampleSettings,
    out: str | None = None,
    device: str = "auto",
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Sample a film from a script or a story.

    Args:
        out: folder of the film; default: RUN/samples/NAME-STEP-story of the checkpoint's run, else ./samples.

    Raises:
        UsageError: a script with a wrong line, settings without effect, or as `sample_requests`.
    """
    from train.checkpoint.step_folder import find
    from train.parallel.process_group import choose_device
    from train.sampling.sampler import Sampler

    _check_settings(settings, has_script=film.script is not None)
    shots = read_script(film.script) if film.script is not None else ()
    checkpoint, *stages = (checkpoint,) if isinstance(checkpoint, str) else checkpoint
    if stages:
        raise UsageError("a film is sampled from one model: pass a single --checkpoint")
    path = find(checkpoint).path
    sampler = Sampler.from_checkpoint(path, device=str(choose_device(device)), base=settings.base)
    plan = _plan(shots, film.story, path, settings, sampler)
    plan = dataclasses.replace(plan, shots=_seeded(plan.shots, settings.seed))
    for note in plan.notes if progress else ():
        print(f"note: {note}", file=sys.stderr)
    expanded = expanded_prompts([shot.text for shot in plan.shots], path, settings, is_shown=progress)
    folder = RunFolder(out or f"{gallery_folder(path, settings.base)}-story")
    job = _StoryJob(plan, expanded, settings, sampler, folder, path, progress=progress)
    folder.write_bytes("script.jsonl", write_script(plan.shots).encode())
    existing = json.loads(folder.read_bytes(STORY_JSON)) if folder.exists(STORY_JSON) else {}
    if existing.get("hash") != job.hash or not folder.exists("film.mp4"):
        existing = job.run(film.story or "", str(choose_device(device)))
    return _summary(existing, folder, plan, expanded)


def _check_settings(settings: SampleSettings, *, has_script: bool) -> None:
    """Raises UsageError where a setting has no effect on a film."""
    if settings.conditioning_pixels != "decoded":
        raise UsageError("conditioning_pixels has no effect on a film, which has no conditioning frames; leave it out")
    if settings.seconds and (has_script or settings.seconds < 0):
        raise UsageError(
            f"seconds = {settings.seconds:g} is the length of a film that --story plans; in a script each line has its own"
        )


def _plan(
    shots: Sequence[Shot], story: str | None, checkpoint: str, settings: SampleSettings, sampler: Sampler
) -> StoryPlan:
    """The plan of the story, or that of the script's shots."""
    from train.sampling.story import transitions_of

    examples = style_examples(checkpoint, settings)
    if story is None:
        notes = vocabulary_notes(shots, Style(tuple(example.caption for example in examples)))
        return StoryPlan(shots=tuple(shots), planner="script", notes=tuple(notes))
    lengths = FilmLengths(
        fps=sampler.fps,
        shot_frames=settings.num_frames or sampler.buckets[0].num_frames,
        film_frames=sampler.frames_of(settings.seconds) if settings.seconds else 0,
    )
    return plan_story(story, examples, settings.expander, lengths, transitions=transitions_of(sampler))


def _seeded(shots: Sequence[Shot], seed: int) -> tuple[Shot, ...]:
    """With a seed each, so that a shot that is put in between does not change the noise of those after it."""
    return tuple(
        shot if shot.seed is not None else dataclasses.replace(shot, seed=seed + number)
        for number, shot in enumerate(shots)
    )


class _StoryJob:
    """Samples a film into a folder; what is there already is not sampled again."""

    def __init__(
        self,
        plan: StoryPlan,
        expanded: Sequence[ExpandedPrompt],
        settings: SampleSettings,
        sampler: Sampler,
        folder: RunFolder,
        checkpoint: str,
        *,
        progress: bool,
    ) -> None:
        from train.sampling.story import Film, FilmShot, WindowSettings

        self.plan, self.expanded, self.settings, self.sampler = plan, expanded, settings, sampler
        self.folder, self.progress, self.solver = folder, progress, solver_settings(settings)
        default_frames = settings.num_frames or sampler.buckets[0].num_frames
        self.film: Film = Film(
            [
                FilmShot(
                    text=one.text,
                    num_frames=shot.num_frames(sampler.fps, default_frames),
                    transition=shot.transition,
                    seed=shot.seed or 0,
                )
                for shot, one in zip(plan.shots, expanded, strict=True)
            ],
            sampler,
            size=sampler.size(None, settings.height_px or None, settings.width_px or None),
            windows=WindowSettings(
                long=settings.long, window_frames=settings.window_frames, overlap_frames=settings.overlap_frames
            ),
        )
        self.description: dict[str, Any] = {
            "checkpoint": os.path.relpath(checkpoint, folder.root) if folder.is_local else checkpoint,
            "fps": sampler.fps,
            "height_px": self.film.size.height_px,
            "width_px": self.film.size.width_px,
            "num_steps": sampler.num_steps(settings.num_steps),
            "guidance": settings.guidance,
            **non_default(settings),
        }
        self.keys = self._keys()
        self.dissolve_keys = {
            number: recipe_hash([self.keys[number - 1], self.keys[number], self.film.dissolve, self.film.half])
            for number, shot in enumerate(plan.shots)
            if shot.transition == "dissolve"
        }
        self.hash = recipe_hash([self.keys, self.dissolve_keys, write_script(plan.shots), settings.captioner])

    def _keys(self) -> list[str]:
        """A hash per shot of all that its frames depend on."""
        keys: list[str] = []
        for number, shot in enumerate(self.film.shots):
            after = keys[-1] if shot.transition == "continue" else None
            extra = self.film.extra_frames(number)
            keys.append(recipe_hash([self.description, shot.text, shot.num_frames, extra, shot.seed, after]))
        return keys

    def run(self, story: str, device: str) -> dict[str, Any]:
        """Sample what is missing, write all files, and return what story.json holds."""
        for number, key in enumerate(self.keys):
            self._shot(number, key)
        dissolves = {number: self._dissolve(number, key) for number, key in self.dissolve_keys.items()}
        shown = [self.film.shown(number, self._shot(number, key), dissolves) for number, key in enumerate(self.keys)]
        self._write_videos(shown)
        written = self._listing(story, self._read_back(shown, device))
        self.folder.write_bytes(SAMPLES_JSON, json.dumps(self._gallery(story, written), indent=1).encode())
        self.folder.write_bytes(STORY_JSON, json.dumps(written, indent=1).encode())
        used = {_frames_name(key) for key in (*self.keys, *self.dissolve_keys.values())}
        for name in self.folder.list("frames/*.npz"):
            if name not in used:
                self.folder.remove(name)
        return written

    def _shot(self, number: int, key: str) -> np.ndarray:
        """All frames of a shot, from the folder or sampled."""
        shot = self.film.shots[number]

        def request() -> Request:
            is_continued = shot.transition == "continue"
            return self.film.request(number, self._shot(number - 1, self.keys[number - 1]) if is_continued else None)

        seconds = shot.num_frames / self.sampler.fps
        title = f"shot {number + 1} of {len(self.keys)} ({shot.transition}, {seconds:g} s): {shot.text}"
        return self._frames(key, title, functools.partial(self._sampled, request))

    def _dissolve(self, number: int, key: str) -> np.ndarray:
        """The frames between a shot and the one before."""
        from train.sampling.story import CONNECTED

        before, after = (self._shot(index, self.keys[index]) for index in (number - 1, number))
        if self.film.dissolve != CONNECTED:
            return self.film.cross_fade(number, before, after)
        request = functools.partial(self.film.dissolve_request, number, before, after)
        return self._frames(key, f"dissolve to shot {number + 1}", functools.partial(self._sampled, request))

    def _sampled(self, request: Callable[[], Request]) -> np.ndarray:
        asked = request()
        (sampled,) = self.sampler.sample_requests(
            [asked],
            self._solver_for(asked),
            window_frames=self.settings.window_frames,
            overlap_frames=self.settings.overlap_frames,
            progress=self.progress,
        )
        return sampled.video_THWC

    def _solver_for(self, request: Request) -> SolverSettings:
        """The solver's settings; without context guidance where a shot has no frames before it."""
        from train.diffusion.guidance import Guidance
        from train.sampling.story import transitions_of

        max_frames = self.sampler.window_frames(self.settings.window_frames)
        has_windows = request.conditioning.num_frames > max_frames and "continue" in transitions_of(self.sampler)
        if has_windows or request.conditioning.condition_mask_T.any():
            return self.solver
        guidance = dataclasses.replace(Guidance.of(self.solver.guidance), context=1.0)
        return dataclasses.replace(self.solver, guidance=guidance)

    def _frames(self, key: str, title: str, sample: Callable[[], np.ndarray]) -> np.ndarray:
        """The frames of a key: read where they are, else sampled and written."""
        name = _frames_name(key)
        if self.folder.exists(name):
            try:
                with np.load(io.BytesIO(self.folder.read_bytes(name)), allow_pickle=False) as arrays:
                    return arrays["frames_THWC"]
            except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
                print(f"recaption: {self.folder.path(name)} is damaged and sampled again", file=sys.stderr)
        if self.progress:
            print(title, file=sys.stderr)
        frames_THWC = sample()
        sink = io.BytesIO()
        np.savez_compressed(sink, frames_THWC=frames_THWC)
        self.folder.write_bytes(name, sink.getvalue())
        return frames_THWC

    def _write_videos(self, shown: Sequence[np.ndarray]) -> None:
        from recaption.video_io.writer import encode_video
        from train.sampling.contact_sheet import contact_sheet_png

        titles = [
            f"{number + 1}. {shot.transition if number else 'start'}, {shot.num_frames / self.sampler.fps:g} s: {shot.text}"
            for number, shot in enumerate(self.film.shots)
        ]
        for number, frames_THWC in enumerate(shown):
            self.folder.write_bytes(_shot_name(number, "mp4"), encode_video(frames_THWC, fps=self.sampler.fps))
            self.folder.write_bytes(_shot_name(number, "png"), contact_sheet_png([frames_THWC], [titles[number]]))
        frames = (frame_HWC for frames_THWC in shown for frame_HWC in frames_THWC)
        self.folder.write_bytes("film.mp4", encode_video(frames, fps=self.sampler.fps))
        self.folder.write_bytes("film.png", contact_sheet_png(shown, titles))

    def _read_back(self, shown: Sequence[np.ndarray], device: str) -> list[ReadShot] | None:
        captioner = self.settings.captioner or DEFAULT_CAPTIONER
        if captioner == "none":
            return None
        videos = [self.film.undissolved(number, frames_THWC) for number, frames_THWC in enumerate(shown)]
        return read_back([shot.subject for shot in self.plan.shots], caption_shots(videos, captioner, device=device))

    def _listing(self, story: str, read: Sequence[ReadShot] | None) -> dict[str, Any]:
        """What story.json holds."""
        starts = np.cumsum([0, *(shot.num_frames for shot in self.film.shots)]).tolist()
        shots = [
            {
                "prompt": shot.text,
                "expanded_prompt": self.film.shots[number].text,
                "subject": shot.subject,
                "transition": shot.transition,
                "dissolve": self.film.dissolve if shot.transition == "dissolve" else None,
                "start_frame": starts[number],
                "num_frames": self.film.shots[number].num_frames,
                "seconds": self.film.shots[number].num_frames / self.sampler.fps,
                "seed": shot.seed,
                "video": _shot_name(number, "mp4"),
                "contact_sheet": _shot_name(number, "png"),
                "read_back": dataclasses.asdict(read[number]) if read else None,
            }
            for number, shot in enumerate(self.plan.shots)
        ]
        asked = [one for one in read or () if one.is_subject_read is not None]
        return {
            "story": story,
            "planner": self.plan.planner,
            "notes": list(self.plan.notes),
            **self.description,
            "num_frames": starts[-1],
            "seconds": starts[-1] / self.sampler.fps,
            "film": "film.mp4",
            "contact_sheet": "film.png",
            "script": "script.jsonl",
            "captioner": (self.settings.captioner or DEFAULT_CAPTIONER) if read else None,
            "num_shots": len(shots),
            "shots_with_subject": len(asked),
            "shots_where_subject_was_read": sum(bool(one.is_subject_read) for one in asked),
            "shots": shots,
            "hash": self.hash,
        }

    def _gallery(self, story: str, written: dict[str, Any]) -> dict[str, Any]:
        """What samples.json holds, for the report."""
        prompts = [shot["prompt"] for shot in written["shots"]]
        return {
            **self.description,
            "prompts": [story or f"a film of {len(prompts)} shots", *prompts],
            "expanded_prompts": ["", *(shot["expanded_prompt"] for shot in written["shots"])],
            "num_frames": written["num_frames"],
            "seed": self.settings.seed,
            "videos": [written["film"], *(shot["video"] for shot in written["shots"])],
            "contact_sheet": written["contact_sheet"],
        }


def _shot_name(number: int, extension: str) -> str:
    return f"shot-{number:04d}.{extension}"


def _frames_name(key: str) -> str:
    return f"frames/{key}.npz"


def _summary(
    written: dict[str, Any], folder: RunFolder, plan: StoryPlan, expanded: Sequence[ExpandedPrompt]
) -> dict[str, Any]:
    """What the command prints with --json."""
    return {
        "videos": [folder.path(written["film"]), *(folder.path(shot["video"]) for shot in written["shots"])],
        "contact_sheet": folder.path(written["contact_sheet"]),
        "prompt": [shot.text for shot in plan.shots],
        "expanded_prompt": [one.text for one in expanded],
        "mode": "story",
        "notes": list(dict.fromkeys([*plan.notes, *(one.note for one in expanded if one.note)])),
        "film": folder.path(written["film"]),
        "script": folder.path(written["script"]),
        "story": folder.path(STORY_JSON),
        "seconds": written["seconds"],
        "shots": written["num_shots"],
        "shots_with_subject": written["shots_with_subject"],
        "shots_where_subject_was_read": written["shots_where_subject_was_read"],
    }
