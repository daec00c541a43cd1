"""Dataset configs of the trainers, filled in from the clips of an export: frame counts, sizes, aspect ratios, rates.

Paths are absolute, as the trainers want them: change them where the folder moves.
"""

from __future__ import annotations

import json
import shlex
from fractions import Fraction
from typing import Any

import yaml

from jobs.export.dataset import ExportedDataset


def diffusion_pipe(dataset: ExportedDataset) -> str:
    """`dataset = "diffusion-pipe.toml"` of a diffusion-pipe config."""
    ratios = dataset.aspect_ratios
    if len(ratios) <= 7:
        aspect = [f"ar_buckets = {_toml(ratios)}"]
    else:
        aspect = [f"min_ar = {_toml(ratios[0])}", f"max_ar = {_toml(ratios[-1])}", "num_ar_buckets = 7"]
    return _text(
        f"# {_about(dataset)}",
        "# A clip is used at the longest of these frame counts that it has, at the frame rate of the model.",
        f"frame_buckets = {_toml(sorted({1, *dataset.frame_buckets}))}",
        "# Side of a square with the area to train at.",
        f"resolutions = [{dataset.side_px}]",
        "enable_ar_bucket = true",
        *aspect,
        "",
        "[[directory]]",
        f"path = {_toml(dataset.path(dataset.folder))}",
        "num_repeats = 1",
    )


def musubi_tuner(dataset: ExportedDataset) -> str:
    """`--dataset_config` of musubi-tuner: one dataset per frame rate, since `source_fps` is one per dataset."""
    height_px, width_px = dataset.largest_size
    lines = [
        f"# {_about(dataset)}",
        "[general]",
        f"resolution = [{width_px}, {height_px}]",
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = true",
    ]
    for rate in dataset.rates:
        name = musubi_name(rate)
        lines += [
            "",
            "[[datasets]]",
            f"video_jsonl_file = {_toml(dataset.path(f'{name}.jsonl'))}",
            f"cache_directory = {_toml(dataset.path(f'{name}-cache'))}",
            "# Whole clips, cut to the frame counts of the model. Or a fixed length, which leaves out shorter clips:",
            f'# frame_extraction = "head", target_frames = {_toml(dataset.frame_buckets)}',
            'frame_extraction = "full"',
            f"max_frames = {dataset.model.max_frames}",
        ]
        if rate > dataset.model.fps:
            lines += ["# Frames are left out to get to the rate of the model.", f"source_fps = {float(rate)}"]
        elif rate < dataset.model.fps:
            lines.append(
                "# WARNING: fewer frames per second than the model has, so these clips play too fast: use --fit."
            )
    return _text(*lines)


def musubi_name(rate: Fraction) -> str:
    """Name of the list of the clips with this frame rate, without extension: `musubi-tuner-29.97fps`."""
    return f"musubi-tuner-{round(float(rate), 3):g}fps"


def ai_toolkit(dataset: ExportedDataset) -> str:
    """The `datasets:` of a process in an ai-toolkit config."""
    entry: dict[str, Any] = {
        "folder_path": dataset.path(dataset.folder),
        "caption_ext": "txt",
        "resolution": [dataset.side_px],
        "num_frames": dataset.frame_buckets[0],
        "shrink_video_to_frames": False,
        "fps": dataset.model.fps,
        "cache_latents_to_disk": True,
    }
    about = f"# {_about(dataset)}\n# num_frames: of the shortest clip, so that none is left out.\n"
    return about + yaml.safe_dump({"datasets": [entry]}, sort_keys=False, allow_unicode=True)


def finetrainers(dataset: ExportedDataset) -> str:
    """`--dataset_config` of finetrainers; buckets are [frames, height, width]."""
    entry = {
        "data_root": dataset.path(dataset.folder),
        "dataset_type": "video",
        "id_token": None,
        "video_resolution_buckets": [list(bucket) for bucket in dataset.size_buckets],
        "reshape_mode": "bicubic",
        "remove_common_llm_caption_prefixes": False,
    }
    return json.dumps({"datasets": [entry]}, indent=2, ensure_ascii=False) + "\n"


def energon_dataset(dataset: ExportedDataset) -> str:
    """.nv-meta/dataset.yaml: crude samples, cooked by the task encoder of the training."""
    return _text(
        f"# {_about(dataset)}",
        "# Samples have the parts mp4, txt (the caption) and json (all metadata).",
        "__module__: megatron.energon",
        "__class__: CrudeWebdataset",
    )


def fastvideo_command(dataset: ExportedDataset) -> str:
    height_px, width_px = dataset.largest_size
    return _command(
        dataset,
        "torchrun --nproc_per_node=1 -m fastvideo.pipelines.preprocess.v1_preprocessing_new",
        ("--model_path", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("--mode", "preprocess"),
        ("--workload_type", "t2v"),
        ("--preprocess.video_loader_type", "torchcodec"),
        ("--preprocess.dataset_type", "merged"),
        ("--preprocess.dataset_path", dataset.path()),
        ("--preprocess.dataset_output_dir", dataset.path("preprocessed")),
        ("--preprocess.max_height", height_px),
        ("--preprocess.max_width", width_px),
        ("--preprocess.num_frames", dataset.frame_buckets[0]),
        ("--preprocess.train_fps", dataset.model.fps),
    )


def ltx_command(dataset: ExportedDataset) -> str:
    buckets = ";".join(f"{width}x{height}x{frames}" for frames, height, width in dataset.size_buckets)
    return _command(
        dataset,
        'python scripts/process_dataset.py --model-path "$LTX_MODEL" --text-encoder-path "$LTX_TEXT_ENCODER"',
        ("--resolution-buckets", buckets),
        (dataset.path("dataset.json"),),
    )


def diffsynth_command(dataset: ExportedDataset) -> str:
    height_px, width_px = dataset.largest_size
    return _command(
        dataset,
        'accelerate launch examples/wanvideo/model_training/train.py "$@"',
        ("--dataset_base_path", dataset.path()),
        ("--dataset_metadata_path", dataset.path("metadata.csv")),
        ("--data_file_keys", "video"),
        ("--height", height_px),
        ("--width", width_px),
        ("--num_frames", dataset.frame_buckets[0]),
    )


def automodel_command(dataset: ExportedDataset) -> str:
    height_px, width_px = dataset.largest_size
    return _command(
        dataset,
        "python -m tools.diffusion.preprocessing_multiprocess video --processor wan --caption_format sidecar",
        ("--video_dir", dataset.path(dataset.folder)),
        ("--output_dir", dataset.path("preprocessed")),
        ("--max_pixels", height_px * width_px),
        ("--target_frames", dataset.frame_buckets[0]),
    )


def cosmos_dataset(dataset: ExportedDataset) -> str:
    """The dataset of a cosmos-predict2 experiment config; it wants T5 embeddings of metas/ in t5_xxl/ first."""
    height_px, width_px = dataset.largest_size
    return _text(
        f"# {_about(dataset)}",
        "# First compute the T5-XXL embeddings of metas/*.txt into t5_xxl/*.pickle, with cosmos-predict2's own scripts.",
        "example_video_dataset = L(Dataset)(",
        f"    dataset_dir={json.dumps(dataset.path(), ensure_ascii=False)},",
        f"    num_frames={dataset.model.max_frames},",
        f"    video_size=({height_px}, {width_px}),",
        ")",
    )


def _about(dataset: ExportedDataset) -> str:
    model = dataset.model
    return (
        f"{len(dataset.clips)} clips, for {model.name}: {model.fps} frames per second, {model.frame_step}k+1 frames, "
        f"up to {model.max_frames}."
    )


def _command(dataset: ExportedDataset, command: str, *arguments: tuple[object, ...]) -> str:
    lines = [command, *(" ".join(shlex.quote(str(one)) for one in pair) for pair in arguments)]
    return _text("#!/bin/sh", f"# {_about(dataset)}", " \\\n    ".join(lines))


def _toml(value: Any) -> str:
    """A string, number or list of numbers as TOML, whose basic strings are JSON's."""
    return json.dumps(value, ensure_ascii=False)


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"
