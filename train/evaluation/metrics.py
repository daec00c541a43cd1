"""Evaluation of a text-to-video model: prompt adherence, diversity and distance to real clips, read by a captioner.

    samples = draw_samples(sample, prompts, settings)                  # sample: prompts -> videos
    evaluation = evaluate(samples, RealClips(videos=videos, captions=captions), captioner, compressor)
    evaluation.metrics["prompt_following/colour"]      # Metric(value=0.91, num=64, chance=0.13, real=0.99, ...)

Every metric has its definition, the number of clips it was computed on, its chance level, and its value on reconstructions
of real clips by the compressor: an upper bound for models of these latents.

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
from train.compressors.pixels import to_frames, to_pixels
from train.evaluation.frechet import MIN_CLIPS, Frechet, frechet_distance, mean_cosine_distance, mean_distance_within
from train.evaluation.prompt_following import ALL_FIELDS, SUBJECT, HitRate, PromptAdherence, measure_adherence

CLIPS_PER_ENCODE = 16


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of `recaption train dit --eval`."""

    at_end: bool = False
    """Evaluate at the end of a training, too."""
    num_prompts: int = 100
    """Number of prompts: random captions of the run's clips, without repeats; fewer where the run has fewer."""
    num_seeds: int = 4
    """Samples per prompt for the diversity of one prompt."""
    num_varied_prompts: int = 8
    """Prompts with `num_seeds` samples."""
    num_real: int = 256
    """Maximum number of real clips that samples are compared with."""
    num_loss_clips: int = 32
    """Maximum number of clips of each bucket for the validation loss."""
    held_out: str = ""
    """Run folder with held-out clips: prompts and real clips come from there."""
    captioner: str = ""
    """SPEC of the captioner that reads the samples; default: that of the recipe (and its scorer)."""
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError where a setting is invalid."""
        for name in ("num_prompts", "num_seeds", "num_varied_prompts", "num_real", "num_loss_clips"):
            if getattr(self, name) < 1:
                raise UsageError(f"evaluation setting {name} = {getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric with its definition and reference values; plain JSON by `dataclasses.asdict`."""

    value: float | None
    """None where it is undefined; `note` says why."""
    num: int
    unit: str
    """Of `num`: clips or pairs."""
    definition: str
    chance: float | None = None
    """Chance level: samples against the prompts of other samples."""
    real: float | None = None
    """Value on real clips, encoded and decoded by the compressor."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Videos sampled from prompts."""

    prompts: tuple[str, ...]
    videos: Sequence[np.ndarray]
    """uint8 (T, H, W, 3), one per prompt."""
    more_videos: Sequence[Sequence[np.ndarray]]
    """Further samples, with other noise, of each of the first prompts."""


@dataclass(frozen=True, kw_only=True)
class RealClips:
    """Real clips of the sampled size with their captions."""

    videos: Sequence[np.ndarray] = ()
    """uint8 (T, H, W, 3)."""
    captions: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics by name, and the captions they were read from."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    sample_captions: tuple[str, ...] = ()
    """Generated caption of each sample, in the order of the prompts."""


def draw_samples(
    sample: Callable[[Sequence[str]], Sequence[np.ndarray]], prompts: Sequence[str], settings: EvaluationSettings
) -> Samples:
    """Sample each prompt once, and the first `num_varied_prompts` of them `num_seeds` times.

    Args:
        sample: prompts -> videos; a repeated prompt has to get other noise, as by `Sampler.sample`.
    """
    varied = list(prompts[: settings.num_varied_prompts])
    videos = list(sample([*prompts, *varied * (settings.num_seeds - 1)]))
    more = videos[len(prompts) :]
    return Samples(
        prompts=tuple(prompts),
        videos=videos[: len(prompts)],
        more_videos=[more[index :: len(varied)] for index in range(len(varied))],
    )


def evaluate(
    samples: Samples, real: RealClips, captioner: Captioner, compressor: Compressor, *, device: str = "cpu"
) -> Evaluation:
    """All metrics that a captioner reads; those of the validation loss are by `loss_metrics`.

    Raises:
        UsageError: no samples.
    """
    if not samples.videos:
        raise UsageError("nothing was sampled, so there is nothing to evaluate")
    described = captioner.caption_with_embeddings(list(samples.videos))
    reconstructed = _reconstruct(compressor, real.videos, device)
    real_described = captioner.caption_with_embeddings(reconstructed) if reconstructed else None
    adherence = measure_adherence(samples.prompts, described, captioner)
    real_adherence = PromptAdherence()
    if real_described:
        real_adherence = measure_adherence(list(real.captions), real_described, captioner)
    metrics = _adherence_metrics(adherence, real_adherence)
    if described.clip_embeddings_BD is None:
        note = f"captioner {captioner.name} has no contrastive space"
        metrics |= {name: _undefined(definition, note) for name, definition in _EMBEDDING_DEFINITIONS.items()}
    else:
        more_BD = [captioner.embed_clips(list(videos)) if len(videos) else None for videos in samples.more_videos]
        metrics |= _embedding_metrics(described.clip_embeddings_BD, more_BD, real_described)
    return Evaluation(metrics=metrics, sample_captions=tuple(caption.text for caption in described.captions))


def loss_metrics(
    losses_of_buckets: Mapping[str, tuple[Mapping[str, float], int]], *, held_out: bool
) -> dict[str, Metric]:
    """Metrics of the validation loss.

    Args:
        losses_of_buckets: bucket -> (result of `DitTask.validation_loss`, number of clips).
    """
    clips = "held-out clips" if held_out else "training clips"
    metrics = {}
    for bucket, (losses, num) in losses_of_buckets.items():
        metrics[f"flow_loss/{bucket}"] = Metric(
            value=losses["loss"],
            num=num,
            unit="clips",
            chance=losses["loss_without_prompt"],
            definition=f"diffusion loss at fixed noise on {clips}; chance is the loss without captions",
        )
    return metrics


def _reconstruct(compressor: Compressor, videos: Sequence[np.ndarray], device: str) -> list[np.ndarray]:
    """Clips encoded and decoded: an upper bound for models of these latents."""
    reconstructed: list[np.ndarray] = []
    for start in range(0, len(videos), CLIPS_PER_ENCODE):
        frames_BTHWC = torch.from_numpy(np.stack(videos[start : start + CLIPS_PER_ENCODE]))
        with torch.no_grad():
            reconstructed += list(to_frames(compressor.decode(compressor.encode(to_pixels(frames_BTHWC.to(device))))))
    return reconstructed


# --- definitions ------------------------------------------------------------------------------------------------------

_FIELD = "fraction of samples whose generated caption has exactly the {} of their prompt, among prompts that have one"
_ADHERENCE_DEFINITIONS = {
    SUBJECT: "fraction of samples whose generated caption has both the main object and the colour of their prompt",
    ALL_FIELDS: "fraction of samples whose generated caption has every field of their prompt",
}
_MATCHED = (
    "mean contrastive score (cosine) of a sample and its own prompt; chance is the mean with other samples' prompts"
)
_BEST_MATCH = "fraction of samples that score highest with their own prompt among all prompts (retrieval at 1)"
_EMBEDDING_DEFINITIONS = {
    "diversity/same_prompt": "mean cosine distance between samples of one prompt with different noise, over all such pairs",
    "diversity/different_prompts": "mean cosine distance between samples of different prompts, over all pairs",
    "frechet_distance": "squared Frechet distance between samples and real clips in the captioner's embedding space; "
    "real is that between two halves of the real clips",
}


def _adherence_metrics(found: PromptAdherence, real: PromptAdherence) -> dict[str, Metric]:
    metrics = {
        f"prompt_following/{name}": _metric_of(
            rate, real.fields.get(name), _ADHERENCE_DEFINITIONS.get(name) or _FIELD.format(name.replace("_", " "))
        )
        for name, rate in found.fields.items()
    }
    if not found.fields:
        note = "no prompt has fields of a rendered scene"
        metrics["prompt_following/all_fields"] = _undefined(_ADHERENCE_DEFINITIONS[ALL_FIELDS], note)
    if found.best_match is None:
        note = "the captioner has no contrastive space"
        return metrics | {
            "contrastive/matched": _undefined(_MATCHED, note),
            "contrastive/best_match": _undefined(_BEST_MATCH, note),
        }
    metrics["contrastive/matched"] = Metric(
        value=found.matched,
        num=found.best_match.num,
        unit="clips",
        definition=_MATCHED,
        chance=found.mismatched,
        real=real.matched,
    )
    metrics["contrastive/best_match"] = _metric_of(found.best_match, real.best_match, _BEST_MATCH)
    return metrics


def _metric_of(rate: HitRate, real: HitRate | None, definition: str) -> Metric:
    return Metric(
        value=rate.value,
        num=rate.num,
        unit="clips",
        definition=definition,
        chance=rate.chance,
        real=real.value if real else None,
    )


def _undefined(definition: str, note: str) -> Metric:
    return Metric(value=None, num=0, unit="clips", definition=definition, note=note)


def _embedding_metrics(
    clips_ND: np.ndarray, more_ND: Sequence[np.ndarray | None], real: CaptionBatch | None
) -> dict[str, Metric]:
    groups = [
        np.concatenate([clips_ND[index : index + 1], more]) for index, more in enumerate(more_ND) if more is not None
    ]
    within, num_within = mean_distance_within(groups)
    between, num_between = mean_cosine_distance(clips_ND)
    real_ND = real.clip_embeddings_BD if real is not None else None
    between_real = mean_cosine_distance(real_ND)[0] if real_ND is not None else None
    values_of: dict[str, Any] = {
        "diversity/same_prompt": {
            "value": within,
            "num": num_within,
            "note": "" if num_within else "no prompt was sampled twice",
        },
        "diversity/different_prompts": {"value": between, "num": num_between, "real": between_real},
    }
    metrics = {
        name: Metric(unit="pairs", definition=_EMBEDDING_DEFINITIONS[name], **values)
        for name, values in values_of.items()
    }
    return metrics | {"frechet_distance": _frechet_metric(clips_ND, real_ND)}


def _frechet_metric(clips_ND: np.ndarray, real_ND: np.ndarray | None) -> Metric:
    definition = _EMBEDDING_DEFINITIONS["frechet_distance"]
    if real_ND is None:
        return _undefined(definition, "no real clips of the sampled size")
    num, width = min(len(clips_ND), len(real_ND)), clips_ND.shape[1]
    found = frechet_distance(clips_ND, real_ND)
    if found is None:
        return _undefined(definition, f"{num} clips in the smaller set; at least {MIN_CLIPS} are needed")
    mixed_ND = real_ND[np.random.default_rng(0).permutation(len(real_ND))]
    halves: Frechet | None = frechet_distance(mixed_ND[::2], mixed_ND[1::2])
    note = ""
    if num <= width:
        note = (
            f"{num} clips in the smaller set for {width} dimensions: covariances are shrunk (intensity "
            f"{found.shrinkage:.0%}), compare with runs of the same number of clips only"
        )
    return Metric(
        value=found.distance,
        num=num,
        unit="clips",
        definition=definition,
        real=halves.distance if halves else None,
        note=note,
    )
