"""The loader with mixture rules: same packs for any ranks and workers, exact resume."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from packing.grid import Grid
from packing.loader.batch import PackedBatch, patchify, unpack
from packing.loader.loader import PackDataset, PackLoader
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.stand_ins.memory_source import MemorySource

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
RULES = PlanSettings(
    capacity=60,
    policy="best_fit",
    pool=8,
    seed=1,
    too_long="split",
    max_latent_frames=("6", "2@epoch<1"),
    sampling_weights=("images=1.5", "tokens>40=0.2..1@epoch<3"),
    token_keep_rate=("0.8", "tokens>60=beta(3,1)"),
)
WHOLE = dataclasses.replace(RULES, token_keep_rate=())


def source(num_samples: int = 40, seed: int = 0, longest: int = 10) -> MemorySource:
    rng = np.random.default_rng(seed)
    frames = np.where(rng.random(num_samples) < 0.3, 1, rng.integers(1, longest, num_samples))
    latents = [
        rng.standard_normal((2, t, rng.integers(1, 5), rng.integers(1, 7))).astype(np.float16) for t in frames.tolist()
    ]
    names = [f"clip-{i:03d}" for i in range(num_samples)]
    return MemorySource(latents, names, [f"about {n}" for n in names])


def loader(options: PlanSettings = RULES, rank: int = 0, num_ranks: int = 1, **others: object) -> PackLoader:
    return PackLoader(source(), settings=options, rank=rank, num_ranks=num_ranks, **others)  # type: ignore[arg-type]


def take(packs: PackLoader, num_batches: int) -> list[PackedBatch]:
    return list(itertools.islice(packs, num_batches))


def all_same(ones: list[PackedBatch], others: list[PackedBatch]) -> bool:
    def same(one: object, other: object) -> bool:
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other  # type: ignore[arg-type]

    names = [f.name for f in dataclasses.fields(PackedBatch)]
    pairs = list(zip(ones, others, strict=True))
    return all(same(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)


def packs_by(num_ranks: int, num_packs: int, state: dict | None = None, **others: object) -> list[PackedBatch]:
    """The next packs in global order, as `num_ranks` ranks read them from a state on."""
    ranks = [loader(rank=r, num_ranks=num_ranks, **others) for r in range(num_ranks)]
    for rank in ranks if state else ():
        rank.load_state_dict(state)  # type: ignore[arg-type]
    num_steps = -(-num_packs // num_ranks)
    read = [take(rank, num_steps) for rank in ranks]
    return [read[r][s] for s in range(num_steps) for r in range(num_ranks)][:num_packs]


def frame_counts(batches: list[PackedBatch]) -> dict[int, Counter]:
    """Epoch -> how often each (clip, latent frame) was read."""
    shown: dict[int, Counter] = defaultdict(Counter)
    for batch in batches:
        for clip_id, first, shape in zip(batch.clip_ids, batch.first_frames, batch.token_shapes, strict=True):
            shown[batch.epoch].update((clip_id, frame) for frame in range(first, first + shape[0]))
    return shown


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.sampled_from([1, 3, 8]), st.booleans(), st.integers(0, 20), st.integers(0, 3))
def test_any_set_on_any_ranks_reads_each_frame_of_split_samples_once_per_epoch(
    num_samples: int, num_ranks: int, drops: bool, global_batch_packs: int, seed: int
) -> None:
    options = PlanSettings(
        capacity=40,
        pool=4,
        seed=seed,
        global_batch_packs=global_batch_packs,
        too_long="split",
        token_keep_rate=("0.5",) if drops else (),
    )
    data = source(num_samples, seed)
    ranks = [PackLoader(data, settings=options, rank=r, num_ranks=num_ranks, prefetch=0) for r in range(num_ranks)]
    num_packs = sum(ranks[0].reader.plans[epoch].num_packs for epoch in (0, 1))
    num_steps = -(-num_packs // num_ranks)
    shown = frame_counts([b for rank in ranks for b in take(rank, num_steps)])
    expected = Counter((name, t) for name, x in zip(data.clip_ids, data.latents) for t in range(x.shape[1]))
    assert shown[0] == shown[1] == expected


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(3, 0), (8, 0), (1, 1), (1, 4), (3, 2)])
def test_ranks_and_workers_do_not_change_the_packs(num_ranks: int, num_workers: int) -> None:
    expected = packs_by(1, 72, prefetch=0)
    assert {b.epoch for b in expected} >= {0, 1, 2}
    assert all_same(packs_by(num_ranks, 72, num_workers=num_workers, start_method="fork"), expected)


def test_packs_contain_the_segments_and_kept_tokens_of_their_clips() -> None:
    data = source()
    is_dropped = is_later = is_repeated = False
    for batch in take(loader(), 80):
        assert batch.num_tokens == len(batch.tokens_LD) <= 60
        kept_indices = (
            None if batch.kept_token_index_L is None else torch.split(batch.kept_token_index_L, batch.lengths)
        )
        for s, (clip_id, first, shape) in enumerate(zip(batch.clip_ids, batch.first_frames, batch.token_shapes)):
            latent = torch.from_numpy(data.latents[int(clip_id[-3:])]).float()[:, first : first + shape[0]].contiguous()
            kept = torch.arange(latent[0].numel()) if kept_indices is None else kept_indices[s]
            span = slice(int(batch.cu_seqlens[s]), int(batch.cu_seqlens[s + 1]))
            assert torch.equal(batch.tokens_LD[span], patchify(latent, (1, 1, 1))[kept])
            grid = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3)
            assert torch.equal(batch.position_L3[span], grid[kept] + torch.tensor([first, 0, 0]))
            is_dropped |= len(kept) < latent[0].numel()
            is_later |= first > 0
        is_repeated |= any("#" in name for name in batch.rng_keys)
        assert len(set(batch.rng_keys)) == batch.num_samples
    assert is_dropped
    assert is_later
    assert is_repeated


def test_packs_with_all_tokens_unpack_and_others_are_refused() -> None:
    data = source()
    for batch in take(loader(WHOLE), 40):
        for clip_id, first, latent in zip(batch.clip_ids, batch.first_frames, unpack(batch), strict=True):
            original = data.latents[int(clip_id[-3:])][:, first : first + latent.shape[1]]
            assert np.array_equal(latent.numpy(), original.astype(np.float32))
    dropped = next(b for b in take(loader(), 20) if b.kept_token_index_L is not None)
    with pytest.raises(UsageError, match="tokens were dropped"):
        unpack(dropped)


@pytest.mark.parametrize("stop", [0, 7, 40])
@pytest.mark.parametrize(
    ("before", "between", "after"), [((1, 0), (3, 0), (2, 1)), ((3, 0), (1, 2), (8, 0)), ((2, 1), (1, 0), (1, 4))]
)
def test_two_resumes_on_other_ranks_and_workers_continue_bitwise(
    stop: int, before: tuple[int, int], between: tuple[int, int], after: tuple[int, int]
) -> None:
    """(ranks, workers) of each part of the training."""
    expected = packs_by(1, 160, prefetch=0)
    state, next_pack = None, 0
    for (num_ranks, num_workers), num_steps in ((before, stop), (between, 9), (after, 3)):
        first = loader(num_ranks=num_ranks, num_workers=num_workers, start_method="fork")
        if state:
            first.load_state_dict(state)
        batches = take(first, num_steps)
        assert all_same(batches, [expected[next_pack + step * num_ranks] for step in range(num_steps)])
        if num_ranks > 1 and not num_workers:
            num_packs = num_steps * num_ranks
            assert all_same(
                packs_by(num_ranks, num_packs, state, prefetch=0), expected[next_pack : next_pack + num_packs]
            )
        next_pack += num_steps * num_ranks
        state = first.state_dict()
        assert state["next_pack"] == next_pack


def test_resume_late_in_training_plans_no_earlier_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = loader(start_step=500)
    expected = take(straight, 10)
    resumed = loader()
    planned = []
    plan = resumed.reader.plans._plan_segments
    monkeypatch.setattr(
        resumed.reader.plans, "_plan_segments", lambda window, epoch: planned.append(epoch) or plan(window, epoch)
    )
    resumed.load_state_dict(straight.state_dict())
    more = take(resumed, 5)
    assert all_same(more, take(loader(start_step=510), 5))
    assert min(planned) >= expected[-1].epoch > 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_data_loader_gives_the_same_packs(num_workers: int) -> None:
    expected = take(loader(rank=1, num_ranks=2), 30)
    packs = PackDataset(loader(rank=1, num_ranks=2, start_step=4))
    found = itertools.islice(DataLoader(packs, batch_size=None, num_workers=num_workers), 26)
    assert all_same(list(found), expected[4:])


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_stateful_data_loader_resumes_with_the_next_pack() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected = take(loader(), 60)
    first = stateful(PackDataset(loader()), batch_size=None, num_workers=2)
    assert all_same(list(itertools.islice(first, 40)), expected[:40])
    second = stateful(PackDataset(loader()), batch_size=None, num_workers=2)
    second.load_state_dict(first.state_dict())
    assert all_same(list(itertools.islice(second, 20)), expected[40:])


def test_state_of_other_rules_is_refused() -> None:
    state = loader().state_dict()
    for change in (
        {"token_keep_rate": ("0.7",)},
        {"sampling_weights": ()},
        {"max_latent_frames": ("6",)},
        {"too_long": "reject"},
    ):
        with pytest.raises(UsageError, match="belongs to plan"):
            loader(dataclasses.replace(RULES, **change)).load_state_dict(state)


def test_state_without_rules_has_no_window_offset() -> None:
    plain = loader(PlanSettings(capacity=400))
    take(plain, 2)
    assert plain.state_dict().keys() == {"next_step", "next_pack", "plan_hash", "num_damaged"}


def test_temporal_crops_start_and_end_at_patches() -> None:
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((2, t, 2, 2)).astype(np.float16) for t in (2, 4, 8, 12)]
    data = MemorySource(latents, ["a", "b", "c", "d"], ["", "", "", ""])
    options = PlanSettings(capacity=9, too_long="split", max_latent_frames=("7",))
    packs = PackLoader(data, settings=options, grid=Grid(patch=(2, 1, 1)))
    for batch in take(packs, 30):
        for clip_id, first, latent in zip(batch.clip_ids, batch.first_frames, unpack(batch)):
            assert first % 2 == 0
            assert latent.shape[1] in (2, 4)
            assert np.array_equal(
                latent.numpy(), data.latents["abcd".index(clip_id)][:, first : first + latent.shape[1]]
            )
            position = batch.position_L3[batch.cu_seqlens[batch.clip_ids.index(clip_id)]]
            assert position[0] == batch.first_frames[batch.clip_ids.index(clip_id)] // 2


def test_damaged_samples_are_left_out_and_replacements_fit() -> None:
    data = source(8, longest=12)
    data.latents = [np.full_like(x, np.nan) if i % 2 else x for i, x in enumerate(data.latents)]
    options = PlanSettings(capacity=30, too_long="split", global_batch_packs=8, sampling_weights=("2",))
    packs = PackLoader(data, settings=options)
    batches = take(packs, packs.num_packs_per_epoch)
    assert all(torch.isfinite(b.tokens_LD).all() and b.num_tokens <= 30 for b in batches)
    assert set(packs.damaged) == {f"clip-{i:03d}" for i in range(8) if i % 2}


def test_rules_about_unknown_buckets_or_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="token counts alone do not name them"):
        loader(dataclasses.replace(RULES, sampling_weights=("9f-64x64-8fps=2",)))
    with pytest.raises(UsageError, match="none of 40 samples fits"):
        loader(dataclasses.replace(RULES, capacity=1, token_keep_rate=(), sampling_weights=("tokens<2=0",)))
