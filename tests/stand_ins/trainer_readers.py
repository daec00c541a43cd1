"""Reads an export with the dataset code of a trainer, in its environment: `python trainer_readers.py TRAINER EXPORT`.

Prints a JSON list with [name of the clip without extension, caption, frames, height, width] of every sample that the trainer
would train on. No model is loaded. What stands in for a trainer's other packages is said in each reader.
"""

from __future__ import annotations

import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[str, str, int, int, int]


def stand_in(name: str, **attributes: Any) -> None:
    """Put a module of this name, and its parents, where imports find it."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        module = sys.modules.setdefault(path, types.ModuleType(path))
        module.__dict__.setdefault("__path__", [])
        if count > 1:
            setattr(sys.modules[".".join(parts[: count - 1])], parts[count - 1], module)
    sys.modules[name].__dict__.update(attributes)


def musubi_tuner(export: Path) -> Iterator[Row]:
    """As its cache_latents.py reads videos; nothing stands in."""
    import argparse

    from musubi_tuner.dataset import config_utils

    config = config_utils.load_user_config(str(export / "musubi-tuner.toml"))
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(config, argparse.Namespace(debug_dataset=False), architecture="wan")
    for dataset in config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group).datasets:
        for _, batch in dataset.retrieve_latent_cache_batches(num_workers=1):
            for item in batch:
                num_frames, height_px, width_px, _ = item.content.shape
                clip_id = Path(item.item_key).stem.rpartition("_")[0]  # it appends the frames
                yield clip_id, item.caption, num_frames, height_px, width_px


def diffusion_pipe(export: Path) -> Iterator[Row]:
    """Its file search, captions and buckets; PyAV stands in for ComfyUI's video files, nothing for DeepSpeed."""
    import tomllib

    import av

    class VideoFromFile:
        def __init__(self, path: str) -> None:
            with av.open(path) as container:
                stream = container.streams.video[0]
                self.size, self.rate = (stream.width, stream.height), stream.average_rate
                self.count = sum(1 for _ in container.decode(video=0))

        def get_dimensions(self) -> tuple[int, int]:
            return self.size

        def get_frame_count(self) -> int:
            return self.count

        def get_frame_rate(self) -> Any:
            return self.rate

    stand_in("comfy_api.latest", InputImpl=types.SimpleNamespace(VideoFromFile=VideoFromFile))
    stand_in("comfy.model_management")
    stand_in("deepspeed.utils.logging", logger=logging.getLogger("deepspeed"))
    stand_in("deepspeed.comm.comm", get_rank=lambda: 0)
    from utils import dataset as theirs

    theirs.NUM_PROC = None  # in this process, where the stand-ins are
    config = tomllib.loads((export / "diffusion-pipe.toml").read_text())
    (directory,) = config["directory"]
    found = theirs.DirectoryDataset(directory, config, "wan", framerate=8, round_to_multiple=16)
    found.cache_metadata()
    for bucket in found.ar_bucket_datasets:
        (side_px,) = bucket.resolutions
        ratio, num_frames = bucket.ar_frames
        width_px = theirs.round_to_nearest_multiple(side_px * ratio**0.5, 16)
        height_px = theirs.round_to_nearest_multiple(side_px / ratio**0.5, 16)
        for row in bucket.metadata_dataset:
            yield Path(row["image_spec"][1]).stem, row["caption"][0], int(num_frames), height_px, width_px


def diffsynth(export: Path) -> Iterator[Row]:
    """As its training scripts make the dataset of a text-to-video model; nothing stands in."""
    from diffsynth.core.data import UnifiedDataset

    operator = UnifiedDataset.default_video_operator(base_path=str(export), max_pixels=96 * 64, num_frames=17)
    dataset = UnifiedDataset(
        str(export), str(export / "metadata.csv"), data_file_keys=("video",), main_data_operator=operator
    )
    names = [row["video"] for row in dataset.data]
    for index, name in enumerate(names):
        sample = dataset[index]
        width_px, height_px = sample["video"][0].size
        yield Path(name).stem, sample["prompt"], len(sample["video"]), height_px, width_px


def fastvideo(export: Path) -> Iterator[Row]:
    """As its preprocessing finds, filters and decodes videos (dataset type `merged`); nothing stands in."""
    from unittest import mock

    from fastvideo.workflow.preprocess import components

    config = types.SimpleNamespace(
        dataset_type=components.DatasetType.MERGED,
        dataset_path=str(export),
        video_loader_type=components.VideoLoaderType.TORCHCODEC,
    )
    validator = components.PreprocessingDataValidator(num_frames=9, train_fps=8)
    with mock.patch.multiple(components, get_world_size=lambda: 1, get_world_rank=lambda: 0):
        dataset = components.build_dataset(config, "train", validator)
    for item in dataset:
        frames = item["video"].get_frames_in_range(0, item["num_frames"]).data
        yield Path(item["name"]).stem, item["caption"], frames.shape[0], frames.shape[2], frames.shape[3]


def finetrainers(export: Path) -> Iterator[Row]:
    """Its dataset of videos with text files, decoded by `datasets`.

    The `__init__` of its package is left out, for it imports all of its models; stand-in: the name of a torchvision reader
    that torchvision has no more.
    """
    import torchvision

    for name in ("finetrainers", "finetrainers.data", "finetrainers.utils"):
        folder = next(Path(one, *name.split(".")) for one in sys.path if Path(one, *name.split(".")).is_dir())
        stand_in(name, __path__=[str(folder)])
    from finetrainers.utils.file import find_files

    stand_in("finetrainers.utils", find_files=find_files)
    torchvision.io.__dict__.setdefault("video_reader", types.SimpleNamespace(VideoReader=object))
    from finetrainers.data import dataset as theirs

    config = json.loads((export / "finetrainers.json").read_text())
    (entry,) = config["datasets"]
    for file, sample in zip(
        sorted(Path(entry["data_root"]).glob("*.txt")), theirs.VideoCaptionFilePairDataset(entry["data_root"])
    ):
        frames = sample["video"].get_frames_in_range(0, sample["video"].metadata.num_frames).data
        yield file.stem, sample["caption"], frames.shape[0], frames.shape[2], frames.shape[3]


def cosmos_predict2(export: Path) -> Iterator[Row]:
    """Its dataset of videos, on a made-up T5 embedding; stand-ins: its logger and the sizes of its text encoder."""
    import pickle

    import numpy as np

    sizes = types.SimpleNamespace(NUM_TOKENS=512, EMBED_DIM=1024)
    stand_in("imaginaire.utils", log=logging.getLogger("cosmos"))
    stand_in("imaginaire.auxiliary.text_encoder", CosmosTextEncoderConfig=sizes)
    from cosmos_predict2.data.dataset_video import Dataset

    (export / "t5_xxl").mkdir(exist_ok=True)
    for file in (export / "metas").glob("*.txt"):
        embedding = np.zeros((len(file.read_text().split()), 1024), np.float32)
        (export / "t5_xxl" / f"{file.stem}.pickle").write_bytes(pickle.dumps([embedding]))
    found: dict[str, Any] = {}
    config = (export / "dataset_config.py").read_text()
    exec(config, {"L": lambda cls: lambda **arguments: found.update(made=cls(**arguments)), "Dataset": Dataset})
    for sample in (found["made"][index] for index in range(len(found["made"]))):
        _, num_frames, height_px, width_px = sample["video"].shape
        stem = Path(sample["video_name"]["video_path"]).stem
        text = (export / "metas" / f"{stem}.txt").read_text()
        assert sample["t5_text_mask"].sum() == len(text.split())
        yield stem, text, num_frames, height_px, width_px


def automodel(export: Path) -> Iterator[Row]:
    """As its preprocessing for Wan finds, captions and decodes videos; nothing stands in."""
    from tools.diffusion import preprocessing_multiprocess as theirs
    from tools.diffusion.processors.caption_loaders import CaptionLoader

    files = sorted((export / "clips").glob("*.mp4"))
    captions = CaptionLoader.get_loader("sidecar").load_captions(files, "caption")
    processor = theirs.ProcessorRegistry.get("wan")
    for file in files:
        width_px, height_px, _ = theirs._get_video_dimensions(str(file))
        video, _ = processor.load_video(str(file), target_size=(height_px, width_px))
        yield file.stem, captions[file.name], video.shape[2], video.shape[3], video.shape[4]


def ltx_trainer(export: Path) -> Iterator[Row]:
    """Its dataset of videos, with the buckets of preprocess.sh; stand-ins: its models, its command line, audio and HEIF."""
    import re

    import accelerate  # noqa: F401 - these look for torchaudio, which they must not find
    import transformers.utils.logging  # noqa: F401

    class Anything:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def command(self, *_: Any, **__: Any) -> Any:
            return lambda function: function

        def __getattr__(self, name: str) -> Any:
            return Anything()

        __call__ = command

    def attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    for name in ("torchaudio", "typer", "ltx_core.model.audio_vae", "ltx_core.types", "ltx_trainer.model_loader"):
        stand_in(name, __getattr__=attribute)
    stand_in("pillow_heif", register_heif_opener=lambda: None)
    del sys.modules["ltx_trainer"]
    import process_videos

    command = (export / "preprocess.sh").read_text()
    sizes = re.findall(r"(\d+)x(\d+)x(\d+)", command[command.index("--resolution-buckets") :])
    buckets = [(int(frames), int(height), int(width)) for width, height, frames in sizes]
    dataset = process_videos.MediaDataset(export / "dataset.json", "video", "video", buckets)
    captions = {row["video"]: row["caption"] for row in json.loads((export / "dataset.json").read_text())}
    for index, path in enumerate(dataset.video_paths):
        found = dataset[index]["video_metadata"]
        caption = captions[str(path.relative_to(export))]
        yield path.stem, caption, found["num_frames"], found["height"], found["width"]


READERS = {
    "ltx-trainer": ltx_trainer,
    "automodel": automodel,
    "musubi-tuner": musubi_tuner,
    "diffusion-pipe": diffusion_pipe,
    "diffsynth": diffsynth,
    "fastvideo": fastvideo,
    "finetrainers": finetrainers,
    "cosmos-predict2": cosmos_predict2,
}

if __name__ == "__main__":
    print(json.dumps([*READERS[sys.argv[1]](Path(sys.argv[2]))]))
