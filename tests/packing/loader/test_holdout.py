"""Held-out videos: by their own id alone, whole, and none of a set that is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.loader.holdout import held_out_videos, split_source, video_of
from recaption.errors import UsageError
from tests.stand_ins.memory_source import MemorySource

VIDEOS = [f"{number:016x}" for number in range(400)]


def source_of(videos, clips_per_video=3) -> MemorySource:
    clip_ids = [f"{video}-{20 * clip:07d}-{20 * clip + 17:07d}" for video in videos for clip in range(clips_per_video)]
    latents = [np.full((1, 1, 2, 2), number, np.float32) for number in range(len(clip_ids))]
    return MemorySource(
        latents, clip_ids, [f"caption of {clip_id}" for clip_id in clip_ids], buckets=["a"] * len(clip_ids)
    )


@settings(deadline=None, max_examples=40)
@given(st.sets(st.sampled_from(VIDEOS), min_size=1, max_size=300), st.sampled_from([0.02, 0.1, 0.3]))
def test_all_clips_of_a_video_are_on_one_side_and_nothing_is_lost(videos, share):
    source = source_of(sorted(videos))
    training, held_out = split_source(source, share)
    sides = [set(training.clip_ids), set(held_out.clip_ids if held_out else ())]
    assert sides[0] | sides[1] == set(source.clip_ids)
    assert not {video_of(clip) for clip in sides[0]} & {video_of(clip) for clip in sides[1]}
    assert sides[0], "something is left to train on"
    assert bool(held_out) == (share * len(videos) >= 1 and len(videos) > 1)


def test_about_the_share_is_held_out_and_other_videos_do_not_matter():
    held_out = held_out_videos(VIDEOS, 0.1)
    assert 25 <= len(held_out) <= 55
    assert held_out_videos(reversed(VIDEOS), 0.1) == held_out
    some = VIDEOS[::2]
    assert held_out_videos(some, 0.1) == held_out & set(some)
    assert held_out <= held_out_videos(VIDEOS, 0.2), "a larger share holds out more, not others"


def test_small_sets_are_trained_on_whole():
    source = source_of(VIDEOS[:49])
    assert split_source(source, 0.02) == (source, None)
    assert split_source(source, 0.0) == (source, None)
    assert split_source(source_of(VIDEOS[:1]), 0.5)[1] is None
    assert len(held_out_videos(VIDEOS[:2], 0.5)) == 1
    with pytest.raises(UsageError, match=r"holdout_share = 0\.6 must be a share of the videos from 0 to 0\.5"):
        held_out_videos(VIDEOS, 0.6)


def test_a_side_reads_and_captions_its_own_samples():
    source = source_of(VIDEOS[:60])
    for side in split_source(source, 0.1):
        assert side.fingerprint != source.fingerprint
        for index, clip_id in enumerate(side.clip_ids):
            whole = source.clip_ids.index(clip_id)
            assert side.read(index)[0, 0, 0, 0] == whole
            assert side.captions[index] == side.caption(index, 3) == f"caption of {clip_id}"
            assert side.latent_shapes[index] == source.latent_shapes[whole]
        assert len(side.buckets) == len(side.clip_ids)
