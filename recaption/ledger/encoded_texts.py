"""Encoded texts in a run folder: RUN/text/<encoder>/, written by `recaption encode`, read by training.

    part-00000.parquet        the texts of a part, fixed when they are first seen
    part-00000.safetensors    tokens (M, C), pooled (S, P), lengths (S): the same texts encoded; there once it is whole
    encoder.json              by what; written last

Texts keep their part, so more captions later mean more parts, and parts that are there stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recaption.ledger.problems import Problem, open_parts
from recaption.run_folder import RunFolder, recipe_hash

ENCODER = "encoder.json"


TEXTS_SCHEMA = pa.schema([("text", pa.string())])


FACTS = "facts"
"""Of a part's metadata: a JSON object, see `PartHeader.metadata`."""


MANIFEST_KEYS = frozenset(
    {"spec", "weights_hash", "width", "pooled_width", "dtype", "num_parts", "num_texts", "num_tokens"}
)


def text_folder(spec: str) -> str:
    """`t5:google/t5-v1_1-xxl` -> `text/t5-t5-v1_1-xxl-<6 hex digits of the whole>`."""
    kind, _, name = spec.partition(":")
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").rsplit("/", 1)[-1])
    return f"text/{kind}-{short}-{recipe_hash(spec)[:6]}"


def plan_hash(spec: str, dtype: str, texts: list[str]) -> str:
    return recipe_hash([spec, dtype, texts])


@dataclass(frozen=True)
class PartHeader:
    """What the head of a part says, and where its tensors start."""

    metadata: dict[str, str]
    """spec, dtype, weights_hash, plan_hash, sha256 (of all bytes after the head)."""
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
    """Of a .safetensors part, without reading what follows.

    Raises:
        FileNotFoundError: no such part.
        ValueError: cut, or no part of texts.
    """
    try:
        size = int.from_bytes(run.read_span(name, 0, 8), "little")
        found: dict[str, Any] = json.loads(run.read_span(name, 8, 8 + min(size, 1 << 20)))
        metadata = json.loads(found["__metadata__"][FACTS])
        tensors = {key: found[key] for key in ("tokens", "pooled", "lengths")}
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
        raise ValueError(f"its head does not describe encoded texts ({error})") from error
    if run.fs.size(run.path(name)) != header.num_bytes:
        raise ValueError(f"it has {run.fs.size(run.path(name))} bytes, its head says {header.num_bytes}")
    return header


def read_manifest(run: RunFolder, folder: str) -> dict[str, Any] | None:
    """encoder.json; None where there is none yet.

    Raises:
        ValueError: it does not say what it has to.
    """
    name = f"{folder}/{ENCODER}"
    if not run.exists(name):
        return None
    found = json.loads(run.read_bytes(name))
    if not isinstance(found, dict) or not found.keys() >= MANIFEST_KEYS:
        raise ValueError("it does not say by what the texts were encoded")
    return found


def text_problems(run: RunFolder) -> Iterator[Problem]:
    """Every part opens, holds its own texts and the bytes that were written, all by the same weights."""
    folders = {name.rsplit("/", 1)[0] for pattern in (ENCODER, "part-*") for name in run.list(f"text/*/{pattern}")}
    for folder in sorted(folders):
        try:
            manifest = read_manifest(run, folder) or {}
        except ValueError as error:
            yield Problem(kind="text_part_differs", where=f"{folder}/{ENCODER}", detail=str(error))
            continue
        names = run.list(f"{folder}/part-*.parquet")
        tables, unreadable = open_parts(run, names, TEXTS_SCHEMA)
        yield from unreadable
        expected = {f"{folder}/part-{number:05d}.parquet" for number in range(manifest.get("num_parts", 0))}
        for name in sorted(expected | tables.keys()):
            encoded = name.removesuffix(".parquet") + ".safetensors"
            for lost in [name] * (name not in names) + [encoded] * (name in expected and not run.exists(encoded)):
                detail = f"gone, although {folder}/{ENCODER}, which is written after it, is there"
                yield Problem(kind="part_missing", where=lost, detail=detail)
            if name in tables and run.exists(encoded):
                detail = _difference(run, encoded, tables[name]["text"].to_pylist(), manifest)
                if detail:
                    yield Problem(kind="text_part_differs", where=encoded, detail=detail)


def _difference(run: RunFolder, name: str, texts: list[str], manifest: dict[str, Any]) -> str:
    """What is wrong with one part; empty where nothing is."""
    try:
        header = read_header(run, name)
    except ValueError as error:
        return str(error)
    made_by = header.metadata
    if made_by.get("plan_hash") != plan_hash(made_by.get("spec", ""), made_by.get("dtype", ""), texts):
        return "it holds other texts than the table beside it"
    if manifest and made_by.get("weights_hash") != manifest["weights_hash"]:
        return f"encoded with weights {made_by.get('weights_hash')}, the others with {manifest['weights_hash']}"
    data = run.read_span(name, header.data_start, header.num_bytes)
    if hashlib.sha256(data).hexdigest() != made_by.get("sha256"):
        return "its bytes are not the ones that were written"
    return ""
