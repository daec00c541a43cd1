"""How good a text-to-video model is: does it do what prompts say, how varied and how real are its samples.

    samples = sampled(sampler, prompts, settings, size=size, sampling=Sampling())
    evaluation = evaluate(samples, RealClips(pixels, captions), captioner, sampler.compressor)
    evaluation.measures["prompt_following/colour"]      # Measure(value=0.91, num=64, chance=0.13, real=0.99, ...)

Every measure carries its definition, what it was counted over, what chance would give, and what real clips get that went
through the compressor and back: no model on these latents can be read better than those.

Shape suffixes: T, H, W, C as everywhere; N clips, D width of the captioner's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from recaption.captioners.interface import CaptionBatch, Captioner
from recaption.errors import UsageError
from train.compressors.interface import Compressor
from train.evaluation.frechet import MIN_CLIPS, Frechet, frechet_distance, mean_cosine_distance, mean_distance_within
from train.evaluation.prompt_following import ALL_FIELDS, SUBJECT, Following, Share, follow

CLIPS_PER_ENCODE = 16


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What `recaption train dit --eval` does."""

    at_end: bool = False
    """Evaluate when a training has ended, too."""
    num_prompts: int = 100
    """Prompts: captions of the run's clips, each text once, drawn by `seed`; fewer where the run has fewer."""
    num_seeds: int = 4
    """Samples of one prompt, for how varied they are."""
    num_varied_prompts: int = 8
    """Prompts that are sampled so often."""
    num_real: int = 256
    """Most clips of the run that samples are compared with."""
    num_loss_clips: int = 32
    """Most clips of each bucket on which the flow loss is measured."""
    held_out: str = ""
    """Another run folder, with clips that the training has not seen: its captions and clips are taken instead."""
    captioner: str = ""
    """SPEC of who reads the samples; default: the recipe's captioner (and its scorer)."""
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense."""
        for name in ("num_prompts", "num_seeds", "num_varied_prompts", "num_real", "num_loss_clips"):
            if getattr(self, name) < 1:
                raise UsageError(f"evaluation setting {name} = {getattr(self, name)}, it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number and all that is needed to read it. JSON-simple by `dataclasses.asdict`."""

    value: float | None
    """None where it cannot be told; `note` says why."""
    num: int
    unit: str
    """What `num` counts: clips or pairs."""
    definition: str
    chance: float | None = None
    """What samples get that have nothing to do with their prompts."""
    real: float | None = None
    """What real clips of the run get after the compressor and back."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a model made of prompts."""

    prompts: tuple[str, ...]
    videos: Sequence[np.ndarray]
    """uint8 (T, H, W, 3), one per prompt."""
    more_videos: Sequence[Sequence[np.ndarray]]
    """Further samples, by other noise, of each of the first prompts."""


@dataclass(frozen=True, kw_only=True)
class RealClips:
    """Clips with their captions, of the size that is sampled."""

    videos: Sequence[np.ndarray] = ()
    """uint8 (T, H, W, 3)."""
    captions: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    measures: dict[str, Measure] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    """What the captioner said of each sample, in the order of the prompts."""


def sampled(
    sample: Callable[[Sequence[str]], Sequence[np.ndarray]], prompts: Sequence[str], settings: EvaluationSettings
) -> Samples:
    """Sample each prompt once, and the first few of them as often as the settings ask.

    Args:
        sample: prompts to videos; the same prompt again gets another noise, as `train.sampling.sampler.Sampler.sample` does.
    """
    often = list(prompts[: settings.num_varied_prompts])
    videos = list(sample([*prompts, *often * (settings.num_seeds - 1)]))
    more = videos[len(prompts) :]
    return Samples(
        prompts=tuple(prompts),
        videos=videos[: len(prompts)],
        more_videos=[more[at :: len(often)] for at in range(len(often))],
    )


def evaluate(
    samples: Samples, real: RealClips, captioner: Captioner, compressor: Compressor, *, device: str = "cpu"
) -> Evaluation:
    """All measures that a captioner takes; the flow loss is the task's own.

    Raises:
        UsageError: no samples.
    """
    if not samples.videos:
        raise UsageError("nothing was sampled, so there is nothing to evaluate")
    seen = captioner.caption_with_embeddings(list(samples.videos))
    through = _through(compressor, real.videos, device)
    seen_real = captioner.caption_with_embeddings(through) if through else None
    following = follow(samples.prompts, seen, captioner)
    following_real = follow(list(real.captions), seen_real, captioner) if seen_real else Following()
    measures = _following_measures(following, following_real)
    if seen.clip_embeddings_BD is None:
        note = f"captioner {captioner.name} has no contrastive space"
        measures |= {name: _absent(definition, note) for name, definition in _SPACE_DEFINITIONS.items()}
    else:
        more_BD = [captioner.embed_clips(list(videos)) if len(videos) else None for videos in samples.more_videos]
        measures |= _space_measures(seen.clip_embeddings_BD, more_BD, seen_real)
    return Evaluation(measures=measures, said=tuple(caption.text for caption in seen.captions))


def loss_measures(found: Mapping[str, tuple[Mapping[str, float], int]], *, held_out: bool) -> dict[str, Measure]:
    """Measures of `DitTask.loss_on` per bucket: bucket -> (what it found, number of clips)."""
    whose = "held-out clips" if held_out else "clips of the run, which the training has seen"
    measures = {}
    for bucket, (losses, num) in found.items():
        measures[f"flow_loss/{bucket}"] = Measure(
            value=losses["loss"],
            num=num,
            unit="clips",
            chance=losses["loss_without_prompt"],
            definition=f"flow loss at fixed noise on {whose}; chance is the loss with the captions taken away",
        )
    return measures


def _through(compressor: Compressor, videos: Sequence[np.ndarray], device: str) -> list[np.ndarray]:
    """Encoded and decoded: as a model on these latents would show them at best."""
    found: list[np.ndarray] = []
    for start in range(0, len(videos), CLIPS_PER_ENCODE):
        pixels_BTHWC = torch.from_numpy(np.stack(videos[start : start + CLIPS_PER_ENCODE]))
        pixels_BCTHW = pixels_BTHWC.to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with torch.no_grad():
            decoded = compressor.decode(compressor.encode(pixels_BCTHW)).float().clamp(-1, 1)
        found += list(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().contiguous().numpy())
    return found


# --- definitions ------------------------------------------------------------------------------------------------------

_FIELD = "share of samples whose caption names exactly the {} that their prompt names, among prompts that name one"


_FOLLOWING_DEFINITIONS = {
    SUBJECT: "share of samples whose caption names both the main object and the colour of their prompt",
    ALL_FIELDS: "share of samples whose caption names every field that their prompt names",
}


_MATCHED = (
    "mean contrastive score (cosine) of a sample and its own prompt; chance is the mean with other samples' prompts"
)


_BEST_MATCH = "share of samples that score highest with their own prompt among all prompts"


_SPACE_DEFINITIONS = {
    "diversity/same_prompt": "mean cosine distance of samples of one prompt by different noise, over all such pairs",
    "diversity/different_prompts": "mean cosine distance of samples of different prompts, over all pairs",
    "frechet_distance": "squared Frechet distance of samples and real clips in the captioner's embedding space; real is "
    "that of one half of the real clips to the other",
}


def _following_measures(found: Following, real: Following) -> dict[str, Measure]:
    measures = {
        f"prompt_following/{name}": _of_share(
            share,
            real.fields.get(name),
            _FOLLOWING_DEFINITIONS.get(name) or _FIELD.format(name.replace("_", " ")),
        )
        for name, share in found.fields.items()
    }
    if not found.fields:
        note = "no prompt names fields of a scene, so there is nothing to read back"
        measures["prompt_following/all_fields"] = _absent(_FOLLOWING_DEFINITIONS[ALL_FIELDS], note)
    if found.best_match is None:
        note = "the captioner has no contrastive space"
        return measures | {
            "contrastive/matched": _absent(_MATCHED, note),
            "contrastive/best_match": _absent(_BEST_MATCH, note),
        }
    measures["contrastive/matched"] = Measure(
        value=found.matched,
        num=found.best_match.num,
        unit="clips",
        definition=_MATCHED,
        chance=found.mismatched,
        real=real.matched,
    )
    measures["contrastive/best_match"] = _of_share(found.best_match, real.best_match, _BEST_MATCH)
    return measures


def _of_share(share: Share, real: Share | None, definition: str) -> Measure:
    return Measure(
        value=share.value,
        num=share.num,
        unit="clips",
        definition=definition,
        chance=share.chance,
        real=real.value if real else None,
    )


def _absent(definition: str, note: str) -> Measure:
    return Measure(value=None, num=0, unit="clips", definition=definition, note=note)


def _space_measures(
    clips_ND: np.ndarray, more_ND: Sequence[np.ndarray | None], real: CaptionBatch | None
) -> dict[str, Measure]:
    groups = [np.concatenate([clips_ND[at : at + 1], more]) for at, more in enumerate(more_ND) if more is not None]
    within, num_within = mean_distance_within(groups)
    between, num_between = mean_cosine_distance(clips_ND)
    real_ND = real.clip_embeddings_BD if real is not None else None
    between_real = mean_cosine_distance(real_ND)[0] if real_ND is not None else None
    kept: dict[str, Any] = {
        "diversity/same_prompt": {
            "value": within,
            "num": num_within,
            "note": "" if num_within else "no prompt was sampled twice",
        },
        "diversity/different_prompts": {"value": between, "num": num_between, "real": between_real},
    }
    measures = {
        name: Measure(unit="pairs", definition=_SPACE_DEFINITIONS[name], **values) for name, values in kept.items()
    }
    return measures | {"frechet_distance": _frechet_measure(clips_ND, real_ND)}


def _frechet_measure(clips_ND: np.ndarray, real_ND: np.ndarray | None) -> Measure:
    definition = _SPACE_DEFINITIONS["frechet_distance"]
    if real_ND is None:
        return _absent(definition, "no real clips of the sampled size")
    num, width = min(len(clips_ND), len(real_ND)), clips_ND.shape[1]
    found = frechet_distance(clips_ND, real_ND)
    if found is None:
        return _absent(definition, f"{num} clips in the smaller set; it takes {MIN_CLIPS}")
    mixed_ND = real_ND[np.random.default_rng(0).permutation(len(real_ND))]
    halves: Frechet | None = frechet_distance(mixed_ND[::2], mixed_ND[1::2])
    note = ""
    if num <= width:
        note = (
            f"{num} clips in the smaller set for {width} dimensions: covariances are shrunk ({found.shrinkage:.0%} "
            "sphere), compare with runs of the same n only"
        )
    return Measure(
        value=found.distance,
        num=num,
        unit="clips",
        definition=definition,
        real=halves.distance if halves else None,
        note=note,
    )
