"""decord and torchcodec themselves, where they are installed: PyAV's bytes, no fallbacks, the same confinement."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from coded_files import X264, scene_frames, write_coded

from recaption.decoding.backends.interface import BACKENDS, RefusalError, Segment, load_backend
from recaption.decoding.backends.segments import segments
from recaption.decoding.backends.torchcodec_frames import TorchcodecBackend
from recaption.decoding.video_file import VideoFile
from recaption.errors import UsageError, VideoError
from recaption.video_io import process as decoder_process
from recaption.video_io.fallbacks import take_fallbacks
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames

FILES = {
    "a.mp4": {},
    "a.ts": {},
    "open.mp4": {"options": X264 | {"x264-params": "mbtree=0:open-gop=1:b-pyramid=normal:scenecut=0"}},
    "turned.mp4": {"rotation": 90},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "keyint=12:scenecut=0:bframes=3:log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"b": "300k", "deadline": "realtime", "cpu-used": "8", "g": "12"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    module = {"decord": "decord", "torchcodec": "torchcodec"}[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{request.param} is not installed")
    try:
        decoder_process.start(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    yield request.param
    decoder_process.close()


@pytest.fixture(scope="module")
def frames_THWC():
    return scene_frames()


@pytest.fixture(scope="module")
def coded(tmp_path_factory, frames_THWC):
    folder = tmp_path_factory.mktemp("libraries")
    return lambda name: write_coded(folder / name, frames_THWC, **FILES[name])


def test_its_frames_are_the_bytes_of_pyav_and_nothing_falls_back(backend, coded):
    take_fallbacks()
    for name in FILES:
        path = coded(name)
        for indices in (None, [35, 0, 17, 17, 5], [13], [24], [12, 24, 34]):
            got = read_frames(path, indices, limits=DecodeLimits(backend=backend))
            expected = read_frames(path, indices)
            assert np.array_equal(got.pixels_THWC, expected.pixels_THWC), (name, indices)
            assert np.array_equal(got.pts_seconds, expected.pts_seconds)
            assert take_fallbacks() == {}, (name, indices)


def test_ten_bits_differ_by_rounding_only(backend, tmp_path, frames_THWC):
    path = write_coded(tmp_path / "deep.mp4", frames_THWC, pix_fmt="yuv420p10le")
    got = read_frames(path, [3, 20], limits=DecodeLimits(backend=backend)).pixels_THWC.astype(int)
    assert np.abs(got - read_frames(path, [3, 20]).pixels_THWC).mean() < 1
    assert take_fallbacks() == {}


def test_its_child_is_confined_as_the_other_one(backend):
    assert decoder_process.confinement_report(backend) == decoder_process.confinement_report()


def test_damage_ends_as_with_pyav(backend, coded, tmp_path):
    """Wherever a packet is damaged: the same frames, or the same error."""
    whole = Path(coded("a.mp4")).read_bytes()
    with av.open(coded("a.mp4")) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    path = tmp_path / "damaged.mp4"
    outcomes = []
    for number in (13, 20, 27):
        start = places[number][0] + places[number][1] // 3
        path.write_bytes(whole[:start] + bytes(byte ^ 0x5A for byte in whole[start : start + 24]) + whole[start + 24 :])
        found = []
        for limits in (DecodeLimits(), DecodeLimits(backend=backend)):
            try:
                found.append(read_frames(path, range(12, 36), limits=limits).pixels_THWC)
            except VideoError as error:
                found.append(np.array([error.reason]))
        assert np.array_equal(*found), f"packet {number}"
        outcomes.append(found[0].dtype.kind)
    assert "U" in outcomes, "none of this is damage"
    take_fallbacks()


def segment_of(path, indices):
    with open(path, "rb") as file:
        video = VideoFile(file, dataclasses.asdict(DecodeLimits()))
        (segment,) = segments(video, video.times(), np.array(indices))
    return segment


def without_packet(segment, number):
    """The segment without one of its packets: the frames behind it lack a reference, and there is one less."""
    sink = io.BytesIO()
    with av.open(io.BytesIO(segment.payload)) as source, av.open(sink, "w", format="matroska") as output:
        copied = output.add_stream_from_template(source.streams.video[0], opaque=True)
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if i != number:
                packet.stream = copied
                output.mux(packet)
    return dataclasses.replace(segment, payload=sink.getvalue())


def test_a_frame_too_few_is_a_refusal(backend, coded):
    library = load_backend(backend)
    segment = segment_of(coded("a.mp4"), [2, 9])
    assert len(list(library.frames(segment))) == 2
    with pytest.raises(RefusalError) as raised:
        list(library.frames(without_packet(segment, 1)))
    assert raised.value.reason in ("mismatch", "damage", "refused")
    with pytest.raises(RefusalError) as raised:
        list(library.frames(dataclasses.replace(segment, num_frames=segment.num_frames + 1)))
    assert raised.value.reason == "mismatch"
    with pytest.raises(RefusalError):
        list(library.frames(dataclasses.replace(segment, payload=segment.payload[:300])))


@pytest.mark.parametrize("width_px", [32, 50, 96])
def test_narrow_frames_are_right(backend, tmp_path, width_px):
    """decord takes the padding of their rows for a fourth channel."""
    path = write_coded(tmp_path / "narrow.mp4", scene_frames(6, height_px=48, width_px=width_px))
    got = read_frames(path, None, limits=DecodeLimits(backend=backend))
    assert np.array_equal(got.pixels_THWC, read_frames(path, None).pixels_THWC)
    assert take_fallbacks() == {}


@pytest.mark.parametrize("shift", [0.0, 0.04])
def test_a_frame_at_another_time_is_a_refusal(shift):
    class Decoder:
        """Whose frames come late."""

        metadata = SimpleNamespace(height=2, width=2)

        def __init__(self, payload, **options):
            pass

        def __len__(self):
            return 10

        def get_frames_at(self, indices):
            pixels = SimpleNamespace(numpy=lambda: np.zeros((len(indices), 2, 2, 3), np.uint8))
            seconds = SimpleNamespace(numpy=lambda: np.array(indices) * 0.04 + 0.08 + shift)
            seconds.tolist = lambda: seconds.numpy().tolist()
            return SimpleNamespace(data=pixels, pts_seconds=seconds)

    library = object.__new__(TorchcodecBackend)
    library.decoder, library.log = Decoder, SimpleNamespace(take=list)
    frames = library.frames(Segment(b"", 10, (3, 4), (2, 2), 2))
    if not shift:
        assert len(list(frames)) == 2
        return
    with pytest.raises(RefusalError) as raised:
        list(frames)
    assert raised.value.reason == "mismatch"
