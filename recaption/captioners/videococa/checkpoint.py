"""Saves and loads VideoCoCa captioners: folders, training checkpoints, and open_clip's CoCa weights.

A folder written by `save_captioner` holds `config.json`, `tokenizer.json` and `model.safetensors`. A checkpoint folder of
`recaption train captioner` (or the run's train/<name>: its newest checkpoint) is read the same way.

    save_captioner("out/my_captioner", model.state_dict(), tokenizer, config)
    captioner = open_captioner_folder("out/my_captioner", name="my_captioner", device="cpu", dtype=None)
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
from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.videococa.captioner import CocaCaptioner
from recaption.captioners.videococa.model import (
    POOLERS,
    TEMPORAL_LAYERS,
    FrameEncoder,
    VideoCoCa,
    build_coca,
    expand_state_dict,
    init_decoder_weights,
    split_pooler,
)
from recaption.captioners.videococa.out_of_domain import TrainingAnchors, read_training_anchors
from recaption.captioners.videococa.tokenizer import BPETokenizer, ClipTokenizer, tokenizer_from_merges
from recaption.errors import CheckpointMismatchError, UsageError, WeightsUnreachableError
from recaption.records import CaptionFields
from recaption.weights import weights_hash

TINY_FOLDER = Path(__file__).parent / "tiny"
FORMAT_VERSION = "videococa-1"
"""Value of the key `format` in config.json; other values are refused."""
OPEN_CLIP_TOKENIZER = "open_clip"
"""Value of the key `vocabulary` in config.json for CLIP's tokenizer."""
CALIBRATED_KEYS = ("min_clip_score", "num_beams")
"""Keys of config.json that are calibrated on the weights and invalid after further training."""
RANDOM_SEED = 0
"""Seed of `open_clip:MODEL/random` and of parts added to pretrained weights."""
OPEN_CLIP_NUM_FRAMES = 8
"""Frames per clip for open_clip's image weights: encoding 8 costs about as much as decoding one caption."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def build_model(config: Mapping[str, Any]) -> VideoCoCa:
    """An untrained model from a captioner config."""
    coca: Any = build_coca(config["coca"], stem_channels=config.get("stem_channels", ()))
    coca.text.correct_cls_mask = not config.get("legacy_cls_mask", False)
    if "vision" in config:
        from recaption.captioners.videococa.two_path import build_two_path

        return build_two_path(coca, config["vision"])
    clip_encoder = FrameEncoder(
        coca.visual,
        max_frames=config["num_frames"] if config["temporal"] else 0,
        num_joint_layers=config.get("joint_layers", 0),
        design=config.get("design", "attentional"),
        num_temporal_layers=config.get("temporal_layers", TEMPORAL_LAYERS),
    )
    return VideoCoCa(coca, clip_encoder)


def save_captioner(
    folder: str | Path, state: Mapping[str, Tensor], tokenizer: BPETokenizer | ClipTokenizer, config: Mapping[str, Any]
) -> Path:
    """Write a captioner folder with fp16 weights.

    Args:
        state: state dict of the `VideoCoCa` (EMA weights, if any).
        config: as `read_captioner_folder` returns it: format, coca, design, stem_channels, joint_layers, num_frames,
            temporal, framing, fields; optionally `kinds` (caption kind -> prompt), `min_clip_score`, `num_beams`.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in state.items()}
    (folder / "model.safetensors").write_bytes(save(halves, metadata={"format": "pt"}))
    if isinstance(tokenizer, BPETokenizer):  # CLIP's tokenizer comes with open_clip
        (folder / "tokenizer.json").write_text(tokenizer.tokenizer_json + "\n", encoding="utf-8")
    config = {key: value for key, value in config.items() if key != "merges"}  # tokenizer.json has them
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCaptioner:
    """Contents of a captioner folder or training checkpoint."""

    config: dict[str, Any]
    tokenizer: BPETokenizer | ClipTokenizer
    state: dict[str, Tensor]
    """float32; the EMA weights if the folder has both."""
    weights_path: Path


def read_captioner_folder(folder: str | Path) -> SavedCaptioner:
    """Read a captioner folder, a training checkpoint, or the newest checkpoint of a train/<name> folder.

    Raises:
        UsageError: the folder holds no captioner.
        CheckpointMismatchError: a checkpoint of another training task or format version, or a damaged one.
    """
    folder = _newest_checkpoint(Path(folder))
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} holds no captioner: config.json is missing (a folder from `recaption train captioner` has it)"
        )
    with hub.damaged_as_mismatch(str(folder)):
        return _read_folder(folder)


def _read_folder(folder: Path) -> SavedCaptioner:
    from safetensors.torch import load_file

    config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    task = config.get("task", "captioner")
    if task != "captioner":
        raise CheckpointMismatchError(f"{folder} is a checkpoint of task {task!r}, not of 'captioner'")
    config = config.get("captioner", config)
    if config.get("format") != FORMAT_VERSION:
        raise CheckpointMismatchError(
            f"{folder}/config.json: this version reads captioners of format {FORMAT_VERSION!r}, not {config.get('format')!r}"
        )
    hub.check_sizes(config, what=f"{folder}/config.json")
    weights = next((p for p in (folder / "ema.safetensors", folder / "model.safetensors") if p.is_file()), None)
    if weights is None:
        raise UsageError(f"{folder} holds neither model.safetensors nor ema.safetensors")
    context_length = config["coca"]["text_cfg"]["context_length"]
    tokenizer: BPETokenizer | ClipTokenizer
    if config.get("vocabulary") == OPEN_CLIP_TOKENIZER:
        tokenizer = ClipTokenizer(context_length)
    elif (folder / "tokenizer.json").is_file():
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = BPETokenizer(text, context_length)
    else:
        tokenizer = tokenizer_from_merges(config["merges"], context_length=context_length)
    state = {key: tensor.float() for key, tensor in load_file(weights).items()}
    return SavedCaptioner(config=config, tokenizer=tokenizer, state=state, weights_path=weights)


def open_captioner_folder(folder: str | Path, *, name: str, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """A captioner from a folder; raises as `read_captioner_folder`, and if the weights do not match their config."""
    saved = read_captioner_folder(folder)
    with hub.damaged_as_mismatch(f"{saved.weights_path.parent}"):
        model = build_model(saved.config)
        try:
            model.load_state_dict(saved.state)
        except RuntimeError as error:
            raise CheckpointMismatchError(
                f"{saved.weights_path} does not fit the model in its config.json: {hub.first_line(error)}"
            ) from error
        anchors = read_training_anchors(saved.weights_path.parent)
        return captioner_from_config(
            saved.config, model, saved.tokenizer, name=name, device=device, dtype=dtype, training_anchors=anchors
        )


def open_tiny(_: str, *, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """The captioner inside the package."""
    folder = TINY_FOLDER
    if not (folder / "model.safetensors").is_file():
        raise WeightsUnreachableError(
            f"{folder}/model.safetensors is missing from this installation; install the package again, "
            "or give the path of a checkpoint from `recaption train captioner`"
        )
    return open_captioner_folder(folder, name="tiny", device=device, dtype=dtype)


def open_videococa(folder: str, *, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """A captioner folder or a checkpoint of `recaption train captioner`."""
    return open_captioner_folder(folder, name="videococa", device=device, dtype=dtype)


def open_open_clip(model_and_weights: str, *, device: str, dtype: torch.dtype | None) -> CocaCaptioner:
    """VideoCoCa without temporal embedding from open_clip's CoCa weights; arguments and errors as `load_open_clip_model`."""
    config, model = load_open_clip_model(model_and_weights)
    tokenizer = ClipTokenizer(config["coca"]["text_cfg"]["context_length"])
    model_name, at, design = model_and_weights.partition("@")
    architecture, _, pretrained = model_name.partition("/")
    suffix = "" if design == "attentional" else at + design
    name = f"open_clip:{architecture}/{Path(pretrained).name}{suffix}"
    return captioner_from_config(config, model, tokenizer, name=name, device=device, dtype=dtype)


def load_open_clip_model(model_and_weights: str) -> tuple[dict[str, Any], VideoCoCa]:
    """Captioner config and model (with weights) of one of open_clip's CoCa models.

    Args:
        model_and_weights: MODEL/TAG, MODEL/path of a weights file, or MODEL/random; optionally @ and one of
            `model.DESIGNS` or `model.POOLERS`, whose added parts are initialised to have no effect.

    Raises:
        UsageError: no CoCa of that name, or no such tag.
        WeightsUnreachableError: the weights are neither local nor downloadable.
    """
    import open_clip
    from open_clip.factory import load_checkpoint
    from open_clip.transform import PreprocessCfg

    model_name, _, design = model_and_weights.partition("@")
    architecture, _, pretrained = model_name.partition("/")
    design = design or "attentional"
    config = open_clip.get_model_config(architecture)
    if config is None or "multimodal_cfg" not in config or "hf_model_name" in config["text_cfg"]:
        names = [name for name in open_clip.list_models() if name.startswith("coca_") and "roberta" not in name]
        raise UsageError(f"open_clip has no CoCa named {architecture!r}; it has {', '.join(names)}")
    config.pop("custom_text", None)
    weights = None if pretrained == "random" else find_open_clip_weights(architecture, pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        coca = open_clip.CoCa(**config)
        init_decoder_weights(coca)
    if weights is not None:
        try:
            load_checkpoint(coca, str(weights), weights_only=True)
        except Exception as error:
            raise CheckpointMismatchError(f"{weights} does not hold weights of {architecture}: {error}") from error
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    preprocess = {**vars(PreprocessCfg()), **{k: v for k, v in tag.items() if v is not None}}
    resize_modes = {"shortest": "crop", "longest": "pad", "squash": "squash"}
    captioner_config = {
        "format": FORMAT_VERSION,
        "coca": split_pooler(config, design) if design in POOLERS else config,
        "legacy_cls_mask": not coca.text.correct_cls_mask,  # as the published weights were trained
        "design": "attentional" if design in POOLERS else design,
        "num_frames": OPEN_CLIP_NUM_FRAMES,
        "temporal": False,
        "framing": {
            "frame_px": coca.visual.image_size[0],
            "fit": resize_modes[preprocess["resize_mode"]],
            "interpolation": preprocess["interpolation"],
            "mean": tuple(preprocess["mean"]),
            "std": tuple(preprocess["std"]),
        },
        "fields": "",
        "vocabulary": OPEN_CLIP_TOKENIZER,
    }
    return captioner_config, _video_coca_from_image(coca, config, design)


def _video_coca_from_image(coca: nn.Module, config: Mapping[str, Any], design: str) -> VideoCoCa:
    """A VideoCoCa of the given design from an image CoCa; a split pooler is initialised from its single one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if design not in POOLERS:
            return VideoCoCa(coca, FrameEncoder(coca.visual, design=design))
        split: Any = build_coca(split_pooler(config, design))
    split.text.correct_cls_mask = coca.text.correct_cls_mask  # type: ignore[union-attr]
    model = VideoCoCa(split)
    model.load_state_dict(expand_state_dict(VideoCoCa(coca).state_dict(), model))
    return model


def captioner_from_config(
    config: Mapping[str, Any],
    model: VideoCoCa,
    tokenizer: BPETokenizer | ClipTokenizer,
    *,
    name: str,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    training_anchors: TrainingAnchors | None = None,
) -> CocaCaptioner:
    """Build the captioner from its config and model; weights are copied only if device or dtype change."""
    digest = weights_hash(model.state_dict())
    return CocaCaptioner(
        model.to(device=device, dtype=dtype),
        tokenizer,
        FramePreprocessor(**config["framing"]),
        name=name,
        weights_hash=digest,
        num_frames=int(config["num_frames"]),
        field_parser=_scene_fields if config.get("fields") == "scenes" else None,
        kinds=config.get("kinds"),
        min_clip_score=config.get("min_clip_score"),
        num_beams=config.get("num_beams", 1),
        training_anchors=training_anchors,
    )


def _scene_fields(text: str) -> CaptionFields:
    from recaption.scenes.captions import describes_scene, fields_in

    return fields_in(text) if describes_scene(text) else CaptionFields()


def _newest_checkpoint(folder: Path) -> Path:
    if (folder / "model.safetensors").is_file() or (folder / "ema.safetensors").is_file():
        return folder
    for parent in (folder / "checkpoints", folder):
        steps = sorted(path for path in parent.glob("step-*") if (path / "config.json").is_file())
        if steps:
            return steps[-1]
    return folder


def find_open_clip_weights(architecture: str, pretrained: str, *, kind: str = "open_clip") -> Path:
    """Weights file of a tag or path, downloaded if necessary; fails within seconds if the hub is unreachable.

    Args:
        kind: prefix of the user's SPEC, for error messages.
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
    return hub.find_file(tag["hf_hub"].rstrip("/"), HUB_FILES, what=what, hint=give_local)
