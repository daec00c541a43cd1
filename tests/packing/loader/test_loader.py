from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from packing.grid import Grid
from packing.loader.batch import PackedBatch, unpack
from packing.loader.loader import PackDataset, PackLoader
from packing.plan.settings import PlanSettings
from packing.shards.index import build_latents_index
from packing.shards.samples import latent_entry
from packing.shards.write import write_latents_shard
from recaption.errors import ErrorBudgetError, UsageError
from recaption.records import Sample
from recaption.run_folder import RunFolder
from tests.stand_ins.memory_source import MemorySource

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
SETTINGS = PlanSettings(capacity=120, policy="best_fit", pool=8, seed=1)


def source(num_samples: int = 50, seed: int = 0) -> MemorySource:
    rng = np.random.default_rng(seed)
    latents = [
        rng.standard_normal((2, rng.integers(1, 5), rng.integers(1, 5), rng.integers(1, 7))).astype(np.float16)
        for _ in range(num_samples)
    ]
    names = [f"clip-{i:03d}" for i in range(num_samples)]
    return MemorySource(latents, names, [f"about {n}" for n in names])


def take(loader: PackLoader, num_batches: int) -> list[PackedBatch]:
    return list(itertools.islice(loader, num_batches))


def same(one: PackedBatch, other: PackedBatch) -> bool:
    return (
        torch.equal(one.tokens_LD, other.tokens_LD)
        and torch.equal(one.position_L3, other.position_L3)
        and torch.equal(one.cu_seqlens, other.cu_seqlens)
        and (one.clip_ids, one.captions, one.epoch, one.pack_index)
        == (other.clip_ids, other.captions, other.epoch, other.pack_index)
    )


def all_same(ones: list[PackedBatch], others: list[PackedBatch]) -> bool:
    return len(ones) == len(others) and all(same(a, b) for a, b in zip(ones, others))


def packs_in_order(num_ranks: int, num_packs: int, **options: object) -> list[PackedBatch]:
    """The first packs in global order, as `num_ranks` ranks read them."""
    num_steps = -(-num_packs // num_ranks)
    ranks = [
        take(PackLoader(source(), settings=SETTINGS, rank=r, num_ranks=num_ranks, **options), num_steps)  # type: ignore[arg-type]
        for r in range(num_ranks)
    ]
    return [ranks[r][s] for s in range(num_steps) for r in range(num_ranks)][:num_packs]


@pytest.mark.parametrize("num_ranks", [1, 3, 8])
def test_every_sample_once_per_epoch(num_ranks: int) -> None:
    num_packs = PackLoader(source(), settings=SETTINGS).num_packs_per_epoch
    packs = packs_in_order(num_ranks, 3 * num_packs, prefetch=0)
    for epoch in range(3):
        seen = Counter(c for batch in packs if batch.epoch == epoch for c in batch.clip_ids)
        assert seen == Counter(f"clip-{i:03d}" for i in range(50))
    assert [b.pack_index for b in packs] == list(range(3 * num_packs))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from(["first_fit", "best_fit"]),
    st.integers(0, 60),
    st.integers(0, 3),
)
def test_any_set_on_any_ranks_reads_each_sample_once_per_epoch(
    num_samples: int, num_ranks: int, policy: str, global_batch_packs: int, seed: int
) -> None:
    options = PlanSettings(capacity=120, policy=policy, pool=4, seed=seed, global_batch_packs=global_batch_packs)
    data = source(num_samples, seed)
    loaders = [PackLoader(data, settings=options, rank=r, num_ranks=num_ranks, prefetch=0) for r in range(num_ranks)]
    num_steps = -(-2 * loaders[0].num_packs_per_epoch // num_ranks)
    batches = [b for loader in loaders for b in take(loader, num_steps)]
    for epoch in range(2):
        assert Counter(c for b in batches if b.epoch == epoch for c in b.clip_ids) == Counter(data.clip_ids)


def test_batches_contain_the_latents_of_their_clips() -> None:
    data = source()
    for batch in take(PackLoader(data, settings=SETTINGS), 30):
        assert batch.tokens_LD.dtype == torch.float32
        assert batch.num_tokens <= 120
        for clip_id, caption, latent in zip(batch.clip_ids, batch.captions, unpack(batch)):
            assert caption == f"about {clip_id}"
            assert np.array_equal(latent.numpy(), data.latents[int(clip_id[-3:])].astype(np.float32))


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_prefetch_does_not_change_the_packs(prefetch: int) -> None:
    expected = take(PackLoader(source(), settings=SETTINGS, prefetch=0), 20)
    assert all_same(take(PackLoader(source(), settings=SETTINGS, prefetch=prefetch), 20), expected)


@pytest.mark.parametrize(("num_workers", "num_ranks"), [(1, 1), (4, 1), (2, 3)])
def test_worker_processes_do_not_change_the_packs(num_workers: int, num_ranks: int) -> None:
    options = {"num_workers": num_workers, "start_method": "fork"}
    expected = packs_in_order(1, 36, prefetch=0)
    assert all_same(packs_in_order(num_ranks, 36, **options), expected)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (2, 3)])
def test_resume_on_another_number_of_workers(before: int, after: int) -> None:
    expected = take(PackLoader(source(), settings=SETTINGS), 12)
    loader = PackLoader(source(), settings=SETTINGS, num_workers=before, start_method="fork")
    assert all_same(take(loader, 5), expected[:5])
    resumed = PackLoader(source(), settings=SETTINGS, num_workers=after, start_method="fork")
    resumed.load_state_dict(loader.state_dict())
    assert all_same(take(resumed, 4), expected[5:9])
    again = PackLoader(source(), settings=SETTINGS)
    again.load_state_dict(resumed.state_dict())
    assert all_same(take(again, 3), expected[9:])


def test_spawned_workers_read_the_same(run_on_disk: RunFolder) -> None:
    loader = PackLoader(run_on_disk, settings=SETTINGS, num_workers=1)
    assert all_same(take(loader, 6), take(PackLoader(source(), settings=SETTINGS), 6))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_any_data_loader_gives_the_same_packs(num_workers: int) -> None:
    expected = take(PackLoader(source(), settings=SETTINGS, rank=1, num_ranks=2), 12)
    packs = PackDataset(PackLoader(source(), settings=SETTINGS, rank=1, num_ranks=2, start_step=2))
    assert all_same(
        list(itertools.islice(DataLoader(packs, batch_size=None, num_workers=num_workers), 10)), expected[2:]
    )


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_data_loader_resumes_with_the_next_pack(num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected = take(PackLoader(source(), settings=SETTINGS), 12)

    def loader() -> Iterator[PackedBatch]:
        return stateful(PackDataset(PackLoader(source(), settings=SETTINGS)), batch_size=None, num_workers=num_workers)

    first = loader()
    assert all_same(list(itertools.islice(first, 5)), expected[:5])
    second = loader()
    second.load_state_dict(first.state_dict())
    assert all_same(list(itertools.islice(second, 4)), expected[5:9])
    third = loader()
    third.load_state_dict(second.state_dict())
    assert all_same(list(itertools.islice(third, 3)), expected[9:])


def test_1_2_and_4_ranks_read_the_same_packs_in_the_same_order() -> None:
    expected = packs_in_order(1, 40)
    assert all_same(packs_in_order(2, 40), expected)
    assert all_same(packs_in_order(4, 40), expected)


@pytest.mark.parametrize("stop", [0, 1, 5, 17, 18])
def test_resume_yields_the_next_batch(stop: int) -> None:
    expected = take(PackLoader(source(), settings=SETTINGS), 30)
    first = PackLoader(source(), settings=SETTINGS)
    iterator = iter(first)
    for _ in range(stop):
        next(iterator)
    state = first.state_dict()
    assert state["next_step"] == stop  # prefetched batches do not count
    second = PackLoader(source(), settings=SETTINGS)
    second.load_state_dict(state)
    assert all_same(take(second, 3), expected[stop : stop + 3])
    third = PackLoader(source(), settings=SETTINGS)  # two resumes in a row
    third.load_state_dict(second.state_dict())
    assert all_same(take(third, 4), expected[stop + 3 : stop + 7])


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (2, 4), (4, 2), (3, 2), (1, 3)])
def test_resume_on_another_number_of_ranks_continues_with_the_next_pack(before: int, after: int) -> None:
    expected = packs_in_order(1, 60, prefetch=0)
    loader = PackLoader(source(), settings=SETTINGS, num_ranks=before)
    take(loader, 5)
    state = loader.state_dict()
    resumed = [PackLoader(source(), settings=SETTINGS, rank=r, num_ranks=after) for r in range(after)]
    for r in resumed:
        r.load_state_dict(state)
        assert r.state_dict()["next_step"] == 5
    per_rank = [take(r, 4) for r in resumed]
    packs = [per_rank[r][s] for s in range(4) for r in range(after)]
    assert all_same(packs, expected[5 * before : 5 * before + 4 * after])


def test_start_step_equals_an_uninterrupted_run() -> None:
    expected = take(PackLoader(source(), settings=SETTINGS, rank=1, num_ranks=2), 12)
    assert all_same(take(PackLoader(source(), settings=SETTINGS, rank=1, num_ranks=2, start_step=7), 5), expected[7:])


def test_state_of_another_plan_is_refused() -> None:
    state = PackLoader(source(), settings=SETTINGS).state_dict()
    for other in (
        PackLoader(source(), settings=PlanSettings(capacity=121, policy="best_fit", pool=8, seed=1)),
        PackLoader(source(seed=5), settings=SETTINGS),
        PackLoader(source(49), settings=SETTINGS),
    ):
        with pytest.raises(UsageError, match="belongs to plan"):
            other.load_state_dict(state)


def test_too_long_samples_are_listed() -> None:
    loader = PackLoader(source(), settings=PlanSettings(capacity=40))
    long = [i for i, x in enumerate(source().latents) if x[0].size > 40]
    assert loader.rejected == {"too_long": [f"clip-{i:03d}" for i in long]}
    seen = {c for b in take(loader, loader.num_packs_per_epoch) for c in b.clip_ids}
    assert len(seen) == 50 - len(long)


def test_wrong_use_is_refused_with_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank = 2 is"):
        PackLoader(source(), settings=SETTINGS, rank=2, num_ranks=2)
    with pytest.raises(UsageError, match=r"latents/patch/index\.parquet"):
        PackLoader(RunFolder(str(tmp_path)), settings=SETTINGS)
    with pytest.raises(UsageError, match="does not divide into patches"):
        PackLoader(source(), settings=SETTINGS, grid=Grid(patch=(1, 2, 2)))


# --- damage ---------------------------------------------------------------------------------------------------------


def spoil(data: MemorySource, *indices: int) -> MemorySource:
    """Not-a-number latents, as a faulty encoder or memory leaves them."""
    data.latents = [np.full_like(x, np.nan) if i in indices else x for i, x in enumerate(data.latents)]
    return data


def test_damaged_sample_is_left_out_of_its_pack_and_counted() -> None:
    loader = PackLoader(spoil(source(), 7, 30), settings=SETTINGS)
    batches = take(loader, loader.num_packs_per_epoch)
    seen = Counter(c for b in batches for c in b.clip_ids)
    assert set(seen) == {f"clip-{i:03d}" for i in range(50)} - {"clip-007", "clip-030"}
    assert loader.num_damaged == 2
    assert set(loader.damaged) == {"clip-007", "clip-030"}
    assert all(torch.isfinite(b.tokens_LD).all() for b in batches)
    take(loader, loader.num_packs_per_epoch)
    assert loader.num_damaged == 4  # once per epoch, and over resumes
    resumed = PackLoader(spoil(source(), 7, 30), settings=SETTINGS)
    resumed.source.fingerprint = loader.source.fingerprint  # type: ignore[misc]
    resumed.load_state_dict(loader.state_dict())
    assert resumed.num_damaged == 4


def test_pack_left_empty_gets_the_next_readable_sample() -> None:
    one_each = PlanSettings(capacity=4 * 4 * 6, global_batch_packs=50)  # 50 packs of one sample
    loader = PackLoader(spoil(source(), 7, 8, 49), settings=one_each)
    straight = PackLoader(source(), settings=one_each)
    expected = {"clip-007": "clip-009", "clip-008": "clip-009", "clip-049": "clip-000"}
    for got, planned in zip(take(loader, 50), take(straight, 50)):
        assert got.clip_ids == (expected.get(planned.clip_ids[0], planned.clip_ids[0]),)


def test_only_damaged_samples_raise_error_budget_error() -> None:
    loader = PackLoader(spoil(source(5), *range(5)), settings=SETTINGS)
    with pytest.raises(ErrorBudgetError, match="damaged samples in a row"):
        take(loader, 1)


# --- shards on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_on_disk(tmp_path: Path) -> RunFolder:
    return write_run(RunFolder(str(tmp_path)))


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return write_run(RunFolder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"))


def write_run(run: RunFolder) -> RunFolder:
    data = source()
    for shard in range(5):
        made = []
        for i in range(shard * 10, shard * 10 + 10):
            sample = Sample(
                clip_id=data.clip_ids[i],
                shard=f"shards/b/{shard:06d}.tar",
                offset_bytes=0,
                num_bytes=0,
                bucket="b",
                num_frames=1,
                height_px=8,
                width_px=8,
                fps=8,
                num_latent_tokens=1,
                num_caption_tokens=1,
                caption=data.captions[i],
                sha256="",
            )
            made.append(latent_entry(sample, data.latents[i], num_latent_tokens=1))
        write_latents_shard(run, f"latents/patch/b/{shard:06d}", made, plan_hash="p")
    build_latents_index(run, "patch")
    return run


def test_latents_on_disk_give_the_same_batches_as_in_memory(run: RunFolder) -> None:
    from_disk = take(PackLoader(run, settings=SETTINGS), 25)
    in_memory = take(PackLoader(source(), settings=SETTINGS), 25)
    assert all_same(from_disk, in_memory)


def test_flipped_byte_and_missing_shard_lose_only_their_samples(run: RunFolder) -> None:
    tar = bytearray(run.read_bytes("latents/patch/b/000001.tar"))
    sample = next(s for s in PackLoader(run, settings=SETTINGS).source.samples if s.clip_id == "clip-012")  # type: ignore[attr-defined]
    end = sample.offset_bytes + sample.num_bytes
    tar[end - 512 - 1024 : end - 512] = bytes(b ^ 0xFF for b in tar[end - 512 - 1024 : end - 512])
    run.write_bytes("latents/patch/b/000001.tar", bytes(tar))
    run.remove("latents/patch/b/000003.tar")
    loader = PackLoader(run, settings=SETTINGS)
    seen = {c for b in take(loader, loader.num_packs_per_epoch) for c in b.clip_ids}
    lost = {"clip-012"} | {f"clip-{i:03d}" for i in range(30, 40)}
    assert seen == {f"clip-{i:03d}" for i in range(50)} - lost
    assert set(loader.damaged) == lost
