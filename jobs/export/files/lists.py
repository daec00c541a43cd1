"""Files that list the clips of an export: JSON, JSON lines and CSV, in the columns that each trainer reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from jobs.export.clip_files import metadata_of
from jobs.export.dataset import ExportedDataset
from jobs.export.files.trainer_configs import musubi_name


def all_columns_jsonl(dataset: ExportedDataset) -> str:
    """One object per clip: `video_path`, `caption` and all of its metadata."""
    return _lines({"video_path": clip.file, **metadata_of(clip)} for clip in dataset.clips)


def musubi_jsonl(dataset: ExportedDataset) -> dict[str, str]:
    """A list per frame rate: `video_path` and `caption`.

    Paths are absolute: musubi-tuner reads relative ones from where it is started.
    """
    return {
        f"{musubi_name(rate)}.jsonl": _lines(
            {"video_path": dataset.path(clip.file), "caption": clip.caption} for clip in clips
        )
        for rate, clips in dataset.rates.items()
    }


def video_folder_jsonl(dataset: ExportedDataset) -> str:
    """`file_name`, relative to this file, and all metadata, each a column of the dataset.

    Texts and scores that no clip has are left out; clips that lack one have null, so that every line has the same columns.
    """
    rows = [metadata_of(clip) for clip in dataset.clips]
    kinds = sorted({kind for row in rows for kind in row["captions"]})
    names = sorted({name for row in rows for name, value in row["scores"].items() if value is not None})
    prefix = f"{dataset.folder}/"
    return _lines(
        {
            "file_name": clip.file.removeprefix(prefix),
            **row,
            "captions": {kind: row["captions"].get(kind) for kind in kinds},
            "scores": {name: row["scores"].get(name) for name in names},
        }
        for clip, row in zip(dataset.clips, rows)
    )


def fastvideo_json(dataset: ExportedDataset) -> str:
    """videos2caption.json: `path` below videos/, `cap`, and what FastVideo chooses frames by."""
    return _document(
        [
            {
                "path": clip.file.removeprefix(f"{dataset.folder}/"),
                "cap": clip.caption,
                "resolution": {"width": clip.width_px, "height": clip.height_px},
                "fps": round(float(Fraction(clip.fps)), 6),
                "duration": round(clip.seconds, 6),
                "num_frames": clip.num_frames,
                "size": clip.num_video_bytes,
            }
            for clip in dataset.clips
        ]
    )


def ltx_json(dataset: ExportedDataset) -> str:
    """dataset.json: `caption` and `video`, relative to the file."""
    return _document([{"caption": clip.caption, "video": clip.file} for clip in dataset.clips])


def diffsynth_csv(dataset: ExportedDataset) -> str:
    """metadata.csv: `video`, relative to the folder, and `prompt`."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["video", "prompt"])
    writer.writerows([clip.file, clip.caption] for clip in dataset.clips)
    return sink.getvalue()


def fiftyone_json(dataset: ExportedDataset) -> str:
    """samples.json of `fiftyone.Dataset.from_json`: a sample per clip, scores and texts as fields of their own.

    `id` and `metadata` are FiftyOne's own fields, so what a list says is in `list_id` and `list_metadata`.
    """
    rows = [metadata_of(clip) for clip in dataset.clips]
    kinds = sorted({kind for row in rows for kind in row["captions"]})
    names = sorted({name for row in rows for name, value in row["scores"].items() if value is not None})
    texts = ("clip_id", "caption", "captioner", "source", "licence", "audio", "list_id", "list_metadata")
    times = ("source_start_seconds", "source_end_seconds")
    field = "fiftyone.core.fields."
    samples = [
        {
            "filepath": clip.file,
            "tags": [],
            "_media_type": "video",
            "metadata": {
                "_cls": "VideoMetadata",
                "size_bytes": clip.num_video_bytes,
                "mime_type": "video/mp4",
                "frame_width": clip.width_px,
                "frame_height": clip.height_px,
                "frame_rate": row["fps"],
                "total_frame_count": clip.num_frames,
                "duration": row["seconds"],
            },
            **{name: row[name.removeprefix("list_")] for name in (*texts, *times)},
            **{f"caption_{kind}": row["captions"].get(kind) for kind in kinds},
            **{f"score_{name}": row["scores"].get(name) for name in names},
        }
        for clip, row in zip(dataset.clips, rows)
    ]
    fields = {
        "filepath": f"{field}StringField",
        "tags": f"{field}ListField({field}StringField)",
        "metadata": f"{field}EmbeddedDocumentField(fiftyone.core.metadata.VideoMetadata)",
        **dict.fromkeys((*texts, *(f"caption_{kind}" for kind in kinds)), f"{field}StringField"),
        **dict.fromkeys((*times, *(f"score_{name}" for name in names)), f"{field}FloatField"),
    }
    head = {"name": "recaption-export", "media_type": "video", "sample_fields": fields}
    return _document({**head, "info": {"licence": dataset.licence}, "samples": samples})


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _document(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
