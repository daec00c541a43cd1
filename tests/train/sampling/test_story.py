"""Films: exact lengths of shots, what each transition is made from, and the errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recaption.errors import UsageError
from tests.stand_ins.small_samplers import HEIGHT_PX, WIDTH_PX, small_sampler
from train.sampling.solver_settings import SolverSettings
from train.sampling.story import CONNECTED, CROSS_FADE, Film, FilmShot, WindowSettings, transitions_of

QUICK = SolverSettings(num_steps=2, guidance=1.0)
UNCONNECTED = ("none=0.5", "prefix=0.5")


def film_of(sampler, *shots, **more):
    made = [FilmShot(text=f"shot {n}", num_frames=shot[0], transition=shot[1], seed=n) for n, shot in enumerate(shots)]
    return Film(made, sampler, **more)


def sample(film, request):
    (sampled,) = film.sampler.sample_requests([request], QUICK)
    return sampled.video_THWC


def make(film):
    """(shots, dissolves, shots as the film has them)."""
    shots = []
    for number in range(len(film.shots)):
        shots.append(sample(film, film.request(number, shots[-1] if shots else None)))
    dissolves = {}
    for number, shot in enumerate(film.shots):
        if shot.transition == "dissolve":
            pair = shots[number - 1], shots[number]
            if film.dissolve == CONNECTED:
                dissolves[number] = sample(film, film.dissolve_request(number, *pair))
            else:
                dissolves[number] = film.cross_fade(number, *pair)
    return shots, dissolves, [film.shown(number, shot, dissolves) for number, shot in enumerate(shots)]


@pytest.mark.parametrize(
    ("stride", "conditions", "made_by"),
    [(1, None, CONNECTED), (4, None, CONNECTED), (1, UNCONNECTED, CROSS_FADE), (4, UNCONNECTED, CROSS_FADE)],
)
def test_every_shot_of_a_film_has_its_exact_length(stride, conditions, made_by):
    more = {} if conditions is None else {"conditions": conditions}
    sampler = small_sampler(stride, window_frames=17 if stride == 4 else 9, **more)
    lengths = [(11, "cut"), (14, "dissolve"), (5, "continue"), (23, "continue"), (13, "dissolve"), (1, "cut")]
    film = film_of(sampler, *lengths)
    assert (film.dissolve, film.half) == (made_by, 2)
    shots, dissolves, shown = make(film)
    assert [len(one) for one in shown] == [frames for frames, _ in lengths]
    assert {len(one) for one in dissolves.values()} == {4}
    assert len(list(film.frames(iter(shots), dissolves))) == sum(frames for frames, _ in lengths)
    assert all(one.shape[1:] == (HEIGHT_PX, WIDTH_PX, 3) for one in shown)


def test_a_shot_that_continues_is_sampled_after_the_last_frames_of_the_one_before():
    film = film_of(small_sampler(4, window_frames=17), (13, "cut"), (6, "continue"))
    before = np.random.default_rng(0).integers(0, 255, (13, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    conditioning = film.request(1, before).conditioning
    known = conditioning.condition_mask_T
    assert np.array_equal(conditioning.frames_THWC[known], before[-int(known.sum()) :])
    assert (known.sum() - 1) % 4 == 0
    assert (conditioning.start, conditioning.end) == (known.sum(), known.sum() + 6)
    assert film.request(1, before[-1:]).conditioning.condition_mask_T.sum() == 1, "a shot of one frame can be continued"


def test_a_cut_has_noise_of_its_own_and_knows_nothing_of_the_shot_before():
    film = film_of(small_sampler(), (5, "cut"), (5, "cut"))
    shots, _, shown = make(film)
    assert not film.request(1).conditioning.condition_mask_T.any()
    assert np.array_equal(shots[1], sample(film, film_of(film.sampler, (5, "cut"), (5, "cut")).request(1)))
    assert not np.array_equal(*shown)


def test_a_dissolve_without_a_model_for_it_is_an_even_mix_of_both_shots():
    film = film_of(small_sampler(conditions=()), (8, "cut"), (6, "dissolve"))
    first = np.full((10, HEIGHT_PX, WIDTH_PX, 3), 200, np.uint8)
    second = np.full((8, HEIGHT_PX, WIDTH_PX, 3), 40, np.uint8)
    assert [film.extra_frames(number) for number in range(2)] == [(0, 2), (2, 0)]
    assert [len(shot) for shot in make(film)[0]] == [10, 8], "both are sampled a little longer"
    dissolves = {1: film.cross_fade(1, first, second)}
    shown = [film.shown(0, first, dissolves), film.shown(1, second, dissolves)]
    levels = [[int(frame[0, 0, 0]) for frame in shot] for shot in shown]
    assert levels == [[200] * 6 + [180, 140], [100, 60] + [40] * 4]
    alone = [film.undissolved(number, frames_THWC) for number, frames_THWC in enumerate(shown)]
    assert [(len(frames_THWC), set(frames_THWC.flat)) for frames_THWC in alone] == [(6, {200}), (4, {40})]


def test_a_dissolve_of_the_model_is_sampled_between_the_frames_that_are_kept():
    film = film_of(small_sampler(4, window_frames=17), (13, "cut"), (12, "dissolve"))
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 255, (n, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8) for n in (13, 12))
    conditioning = film.dissolve_request(1, first, second).conditioning
    start, end = conditioning.start, conditioning.end
    assert end - start == 4
    assert conditioning.num_frames <= 17
    assert np.array_equal(conditioning.frames_THWC[start - 1], first[-3])
    assert np.array_equal(conditioning.frames_THWC[end], second[2])
    assert not conditioning.condition_mask_T[start:end].any()
    assert conditioning.condition_mask_T[:start].all()
    assert conditioning.condition_mask_T[end:].all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_script_that_is_accepted_gives_exact_lengths(data):
    stride = data.draw(st.sampled_from([1, 4]))
    sampler = small_sampler(stride, window_frames=data.draw(st.sampled_from([9, 17])))
    transitions = st.sampled_from(["cut", "continue", "dissolve"])
    shots = data.draw(st.lists(st.tuples(st.integers(1, 12), transitions), min_size=1, max_size=4))
    shots[0] = (shots[0][0], "cut")
    is_dissolved = [shot[1] == "dissolve" for shot in (*shots, (0, ""))]
    if any(shot[0] < 8 and any(is_dissolved[n : n + 2]) for n, shot in enumerate(shots)):
        shots = [(frames, transition.replace("dissolve", "cut")) for frames, transition in shots]
    film = film_of(sampler, *shots)
    assert [len(one) for one in make(film)[2]] == [frames for frames, _ in shots]


def test_a_long_shot_is_sampled_by_key_frames_and_a_continued_one_in_windows():
    film = film_of(small_sampler(), (20, "cut"), (20, "continue"), windows=WindowSettings(long="keyframes"))
    assert [film.request(n, np.zeros((20, HEIGHT_PX, WIDTH_PX, 3), np.uint8)).long for n in (0, 1)] == [
        "keyframes",
        "windows",
    ]
    assert [len(one) for one in make(film)[2]] == [20, 20]


def test_what_a_model_cannot_do_is_one_sentence():
    assert transitions_of(small_sampler(conditions=())) == ("cut", "dissolve")
    assert transitions_of(small_sampler()) == ("cut", "continue", "dissolve")
    with pytest.raises(UsageError, match="not trained for extend prompts"):
        film_of(small_sampler(conditions=()), (5, "cut"), (5, "continue"))
    with pytest.raises(UsageError, match="shot 2 has 4 frames, which is too short for its dissolves: 5 are enough"):
        film_of(small_sampler(window_frames=9), (9, "cut"), (4, "dissolve"), (9, "dissolve"))
