"""Segments: the packets of the wanted frames in a container of their own, numbered as PyAV's index does; or a refusal."""

from __future__ import annotations

import dataclasses
import io

import av
import numpy as np
import pytest
from coded_files import X264, scene_frames, write_coded

from recaption.decoding.backends.interface import FRAME_SECONDS, RefusalError
from recaption.decoding.backends.segments import MIN_OPEN_PACKETS, segments
from recaption.decoding.video_file import VideoFile
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames

OPEN_GOP = X264 | {"x264-params": "mbtree=0:open-gop=1:b-pyramid=normal:scenecut=0"}
VP9 = {"b": "300k", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "g": "12"}
X265 = {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:log-level=none"}
FILES = {
    "a.mp4": {},
    "a.mkv": {},
    "a.ts": {},
    "a.flv": {},
    "open.mp4": {"options": OPEN_GOP},
    "open.ts": {"options": OPEN_GOP},
    "turned.mp4": {"rotation": 90},
    "hevc.mp4": {"codec": "libx265", "options": X265},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "mpeg4.mov": {"codec": "mpeg4", "options": {"g": "12"}},
    "wmv2.avi": {"codec": "wmv2", "options": {"g": "12"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("segments")


@pytest.fixture(scope="module")
def frames_THWC():
    return scene_frames()


@pytest.fixture(scope="module")
def coded(folder, frames_THWC):
    """`coded("a.mp4")`: the path of one of `FILES`."""
    return lambda name: write_coded(folder / name, frames_THWC, **FILES[name])


def found_segments(path, indices):
    with open(path, "rb") as file:
        video = VideoFile(file, dataclasses.asdict(DecodeLimits()))
        return list(segments(video, video.times(), np.array(indices)))


def refusal(path):
    with pytest.raises(RefusalError) as raised:
        found_segments(path, [0])
    return raised.value.reason


def decoded(segment):
    """(timestamps as numbers of frames, RGB) of all frames of a segment, as any decoder gives them."""
    with av.open(io.BytesIO(segment.payload)) as container:
        frames = list(container.decode(video=0))
    ticks = [round(frame.pts * frame.time_base / FRAME_SECONDS) for frame in frames]
    assert all(not any(data.type.name == "DISPLAYMATRIX" for data in frame.side_data) for frame in frames)
    return ticks, np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("indices", [[0, 5, 35], [13], [24], [11, 12, 23], list(range(36))], ids=str)
def test_the_wanted_frames_are_those_of_pyav_at_the_numbers_given(coded, name, indices):
    path = coded(name)
    got = []
    for segment in found_segments(path, indices):
        ticks, pixels_THWC = decoded(segment)
        assert ticks == [segment.first_tick + i for i in range(segment.num_frames)]
        assert pixels_THWC.shape[1:3] == segment.size
        got += list(pixels_THWC[list(segment.wanted)])
    expected = read_frames(path, indices).pixels_THWC
    if "turned" in name:
        got = [np.rot90(frame, 1) for frame in got]
    assert np.array_equal(np.stack(got), expected)


def test_only_the_packets_of_the_wanted_frames_are_taken_along(coded):
    first, second = found_segments(coded("a.mp4"), [1, 30])
    assert (first.wanted, second.wanted) == ((1,), (6,))
    assert first.num_frames < 8
    assert second.num_frames < 12
    (alone,) = found_segments(coded("a.mp4"), [24])
    assert alone.num_frames == 1
    (of_open,) = found_segments(coded("open.mp4"), [24])
    assert of_open.num_frames == MIN_OPEN_PACKETS
    assert not of_open.is_first


def test_interlaced_frames_are_refused_before_any_is_decoded(folder, frames_THWC):
    fields = {"x264-params": "tff=1:mbtree=0"}
    assert (
        refusal(write_coded(folder / "fields.mp4", frames_THWC, options=fields | {"flags": "+ildct+ilme"}))
        == "interlaced"
    )
    mpeg2 = {"flags": "+ildct+ilme"}
    path = write_coded(folder / "fields.mpg", frames_THWC, codec="mpeg2video", options=mpeg2)
    assert refusal(path) == "interlaced"


def test_hdr_is_refused(folder, frames_THWC):
    def as_pq(frame):
        frame.color_trc, frame.color_primaries, frame.colorspace = 16, 9, 9

    options = {"x264-params": "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"}
    path = write_coded(folder / "pq.mp4", frames_THWC, pix_fmt="yuv420p10le", options=options, change_frame=as_pq)
    assert refusal(path) == "hdr"


def test_other_codecs_and_transparency_are_refused(folder, frames_THWC):
    assert refusal(write_coded(folder / "a.mjpeg.avi", frames_THWC, codec="mjpeg", pix_fmt="yuvj420p")) == "codec"
    path = write_coded(folder / "alpha.mov", frames_THWC[:2], codec="png", pix_fmt="rgba")
    assert refusal(path) == "transparent"


def test_parameter_sets_that_change_on_the_way_are_refused(folder, frames_THWC):
    first, second = folder / "first.ts", folder / "second.ts"
    write_coded(first, frames_THWC)
    write_coded(second, frames_THWC, options=X264 | {"x264-params": "mbtree=0:ref=1:cabac=0"})
    joined = folder / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with open(joined, "rb") as file:
        video = VideoFile(file, dataclasses.asdict(DecodeLimits()))
        times = video.times()
        with pytest.raises(RefusalError) as raised:
            list(segments(video, times, np.array([len(times.ticks) - 1])))
    assert raised.value.reason in ("parameters", "numbering")
