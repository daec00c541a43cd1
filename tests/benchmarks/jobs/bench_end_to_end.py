"""Clips per CPU-second of the whole pipeline against a minimal script (naive_chain.py).

    python tests/benchmarks/jobs/bench_end_to_end.py --videos FOLDER

Both sides get the same files, several copies of the single-shot files of FOLDER, and the same CoCa ViT-B-32; both write
captioned WebDataset shards. The script's cost is linear, so only its start and one round are measured. Ours is the full
`recaption run`: sandboxed decoding, frame checks, shots, scores, duplicates, captions with gates and scores, transcoded
buckets, commits. CPU seconds of all processes of a side, Ray included. Then the same without captioners: 8 frames per
file at 224 px, read and written by both. The script needs `pip install "recaption[bench]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from process_tree import cpu_seconds_of

MODEL = "coca_ViT-B-32"
NUM_FRAMES, SIDE_PX = 8, 224
SENTENCE = "a short clip shows people and things that move about in some place with light"
HERE = Path(__file__).parent


def write_weights(path: Path) -> int:
    """Full-size weights that always generate `SENTENCE` (random ones fail the gates); returns its number of tokens.

    Residual branches end in zeros, at the same cost; the embedding of each position points at the next word.
    """
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    tokenizer = open_clip.get_tokenizer(MODEL)
    words = [*tokenizer.encode(SENTENCE), tokenizer.eot_token_id]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("text") and name.rpartition(".")[0].endswith(("out_proj", "c_proj")):
                weight.zero_()
        model.text.token_embedding.weight.zero_()
        positions_MD = torch.nn.functional.layer_norm(model.text.positional_embedding.normal_(), (512,))
        model.text_decoder.text_projection.zero_()
        model.text_decoder.text_projection[:, words] = positions_MD[: len(words)].T
    torch.save(model.state_dict(), path)
    return len(words)


def recaption(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs", *arguments, "--no-progress", "--json"]


def files_of_one_shot(videos: list[str], folder: Path, max_files: int) -> list[Path]:
    """The inputs with exactly one kept clip, so that both sides write the same clips."""
    import pyarrow.parquet as pq

    run = folder / "probe"
    command = recaption("prepare", "--videos", *videos, "--out", str(run), "--prepare.max-clip-seconds", "20")
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    uris = [uri for part in sorted(run.glob("clips/*.parquet")) for uri in pq.read_table(part)["uri"].to_pylist()]
    single = sorted(uri for uri in set(uris) if uris.count(uri) == 1 and uri.endswith(".mp4"))
    return [Path(uri).resolve() for uri in single[:: -(-len(single) // max_files)]]


def copies(files: list[Path], folder: Path, num_copies: int) -> Path:
    """`num_copies` copies of every file, made distinct by a trailing mp4 box that players skip."""
    folder.mkdir()
    for number in range(num_copies):
        for index, file in enumerate(files):
            text = b"copy %06d" % number
            box = (8 + len(text)).to_bytes(4, "big") + b"free" + text
            (folder / f"{number:04d}-{index:04d}.mp4").write_bytes(file.read_bytes() + box)
    return folder


def ours(videos: Path, out: Path, weights: Path, num_tokens: int) -> tuple[float, dict[str, float], int]:
    """(CPU seconds of everything, those of the workers by stage, clips in shards)."""
    command = ["run", "--videos", str(videos), "--out", str(out), "--stop-after", "shard"]
    command += ["--caption.captioner", f"open_clip:{MODEL}/{weights}", "--caption.max-tokens", str(num_tokens)]
    command += ["--prepare.max-clip-seconds", "20", "--filters.min-seconds", "0.3"]
    command += ["--filters.max-duplicate-similarity", "None"]  # search for duplicates, but keep them
    command += ["--shard.buckets.max-areas-px", str(96 * 96), str(256 * 448)]
    command += ["--shard.buckets.num-frames", "5", "17", "33"]
    by_kind, wall, _ = cpu_seconds_of(recaption(*command))
    stages = json.loads((out / "report/timings.json").read_text())["throughput"]
    workers = {stage: record["cpu_seconds"] for stage, record in stages.items()}
    print("  " + ", ".join(f"{kind} {spent:.1f}" for kind, spent in sorted(by_kind.items(), key=lambda p: -p[1])))
    print("  workers and decoders: " + ", ".join(f"{stage} {spent:.1f}" for stage, spent in workers.items()))
    print(f"  {wall:.0f} s wall", flush=True)
    verified = subprocess.run(recaption("verify", "--run", str(out), "--pairs", "0"), stdout=-1, check=True).stdout
    return sum(by_kind.values()), workers, json.loads(verified)["clips"]["in_shard"]


def frames_only(run_uri: str, out: str) -> None:
    """The script's work without a captioner, through our library: 8 checked frames per clip, a committed shard."""
    import numpy as np

    from packing.buckets import Bucket
    from packing.shards.plan import ShardClip
    from packing.shards.samples import video_entry
    from packing.shards.write import write_shard
    from recaption.records import Clip, from_table, schema_of
    from recaption.run_folder import RunFolder
    from recaption.video_io.reader import read_frames

    bucket = Bucket(num_frames=5, height_px=SIDE_PX, width_px=SIDE_PX, fps=8)
    entries = []
    for clip in from_table(RunFolder(run_uri).read_tables("clips/part-*.parquet", schema_of(Clip)), Clip):
        indices = np.linspace(clip.start_frame, clip.end_frame - 1, NUM_FRAMES).astype(int)
        frames = read_frames(clip.uri, indices, short_side_px=min(SIDE_PX, clip.width_px, clip.height_px))
        fields = {name: getattr(clip, name) for name in ShardClip.__dataclass_fields__ if hasattr(clip, name)}
        payload = frames.pixels_THWC.tobytes()
        entries.append(video_entry(ShardClip(**fields, caption=""), bucket, payload, num_latent_tokens=1))
    write_shard(RunFolder(out), "shards/frames/000000", entries, plan_hash="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="+")
    parser.add_argument("--max-files", type=int, default=17)
    parser.add_argument(
        "--copies", type=int, default=24, help="of each file, for our side; the script's cost is linear"
    )
    parser.add_argument("--frames-only", nargs=2, metavar=("RUN", "OUT"), help="internal: one side of a comparison")
    arguments = parser.parse_args()
    if arguments.frames_only:
        frames_only(*arguments.frames_only)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = folder / "coca.pt"
        num_tokens = write_weights(weights)
        files = files_of_one_shot(arguments.videos, folder, arguments.max_files)
        once, many = copies(files, folder / "once", 1), copies(files, folder / "many", arguments.copies)
        empty = copies(files, folder / "empty", 0)
        num_clips = len(files) * arguments.copies
        print(f"{len(files)} mp4 files of one shot, {num_tokens} tokens a caption; {num_clips} clips", flush=True)

        def naive(videos: Path, *how: str) -> float:
            script = [sys.executable, str(HERE / "naive_chain.py"), str(videos), f"{folder}/naive"]
            return sum(cpu_seconds_of([*script, *how])[0].values())

        with_captioner, without = (str(weights), str(num_tokens)), ("none", "0")
        start = naive(empty, *with_captioner)
        each = (naive(once, *with_captioner) - start) / len(files)
        script = start + each * num_clips
        print(f"script: {start:.1f} CPU-s to start, {each:.2f} per clip: {script:.0f} for {num_clips}", flush=True)
        total, workers, in_shards = ours(many, folder / "run", weights, num_tokens)
        print(f"ours:   {total:.0f} CPU-s, {total / in_shards:.2f} per clip, {in_shards} clips in shards")
        print(f"clips per CPU-second, ours / script: {(in_shards / total) / (num_clips / script):.2f}", flush=True)
        start_frames = naive(empty, *without)
        script = start_frames + (naive(once, *without) - start_frames) / len(files) * num_clips
        command = [sys.executable, __file__, "--frames-only", str(folder / "run"), f"{folder}/ours"]
        frames = sum(cpu_seconds_of(command)[0].values())
        print(f"without captioner, 8 frames a clip and a shard: script {script:.1f}, ours {frames:.1f} CPU-s,")
        print(f"  clips per CPU-second, ours / script: {script / frames:.2f}")
        rest = workers["prepare"] + workers["shard"]
        print(f"prepare and shard, all that they do, against that script: {script / rest:.2f}")


if __name__ == "__main__":
    main()
