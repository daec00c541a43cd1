"""CPU time and memory per clip of `recaption verify` and `--what-if` as a run grows. Prints one table.

    PYTHONPATH=. python tests/benchmarks/jobs/bench_verify.py            # 20,000 and 60,000 clips: 3 minutes on one core
    PYTHONPATH=. python tests/benchmarks/jobs/bench_verify.py 2000 6000

Samples are tiny (3 kB), so this measures the bookkeeping, not reading pixels. Each size runs in its own process; the
memory per clip is the difference of the peaks divided by the difference of the sizes.
"""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
import pyarrow as pa

from packing.buckets import Bucket, bucket_name
from packing.shards.index import build_index
from packing.shards.samples import Entry
from packing.shards.write import write_shard
from recaption.ledger.ledger import CLIPS_SCHEMA, REJECTED_SCHEMA, build_ledger, read_clips
from recaption.ledger.verify import verify
from recaption.quality.filters import FilterThresholds, drop_reasons
from recaption.quality.threshold_analysis import filter_funnel, retention_curve, threshold_columns
from recaption.records import Caption, Video, to_table
from recaption.run_folder import RunFolder

CLIPS_PER_PART = 1000
CLIPS_PER_VIDEO = 10
TEXT = (
    "A flat clip shows a large plain red circle that moves left. The weather is clear. All along, the camera is fixed."
)
BUCKET = Bucket(17, 64, 64, 8)


def write_run(run: RunFolder, num_clips: int) -> None:
    """A finished run of that many clips."""
    inputs = []
    for part in range(num_clips // CLIPS_PER_PART):
        videos, clips = [], []
        for i in range(CLIPS_PER_PART // CLIPS_PER_VIDEO):
            uri = f"s3://bucket/raw/some/folder/of/videos/{part:05d}-{i:05d}.mp4"
            video_id = hashlib.sha256(uri.encode()).hexdigest()[:16]
            seconds = 2.0 * CLIPS_PER_VIDEO
            videos.append(Video(video_id=video_id, uri=uri, num_frames=240, duration_seconds=seconds))
            inputs.append({"uri": uri, "part": part})
            for j in range(CLIPS_PER_VIDEO):
                row = dict.fromkeys(CLIPS_SCHEMA.names)
                row |= {"clip_id": f"{video_id}-{24 * j:07d}-{24 * j + 24:07d}", "video_id": video_id, "uri": uri}
                row |= {"shot_index": j, "start_frame": 24 * j, "end_frame": 24 * j + 24, "fps": 12.0}
                row |= {"start_seconds": 2.0 * j, "end_seconds": 2.0 * j + 2, "width_px": 64, "height_px": 64}
                clips.append(row | {"motion": 0.05 + j / 10, "sharpness": 99.0 + j, "luma": 0.5})
        texts = [Caption(clip_id=c["clip_id"], text=TEXT, recipe_hash="c", captioner="tiny@0") for c in clips]
        run.write_table(f"clips/part-{part:05d}.parquet", pa.Table.from_pylist(clips, schema=CLIPS_SCHEMA))
        run.write_table(f"videos/part-{part:05d}.parquet", to_table(videos, Video))
        run.write_table(f"captions/main/part-{part:05d}.parquet", to_table(texts, Caption), {"recipe_hash": "c"})
        fields = {"bucket": bucket_name(BUCKET), "num_frames": 17, "height_px": 64, "width_px": 64, "fps": 8}
        fields |= {"num_latent_tokens": 80, "num_caption_tokens": 30, "caption": TEXT}
        members = {"mp4": b"pixels", "json": b"{}", "txt": TEXT.encode()}
        entries = [Entry(key=c["clip_id"], members=members, fields=fields) for c in clips]
        write_shard(run, f"shards/{bucket_name(BUCKET)}/{part:06d}", entries, plan_hash="p")
    run.write_table("inputs.parquet", pa.Table.from_pylist(inputs))
    run.write_table("shards/rejected.parquet", REJECTED_SCHEMA.empty_table(), {"set": "main"})
    build_index(run)


def measure(folder: str) -> None:
    """One line: CPU seconds of verify, of the sums, of a what-if; peak bytes after each."""
    run, thresholds = RunFolder(folder), FilterThresholds(min_motion=0.02)
    figures = []
    started = time.process_time()
    problems = verify(run, thresholds)
    figures += [time.process_time() - started, _peak_bytes()]
    assert not problems, problems[:3]
    started = time.process_time()
    build_ledger(run, thresholds).summary()
    figures += [time.process_time() - started, _peak_bytes()]
    started = time.process_time()
    clips = read_clips(run)
    evaluate = partial(drop_reasons, clips)
    filter_funnel(evaluate(thresholds), {"clips": np.ones(clips.num_rows)})
    for column in threshold_columns(clips, thresholds, evaluate).values():
        retention_curve(column)
    figures += [time.process_time() - started, _peak_bytes()]
    print(*figures)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(sizes: list[int]) -> None:
    lines = []
    for num_clips in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_run(RunFolder(folder), num_clips)
            command = [sys.executable, __file__, "--measure", folder]
            found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            lines.append([float(figure) for figure in found.split()])
    print(f"{'':<28}" + "".join(f"{size:>14,} clips" for size in sizes) + "      bytes of memory per clip")
    for i, name in enumerate(("verify without pixels", "sums of the ledger", "curves and waterfall")):
        times = "".join(f"{1e6 * line[2 * i] / size:>13.0f} µs/clip" for line, size in zip(lines, sizes))
        per_clip = (lines[-1][2 * i + 1] - lines[0][2 * i + 1]) / (sizes[-1] - sizes[0])
        print(f"{name:<28}{times}{per_clip:>14,.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main([int(size) for size in sys.argv[1:]] or [20_000, 60_000])
