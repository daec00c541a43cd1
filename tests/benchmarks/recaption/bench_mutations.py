"""Decoding of damaged files: seeded mutations of intact files over containers and codecs, each read with all limits.

    python tests/benchmarks/recaption/bench_mutations.py --count 10000 --results FILE.jsonl [FILE_OR_FOLDER...]

Without paths some forty small files are rendered with `ffmpeg` (mutation_seeds.py). A run that was stopped goes on where it
was: mutations that are in `--results` are not computed again. Of each mutated file

    failed        it is refused with a reason: always right
    same          as many frames as `ffmpeg` decodes from the same bytes, and each looks like ffmpeg's (ffmpeg_oracle.py)
    exact         they look different, but are, byte for byte, those of ffmpeg's decode scaled as we scale (noise from
                  damaged data: two scalers differ by more than the limit)
    undamaged     ffmpeg reports errors or other frames, and every frame is, byte for byte and in order, one of the file
                  before its mutation (a lost packet leaves fewer)
    WRONG         ffmpeg decodes the file without an error, and the frames are others; or frames read by index differ
                  from those of the scan
    unproven      ffmpeg reports an error, and some frame is neither its nor the undamaged file's: nobody vouches for it
    CRASH, HANG   an exception that is no `VideoError`; longer than all timeouts together

WRONG, CRASH and HANG give exit code 1. The peak memory of this process is printed: it has to stay bounded.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_frame_accuracy import NUM_RANDOM_READS, SMALL_PX, Outcome, files_in, print_outcomes
from ffmpeg_oracle import DEINTERLACE, FfmpegRun, decoder_for, difference, ffmpeg_thumbnails, is_hdr, thumbnails
from mutation_seeds import render_seeds
from tqdm import tqdm

from recaption.records import Video
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames, scan

HANG_SECONDS = 400.0
"""Longer than all timeouts of a short file together."""
BAD_KINDS = ("WRONG", "CRASH", "HANG")

Mutation = Callable[[bytearray, np.random.Generator], bytearray]


def bit_flips(payload: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 65))):
        payload[int(rng.integers(len(payload)))] ^= 1 << int(rng.integers(8))
    return payload


def truncation(payload: bytearray, rng: np.random.Generator) -> bytearray:
    return payload[: int(rng.integers(1, len(payload)))]


def header_edit(payload: bytearray, rng: np.random.Generator) -> bytearray:
    """Bytes of the first or last 4 KiB replaced: tables of mp4, headers of the others."""
    start = 0 if rng.random() < 0.5 else max(0, len(payload) - 4096)
    for _ in range(int(rng.integers(1, 17))):
        payload[start + int(rng.integers(min(4096, len(payload))))] = int(rng.integers(256))
    return payload


def _span(payload: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(payload)))
    return start, min(len(payload), start + int(rng.integers(64, 8193)))


def zeroed_block(payload: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(payload, rng)
    payload[start:end] = bytes(end - start)
    return payload


def deleted_block(payload: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(payload, rng)
    del payload[start:end]
    return payload


def duplicated_block(payload: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = _span(payload, rng)
    payload[start:start] = payload[start:end]
    return payload


MUTATIONS: tuple[Mutation, ...] = (bit_flips, truncation, header_edit, zeroed_block, deleted_block, duplicated_block)


def mutate(payload: bytes, index: int, seed: int) -> tuple[str, bytes]:
    """(kind, bytes) of mutation `index`: the same for the same arguments everywhere."""
    rng = np.random.default_rng([seed, index])
    mutation = MUTATIONS[index % len(MUTATIONS)]
    return mutation.__name__, bytes(mutation(bytearray(payload), rng))


@dataclasses.dataclass(frozen=True)
class Seed:
    """An intact file, and a hash of each of its frames."""

    path: Path
    payload: bytes
    frame_hashes: tuple[bytes, ...]


def hashes_of(small_THWC: np.ndarray) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(np.ascontiguousarray(frame)).digest() for frame in small_THWC)


def seeds_in(paths: list[Path], max_bytes: int, limits: DecodeLimits) -> list[Seed]:
    """Those of the files that decode and are small enough."""
    seeds = []
    for path in files_in(paths):
        if path.stat().st_size <= max_bytes:
            scanned = scan(path, small_px=SMALL_PX, limits=limits)
            if scanned.video.status == "ok":
                seeds.append(Seed(path, path.read_bytes(), hashes_of(scanned.small.pixels_THWC)))
    return seeds


def is_in_order(frames: tuple[bytes, ...], of_whole: tuple[bytes, ...]) -> bool:
    """Whether all of `frames` occur in `of_whole`, in this order."""
    rest = iter(of_whole)
    return all(frame in rest for frame in frames)


def ffmpeg_or_timeout(path: Path, video: Video) -> FfmpegRun:
    try:
        return ffmpeg_thumbnails(path, video)
    except subprocess.TimeoutExpired as error:
        return FfmpegRun(np.zeros((0, 16, 16, 3), np.uint8), str(error))


def decoded_by_ffmpeg(path: Path, video: Video, limits: DecodeLimits) -> np.ndarray:
    """The small frames of what ffmpeg decodes, passed on uncompressed in their own pixel format; empty where it fails.

    HDR needs its tags, which uncompressed video does not carry: its thumbnails alone are compared.
    """
    copy = path.with_name("decoded.nut")
    command = ["ffmpeg", "-v", "quiet", "-nostdin", "-y", "-threads", "1", *decoder_for(video), "-i", str(path)]
    command += [
        "-an",
        "-sn",
        "-dn",
        "-vf",
        DEINTERLACE if video.is_interlaced else "null",
        "-fps_mode",
        "passthrough",
        "-c:v",
        "rawvideo",
        "-f",
        "nut",
        str(copy),
    ]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=300, check=False)
        return scan(copy, small_px=SMALL_PX, limits=limits).small.pixels_THWC
    return np.zeros((0, 0, 0, 3), np.uint8)


def judged(path: Path, seed: Seed, limits: DecodeLimits, number: int, is_trimmed: bool) -> Outcome:
    """One mutated file against the oracles; see the top of this file."""
    scanned = scan(path, small_px=SMALL_PX, limits=limits)
    if scanned.video.status != "ok":
        return Outcome(f"failed:{scanned.video.reason}", scanned.video.detail)
    small_THWC = scanned.small.pixels_THWC
    chosen = np.random.default_rng(number).integers(0, len(small_THWC), min(NUM_RANDOM_READS, len(small_THWC)))
    side_px = min(small_THWC.shape[1:3])
    again_THWC = read_frames(path, chosen, short_side_px=side_px, limits=limits).pixels_THWC
    first_THWC = small_THWC[chosen]
    if again_THWC.shape != first_THWC.shape:  # a scan squashes very long pictures: compare with reads one by one
        alone = [read_frames(path, [index], short_side_px=side_px, limits=limits).pixels_THWC for index in chosen]
        first_THWC = np.concatenate(alone)
    if not np.array_equal(again_THWC, first_THWC):
        return Outcome("WRONG", "frames read by index differ from those of the scan")
    if is_in_order(hashes_of(small_THWC), seed.frame_hashes):
        return Outcome("undamaged")
    reference = ffmpeg_or_timeout(path, scanned.video)
    expected_NHWC = reference.thumbnails_NHWC[: len(small_THWC)] if is_trimmed else reference.thumbnails_NHWC
    wrong = difference(thumbnails(small_THWC), expected_NHWC, hdr=is_hdr(scanned.video))
    if not wrong:
        return Outcome("same")
    if np.array_equal(
        small_THWC, decoded_by_ffmpeg(path, scanned.video, limits)[: len(small_THWC) if is_trimmed else None]
    ):
        return Outcome("exact")
    return Outcome(
        "unproven" if reference.error else "WRONG", f"{wrong}; ffmpeg reports: {reference.error or 'nothing'}"
    )


def judged_in_time(
    path: Path, seed: Seed, limits: DecodeLimits, number: int, is_trimmed: bool
) -> tuple[Outcome, float]:
    """(outcome, seconds)."""
    started = time.perf_counter()
    try:
        outcome = judged(path, seed, limits, number, is_trimmed)
    except Exception as error:  # what this benchmark looks for
        outcome = Outcome("CRASH", f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    return (Outcome("HANG", f"{seconds:.0f} s") if seconds > HANG_SECONDS else outcome), seconds


def limits_for(on_damage: str | None) -> DecodeLimits:
    if on_damage is None:
        return DecodeLimits()
    if "on_damage" not in {field.name for field in dataclasses.fields(DecodeLimits)}:
        sys.exit("DecodeLimits has no on_damage")
    return DecodeLimits(on_damage=on_damage)


def run(arguments: argparse.Namespace, seeds: list[Seed], folder: Path) -> dict[str, tuple[Outcome, float]]:
    """Outcome and seconds of every mutation by name; those of an earlier run come from its results."""
    outcomes: dict[str, tuple[Outcome, float]] = {}
    if arguments.results is not None and arguments.results.exists():
        rows = [json.loads(line) for line in arguments.results.read_text().splitlines()]
        outcomes = {row["name"]: (Outcome(row["kind"], row["detail"]), row["seconds"]) for row in rows}
    limits = limits_for(arguments.on_damage)
    for index in tqdm(range(arguments.count), file=sys.stderr, mininterval=10):
        seed, turn = seeds[index % len(seeds)], index // len(seeds)  # every seed gets every kind in turn
        name = f"{index} {MUTATIONS[turn % len(MUTATIONS)].__name__} {seed.path.name}"
        if name in outcomes:
            continue
        _, payload = mutate(seed.payload, turn, arguments.seed + index % len(seeds))
        mutated = folder / f"mutated{seed.path.suffix}"
        mutated.write_bytes(payload)
        outcome, seconds = judged_in_time(mutated, seed, limits, index, arguments.on_damage == "trim")
        outcomes[name] = (outcome, seconds)
        if arguments.results is not None:
            with open(arguments.results, "a") as file:
                row = {"name": name, **dataclasses.asdict(outcome), "seconds": round(seconds, 3)}
                file.write(json.dumps(row) + "\n")
        if outcome.kind in BAD_KINDS and arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{index}-{seed.path.name}").write_bytes(payload)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-bytes", type=int, default=600_000, help="larger files are not mutated")
    parser.add_argument("--on-damage", help="refuse or trim: DecodeLimits.on_damage")
    parser.add_argument("--results", type=Path, help="JSON lines, one per mutation: a stopped run goes on from there")
    parser.add_argument("--keep", type=Path, help="folder for the mutated files that are WRONG, CRASH or HANG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = arguments.paths or [render_seeds(folder / "seeds")]
        seeds = seeds_in(paths, arguments.max_bytes, DecodeLimits())
        print(f"{len(seeds)} seeds: {dict(Counter(seed.path.suffix for seed in seeds))}")
        start_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        outcomes = run(arguments, seeds, folder)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kinds = Counter(name.split()[1] for name in outcomes)
    print(f"{len(outcomes)} mutations of {len(seeds)} files, seed {arguments.seed}: {dict(kinds)}")
    print_outcomes({name: outcome for name, (outcome, _) in outcomes.items()}, listed=(*BAD_KINDS, "unproven"))
    print(f"slowest file {max(seconds for _, seconds in outcomes.values()):.1f} s")
    print(
        f"peak memory of this process {peak_bytes / 1e9:.2f} GB, {start_bytes / 1e9:.2f} GB before the first mutation"
    )
    return 1 if any(outcome.kind in BAD_KINDS for outcome, _ in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
