import time

from jobs.cluster.throughput import Throughput, cpu_seconds
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import process as decoder_process
from recaption.video_io.reader import probe


def test_cpu_seconds_include_the_decoder_child_running_and_ended(tmp_path):
    path = tmp_path / "scene.mp4"
    render(1, num_frames=60, height_px=240, width_px=320, fps=8, **SIMPLE).write(path)
    probe(str(path))
    running, own = cpu_seconds(), time.process_time()
    assert decoder_process.child_pid() is not None
    assert running - own > 0.05  # the child imported PyAV and decoded 60 frames
    decoder_process.close()
    assert cpu_seconds() >= running - 0.02  # /proc counts in ticks of 10 ms


def test_utilisation_is_the_fraction_of_worker_time_inside_parts():
    stage = Throughput(unit="num_samples", wall_seconds=10.0)
    stage.add({"worker": "a", "wall_seconds": 9.0, "cpu_seconds": 8.0}, 30)
    stage.add({"worker": "b", "wall_seconds": 3.0, "cpu_seconds": 2.0}, 10)
    assert stage.summary() == {
        "parts": 2,
        "unit": "samples",
        "units": 40,
        "workers": 2,
        "wall_seconds": 10.0,
        "busy_seconds": 12.0,
        "cpu_seconds": 10.0,
        "utilisation": 0.6,
        "per_second": 4.0,
        "cpu_seconds_each": 0.25,
    }


def test_a_stage_without_computed_parts_has_no_throughput():
    assert Throughput().summary() == {}


def test_fallbacks_of_a_decoding_backend_are_summed_by_reason():
    stage = Throughput()
    for fallbacks in ({"hdr": 2}, {}, {"hdr": 1, "timeout": 1}):
        usage = {"worker": "a", "wall_seconds": 1.0, "cpu_seconds": 1.0, "decoder_fallbacks": fallbacks}
        stage.add(usage, 1)
    assert stage.summary()["decoder_fallbacks"] == {"hdr": 3, "timeout": 1}
