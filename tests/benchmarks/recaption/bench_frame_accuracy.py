"""Frame accuracy against the `ffmpeg` program: every frame of every readable file, sequentially and at random.

    python tests/benchmarks/recaption/bench_frame_accuracy.py FILE_OR_FOLDER...

Per file: a scan (sequential) is compared with `ffmpeg`, then frames read by index, in random order, with the scan, byte
for byte. Needs `ffmpeg` on the PATH.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ffmpeg_oracle import difference, ffmpeg_thumbnails, is_hdr, thumbnails
from tqdm import tqdm

from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames, scan

NUM_RANDOM_READS = 12
SMALL_PX = 48


@dataclass(frozen=True)
class Outcome:
    """Result of the comparison of one file."""

    kind: str
    """`same`, `failed:<reason>`, or `WRONG`; `no reference` where ffmpeg itself decodes no frame or reports errors."""
    detail: str = ""


def check(path: Path, limits: DecodeLimits, seed: int = 0) -> Outcome:
    """Compare one file with ffmpeg and with itself."""
    scanned = scan(path, small_px=SMALL_PX, limits=limits)
    if scanned.video.status != "ok":
        return Outcome(f"failed:{scanned.video.reason}", scanned.video.detail)
    small_THWC = scanned.small.pixels_THWC
    chosen = np.random.default_rng(seed).integers(0, len(small_THWC), min(NUM_RANDOM_READS, len(small_THWC)))
    side = min(small_THWC.shape[1:3])
    again = read_frames(path, chosen, short_side_px=side, limits=limits)
    if not np.array_equal(again.pixels_THWC, small_THWC[chosen]):
        return Outcome("WRONG", "frames read by index differ from those of the scan")
    reference = ffmpeg_thumbnails(path, scanned.video)
    if not len(reference.thumbnails_NHWC):
        return Outcome("no reference", reference.error)
    wrong = difference(thumbnails(small_THWC), reference.thumbnails_NHWC, hdr=is_hdr(scanned.video))
    if wrong and reference.error:
        return Outcome("no reference", f"{wrong}; ffmpeg reports: {reference.error}")
    return Outcome("WRONG", wrong) if wrong else Outcome("same")


def files_in(paths: list[Path]) -> list[Path]:
    not_videos = {".md", ".json", ".jsonl", ".txt"}
    found = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in found if file.is_file() and file.suffix not in not_videos]


def print_outcomes(outcomes: dict[str, Outcome], listed: tuple[str, ...] = ("WRONG", "no reference")) -> int:
    """A table of kinds, then every file of the kinds `listed`; returns how many are wrong."""
    for kind, count in sorted(Counter(outcome.kind for outcome in outcomes.values()).items()):
        print(f"{count:6d}  {kind}")
    for name, outcome in outcomes.items():
        if outcome.kind in listed:
            print(f"{outcome.kind}: {name}: {outcome.detail}")
    return sum(outcome.kind == "WRONG" for outcome in outcomes.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    files = files_in(arguments.paths)
    outcomes = {str(file): check(file, DecodeLimits()) for file in tqdm(files, file=sys.stderr)}
    return 1 if print_outcomes(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
