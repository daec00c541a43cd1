"""The layouts of an export, one record each: where clips and texts lie, and which files describe them to a trainer.

    layout = layout_of("folder")
    layout.clip_path("5fd0...-0000000-0000096")        # clips/5fd0...-0000000-0000096.mp4

All are written by the same code (worker.py, export.py); a further layout is a further record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jobs.export.dataset import ExportedDataset
from jobs.export.files import lists, trainer_configs
from recaption.errors import UsageError

Writer = Callable[[ExportedDataset], str]
"""The content of one file that describes the whole export."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout, and the trainers that read it."""

    name: str
    trainers: str
    model: str = "wan2.1"
    """The model (`video_models.VIDEO_MODELS`) that its trainers train, unless another one is named."""
    folder: str
    """Of the clips, or of the tars."""
    spread: bool = False
    """Whether clips lie in subfolders by the first two digits of their id: the Hub takes 10,000 files a folder."""
    sidecars: Mapping[str, str] = field(default_factory=dict)
    """Extension (txt: the caption; json: all that is known of the clip) -> folder, of files with the name of each clip."""
    container: Literal["files", "tars", "lance"] = "files"
    """Whether clips are files, lie in WebDataset tars (members mp4, txt, json), or in the Lance table `folder`."""
    takes_windows: bool = False
    """Its trainer takes a random window of the model's frames from each clip, and fails for one that is not longer."""
    files: Mapping[str, Writer] = field(default_factory=dict)
    """Name -> content of the files that list the clips, and of the trainers' configs."""
    file_set: Callable[[ExportedDataset], dict[str, str]] | None = None
    """Further files, whose names depend on the clips."""
    hub_data_files: str = ""
    """Pattern of the data in a dataset repository of the Hub, for the card; "": not for the Hub."""
    usage: str
    """How to load it; `{root}` is the folder."""

    def clip_path(self, clip_id: str) -> str:
        return f"{self.folder}/{clip_id[:2] + '/' if self.spread else ''}{clip_id}.mp4"

    def sidecar_path(self, clip_id: str, extension: str) -> str:
        return f"{self.sidecars[extension]}/{clip_id}.{extension}"

    def folders(self) -> list[str]:
        """Folders that hold one file per clip."""
        return [] if self.container != "files" else sorted({self.folder, *self.sidecars.values()})

    def part_name(self, part: int) -> str:
        """Name, without extension, of the table that commits a part; of the tar itself where there are tars."""
        return f"{self.folder if self.container == 'tars' else '.recaption/parts'}/{part:06d}"


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="folder",
            trainers="diffusion-pipe, musubi-tuner, ai-toolkit, finetrainers",
            folder="clips",
            sidecars={"txt": "clips"},
            files={
                "diffusion-pipe.toml": trainer_configs.diffusion_pipe,
                "musubi-tuner.toml": trainer_configs.musubi_tuner,
                "ai-toolkit.yaml": trainer_configs.ai_toolkit,
                "finetrainers.json": trainer_configs.finetrainers,
            },
            file_set=lists.musubi_jsonl,
            usage="""diffusion-pipe: dataset = '{root}/diffusion-pipe.toml' in the training config
musubi-tuner: --dataset_config {root}/musubi-tuner.toml
ai-toolkit: the datasets of {root}/ai-toolkit.yaml in the training config
finetrainers: --dataset_config {root}/finetrainers.json""",
        ),
        Layout(
            name="jsonl",
            trainers="musubi-tuner, and any script that reads JSON lines",
            folder="clips",
            files={
                "dataset.jsonl": lists.all_columns_jsonl,
                "musubi-tuner.toml": trainer_configs.musubi_tuner,
            },
            file_set=lists.musubi_jsonl,
            usage="""musubi-tuner: --dataset_config {root}/musubi-tuner.toml
python: for line in open("{root}/dataset.jsonl"): row = json.loads(line)""",
        ),
        Layout(
            name="hf",
            trainers="Hugging Face datasets (VideoFolder), finetrainers, FastVideo",
            folder="train",
            spread=True,
            files={"train/metadata.jsonl": lists.video_folder_jsonl},
            hub_data_files="train/**",
            usage="""from datasets import load_dataset
dataset = load_dataset("{root}", split="train")     # columns video, caption, captions, source, scores, ...
# to the Hub: hf upload-large-folder NAME/DATASET {root} --repo-type dataset""",
        ),
        Layout(
            name="webdataset",
            trainers="webdataset, Hugging Face datasets, video2dataset's readers",
            folder="shards",
            container="tars",
            hub_data_files="shards/*.tar",
            usage="""from datasets import load_dataset
dataset = load_dataset("{root}", split="train")     # columns mp4, txt, json, __key__
import webdataset
dataset = webdataset.WebDataset("{root}/shards/000000.tar").to_tuple("mp4", "txt", "json")""",
        ),
        Layout(
            name="energon",
            trainers="Megatron-Energon, Megatron-Bridge",
            folder="shards",
            container="tars",
            files={".nv-meta/dataset.yaml": trainer_configs.energon_dataset},
            usage="""energon prepare --non-interactive --split-ratio 1,0,0 {root}""",
        ),
        Layout(
            name="fastvideo",
            trainers="FastVideo",
            folder="videos",
            files={
                "videos2caption.json": lists.fastvideo_json,
                "preprocess.sh": trainer_configs.fastvideo_command,
            },
            usage="""in FastVideo: sh {root}/preprocess.sh""",
        ),
        Layout(
            name="ltx",
            trainers="LTX-Video-Trainer, LTX-2's ltx-trainer",
            model="ltx",
            folder="videos",
            files={"dataset.json": lists.ltx_json, "preprocess.sh": trainer_configs.ltx_command},
            usage="""in ltx-trainer, with LTX_MODEL and LTX_TEXT_ENCODER set to its files: sh {root}/preprocess.sh
then data.preprocessed_data_root: {root}/.precomputed in the training config""",
        ),
        Layout(
            name="diffsynth",
            trainers="DiffSynth-Studio",
            folder="videos",
            files={"metadata.csv": lists.diffsynth_csv, "train.sh": trainer_configs.diffsynth_command},
            usage="""in DiffSynth-Studio: sh {root}/train.sh --model_id_with_origin_paths ... --output_path ...""",
        ),
        Layout(
            name="automodel",
            trainers="NeMo AutoModel",
            folder="clips",
            sidecars={"json": "clips"},
            files={"preprocess.sh": trainer_configs.automodel_command},
            usage="""in Automodel: sh {root}/preprocess.sh""",
        ),
        Layout(
            name="cosmos",
            trainers="cosmos-predict2",
            model="cosmos-predict2",
            folder="videos",
            sidecars={"txt": "metas"},
            takes_windows=True,
            files={"dataset_config.py": trainer_configs.cosmos_dataset},
            usage="""in cosmos-predict2: T5 embeddings of {root}/metas into {root}/t5_xxl
then the dataset of {root}/dataset_config.py in an experiment""",
        ),
        Layout(
            name="lance",
            trainers="Lance and LanceDB, Lance's loaders for PyTorch",
            folder="clips.lance",
            container="lance",
            usage="""import lance
dataset = lance.dataset("{root}/clips.lance")       # columns video, caption, captions, source, scores, ...
rows = dataset.to_table(columns=["clip_id", "caption"], filter="scores.motion > 0.1")
mp4 = dataset.take_blobs("video", indices=[0])[0].read()""",
        ),
        Layout(
            name="fiftyone",
            trainers="FiftyOne",
            folder="data",
            spread=True,
            files={"samples.json": lists.fiftyone_json},
            usage="""import fiftyone
dataset = fiftyone.Dataset.from_json("{root}/samples.json", rel_dir="{root}")
fiftyone.launch_app(dataset)""",
        ),
    )
}


def layout_of(name: str) -> Layout:
    """The layout of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in LAYOUTS:
        raise UsageError(f"--to {name!r}: the layouts are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
