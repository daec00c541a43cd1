"""The decoding backends beside PyAV: are their frames PyAV's, how often does PyAV step in, what does a frame cost.

    python tests/benchmarks/recaption/bench_decoders.py accuracy FOLDER...        # every file below the folders
    python tests/benchmarks/recaption/bench_decoders.py cost VIDEO...             # backends in turn, medians of the rounds

Accuracy: of every file all frames (the first 120), 8 evenly spaced and 12 in random order, at full size. A frame counts as
another one where it is nearer to a neighbour of PyAV's frame than to that frame itself. Cost: CPU seconds of this process
and of its decoders for the same frames at a short side of 224 px; ratios to PyAV.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from jobs.cluster.throughput import cpu_seconds
from recaption.decoding.backends.interface import BACKENDS
from recaption.errors import UsageError, VideoError
from recaption.video_io import DecodeLimits, process, read_frames
from recaption.video_io.fallbacks import take_fallbacks

NUM_ALL, NUM_EVEN, NUM_RANDOM = 120, 8, 12
SHORT_SIDE_PX = 224


def working_backends() -> list[str]:
    """Those that are installed."""
    found = []
    for backend in BACKENDS:
        try:
            print(f"{backend}: version {process.start(backend)}")
            found.append(backend)
        except UsageError as error:
            print(f"{backend}: left out, {error}")
    return found


class Outcome:
    """What one backend did with one folder."""

    def __init__(self) -> None:
        self.num_requests = self.num_frames = self.num_other_frames = self.num_lost_rows = self.num_found_rows = 0
        self.fallbacks: Counter[str] = Counter()
        self.identical = 0
        self.max_level = 0
        self.max_mean_level = 0.0

    def add(self, expected_THWC: np.ndarray, got_THWC: np.ndarray, is_consecutive: bool) -> tuple[float, int]:
        """Frames of one request that PyAV and the backend gave: (mean difference, largest one)."""
        level, means = 0, []
        for number, frame in enumerate(got_THWC):
            difference = _difference(frame, expected_THWC[number])
            self.num_frames += 1
            self.identical += not difference.any()
            level = max(level, int(difference.max()))
            mean = float(difference.mean())
            means.append(mean)
            self.max_mean_level = max(self.max_mean_level, mean)
            if is_consecutive and mean:
                neighbours = [expected_THWC[n] for n in (number - 1, number + 1) if 0 <= n < len(expected_THWC)]
                own = _spread(frame, expected_THWC[number])
                self.num_other_frames += any(_spread(frame, n) < own for n in neighbours)
        self.max_level = max(self.max_level, level)
        return float(np.mean(means)), level

    def line(self) -> str:
        """In words."""
        num_fallbacks = sum(self.fallbacks.values())
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.fallbacks.items())) or "none"
        return (
            f"{self.num_frames} frames, {self.identical} of them PyAV's bytes, {self.num_other_frames} other frames; "
            f"largest difference {self.max_level}, largest mean of a frame {self.max_mean_level:.2f}; {num_fallbacks} "
            f"fallbacks of {self.num_requests} requests ({num_fallbacks / max(1, self.num_requests):.1%}): {reasons}; "
            f"lost rows {self.num_lost_rows}, rows that PyAV refuses {self.num_found_rows}"
        )


def _spread(a: np.ndarray, b: np.ndarray) -> float:
    """Standard deviation of the difference: conversions that round another way differ by a constant level in all pixels."""
    return float(np.std(a.astype(np.int16) - b))


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b) - np.minimum(a, b)


def requests_of(path: Path) -> list[tuple[str, np.ndarray]]:
    """The indices of the requests for one file.

    Raises:
        VideoError: PyAV cannot read it.
    """
    num_frames = len(read_frames(path, None, short_side_px=16))
    rng = np.random.default_rng(0)
    return [
        ("all", np.arange(min(num_frames, NUM_ALL))),
        ("even", np.unique(np.linspace(0, num_frames - 1, NUM_EVEN).astype(int))),
        ("random", rng.integers(0, num_frames, NUM_RANDOM)),
    ]


def compare(path: Path, outcomes: dict[str, Outcome]) -> None:
    """Read one file with PyAV and with each backend."""
    try:
        requests = requests_of(path)
        expected = {name: read_frames(path, indices).pixels_THWC for name, indices in requests}
    except VideoError:
        for backend, outcome in outcomes.items():
            try:
                read_frames(path, None, short_side_px=16, limits=DecodeLimits(backend=backend))  # type: ignore[arg-type]
                outcome.num_found_rows += 1
                print(f"    {backend}: {path.name} gives frames, PyAV refuses it")
            except VideoError:
                pass
            take_fallbacks()
        return
    for backend, outcome in outcomes.items():
        for name, indices in requests:
            outcome.num_requests += 1
            try:
                got = read_frames(path, indices, limits=DecodeLimits(backend=backend))  # type: ignore[arg-type]
                mean, level = outcome.add(expected[name], got.pixels_THWC, is_consecutive=name == "all")
                if level:
                    print(f"    {backend}: {path.name}, {name}: differs by {mean:.2f} in the mean, by {level} at most")
            except VideoError as error:
                outcome.num_lost_rows += 1
                print(f"    {backend}: {path.name} lost: {error}")
            if taken := take_fallbacks():
                outcome.fallbacks.update(taken)
                print(f"    {backend}: {path.name}, {name}: {', '.join(taken)}")


def accuracy(folders: Sequence[str]) -> None:
    """Print one line per folder and backend."""
    backends = working_backends()
    for folder in folders:
        outcomes = {backend: Outcome() for backend in backends}
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in (".json", ".md", ".txt"))
        print(f"{folder}: {len(files)} files")
        for path in files:
            compare(path, outcomes)
        for backend, outcome in outcomes.items():
            print(f"  {backend}: {outcome.line()}", flush=True)


def keyframe_indices(path: str) -> list[int]:
    """Indices of the frames that decode alone."""
    with av.open(path) as container:
        packets = [p for p in container.demux(video=0) if p.size and not p.is_discard]
    ticks = sorted(p.pts for p in packets)
    return [ticks.index(p.pts) for p in packets if p.is_keyframe]


def cost(videos: Sequence[str], num_rounds: int) -> None:
    """Print CPU milliseconds per frame of PyAV, and the ratios of the backends."""
    backends = ["av", *working_backends()]
    for path in videos:
        num_frames = len(read_frames(path, None, short_side_px=16))
        even = np.unique(np.linspace(0, num_frames - 1, NUM_EVEN).astype(int))
        cases = {"8 frames": even, "all frames": np.arange(min(300, num_frames)), "keyframes": keyframe_indices(path)}
        for name, indices in cases.items():
            seconds: dict[str, list[float]] = {backend: [] for backend in backends}
            for number in range(num_rounds + 1):
                for backend in backends:
                    started = cpu_seconds()
                    limits = DecodeLimits(backend=backend)  # type: ignore[arg-type]
                    read_frames(path, indices, short_side_px=SHORT_SIDE_PX, limits=limits)
                    if number:  # the first round starts the children and numbers the frames
                        seconds[backend].append(cpu_seconds() - started)
            medians = {backend: statistics.median(values) for backend, values in seconds.items()}
            ratios = "  ".join(f"{b} {medians[b] / max(medians['av'], 1e-9):5.2f}" for b in backends[1:])
            per_frame = 1000 * medians["av"] / len(indices)
            fallbacks = take_fallbacks()
            print(
                f"{Path(path).name:32} {name:10} {len(indices):4} frames  PyAV {per_frame:6.1f} ms a frame  {ratios}"
                + (f"  fallbacks {fallbacks}" if fallbacks else ""),
                flush=True,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "cost"])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "accuracy":
        accuracy(arguments.paths)
    else:
        cost(arguments.paths, arguments.rounds)


if __name__ == "__main__":
    main()
