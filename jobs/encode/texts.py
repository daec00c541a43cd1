"""Encodes the texts of the shards into RUN/text/<encoder>/, so training does not load the text encoder.

    recaption encode --run RUN --encode.text.encoder t5:google/t5-v1_1-xxl

Every distinct text that training may use is encoded once: the captions of the shards, those of the recipe's caption
mixture, and the prompts that are sampled while training. The size in bytes is printed before it starts. The encoders of
a concatenated text encoder are stored separately. See recaption/ledger/encoded_texts.py for the files.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa

from jobs.cluster.cluster import Cluster
from jobs.recipe.settings import Recipe
from jobs.recipe.stage_settings import TextSettings
from packing.loader.captions import read_blend
from recaption.errors import UsageError
from recaption.ledger.encoded_texts import ENCODER_FILE, TEXTS_SCHEMA, plan_hash, read_header, text_folder
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder

PART_BYTES = 128 << 20
"""Maximum bytes of encoded texts per part; a part is held in memory twice."""
PART_TEXTS = 16_384


def encode_texts(run: RunFolder, recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """Encode the texts that are not stored yet; {} if `encode.text.encoder` is empty.

    Raises:
        UsageError: no such encoder, or more bytes than `encode.text.max_gigabytes`.
    """
    from train.text.stored import TEXT_DTYPES
    from train.text.towers import parse

    settings = recipe.encode.text
    if not settings.encoder:
        return {}
    if settings.dtype not in TEXT_DTYPES:
        raise UsageError(f"encode.text.dtype {settings.dtype!r}: texts are stored as {', '.join(TEXT_DTYPES)}")
    specs = [f"{kind}:{name}" for kind, name in parse(settings.encoder)]
    texts = training_texts(run, recipe)
    plans = [_plan_encoding(run, spec, texts, settings) for spec in specs]
    total = sum(plan["bytes"] for plan in plans)
    for plan in plans:
        print(
            f"text: {plan['texts']} texts, {plan['tokens']} tokens of {plan['spec']} = {plan['bytes'] / 1e9:.3f} GB in "
            f"{settings.dtype}; {plan['new_texts']} of them are new",
            file=sys.stderr,
        )
    if total > settings.max_gigabytes * 1e9:
        raise UsageError(
            f"encoded texts would take {total / 1e9:.3f} GB, more than --encode.text.max-gigabytes "
            f"{settings.max_gigabytes:g}: raise it, or leave --encode.text.encoder empty"
        )
    return {spec: _encode(run, spec, plan, recipe, cluster) for spec, plan in zip(specs, plans)}


def training_texts(run: RunFolder, recipe: Recipe) -> list[str]:
    """Every distinct text that `train dit` may use, stripped, shortest first."""
    rows = from_table(run.read_table("index.parquet"), Sample)
    settings = recipe.train_dit.dit
    blend = read_blend(run, rows, settings.blend, window_captions=recipe.plan.segment_rules.crops_in_time)
    texts = {row.caption for row in rows} | {*settings.sample_prompts}
    if blend is not None:
        texts |= {text for others in blend.texts_by_kind.values() for text in others.values()}
        used_kinds = {*blend.weights, "descriptive"}
        captions_of_windows = (caption for _, captions in blend.windows.values() for caption in captions)
        texts |= {c.text for c in captions_of_windows if (c.source if c.source == "original" else c.kind) in used_kinds}
    return sorted({text.strip() for text in texts} - {""}, key=lambda text: (len(text), text))


def _plan_encoding(run: RunFolder, spec: str, texts: list[str], settings: TextSettings) -> dict[str, Any]:
    """Counts and bytes of one encoder's texts, and the parts of its new texts (not written yet)."""
    from train.text import lengths as text_length
    from train.text.stored import TEXT_DTYPES

    folder = text_folder(spec)
    stored = [run.read_table(name)["text"].to_pylist() for name in run.list(f"{folder}/part-*.parquet")]
    stored_texts = {text for part in stored for text in part}
    length = text_length.load(spec)
    width, pooled_width = text_length.widths(spec)
    value_bytes = TEXT_DTYPES[settings.dtype].itemsize
    num_tokens = num_bytes = 0
    parts: list[list[str]] = []
    free_bytes = 0
    new = [text for text in texts if text not in stored_texts]
    for is_new, group in ((False, [text for part in stored for text in part]), (True, new)):
        for start in range(0, len(group), PART_TEXTS):
            batch = group[start : start + PART_TEXTS]
            for text, count in zip(batch, length.count_tokens(batch)):
                count = min(count, length.max_tokens)
                size = (count * width + pooled_width) * value_bytes + 8
                num_tokens, num_bytes = num_tokens + count, num_bytes + size
                if is_new and (free_bytes < size or len(parts[-1]) == PART_TEXTS):
                    parts.append([])
                    free_bytes = PART_BYTES
                if is_new:
                    parts[-1].append(text)
                    free_bytes -= size
    return {
        "spec": spec,
        "texts": len(stored_texts) + len(new),
        "new_texts": len(new),
        "tokens": num_tokens,
        "bytes": num_bytes,
        "stored": stored,
        "parts": parts,
    }


def _encode(run: RunFolder, spec: str, plan: dict[str, Any], recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    folder, dtype = text_folder(spec), recipe.encode.text.dtype
    for number, texts in enumerate(plan["parts"], start=len(plan["stored"])):
        run.write_table(f"{folder}/part-{number:05d}.parquet", pa.table({"text": texts}, schema=TEXTS_SCHEMA))
    keys = [plan_hash(spec, dtype, texts) for texts in plan["stored"] + plan["parts"]]
    names = [f"{folder}/part-{number:05d}" for number in range(len(keys))]
    if not names:
        return {"folder": folder, "texts": 0, "tokens": 0, "bytes": 0, "computed_parts": 0, "skipped_parts": 0}
    pending = [name for name, key in zip(names, keys) if _metadata(run, name).get("plan_hash") != key]
    computed = set(pending)
    _run(run, spec, pending, recipe, cluster)
    new_weights = {_metadata(run, name)["weights_hash"] for name in pending}
    if new_weights:  # parts encoded by other weights of the same name are encoded again
        pending = [name for name in names if _metadata(run, name)["weights_hash"] not in new_weights]
        computed |= {*pending}
        _run(run, spec, pending, recipe, cluster)
    headers = [read_header(run, f"{name}.safetensors") for name in names]
    weights = {header.metadata["weights_hash"] for header in headers}
    if len(weights) > 1:
        raise UsageError(f"{spec} has different weights on different nodes ({', '.join(sorted(weights))})")
    manifest = {
        "spec": spec,
        "weights_hash": weights.pop(),
        "width": headers[0].shape_of["tokens"][1],
        "pooled_width": headers[0].shape_of["pooled"][1],
        "dtype": dtype,
        "num_parts": len(headers),
        "num_texts": sum(header.num_texts for header in headers),
        "num_tokens": sum(header.shape_of["tokens"][0] for header in headers),
    }
    run.write_bytes(f"{folder}/{ENCODER_FILE}", (json.dumps(manifest, indent=1) + "\n").encode())
    return {
        "folder": folder,
        "texts": manifest["num_texts"],
        "tokens": manifest["num_tokens"],
        "stated_bytes": plan["bytes"],
        "bytes": sum(header.num_bytes for header in headers),
        "computed_parts": len(computed),
        "skipped_parts": len(names) - len(computed),
    }


def _run(run: RunFolder, spec: str, names: list[str], recipe: Recipe, cluster: Cluster) -> None:
    device = recipe.encode.device
    settings = {"run_uri": run.uri, "spec": spec, "device": device, "dtype": recipe.encode.text.dtype}
    parts = [{"name": name} for name in names]
    for _ in cluster.run_parts(EncodeTextWorker, settings, parts, title="encode text", device=device, unit="texts"):
        pass


def _metadata(run: RunFolder, name: str) -> dict[str, str]:
    """Metadata of an encoded part; {} if it is missing or damaged."""
    try:
        return read_header(run, f"{name}.safetensors").metadata
    except (FileNotFoundError, ValueError):
        return {}


class EncodeTextWorker:
    """Encodes the texts of a part. One per actor: the encoder is loaded once."""

    def __init__(self, run_uri: str, spec: str, device: str, dtype: str) -> None:
        import torch

        from train.parallel.process_group import choose_device
        from train.text.towers import load_tower

        torch.set_num_threads(1)
        self.run, self.spec, self.dtype = RunFolder(run_uri), spec, dtype
        chosen = choose_device(device)
        self.tower = load_tower(spec, chosen)
        self.batch_size = 1 if chosen.type == "cpu" else 32  # as text_encoder.load has it

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        from train.text.stored import encode_part

        texts = self.run.read_table(f"{part['name']}.parquet")["text"].to_pylist()
        facts = {"spec": self.spec, "plan_hash": plan_hash(self.spec, self.dtype, texts)}
        payload = encode_part(self.tower, texts, dtype=self.dtype, batch_size=self.batch_size, metadata=facts)
        self.run.write_bytes(f"{part['name']}.safetensors", payload)
        return {"name": part["name"], "texts": len(texts)}
