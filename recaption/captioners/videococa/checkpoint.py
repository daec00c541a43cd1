"""Captioner weights: opened by tag, by file or from a folder, and written to a folder.

A folder made by `save_captioner` holds `config.json`, `tokenizer.json` and `model.safetensors`. A checkpoint folder of
`recaption train captioner` (or the run's train/<name>, whose newest checkpoint is taken) opens the same way.

    save_captioner("out/my_captioner", model, vocabulary, config)
    captioner = open_folder("out/my_captioner", name="my_captioner", device="cpu", dtype=None)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recaption import hub
from recaption.captioners.preprocess import Framing
from recaption.captioners.pretrained import weights_hash
from recaption.captioners.videococa.captioner import CocaCaptioner
from recaption.captioners.videococa.model import (
    POOLERS,
    TEMPORAL_LAYERS,
    VideoCoCa,
    build_coca,
    grown_state,
    initialise_decoder,
    two_poolers,
)
from recaption.captioners.videococa.out_of_domain import Familiar, read_familiar
from recaption.captioners.videococa.tokenizer import BytePairVocabulary, ClipVocabulary, vocabulary_from_merges
from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError
from recaption.records import CaptionFields

TINY_FOLDER = Path(__file__).parent / "tiny"


FORMAT = "videococa-1"
"""Value of `format` in config.json."""


OPEN_CLIP_VOCABULARY = "open_clip"
"""Value of `vocabulary` in config.json where the tokens are CLIP's own."""


MEASURED = ("min_clip_score", "num_beams")
"""Keys of config.json that were found by measuring these very weights."""


RANDOM_SEED = 0
"""`open_clip:MODEL/random` gives the same weights every time."""


OPEN_CLIP_NUM_FRAMES = 8
"""Frames per clip for open_clip's image weights: encoding 8 costs about as much as decoding one caption."""


HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def build_model(config: Mapping[str, Any]) -> VideoCoCa:
    """The untrained model that a captioner config describes."""
    coca: Any = build_coca(config["coca"], stem_channels=config.get("stem_channels", ()))
    coca.text.correct_cls_mask = not config.get("legacy_cls_mask", False)
    if "vision" in config:
        from recaption.captioners.videococa.two_path import build_two_path

        return build_two_path(coca, config["vision"])
    return VideoCoCa(
        coca,
        max_frames=config["num_frames"] if config["temporal"] else 0,
        num_joint_layers=config.get("joint_layers", 0),
        design=config.get("design", "attentional"),
        num_temporal_layers=config.get("temporal_layers", TEMPORAL_LAYERS),
    )


def save_captioner(
    folder: str | Path,
    state: Mapping[str, Tensor],
    vocabulary: BytePairVocabulary | ClipVocabulary,
    config: Mapping[str, Any],
) -> Path:
    """Write a captioner folder with fp16 weights.

    Args:
        state: state dict of the `VideoCoCa` (EMA weights where there are).
        config: as `read_folder` finds it: format, coca, design, stem_channels, joint_layers, num_frames, temporal,
            framing, fields; `kinds` (kind of caption -> words that ask for it), `min_clip_score` and `num_beams` where
            there are.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in state.items()}
    (folder / "model.safetensors").write_bytes(save(halves, metadata={"format": "pt"}))
    if isinstance(vocabulary, BytePairVocabulary):  # CLIP's comes with open_clip
        (folder / "tokenizer.json").write_text(vocabulary.tokenizer_json + "\n", encoding="utf-8")
    kept = {key: value for key, value in config.items() if key != "merges"}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a captioner folder or training checkpoint holds."""

    config: dict[str, Any]
    vocabulary: BytePairVocabulary | ClipVocabulary
    state: dict[str, Tensor]
    """float32; averaged weights where the folder has both."""
    weights_path: Path


def read_folder(folder: str | Path) -> Saved:
    """Read a captioner folder, a training checkpoint, or the newest checkpoint of a train/<name> folder.

    Raises:
        UsageError: no captioner lies there.
        CheckpointMismatchError: the checkpoint is of another kind of model.
    """
    from safetensors.torch import load_file

    folder = _newest_checkpoint(Path(folder))
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} holds no captioner: config.json is missing (a folder from `recaption train captioner` has it)"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = config.get("task", "captioner")
    if task != "captioner":
        raise CheckpointMismatchError(f"{folder} is a checkpoint of task {task!r}, where 'captioner' is needed")
    config = config.get("captioner", config)
    if config.get("format") != FORMAT:
        raise CheckpointMismatchError(f"{folder}/config.json is not that of a captioner (no format {FORMAT!r})")
    weights = next((p for p in (folder / "ema.safetensors", folder / "model.safetensors") if p.is_file()), None)
    if weights is None:
        raise UsageError(f"{folder} holds neither model.safetensors nor ema.safetensors")
    context_length = config["coca"]["text_cfg"]["context_length"]
    vocabulary: BytePairVocabulary | ClipVocabulary
    if config.get("vocabulary") == OPEN_CLIP_VOCABULARY:
        vocabulary = ClipVocabulary(context_length)
    elif (folder / "tokenizer.json").is_file():
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        vocabulary = BytePairVocabulary(text, context_length)
    else:
        vocabulary = vocabulary_from_merges(config["merges"], context_length=context_length)
    state = {key: tensor.float() for key, tensor in load_file(weights).items()}
    return Saved(config=config, vocabulary=vocabulary, state=state, weights_path=weights)


def open_folder(folder: str | Path, *, name: str, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """A captioner from a folder; raises as `read_folder`, and where the weights do not fit their own config."""
    saved = read_folder(folder)
    config = saved.config
    model = build_model(config)
    try:
        model.load_state_dict(saved.state)
    except RuntimeError as error:
        raise CheckpointMismatchError(
            f"{saved.weights_path} does not fit the model in its config.json: {error}"
        ) from error
    familiar = read_familiar(saved.weights_path.parent)
    return captioner_from(config, model, saved.vocabulary, name=name, device=device, dtype=dtype, familiar=familiar)


def open_tiny(_: str, *, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """The captioner inside the package."""
    folder = TINY_FOLDER
    if not (folder / "model.safetensors").is_file():
        raise WeightsUnreachableError(
            f"{folder}/model.safetensors is missing from this installation; install the package again, "
            "or give the path of a checkpoint from `recaption train captioner`"
        )
    return open_folder(folder, name="tiny", device=device, dtype=dtype)


def open_videococa(folder: str, *, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """A captioner that was trained here."""
    return open_folder(folder, name="videococa", device=device, dtype=dtype)


def open_open_clip(place: str, *, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """VideoCoCa, without temporal embedding, over one of open_clip's CoCa models; arguments and errors: `read_open_clip`."""
    config, model = read_open_clip(place)
    vocabulary = ClipVocabulary(config["coca"]["text_cfg"]["context_length"])
    weights_named, at, design = place.partition("@")
    architecture, _, pretrained = weights_named.partition("/")
    suffix = "" if design == "attentional" else at + design
    name = f"open_clip:{architecture}/{Path(pretrained).name}{suffix}"
    return captioner_from(config, model, vocabulary, name=name, device=device, dtype=dtype)


def read_open_clip(place: str) -> tuple[dict[str, Any], VideoCoCa]:
    """One of open_clip's CoCa models as a captioner config and the model that it describes, weights in it.

    Args:
        place: MODEL/TAG, MODEL/path of a file of weights, or MODEL/random; behind an @ one of `videococa.DESIGNS` or
            `POOLERS`: what the weights lack for it starts without effect.

    Raises:
        UsageError: no CoCa of that name, or no such tag.
        WeightsUnreachableError: the weights are neither on disk nor can they be downloaded.
    """
    import open_clip
    from open_clip.factory import load_checkpoint
    from open_clip.transform import PreprocessCfg

    weights_named, _, design = place.partition("@")
    architecture, _, pretrained = weights_named.partition("/")
    design = design or "attentional"
    config = open_clip.get_model_config(architecture)
    if config is None or "multimodal_cfg" not in config or "hf_model_name" in config["text_cfg"]:
        names = [name for name in open_clip.list_models() if name.startswith("coca_") and "roberta" not in name]
        raise UsageError(f"open_clip has no CoCa named {architecture!r}; it has {', '.join(names)}")
    config.pop("custom_text", None)
    weights = None if pretrained == "random" else find_weights(architecture, pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        coca = open_clip.CoCa(**config)
        initialise_decoder(coca)
    if weights is not None:
        try:
            load_checkpoint(coca, str(weights), weights_only=True)
        except Exception as error:
            raise CheckpointMismatchError(f"{weights} does not hold weights of {architecture}: {error}") from error
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    preprocess = {**vars(PreprocessCfg()), **{k: v for k, v in tag.items() if v is not None}}
    fits = {"shortest": "crop", "longest": "pad", "squash": "squash"}
    own = {
        "format": FORMAT,
        "coca": two_poolers(config, design) if design in POOLERS else config,
        "legacy_cls_mask": not coca.text.correct_cls_mask,  # as the published weights were trained
        "design": "attentional" if design in POOLERS else design,
        "num_frames": OPEN_CLIP_NUM_FRAMES,
        "temporal": False,
        "framing": {
            "frame_px": coca.visual.image_size[0],
            "fit": fits[preprocess["resize_mode"]],
            "interpolation": preprocess["interpolation"],
            "mean": tuple(preprocess["mean"]),
            "std": tuple(preprocess["std"]),
        },
        "fields": "",
        "vocabulary": OPEN_CLIP_VOCABULARY,
    }
    return own, _in_design(coca, config, design)


def _in_design(coca: nn.Module, config: Mapping[str, Any], design: str) -> VideoCoCa:
    """An image CoCa over clips; two poolers start as copies of its one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if design not in POOLERS:
            return VideoCoCa(coca, design=design)
        split: Any = build_coca(two_poolers(config, design))
    split.text.correct_cls_mask = coca.text.correct_cls_mask  # type: ignore[union-attr]
    model = VideoCoCa(split)
    model.load_state_dict(grown_state(VideoCoCa(coca).state_dict(), model))
    return model


def captioner_from(
    config: Mapping[str, Any],
    model: VideoCoCa,
    vocabulary: BytePairVocabulary | ClipVocabulary,
    *,
    name: str,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    familiar: Familiar | None = None,
) -> CocaCaptioner:
    """The captioner that a config and its model are; the weights are not copied unless device or type change."""
    digest = weights_hash(model)
    return CocaCaptioner(
        model.to(device=device, dtype=dtype),
        vocabulary,
        Framing(**config["framing"]),
        name=name,
        weights_hash=digest,
        num_frames=config["num_frames"],
        read_fields=_scene_fields if config.get("fields") == "scenes" else None,
        kinds=config.get("kinds"),
        min_clip_score=config.get("min_clip_score"),
        num_beams=config.get("num_beams", 1),
        familiar=familiar,
    )


def _scene_fields(text: str) -> CaptionFields:
    from recaption.scenes.captions import fields_in, is_of_scene

    return fields_in(text) if is_of_scene(text) else CaptionFields()


def _newest_checkpoint(folder: Path) -> Path:
    if (folder / "model.safetensors").is_file() or (folder / "ema.safetensors").is_file():
        return folder
    for parent in (folder / "checkpoints", folder):
        steps = sorted(path for path in parent.glob("step-*") if (path / "config.json").is_file())
        if steps:
            return steps[-1]
    return folder


def find_weights(architecture: str, pretrained: str, *, kind: str = "open_clip") -> Path:
    """The file of weights behind a tag or a path, downloaded where that is possible within seconds of trying.

    Args:
        kind: of spec that the user wrote, for the error.
    """
    import open_clip

    if os.path.isfile(pretrained):
        return Path(pretrained)
    give_local = f"give a local file: {kind}:{architecture}//path/to/{HUB_FILES[0]}"
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not tag:
        if "/" in pretrained or Path(pretrained).suffix in (".safetensors", ".bin", ".pt", ".pth"):
            raise WeightsUnreachableError(f"there is no file {pretrained}; {give_local}")
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UsageError(f"{architecture} has no weights tagged {pretrained!r} (tags: {tags}); or {give_local}")
    what = f"weights {architecture}/{pretrained}"
    return hub.find_file(tag["hf_hub"].rstrip("/"), HUB_FILES, what=what, give=give_local)
