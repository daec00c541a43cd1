"""Clips per CPU-second of the whole chain against the shortest script a user would write today (naive_chain.py).

    python tests/benchmarks/bench_end_to_end.py --videos FOLDER

Both sides get the same files, those of FOLDER that are one shot each, and the same CoCa ViT-B-32; both write captioned
WebDataset shards. Ours is the three commands with everything that makes them safe: decoding in limited children, every
frame checked, shots, scores, captions with gates and scores, transcoded buckets, commits. CPU seconds of all processes of
a side, Ray's own among them. Then the same without captioners: 8 frames per file at 224 px, read and written by both.
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
    """Weights of full size that always say `SENTENCE`; returns its tokens. Random ones say nothing that passes a gate.

    Residual branches end in zeros and cost what others cost; each position's embedding points at the next word.
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
        places_MD = torch.nn.functional.layer_norm(model.text.positional_embedding.normal_(), (512,))
        model.text_decoder.text_projection.zero_()
        model.text_decoder.text_projection[:, words] = places_MD[: len(words)].T
    torch.save(model.state_dict(), path)
    return len(words)


def recaption(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs", *arguments, "--no-progress", "--json"]


def files_of_one_shot(videos: list[str], folder: Path, max_files: int) -> Path:
    """Links to the inputs that are one kept clip each, so that both sides make the same clips."""
    import pyarrow.parquet as pq

    run = folder / "probe"
    command = recaption("prepare", "--videos", *videos, "--out", str(run), "--prepare.max-clip-seconds", "20")
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    uris = [uri for part in sorted(run.glob("clips/*.parquet")) for uri in pq.read_table(part)["uri"].to_pylist()]
    linked = folder / "videos"
    linked.mkdir()
    single = sorted(uri for uri in set(uris) if uris.count(uri) == 1)
    single = single[:: -(-len(single) // max_files)]
    for index, uri in enumerate(single):
        (linked / f"{index:05d}{Path(uri).suffix}").symlink_to(Path(uri).resolve())
    return linked


def ours(videos: Path, out: Path, weights: Path, num_tokens: int) -> tuple[dict[str, float], int]:
    """(CPU seconds by command, clips in shards)."""
    chain = {
        "prepare": ["--videos", str(videos), "--out", str(out), "--prepare.max-clip-seconds", "20"],
        "caption": ["--run", str(out), "--captioner", f"open_clip:{MODEL}/{weights}"],
        "shard": ["--run", str(out)],
    }
    chain["prepare"] += ["--caption.max-tokens", str(num_tokens), "--shard.buckets.max-areas-px", str(256 * 448)]
    chain["prepare"] += ["--filters.min-seconds", "0.3", "--shard.buckets.num-frames", "5", "17", "33"]
    seconds = {}
    for verb, arguments in chain.items():
        by_kind, wall, _ = cpu_seconds_of(recaption(verb, *arguments))
        seconds[verb] = sum(by_kind.values())
        detail = ", ".join(f"{kind} {spent:.1f}" for kind, spent in sorted(by_kind.items(), key=lambda p: -p[1]))
        print(f"  {verb:<8} {seconds[verb]:7.1f} CPU-s, {wall:6.1f} s wall: {detail}")
    index = json.loads(subprocess.run(recaption("verify", "--run", str(out)), stdout=-1, check=True).stdout)
    return seconds, index["clips"]["in_shard"]


def frames_only(run_uri: str, out: str) -> None:
    """The script's work without its captioner, done as our stages do it: 8 checked frames per clip, a committed shard."""
    import numpy as np

    from packing.buckets import Bucket
    from packing.shards import ShardClip, video_entry, write_shard
    from recaption.records import Clip, from_table, schema_of
    from recaption.run_folder import RunFolder
    from recaption.video_io import read_frames

    bucket = Bucket(num_frames=5, height_px=SIDE_PX, width_px=SIDE_PX, fps=8)
    entries = []
    for clip in from_table(RunFolder(run_uri).read_tables("clips/part-*.parquet", schema_of(Clip)), Clip):
        indices = np.linspace(clip.start_frame, clip.end_frame - 1, NUM_FRAMES).astype(int)
        frames = read_frames(clip.uri, indices, short_side_px=min(SIDE_PX, clip.width_px, clip.height_px))
        known = {name: getattr(clip, name) for name in ShardClip.__dataclass_fields__ if hasattr(clip, name)}
        payload = frames.pixels_THWC.tobytes()
        entries.append(video_entry(ShardClip(**known, caption=""), bucket, payload, num_latent_tokens=1))
    write_shard(RunFolder(out), "shards/frames/000000", entries, plan_hash="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="+")
    parser.add_argument("--max-files", type=int, default=24)
    parser.add_argument("--frames-only", nargs=2, metavar=("RUN", "OUT"), help="internal: one side of a comparison")
    asked = parser.parse_args()
    if asked.frames_only:
        frames_only(*asked.frames_only)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = folder / "coca.pt"
        num_tokens = write_weights(weights)
        videos = files_of_one_shot(asked.videos, folder, asked.max_files)
        num_files = len(list(videos.iterdir()))
        print(f"{num_files} files of one shot, {num_tokens} tokens a caption", flush=True)
        script = [sys.executable, str(HERE / "naive_chain.py"), str(videos)]
        naive = sum(cpu_seconds_of([*script, f"{folder}/naive", str(weights), str(num_tokens)])[0].values())
        print(f"script: {naive:7.1f} CPU-s, {naive / num_files:.2f} per clip", flush=True)
        seconds, num_clips = ours(videos, folder / "run", weights, num_tokens)
        total = sum(seconds.values())
        print(f"ours:   {total:7.1f} CPU-s, {total / num_clips:.2f} per clip, {num_clips} clips in shards")
        print(f"clips per CPU-second, ours / script: {(num_clips / total) / (num_files / naive):.2f}", flush=True)
        sides = {
            "script": [*script, f"{folder}/frames", "none", "0"],
            "ours": [sys.executable, __file__, "--frames-only", str(folder / "run"), f"{folder}/ours"],
        }
        spent = {side: sum(cpu_seconds_of(command)[0].values()) for side, command in sides.items()}
        print(f"without captioner, 8 frames and a shard: script {spent['script']:.1f}, ours {spent['ours']:.1f} CPU-s,")
        print(f"  clips per CPU-second, ours / script: {spent['script'] / spent['ours']:.2f}")


if __name__ == "__main__":
    main()
