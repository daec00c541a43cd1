"""The loader where rules decide what an epoch shows of each sample: whatever reads, and wherever it stops."""

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
from packing.loader.sources import MemorySource
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
RULES = PlanSettings(
    capacity=60,
    policy="best_fit",
    pool=8,
    seed=1,
    too_long="split",
    max_frames=("6", "2@epoch<1"),
    mix=("images=1.5", "tokens>40=0.2..1@epoch<3"),
    keep=("0.8", "tokens>60=beta(3,1)"),
)
WHOLE = dataclasses.replace(RULES, keep=())


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


def rows_by(num_ranks: int, num_rows: int, state: dict | None = None, **others: object) -> list[PackedBatch]:
    """The next rows in global order, as `num_ranks` ranks read them from a state on."""
    ranks = [loader(rank=r, num_ranks=num_ranks, **others) for r in range(num_ranks)]
    for rank in ranks if state else ():
        rank.load_state_dict(state)  # type: ignore[arg-type]
    num_steps = -(-num_rows // num_ranks)
    read = [take(rank, num_steps) for rank in ranks]
    return [read[r][s] for s in range(num_steps) for r in range(num_ranks)][:num_rows]


def frames_shown(batches: list[PackedBatch]) -> dict[int, Counter]:
    """Epoch -> how often each (clip, latent frame) was there."""
    shown: dict[int, Counter] = defaultdict(Counter)
    for batch in batches:
        for clip_id, first, shape in zip(batch.clip_ids, batch.first_frames, batch.token_shapes, strict=True):
            shown[batch.epoch].update((clip_id, frame) for frame in range(first, first + shape[0]))
    return shown


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.sampled_from([1, 3, 8]), st.booleans(), st.integers(0, 20), st.integers(0, 3))
def test_any_set_on_any_ranks_shows_each_frame_of_a_split_set_once_per_epoch(
    num_samples: int, num_ranks: int, drops: bool, global_rows: int, seed: int
) -> None:
    options = PlanSettings(
        capacity=40, pool=4, seed=seed, global_rows=global_rows, too_long="split", keep=("0.5",) if drops else ()
    )
    data = source(num_samples, seed)
    ranks = [PackLoader(data, settings=options, rank=r, num_ranks=num_ranks, prefetch=0) for r in range(num_ranks)]
    num_rows = sum(ranks[0].rows.plans[epoch].num_packs for epoch in (0, 1))
    num_steps = -(-num_rows // num_ranks)
    shown = frames_shown([b for rank in ranks for b in take(rank, num_steps)])
    expected = Counter((name, t) for name, x in zip(data.clip_ids, data.latents) for t in range(x.shape[1]))
    assert shown[0] == shown[1] == expected


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(3, 0), (8, 0), (1, 1), (1, 4), (3, 2)])
def test_ranks_and_workers_change_nothing(num_ranks: int, num_workers: int) -> None:
    expected = rows_by(1, 72, prefetch=0)
    assert {b.epoch for b in expected} >= {0, 1, 2}
    assert all_same(rows_by(num_ranks, 72, num_workers=num_workers, start_method="fork"), expected)


def test_packs_carry_what_was_drawn_of_their_clips() -> None:
    data = source()
    is_dropped = is_later = is_repeated = False
    for batch in take(loader(), 80):
        assert batch.num_tokens == len(batch.tokens_LD) <= 60
        places = None if batch.kept_L is None else torch.split(batch.kept_L, batch.lengths)
        for s, (clip_id, first, shape) in enumerate(zip(batch.clip_ids, batch.first_frames, batch.token_shapes)):
            latent = torch.from_numpy(data.latents[int(clip_id[-3:])]).float()[:, first : first + shape[0]].contiguous()
            kept = torch.arange(latent[0].numel()) if places is None else places[s]
            span = slice(int(batch.cu_seqlens[s]), int(batch.cu_seqlens[s + 1]))
            assert torch.equal(batch.tokens_LD[span], patchify(latent, (1, 1, 1))[kept])
            grid = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3)
            assert torch.equal(batch.position_L3[span], grid[kept] + torch.tensor([first, 0, 0]))
            is_dropped |= len(kept) < latent[0].numel()
            is_later |= first > 0
        is_repeated |= any("#" in name for name in batch.draw_ids)
        assert len(set(batch.draw_ids)) == batch.num_samples
    assert is_dropped
    assert is_later
    assert is_repeated


def test_packs_of_whole_tokens_unpack_and_others_say_why_not() -> None:
    data = source()
    for batch in take(loader(WHOLE), 40):
        for clip_id, first, latent in zip(batch.clip_ids, batch.first_frames, unpack(batch), strict=True):
            original = data.latents[int(clip_id[-3:])][:, first : first + latent.shape[1]]
            assert np.array_equal(latent.numpy(), original.astype(np.float32))
    dropped = next(b for b in take(loader(), 20) if b.kept_L is not None)
    with pytest.raises(UsageError, match="tokens were dropped"):
        unpack(dropped)


@pytest.mark.parametrize("stop", [0, 7, 40])
@pytest.mark.parametrize(
    ("before", "between", "after"), [((1, 0), (3, 0), (2, 1)), ((3, 0), (1, 2), (8, 0)), ((2, 1), (1, 0), (1, 4))]
)
def test_two_resumes_in_a_row_on_other_ranks_and_workers_go_on_bitwise(
    stop: int, before: tuple[int, int], between: tuple[int, int], after: tuple[int, int]
) -> None:
    """(ranks, workers) of each stretch of the training."""
    expected = rows_by(1, 160, prefetch=0)
    state, row = None, 0
    for (num_ranks, num_workers), num_steps in ((before, stop), (between, 9), (after, 3)):
        first = loader(num_ranks=num_ranks, num_workers=num_workers, start_method="fork")
        if state:
            first.load_state_dict(state)
        of_first = take(first, num_steps)
        assert all_same(of_first, [expected[row + step * num_ranks] for step in range(num_steps)])
        if num_ranks > 1 and not num_workers:
            num_rows = num_steps * num_ranks
            assert all_same(rows_by(num_ranks, num_rows, state, prefetch=0), expected[row : row + num_rows])
        row += num_steps * num_ranks
        state = first.state_dict()
        assert state["next_row"] == row


def test_a_resume_late_in_training_plans_none_of_the_epochs_before(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = loader(start_step=500)
    expected = take(straight, 10)
    resumed = loader()
    planned = []
    plan = resumed.rows.plans._plan_excerpts
    monkeypatch.setattr(
        resumed.rows.plans, "_plan_excerpts", lambda window, epoch: planned.append(epoch) or plan(window, epoch)
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
def test_stateful_data_loader_goes_on_with_the_next_pack() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected = take(loader(), 60)
    first = stateful(PackDataset(loader()), batch_size=None, num_workers=2)
    assert all_same(list(itertools.islice(first, 40)), expected[:40])
    second = stateful(PackDataset(loader()), batch_size=None, num_workers=2)
    second.load_state_dict(first.state_dict())
    assert all_same(list(itertools.islice(second, 20)), expected[40:])


def test_state_of_other_rules_is_refused() -> None:
    state = loader().state_dict()
    for change in ({"keep": ("0.7",)}, {"mix": ()}, {"max_frames": ("6",)}, {"too_long": "reject"}):
        with pytest.raises(UsageError, match="belongs to plan"):
            loader(dataclasses.replace(RULES, **change)).load_state_dict(state)


def test_without_rules_the_state_is_as_it_was() -> None:
    plain = loader(PlanSettings(capacity=400))
    take(plain, 2)
    assert plain.state_dict().keys() == {"next_step", "next_row", "plan_hash", "num_damaged"}


def test_patches_in_time_are_never_cut_through() -> None:
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((2, t, 2, 2)).astype(np.float16) for t in (2, 4, 8, 12)]
    data = MemorySource(latents, ["a", "b", "c", "d"], ["", "", "", ""])
    options = PlanSettings(capacity=9, too_long="split", max_frames=("7",))
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


def test_damaged_samples_are_left_out_and_stand_ins_fit() -> None:
    data = source(8, longest=12)
    data.latents = [np.full_like(x, np.nan) if i % 2 else x for i, x in enumerate(data.latents)]
    options = PlanSettings(capacity=30, too_long="split", global_rows=8, mix=("2",))
    packs = PackLoader(data, settings=options)
    batches = take(packs, packs.num_rows_per_epoch)
    assert all(torch.isfinite(b.tokens_LD).all() and b.num_tokens <= 30 for b in batches)
    assert set(packs.damaged) == {f"clip-{i:03d}" for i in range(8) if i % 2}


def test_rules_about_what_a_source_does_not_say_are_refused() -> None:
    with pytest.raises(UsageError, match="token counts alone do not name them"):
        loader(dataclasses.replace(RULES, mix=("9f-64x64-8fps=2",)))
    with pytest.raises(UsageError, match="none of 40 samples fits"):
        loader(dataclasses.replace(RULES, capacity=1, keep=(), mix=("tokens<2=0",)))
