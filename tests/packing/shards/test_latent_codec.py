"""Latents in float16, bfloat16 and 8 bit: round trips, plain WebDataset readers, refusals."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from packing.grid import Grid
from packing.loader.loader import PackLoader
from packing.plan.settings import PlanSettings
from packing.shards.index import build_latents_index
from packing.shards.latent_codec import decode_latent, encode_latent
from packing.shards.read import read_latent
from packing.shards.samples import LatentSample, latent_entry
from packing.shards.write import write_latents_shard
from recaption.errors import UsageError, VideoError
from recaption.ledger.latent_statistics import ChannelStatistics
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder

SHAPE = (6, 3, 4, 8)


def latent(seed: int = 0) -> np.ndarray:
    """Channels of different scale and mean, one of them constant."""
    x = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    x *= np.array([1, 5, 0.1, 1, 0, 20], np.float32).reshape(-1, 1, 1, 1)
    return x + np.array([0, 3, 0, -40, 0.7, 0], np.float32).reshape(-1, 1, 1, 1)


def sample(number: int, shard: str = "shards/b/000000.tar") -> Sample:
    return Sample(
        clip_id=f"clip-{number:03d}", shard=shard, offset_bytes=0, num_bytes=0, bucket="b", num_frames=9, height_px=32,
        width_px=64, fps=8, num_latent_tokens=96, num_caption_tokens=3, caption=f"caption {number}", sha256="",
    )  # fmt: skip


def write(run: RunFolder, dtype: str, num_samples: int = 4, per_shard: int = 2) -> list[LatentSample]:
    for first in range(0, num_samples, per_shard):
        name = f"latents/patch/b/{first // per_shard:06d}"
        entries = [
            latent_entry(sample(i), latent(i), num_latent_tokens=96, dtype=dtype)
            for i in range(first, first + per_shard)
        ]
        write_latents_shard(run, name, entries, plan_hash="p")
    return from_table(build_latents_index(run, "patch"), LatentSample)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path))


def test_bfloat16_rounds_as_torch_does():
    x = np.concatenate([latent().ravel(), np.float32([1e-38, 3e38, -0.0, 1 + 2**-8, 1 + 3 * 2**-8])]).reshape(
        1, 1, 1, -1
    )
    restored = decode_latent(encode_latent(x, "bfloat16"), "bfloat16", x.shape)
    assert np.array_equal(restored, torch.from_numpy(x).bfloat16().float().numpy())


def test_int8_is_within_half_a_step_of_each_channels_range_and_exact_for_constants():
    x = latent()
    restored = decode_latent(encode_latent(x, "int8"), "int8", x.shape)
    step_C = np.ptp(x.reshape(6, -1), axis=1) / 255
    assert (np.abs(restored - x).reshape(6, -1).max(axis=1) <= 0.501 * step_C + 1e-6).all()
    assert np.array_equal(restored[4], x[4])
    assert restored.flags.writeable


@pytest.mark.parametrize(
    ("dtype", "kind", "size"), [("float16", "f2", 1.0), ("bfloat16", "u2", 1.0), ("int8", "i1", 0.5)]
)
def test_read_latent_and_plain_webdataset_decode_the_same_values(run, dtype, kind, size):
    rows = write(run, dtype)
    assert {row.latent_dtype for row in rows} == {dtype}
    tars = [run.path(name) for name in run.list("latents/patch/*/*.tar")]
    others = {s["__key__"]: s for s in webdataset.WebDataset(tars, shardshuffle=False)}
    assert sorted(others) == [row.clip_id for row in rows]
    for number, row in enumerate(rows):
        stored = np.load(io.BytesIO(others[row.clip_id]["npy"]))
        assert stored.dtype.str[1:] == kind
        assert stored.nbytes == size * 2 * np.prod(SHAPE)
        if dtype == "bfloat16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        if dtype == "int8":
            scale, zero_point = np.load(io.BytesIO(others[row.clip_id]["scale.npy"])).reshape(2, -1, 1, 1, 1)
            stored = stored * scale + zero_point
        assert np.array_equal(read_latent(run, row), stored)
        np.testing.assert_allclose(stored, latent(number), rtol=0, atol=0.25)
        assert json.loads(others[row.clip_id]["json"])["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_loader_yields_the_values_of_read_latent(run, dtype):
    rows = write(run, dtype)
    loader = PackLoader(run, settings=PlanSettings(capacity=96), grid=Grid(), prefetch=0)
    batch = next(iter(loader))
    row = next(row for row in rows if row.clip_id == batch.clip_ids[0])
    assert torch.equal(batch.tokens_LD, torch.from_numpy(read_latent(run, row)).flatten(1).T)


def test_changed_scale_member_is_detected(run):
    row = write(run, "int8")[0]
    tar = Path(run.path(row.shard))
    payload = bytearray(tar.read_bytes())
    offset = payload.index(b"clip-000.scale.npy") + 512 + 128 + 3
    payload[offset] ^= 1
    tar.write_bytes(payload)
    with pytest.raises(VideoError, match="not the one that was written"):
        read_latent(run, row)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_values_out_of_range_are_a_failed_row_with_a_reason(run, dtype, value):
    broken = latent()
    broken[1, 0, 0, 0] = value
    entry = latent_entry(
        sample(0), broken, num_latent_tokens=96, dtype=dtype, measure=lambda _: 1 / 0 if value != 1e5 else 9.0
    )
    if value == 1e5 and dtype != "float16":
        assert entry.reason is None
        return
    assert (entry.reason, entry.members) == ("write_failed", {})
    assert dtype in entry.detail
    write_latents_shard(run, "latents/patch/b/000000", [entry], plan_hash="p")
    assert build_latents_index(run, "patch").num_rows == 0


def test_unknown_dtypes_are_refused_in_settings_and_when_read(run):
    with pytest.raises(UsageError, match="float16, bfloat16, int8"):
        latent_entry(sample(0), latent(), num_latent_tokens=96, dtype="int4")
    row = dataclasses.replace(write(run, "int8")[0], latent_dtype="int4")
    with pytest.raises(VideoError, match="int4"):
        read_latent(run, row)


def test_statistics_are_of_decoded_latents_and_do_not_depend_on_sharding(tmp_path):
    found = []
    for per_shard in (1, 2, 4):
        run = RunFolder(str(tmp_path / str(per_shard)))
        rows = write(run, "int8", per_shard=per_shard)
        found.append(json.loads(run.read_bytes("latents/patch/statistics.json")))
        values = np.stack([read_latent(run, row) for row in rows]).astype(np.float64)
        np.testing.assert_allclose(found[-1]["mean"], values.mean(axis=(0, 2, 3, 4)), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[-1]["std"], values.std(axis=(0, 2, 3, 4)), rtol=1e-12, atol=1e-12)
        assert found[-1]["num_values_per_channel"] == 4 * np.prod(SHAPE[1:])
    np.testing.assert_allclose(found[0]["std"], found[2]["std"], rtol=1e-12, atol=1e-12)


def test_statistics_are_precise_far_from_zero():
    far = [
        np.float64([1e6]).reshape(1, 1, 1, 1) + np.random.default_rng(i).standard_normal((1, 1, 10, 10))
        for i in range(3)
    ]
    merged = ChannelStatistics()
    for x in far:
        merged = merged.merged(ChannelStatistics.from_latent(x))
    assert merged.std_C[0] == pytest.approx(np.stack(far).std(), rel=1e-9)
