"""Texts of the shards -> RUN/text/<encoder>/, so that a large text encoder is never loaded where training runs.

    recaption encode --run RUN --encode.text.encoder t5:google/t5-v1_1-xxl

Every distinct text that training may show is encoded once: the captions of the shards, what the recipe's blend draws
from, and the prompts sampled while training. How many bytes that will take is said before it starts. Of an encoder of
several towers each is stored by itself. See recaption/ledger/encoded_texts.py for the files.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa

from jobs.cluster.cluster import Cluster
from jobs.recipe.settings import Recipe, TextSettings
from packing.loader.captions import read_blend
from recaption.errors import UsageError
from recaption.ledger.encoded_texts import ENCODER_FILE, TEXTS_SCHEMA, plan_hash, read_header, text_folder
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder

PART_BYTES = 128 << 20
"""Of encoded texts in one part, which is held in memory twice."""


PART_TEXTS = 16_384


def encode_texts(run: RunFolder, recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """Encode what is not there yet; {} where the recipe names no encoder.

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
    plans = [_plan(run, spec, texts, settings) for spec in specs]
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
    """Every distinct text that `train dit` may show, as the encoder will see it, shortest first."""
    rows = from_table(run.read_table("index.parquet"), Sample)
    settings = recipe.train_dit.dit
    blend = read_blend(run, rows, settings.blend, window_captions=recipe.plan.segment_rules.crops_in_time)
    texts = {row.caption for row in rows} | {*settings.sample_prompts}
    if blend is not None:
        texts |= {text for others in blend.texts_by_kind.values() for text in others.values()}
        shown = {*blend.weights, "descriptive"}
        spoken = (caption for _, captions in blend.windows.values() for caption in captions)
        texts |= {c.text for c in spoken if (c.source if c.source == "original" else c.kind) in shown}
    return sorted({text.strip() for text in texts} - {""}, key=lambda text: (len(text), text))


def _plan(run: RunFolder, spec: str, texts: list[str], settings: TextSettings) -> dict[str, Any]:
    """What is to be stored for one encoder, and the parts into which its new texts go (not written yet)."""
    from train.text import lengths as text_length
    from train.text.stored import TEXT_DTYPES

    folder = text_folder(spec)
    known = [run.read_table(name)["text"].to_pylist() for name in run.list(f"{folder}/part-*.parquet")]
    seen = {text for part in known for text in part}
    length = text_length.load(spec)
    width, pooled_width = text_length.widths(spec)
    item_bytes = TEXT_DTYPES[settings.dtype].itemsize
    num_tokens = num_bytes = 0
    parts: list[list[str]] = []
    room = 0
    new = [text for text in texts if text not in seen]
    for is_new, group in ((False, [text for part in known for text in part]), (True, new)):
        for start in range(0, len(group), PART_TEXTS):
            some = group[start : start + PART_TEXTS]
            for text, count in zip(some, length.count_tokens(some)):
                count = min(count, length.max_tokens)
                size = (count * width + pooled_width) * item_bytes + 8
                num_tokens, num_bytes = num_tokens + count, num_bytes + size
                if is_new and (room < size or len(parts[-1]) == PART_TEXTS):
                    parts.append([])
                    room = PART_BYTES
                if is_new:
                    parts[-1].append(text)
                    room -= size
    return {
        "spec": spec,
        "texts": len(seen) + len(new),
        "new_texts": len(new),
        "tokens": num_tokens,
        "bytes": num_bytes,
        "known": known,
        "parts": parts,
    }


def _encode(run: RunFolder, spec: str, plan: dict[str, Any], recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    folder, dtype = text_folder(spec), recipe.encode.text.dtype
    for number, texts in enumerate(plan["parts"], start=len(plan["known"])):
        run.write_table(f"{folder}/part-{number:05d}.parquet", pa.table({"text": texts}, schema=TEXTS_SCHEMA))
    keys = [plan_hash(spec, dtype, texts) for texts in plan["known"] + plan["parts"]]
    names = [f"{folder}/part-{number:05d}" for number in range(len(keys))]
    if not names:
        return {"folder": folder, "texts": 0, "tokens": 0, "bytes": 0, "computed_parts": 0, "skipped_parts": 0}
    todo = [name for name, key in zip(names, keys) if _metadata(run, name).get("plan_hash") != key]
    computed = set(todo)
    _run(run, spec, todo, recipe, cluster)
    made_now = {_metadata(run, name)["weights_hash"] for name in todo}
    if made_now:  # parts that other weights made, under the same name, are made anew
        todo = [name for name in names if _metadata(run, name)["weights_hash"] not in made_now]
        computed |= {*todo}
        _run(run, spec, todo, recipe, cluster)
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
    """Of an encoded part; {} where there is none that is whole."""
    try:
        return read_header(run, f"{name}.safetensors").metadata
    except (FileNotFoundError, ValueError):
        return {}


class EncodeTextWorker:
    """One per actor: the encoder is loaded once."""

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
