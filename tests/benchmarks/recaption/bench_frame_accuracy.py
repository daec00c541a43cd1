"""Do we hand out the frames that ffmpeg shows? Every frame of every readable file, in order and at random.

    python tests/benchmarks/recaption/bench_frame_accuracy.py FILE_OR_FOLDER...

Per file: a scan (sequential) against the `ffmpeg` program, then frames asked for by number, in random order, against the
scan, byte for byte. Needs `ffmpeg` on the PATH.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ffmpeg_oracle import difference, ffmpeg_pictures, tiny
from tqdm import tqdm

from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames, scan

NUM_RANDOM_READS = 12
SMALL_PX = 48


@dataclass(frozen=True)
class Outcome:
    kind: str
    """`same`, `refused:<reason>`, or `WRONG`; `no truth` where ffmpeg itself shows no frame or complains."""
    detail: str = ""


def check(path: Path, limits: DecodeLimits, seed: int = 0) -> Outcome:
    """Compare one file with ffmpeg and with itself."""
    found = scan(path, small_px=SMALL_PX, limits=limits)
    if found.video.status != "ok":
        return Outcome(f"refused:{found.video.reason}", found.video.detail)
    small_THWC = found.small.pixels_THWC
    chosen = np.random.default_rng(seed).integers(0, len(small_THWC), min(NUM_RANDOM_READS, len(small_THWC)))
    side = min(small_THWC.shape[1:3])
    again = read_frames(path, chosen, short_side_px=side, limits=limits)
    if not np.array_equal(again.pixels_THWC, small_THWC[chosen]):
        return Outcome("WRONG", "frames by number are not those of the scan")
    truth = ffmpeg_pictures(path)
    if not len(truth.pictures_NHWC):
        return Outcome("no truth", truth.complaint)
    wrong = difference(tiny(small_THWC), truth.pictures_NHWC)
    if wrong and truth.complaint:
        return Outcome("no truth", f"{wrong}; ffmpeg complains: {truth.complaint}")
    return Outcome("WRONG", wrong) if wrong else Outcome("same")


def files_in(paths: list[Path]) -> list[Path]:
    beside = {".md", ".json", ".jsonl", ".txt"}
    found = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in found if file.is_file() and file.suffix not in beside]


def print_outcomes(outcomes: dict[str, Outcome]) -> int:
    """A table of kinds, then every file that is not plainly the same or refused; returns how many are wrong."""
    for kind, count in sorted(Counter(one.kind for one in outcomes.values()).items()):
        print(f"{count:6d}  {kind}")
    for name, one in outcomes.items():
        if one.kind in ("WRONG", "no truth"):
            print(f"{one.kind}: {name}: {one.detail}")
    return sum(one.kind == "WRONG" for one in outcomes.values())


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("paths", nargs="+", type=Path)
    asked = arguments.parse_args()
    files = files_in(asked.paths)
    outcomes = {str(file): check(file, DecodeLimits()) for file in tqdm(files, file=sys.stderr)}
    return 1 if print_outcomes(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
