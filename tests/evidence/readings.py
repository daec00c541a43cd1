"""What is read from a trained arm: named series of values, one per prompt, per clip or one per seed.

    PromptFollowing().read(run)["follows"]       # Series of 300 bits: object and colour are those of the prompt
    ClipLoss().read(run)["loss"]                 # Series of 128 losses at fixed noise
    Values("flicker", measure, unit="clips")     # anything else: measure(run) -> one number per clip, in a fixed order

Values of two arms are compared in pairs: the n-th of both must be about the same prompt, clip and noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from packing.buckets import Bucket
from recaption.captioners.interface import Captioner
from recaption.captioners.registry import load_captioner
from recaption.scenes.captions import fields_in
from tests.evidence.world import HELD_OUT_SIZE
from train.evaluation.frechet import frechet_distance
from train.sampling.conditioning_frames import text_to_video
from train.sampling.request import Request
from train.sampling.solver_settings import SolverSettings

if TYPE_CHECKING:
    from tests.evidence.training import ArmRun

READER = "tiny"
NUM_SHOWN = 8
"""Videos of an arm that are kept for the contact sheet."""
FIELDS = {"object": "main_object", "colour": "colour", "action": "action", "ground": "background"}
"""Name of a series -> the caption field that is right or wrong."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one reading."""

    values: Sequence[float]
    unit: str
    """What each is about: `prompts`, `clips` or `seeds` (one value)."""
    higher_is_better: bool = True
    chance: float | None = None
    """Mean against the prompts of other samples."""

    @property
    def is_bits(self) -> bool:
        return self.unit == "prompts" and set(self.values) <= {0, 1}


class Reading(Protocol):
    """Something to measure on the checkpoint of an arm."""

    def read(self, run: ArmRun) -> dict[str, Series]: ...


@dataclass(frozen=True, kw_only=True)
class PromptFollowing:
    """Samples of held-out prompts, described by the captioner `tiny`; the same prompts and noise for all arms.

    Series: `follows` (object and colour), `object`, `colour`, `action`, `ground`, `follows_all` (all four),
    `frechet_distance` (to held-out clips, in the captioner's embeddings) and `sampling_seconds` (thread CPU time of all).
    """

    num_steps: int = 20
    guidance: float = 3.0
    kind: str = "short"
    """`short` or `long` prompts; names of series about long ones get the prefix `long_`."""
    at_held_out_size: bool = False
    """Sample at the world's held-out size; names of series get the prefix `held_out_size_`."""
    sample: Callable[[ArmRun, Sequence[Request]], Sequence[np.ndarray]] | None = None
    """In place of the sampler of the arm's checkpoint (a cascade): videos of the requests."""

    def read(self, run: ArmRun) -> dict[str, Series]:
        world = run.scenes.world
        size = world.held_out_sizes[0] if self.at_held_out_size else world.sizes[0]
        prompts = run.scenes.prompts(self.kind)
        start = time.thread_time()
        videos = self._videos(run, prompts, size)
        seconds = time.thread_time() - start
        prefix = (HELD_OUT_SIZE if self.at_held_out_size else "") + ("long_" if self.kind == "long" else "")
        np.savez_compressed(
            run.folder / f"{prefix}samples.npz", prompts=prompts[:NUM_SHOWN], videos=np.stack(list(videos[:NUM_SHOWN]))
        )
        described = reader().caption_with_embeddings(list(videos))
        found = _followed(prompts, [caption.text for caption in described.captions])
        found["sampling_seconds"] = Series(values=[seconds], unit="seeds", higher_is_better=False)
        assert described.clip_embeddings_BD is not None
        distance = frechet_distance(described.clip_embeddings_BD, real_embeddings(run, size))
        if distance is not None:
            found["frechet_distance"] = Series(values=[distance.distance], unit="seeds", higher_is_better=False)
        return {prefix + name: series for name, series in found.items()}

    def _videos(self, run: ArmRun, prompts: Sequence[str], size: Bucket) -> Sequence[np.ndarray]:
        conditioning = text_to_video(size.num_frames, size.height_px, size.width_px)
        requests = [
            Request(text=prompt, conditioning=conditioning, seed=number) for number, prompt in enumerate(prompts)
        ]
        if self.sample is not None:
            return self.sample(run, requests)
        settings = SolverSettings(num_steps=self.num_steps, guidance=self.guidance)
        return [sampled.video_THWC for sampled in run.sampler.sample_requests(requests, settings)]


@dataclass(frozen=True, kw_only=True)
class ClipLoss:
    """Diffusion loss of held-out clips at fixed noise: series `loss`, and `held_out_size_loss` where the world has one."""

    num_clips: int = 128

    def read(self, run: ArmRun) -> dict[str, Series]:
        task, model, found = run.task(), run.sampler.model, {}
        for prefix, size in run.scenes.world.validated_sizes().items():
            tokens_of_clip = task.grid.num_tokens(size.num_frames, size.height_px, size.width_px)
            packs = task.packs(run.scenes, size, tokens_of_clip, self.num_clips)
            losses = [task.validation_loss(model, [pack])["loss"] for pack in packs]
            found[f"{prefix}loss"] = Series(values=losses, unit="clips", higher_is_better=False)
        return found


@dataclass(frozen=True)
class Values:
    """A series by a function of one's own."""

    name: str
    measure: Callable[[ArmRun], Sequence[float]]
    unit: str = "clips"
    higher_is_better: bool = False

    def read(self, run: ArmRun) -> dict[str, Series]:
        values = [float(value) for value in self.measure(run)]
        return {self.name: Series(values=values, unit=self.unit, higher_is_better=self.higher_is_better)}


@cache
def reader() -> Captioner:
    """The captioner that reads samples."""
    return load_captioner(READER)


def real_embeddings(run: ArmRun, size: Bucket) -> np.ndarray:
    """(N, D): the held-out clips of a size, as the compressor shows them, in the captioner's space; kept with the world."""
    path = run.scenes.folder / f"embeddings-{size.num_frames}-{size.height_px}-{size.width_px}.npy"
    if not path.exists():
        partial = path.with_suffix(f".{time.time_ns()}.npy")
        np.save(partial, reader().embed_clips(run.scenes.videos(size)))
        partial.rename(path)
    return np.load(path)


def _followed(prompts: Sequence[str], generated: Sequence[str]) -> dict[str, Series]:
    """Bits of each field, and of several at once, with their chance levels."""
    asked, shown = [fields_in(text) for text in prompts], [fields_in(text) for text in generated]
    hits_NN = {
        name: np.array([[getattr(x, field) == getattr(y, field) for y in asked] for x in shown], bool)
        for name, field in FIELDS.items()
    }
    hits_NN["follows"] = hits_NN["object"] & hits_NN["colour"]
    hits_NN["follows_all"] = np.all(list(hits_NN.values()), axis=0)
    is_other_NN = np.array([[one != other for other in prompts] for one in prompts])
    return {
        name: Series(
            values=np.diag(hits).astype(int).tolist(),
            unit="prompts",
            chance=float(hits[is_other_NN].mean()) if is_other_NN.any() else None,
        )
        for name, hits in hits_NN.items()
    }
