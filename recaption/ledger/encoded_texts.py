"""Encoded texts in a run folder: RUN/text/<encoder>/, written by `recaption encode`, read by training.

    part-00000.parquet        the texts of a part, fixed when the part is first written
    part-00000.safetensors    tokens (M, C), pooled (S, P), lengths (S): the same texts encoded; written whole or not at all
    encoder.json              manifest: encoder, weights, sizes; written last

A text never changes its part: later captions add parts, existing parts stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.run_folder import RunFolder, recipe_hash

ENCODER_FILE = "encoder.json"
"""The manifest of a folder of encoded texts."""
TEXTS_SCHEMA = pa.schema([("text", pa.string())])
METADATA_KEY = "facts"
"""Key of a part's safetensors metadata that has a JSON object, see `PartHeader.metadata`."""
MANIFEST_KEYS = frozenset(
    {"spec", "weights_hash", "width", "pooled_width", "dtype", "num_parts", "num_texts", "num_tokens"}
)
"""Keys that `encoder.json` must have."""


def text_folder(spec: str) -> str:
    """Folder name of an encoder: `t5:google/t5-v1_1-xxl` -> `text/t5-t5-v1_1-xxl-<6 hex digits of the whole>`."""
    kind, _, name = spec.partition(":")
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").rsplit("/", 1)[-1])
    return f"text/{kind}-{short}-{recipe_hash(spec)[:6]}"


def plan_hash(spec: str, dtype: str, texts: list[str]) -> str:
    """Hash of everything that decides the content of a part."""
    return recipe_hash([spec, dtype, texts])


@dataclass(frozen=True)
class PartHeader:
    """The safetensors header of a part: metadata, and the offset, shape and dtype of its tensors."""

    metadata: dict[str, str]
    """spec, dtype, weights_hash, plan_hash, sha256 (of all bytes after the header)."""
    start_of: dict[str, int]
    """Tensor -> its first byte in the file."""
    shape_of: dict[str, tuple[int, ...]]
    dtype_of: dict[str, str]
    data_start: int
    num_bytes: int
    """Of the whole file."""

    @property
    def num_texts(self) -> int:
        return self.shape_of["lengths"][0]


def read_header(run: RunFolder, name: str) -> PartHeader:
    """The header of a .safetensors part, without reading its tensors.

    Raises:
        FileNotFoundError: no such part.
        ValueError: the file is cut, or is not a part of encoded texts.
    """
    try:
        size = int.from_bytes(run.read_span(name, 0, 8), "little")
        decoded: dict[str, Any] = json.loads(run.read_span(name, 8, 8 + min(size, 1 << 20)))
        metadata = json.loads(decoded["__metadata__"][METADATA_KEY])
        tensors = {key: decoded[key] for key in ("tokens", "pooled", "lengths")}
        if any(tensors[key]["dtype"] not in ("F16", "BF16") for key in ("tokens", "pooled")):
            raise KeyError("dtype")
        header = PartHeader(
            metadata=metadata,
            start_of={key: 8 + size + tensor["data_offsets"][0] for key, tensor in tensors.items()},
            shape_of={key: tuple(tensor["shape"]) for key, tensor in tensors.items()},
            dtype_of={key: tensor["dtype"] for key, tensor in tensors.items()},
            data_start=8 + size,
            num_bytes=8 + size + max(tensor["data_offsets"][1] for tensor in tensors.values()),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"its header does not describe encoded texts ({error})") from error
    if run.size(name) != header.num_bytes:
        raise ValueError(f"it has {run.size(name)} bytes, {header.num_bytes} according to its header")
    return header


def read_manifest(run: RunFolder, folder: str) -> dict[str, Any] | None:
    """Content of encoder.json; None where there is none yet.

    Raises:
        ValueError: keys are missing.
    """
    name = f"{folder}/{ENCODER_FILE}"
    if not run.exists(name):
        return None
    manifest = json.loads(run.read_bytes(name))
    if not isinstance(manifest, dict) or not manifest.keys() >= MANIFEST_KEYS:
        raise ValueError("it does not describe the encoder of the texts")
    return manifest


def check_encoded_texts(run: RunFolder) -> Iterator[Problem]:
    """Every part can be read, encodes the texts of its table, has its recorded sha256 and the same weights as the others."""
    folders = {name.rsplit("/", 1)[0] for pattern in (ENCODER_FILE, "part-*") for name in run.list(f"text/*/{pattern}")}
    for folder in sorted(folders):
        try:
            manifest = read_manifest(run, folder) or {}
        except ValueError as error:
            yield Problem(kind="text_part_differs", where=f"{folder}/{ENCODER_FILE}", detail=str(error))
            continue
        names = run.list(f"{folder}/part-*.parquet")
        tables, unreadable = read_tables_or_problems(run, names, TEXTS_SCHEMA)
        yield from unreadable
        expected = {f"{folder}/part-{number:05d}.parquet" for number in range(manifest.get("num_parts", 0))}
        for name in sorted(expected | tables.keys()):
            encoded = name.removesuffix(".parquet") + ".safetensors"
            for missing in [name] * (name not in names) + [encoded] * (name in expected and not run.exists(encoded)):
                detail = f"missing, although {folder}/{ENCODER_FILE}, which is written after it, exists"
                yield Problem(kind="part_missing", where=missing, detail=detail)
            if name in tables and run.exists(encoded):
                detail = _find_difference(run, encoded, tables[name]["text"].to_pylist(), manifest)
                if detail:
                    yield Problem(kind="text_part_differs", where=encoded, detail=detail)


def _find_difference(run: RunFolder, name: str, texts: list[str], manifest: dict[str, Any]) -> str:
    """What is wrong with one part; "" where nothing is."""
    try:
        header = read_header(run, name)
    except ValueError as error:
        return str(error)
    metadata = header.metadata
    if metadata.get("plan_hash") != plan_hash(metadata.get("spec", ""), metadata.get("dtype", ""), texts):
        return "it encodes other texts than those of its table"
    if manifest and metadata.get("weights_hash") != manifest["weights_hash"]:
        return f"encoded with weights {metadata.get('weights_hash')}, the others with {manifest['weights_hash']}"
    data = run.read_span(name, header.data_start, header.num_bytes)
    if hashlib.sha256(data).hexdigest() != metadata.get("sha256"):
        return "its sha256 is not the one that was recorded when it was written"
    return ""
