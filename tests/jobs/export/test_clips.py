"""Which clips may be copied, which rate a clip has, and what of a source's address leaves the machine."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from jobs.export.clip_video import is_mp4
from jobs.export.clips import is_read_as_stored, native_fps, source_name
from recaption.records import Clip, Video

PLAIN = Video(video_id="a" * 16, uri="a.mp4", codec="h264", sample_aspect="1:1", fps_num=30000, fps_den=1001)


@pytest.mark.parametrize(
    "change",
    [{"rotation_degrees": 90}, {"sample_aspect": "64:45"}, {"is_interlaced": True}, {"has_alpha": True},
     {"transfer": "smpte2084"}, {"transfer": "arib-std-b67"}, {"truncated_seconds": 1.5}, {"codec": "prores"}],
)  # fmt: skip
def test_a_video_that_other_readers_see_differently_is_encoded(change):
    assert is_read_as_stored(PLAIN)
    assert not is_read_as_stored(dataclasses.replace(PLAIN, **change))


def clip_of(num_frames: int, fps: float) -> Clip:
    return Clip(
        clip_id="", video_id="", uri="", shot_index=0, start_frame=0, end_frame=num_frames, start_seconds=0.0,
        end_seconds=num_frames / fps, width_px=64, height_px=64, fps=fps,
    )  # fmt: skip


def test_the_rate_is_the_videos_where_frames_are_even_and_the_clips_where_not():
    assert native_fps(clip_of(90, 29.97), PLAIN) == Fraction(30000, 1001)
    assert native_fps(clip_of(90, 20.0), PLAIN) == 20
    assert native_fps(clip_of(1, 0.5), PLAIN) == Fraction(30000, 1001)


def test_containers_are_told_by_their_first_bytes():
    assert is_mp4(b"\0\0\0\x20ftypisom")
    assert not is_mp4(b"\0\0\0\x14ftypqt  ")
    assert not is_mp4(b"\x1a\x45\xdf\xa3" + b"\0" * 8)
    assert not is_mp4(b"")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/home/me/secret/a.mp4", "a.mp4"),
        ("file:///home/me/a.mp4", "a.mp4"),
        ("s3://bucket/raw/a.mp4", "s3://bucket/raw/a.mp4"),
        ("https://me:password@host/a.mp4?signature=x", "https://host/a.mp4"),
    ],
)
def test_sources_without_local_folders_credentials_and_signatures(uri, name):
    assert source_name(uri, local_paths=False) == name


def test_local_paths_where_they_are_asked_for():
    assert source_name("/home/me/a.mp4", local_paths=True) == "/home/me/a.mp4"
