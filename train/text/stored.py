"""Precomputed text encodings of a run folder (written by `recaption encode`), read in place of the text tower.

    stored = find(RunFolder("RUN"), "t5:google/t5-v1_1-xxl")          # None if the run folder has none
    tower = PrecomputedTextEncoder(stored, lambda: load_tower(spec))
    tower.encode(["a caption of the shards"])                          # two ranged reads; T5 is not loaded

A missing text (a prompt, another caption mixture) loads the tower, once, with a message. Encodings are stored in half
precision: they differ from fresh ones in the fourth digit (float16) or the third (bfloat16).

Shape suffixes: M text tokens, S texts, C width.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recaption.errors import StorageError, UsageError, WeightsUnreachableError
from recaption.ledger.encoded_texts import METADATA_KEY, PartHeader, read_header, read_manifest, text_folder
from recaption.run_folder import RunFolder
from train.text.interface import TextTower

TEXT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_STORED_AS = {"F16": torch.float16, "BF16": torch.bfloat16}


def encode_part(
    tower: TextTower, texts: Sequence[str], *, dtype: str, batch_size: int, metadata: dict[str, str]
) -> bytes:
    """Encode the texts of one part; returns the bytes of its .safetensors file.

    Args:
        metadata: for the file header, in addition to weights_hash, dtype and sha256.

    Raises:
        UsageError: an encoding overflows `dtype`.
    """
    encoded = [tower.encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
    tensors = {
        "tokens": torch.cat([text_MC.float().cpu() for text_MC, _, _ in encoded]).to(TEXT_DTYPES[dtype]),
        "pooled": torch.cat([pooled_SC.float().cpu() for _, _, pooled_SC in encoded]).to(TEXT_DTYPES[dtype]),
        "lengths": torch.cat([lengths_S.cpu().long() for _, lengths_S, _ in encoded]),
    }
    if not (tensors["tokens"].isfinite().all() and tensors["pooled"].isfinite().all()):
        raise UsageError(f"the text encoder's output overflows {dtype}; use --encode.text.dtype bfloat16")
    return _packed(tensors, metadata | {"weights_hash": tower.weights_hash, "dtype": dtype})


def _packed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Bytes of a part; its sha256 is added to the metadata."""
    from safetensors.torch import save

    plain = save(tensors)
    data = memoryview(plain)[8 + int.from_bytes(plain[:8], "little") :]
    header = metadata | {"sha256": hashlib.sha256(data).hexdigest()}
    # a single entry: safetensors writes several in an order that differs between processes
    return save(tensors, {METADATA_KEY: json.dumps(header, sort_keys=True)})


def without_texts(payload: bytes, is_kept: Sequence[bool], metadata: dict[str, str]) -> bytes:
    """The bytes of a part without some of its texts, nothing encoded again.

    Args:
        payload: of the part's .safetensors file.
        is_kept: one per text.
        metadata: of the new file, without sha256.
    """
    from safetensors.torch import load

    tensors = load(payload)
    kept_S = torch.tensor(list(is_kept), dtype=torch.bool)
    kept_M = kept_S.repeat_interleave(tensors["lengths"])
    rows = {"tokens": kept_M, "pooled": kept_S, "lengths": kept_S}
    return _packed({name: tensors[name][chosen].contiguous() for name, chosen in rows.items()}, metadata)


@dataclass(frozen=True)
class StoredTexts:
    """Index of the encoded texts of one encoder in one run folder."""

    run: RunFolder
    folder: str
    manifest: dict[str, Any]
    headers: list[PartHeader]
    lengths: list[np.ndarray]
    """Per part: number of tokens of each text."""
    starts: list[np.ndarray]
    """Per part: first token of each text."""
    keys: np.ndarray
    """Digests of all texts, sorted: 24 bytes per text in memory instead of the texts."""
    locations: np.ndarray
    """(part, index in the part) of each key."""

    def find(self, text: str) -> tuple[int, int] | None:
        """(part, index in the part) of a text; None if it is not stored."""
        key = _digest(text)
        index = int(np.searchsorted(self.keys, key))
        if index == len(self.keys) or self.keys[index] != key:
            return None
        return int(self.locations[index, 0]), int(self.locations[index, 1])

    def read(self, part: int, index: int) -> tuple[Tensor, Tensor]:
        """(text_MC, pooled_C), float32."""
        header = self.headers[part]
        start, length = int(self.starts[part][index]), int(self.lengths[part][index])
        text_MC = self._read_rows(part, header, "tokens", start, length)
        return text_MC, self._read_rows(part, header, "pooled", index, 1)[0]

    def _read_rows(self, part: int, header: PartHeader, tensor: str, first: int, count: int) -> Tensor:
        name = f"{self.folder}/part-{part:05d}.safetensors"
        width = header.shape_of[tensor][1]
        start = header.start_of[tensor] + 2 * width * first
        payload = self.run.read_span(name, start, start + 2 * width * count)
        if len(payload) != 2 * width * count:
            raise StorageError(f"{self.run.path(name)} is truncated; `recaption verify --repair` rewrites it")
        rows = torch.frombuffer(bytearray(payload), dtype=_STORED_AS[header.dtype_of[tensor]])
        return rows.view(count, width).float()


def find(run: RunFolder, spec: str) -> StoredTexts | None:
    """Open the encodings of one encoder; None if `recaption encode` has not written them, or not finished.

    Raises:
        UsageError: a part is damaged, or was encoded with other weights than the rest.
    """
    folder = text_folder(spec)
    try:
        manifest = read_manifest(run, folder)
        if manifest is None:
            return None
        names = [f"{folder}/part-{number:05d}" for number in range(manifest["num_parts"])]
        headers = [read_header(run, f"{name}.safetensors") for name in names]
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(f"{run.path(folder)} is damaged ({error}): run `recaption verify --repair`") from error
    if any(header.metadata["weights_hash"] != manifest["weights_hash"] for header in headers):
        raise UsageError(f"{run.path(folder)} holds texts encoded by different weights: run `recaption encode` again")
    lengths, keys, locations = [], [], []
    for part, (name, header) in enumerate(zip(names, headers)):
        texts = run.read_table(f"{name}.parquet")["text"].to_pylist()
        start = header.start_of["lengths"]
        payload = run.read_span(f"{name}.safetensors", start, start + 8 * header.num_texts)
        lengths.append(np.frombuffer(payload, "<i8"))
        keys.append(np.array([_digest(text) for text in texts], dtype=_DIGEST))
        locations.append(np.stack([np.full(len(texts), part), np.arange(len(texts))], axis=1).astype(np.int32))
    all_keys = np.concatenate(keys) if keys else np.zeros(0, _DIGEST)
    order = np.argsort(all_keys)
    return StoredTexts(
        run=run,
        folder=folder,
        manifest=manifest,
        headers=headers,
        lengths=lengths,
        starts=[np.concatenate([[0], np.cumsum(part)]) for part in lengths],
        keys=all_keys[order],
        locations=(np.concatenate(locations) if locations else np.zeros((0, 2), np.int32))[order],
    )


_DIGEST = "S16"


def _digest(text: str) -> np.bytes_:
    return np.bytes_(hashlib.sha256(text.encode()).hexdigest()[:16])


class PrecomputedTextEncoder:
    """A `TextTower` that reads precomputed encodings and loads the real tower only for missing texts."""

    def __init__(self, stored: StoredTexts, load_tower: Callable[[], TextTower]) -> None:
        self.stored = stored
        self.width = int(stored.manifest["width"])
        self.pooled_width = int(stored.manifest["pooled_width"])
        self.weights_hash = str(stored.manifest["weights_hash"])
        self._open_tower = load_tower
        self._tower: TextTower | None = None

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        encodings = []
        for text in texts:
            location = self.stored.find(text)
            encodings.append(self.stored.read(*location) if location else self._encode(text))
        if not encodings:
            return torch.zeros(0, self.width), torch.zeros(0, dtype=torch.long), torch.zeros(0, self.pooled_width)
        lengths_S = torch.tensor([len(text_MC) for text_MC, _ in encodings])
        text_MC = torch.cat([text_MC for text_MC, _ in encodings])
        return text_MC, lengths_S, torch.stack([pooled for _, pooled in encodings])

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        if self._tower is None:
            spec, folder = self.stored.manifest["spec"], self.stored.run.path(self.stored.folder)
            print(f"text: {_abbreviated(text)!r} is not in {folder}: loading {spec}", file=sys.stderr)
            try:
                tower = self._open_tower()
            except WeightsUnreachableError as error:
                raise WeightsUnreachableError(
                    f"{_abbreviated(text)!r} is not among the texts in {folder} (run `recaption encode` again after "
                    f"changing captions or their mixture), and {error}"
                ) from error
            if tower.weights_hash != self.weights_hash:
                raise UsageError(
                    f"{folder} was encoded with weights {self.weights_hash} of {spec}, those here are "
                    f"{tower.weights_hash}: run `recaption encode` again"
                )
            self._tower = tower
        text_MC, _, pooled_SC = self._tower.encode([text])
        return text_MC.float().cpu(), pooled_SC[0].float().cpu()


def _abbreviated(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
