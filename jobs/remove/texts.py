"""Takes texts out of RUN/text/<encoder>, and removes files that quote captions: report, samples, evaluations.

What can be made again from what is left is removed whole: `recaption report` and `recaption sample` write it anew.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from recaption.ledger.encoded_texts import ENCODER_FILE, TEXTS_SCHEMA, plan_hash, read_header, read_manifest
from recaption.run_folder import RunFolder

EVALUATION_FILES = ("evaluation.json", "evaluation.png")


def remove_encoded_texts(run: RunFolder, texts: Collection[str], keep: Collection[str] = ()) -> int:
    """Take texts out of the parts of all encoders; returns their number.

    Args:
        keep: texts that are used elsewhere too, such as sample prompts.
    """
    gone = {text.strip() for text in texts} - {text.strip() for text in keep}
    num_gone = 0
    for folder in sorted({posixpath.dirname(name) for name in run.list("text/*/part-*.parquet")}):
        for name in run.list(f"{folder}/part-*.parquet"):
            num_gone += _remove_from_part(run, name, gone)
        manifest = read_manifest(run, folder)
        if manifest is not None:
            headers = [read_header(run, name) for name in run.list(f"{folder}/part-*.safetensors")]
            manifest["num_texts"] = sum(header.num_texts for header in headers)
            manifest["num_tokens"] = sum(header.shape_of["tokens"][0] for header in headers)
            run.write_bytes(f"{folder}/{ENCODER_FILE}", (json.dumps(manifest, indent=1) + "\n").encode())
    return num_gone


def _remove_from_part(run: RunFolder, name: str, gone: set[str]) -> int:
    """Rewrite one part: the encodings first, so that a kill leaves texts that tell what to take out."""
    from train.text.stored import without_texts

    texts = run.read_table(name)["text"].to_pylist()
    kept = [text for text in texts if text.strip() not in gone]
    if len(kept) == len(texts):
        return 0
    encoded = name.removesuffix(".parquet") + ".safetensors"
    if run.exists(encoded):
        metadata = {key: value for key, value in read_header(run, encoded).metadata.items() if key != "sha256"}
        if metadata["plan_hash"] == plan_hash(metadata["spec"], metadata["dtype"], texts):
            metadata["plan_hash"] = plan_hash(metadata["spec"], metadata["dtype"], kept)
            is_kept = [text.strip() not in gone for text in texts]
            run.write_bytes(encoded, without_texts(run.read_bytes(encoded), is_kept, metadata))
    run.write_table(name, pa.table({"text": kept}, schema=TEXTS_SCHEMA), run.table_metadata(name))
    return len(texts) - len(kept)


def remove_quotations(run: RunFolder, texts: Collection[str], video_ids: Collection[str]) -> list[str]:
    """Remove the report, the samples and evaluations whose prompts are one of these texts, and files named after a video.

    Returns:
        Names of the files and folders that went.
    """
    named = [str(path).removeprefix(run.root.rstrip("/") + "/") for path in run.fs.find(run.root)]
    gone = [name for name in named if any(video_id in name for video_id in video_ids)]
    gone += [name for name in run.list("report/*") if not name.endswith("timings.json")]
    gone += [posixpath.dirname(name) for name in run.list("samples/*/samples.json") if _quotes(run, name, texts)]
    for name in run.list("train/*/evaluation.json"):
        if _quotes(run, name, texts):
            files = (f"{posixpath.dirname(name)}/{file}" for file in EVALUATION_FILES)
            gone += [file for file in files if run.exists(file)]
    for name in gone:
        run.remove(name)
    return gone


def _quotes(run: RunFolder, name: str, texts: Collection[str]) -> bool:
    """Whether a string in a JSON file is one of the texts."""
    wanted = {text.strip() for text in texts}

    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            return any(holds(one) for one in value.values())
        if isinstance(value, list):
            return any(holds(one) for one in value)
        return isinstance(value, str) and value.strip() in wanted

    return holds(json.loads(run.read_bytes(name)))
