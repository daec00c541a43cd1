"""SIGKILL in every command: of drivers, workers and decoders equally often; then the bytes against an undisturbed run.

    python tests/benchmarks/jobs/bench_kills.py                        # all commands, 46 kills, about 20 minutes on 2 cores
    python tests/benchmarks/jobs/bench_kills.py --only prepare shard   # these, after the commands that they need

Each command starts from the run folder that the undisturbed one started from. It is started again after every kill of its
driver, and from the beginning if it ends before all kills have been made. A target that is not up yet is waited for. Prints
the kills that hit by command and target, and the files that differ from the undisturbed run; clocks are left out.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stand_ins"))

from command_process import Command, hash_files

from recaption.scenes.renderer import SIMPLE, render

PATTERNS = {"driver": "", "worker": "^ray::PartRunner", "decoder": "recaption.decoding.worker"}
ALL = ("decoder", "worker", "driver", "worker", "decoder", "driver")
CLOCKS = re.compile(r"tfevents|metrics\.jsonl$|state\.json$|optimizer|timings\.json$|index\.html$")
"""Files with clock figures, and the optimizer, whose sums differ in the last bits where a training was resumed."""
WAIT_SECONDS = 180.0
MAX_STARTS = 12


def trainer(model: str, *more: str) -> list[str]:
    prefix = f"--train-{model}"
    flags = {"--num-steps": "12", "--checkpoint-every": "3", "--warmup-steps": "2", "--device": "cpu"}
    words = [f"{prefix}.trainer.{name[2:]}={value}" for name, value in flags.items()]
    return ["train", model, "--run", "RUN", *words, *(f"{prefix}.{flag}" for flag in more)]


TINY_CAPTIONER = ("captioner.batch-size=4", "captioner.num-frames=4", "captioner.frame-px=48",
                  "captioner.vision-width=32", "captioner.vision-layers=1", "captioner.width=32",
                  "captioner.text-layers=1", "captioner.decoder-layers=1")  # fmt: skip
TINY_COMPRESSOR = ("compressor.width=16", "compressor.num-frames=9", "compressor.height-px=48",
                   "compressor.width-px=48")  # fmt: skip
TINY_DIT = ("dit.width=64", "dit.depth=2", "dit.num-heads=2")
COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "prepare": (["prepare", "--videos", "VIDEOS", "--out", "RUN", "--prepare.part-size", "1",
                 "--shard.buckets.max-samples-per-shard", "2", *("--caption.num-beams", "1")], ALL),
    "caption": (["caption", "--run", "RUN"], ALL),
    "shard": (["shard", "--run", "RUN"], ALL),
    "encode": (["encode", "--run", "RUN"], ("worker", "decoder", "driver", "decoder")),
    "encode text": (["encode", "--run", "RUN", "--encode.text.encoder", "captioner:tiny"], ("worker", "driver")),
    "plan": (["plan", "--run", "RUN", "--ranks", "2", "--capacity", "1024"], ("driver",)),
    "train dit": (trainer("dit", *TINY_DIT), ("driver", "driver")),
    "train compressor": ([*trainer("compressor", *TINY_COMPRESSOR), "--name", "c"], ("driver", "decoder")),
    "train captioner": (
        [*trainer("captioner", *TINY_CAPTIONER), "--name", "k", "--captions", "main"], ("driver", "decoder", "driver")
    ),
    "sample": (["sample", "--checkpoint", "RUN/train/main", "--prompt", "a red circle", "--num-frames", "5",
                "--num-steps", "4"], ("driver",)),
    "report": (["report", "--run", "RUN"], ("driver",)),
    "verify --repair": (["verify", "--run", "RUN", "--repair"], (*ALL, "worker", "decoder", "decoder", "worker")),
}  # fmt: skip
"""Command -> (arguments, targets of its kills, in turn)."""


@dataclass
class Outcome:
    hits: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    seconds: float = 0.0
    differing: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


def damage(run: Path) -> None:
    """A byte flipped in a shard, a latent tar cut, a caption part deleted, a clips part cut."""
    tar = sorted(run.glob("shards/*/*.tar"))[0]
    payload = bytearray(tar.read_bytes())
    payload[700] ^= 255
    tar.write_bytes(bytes(payload))
    latents = sorted(run.glob("latents/*/*/*.tar"))[-1]
    latents.write_bytes(latents.read_bytes()[:-2048])
    sorted(run.glob("captions/main/part-*.parquet"))[2].unlink()
    clips = sorted(run.glob("clips/part-*.parquet"))[1]
    clips.write_bytes(clips.read_bytes()[:100])


def restore(before: Path, run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    if before.exists():
        shutil.copytree(before, run)


def wait_for(command: Command, target: str, busy_seconds: float, rng: random.Random) -> bool:
    """Wait until a target is up and has worked for a moment; False if the command ended or none comes."""
    deadline = time.monotonic() + WAIT_SECONDS
    if target == "driver":
        time.sleep(rng.uniform(0.2, 0.9) * busy_seconds)
    while command.process.poll() is None and time.monotonic() < deadline:
        if target == "driver" or command.descendants(PATTERNS[target]):
            time.sleep(rng.uniform(0, 1.0) if target != "driver" else 0)
            return command.process.poll() is None
        time.sleep(0.05)
    return False


def kill(command: Command, target: str, rng: random.Random) -> bool:
    if target != "driver":
        return command.kill_one(PATTERNS[target], rng)
    if rng.random() < 0.5:
        command.kill_all()  # with everything in its process group
    else:
        command.process.kill()
        command.process.communicate()
    return True


def disturbed(
    arguments: list[str], targets: tuple[str, ...], start: Path, run: Path, log: Path, busy: float
) -> Outcome:
    """Run a command with these kills until it has ended by itself and all kills were made."""
    rng, outcome, waiting = random.Random(" ".join(arguments)), Outcome(), list(targets)
    restore(start, run)
    command = None
    while outcome.starts < MAX_STARTS:
        if command is None:
            command, outcome.starts = Command(*arguments, log=log), outcome.starts + 1
        if not waiting:
            command.process.communicate()
            return outcome
        if wait_for(command, waiting[0], busy, rng) and kill(command, waiting[0], rng):
            outcome.hits[waiting.pop(0)] += 1
        if command.process.poll() is None:
            continue
        was_killed = command.process.returncode == -9
        outcome.leftover += command.leftover_processes()
        command = None
        if not was_killed and waiting:  # it was done before the kill
            if outcome.starts >= 4 and not outcome.hits[waiting[0]]:
                outcome.missed.append(waiting.pop(0))
            restore(start, run)
        elif not was_killed:
            return outcome
    outcome.missed += waiting
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--num-videos", type=int, default=10)
    parser.add_argument("--work", default="", help="folder for everything; default: a temporary one")
    options = parser.parse_args()
    work = Path(options.work or tempfile.mkdtemp(prefix="bench-kills-"))
    videos, run, start, end = (work / name for name in ("videos", "run", "start", "end"))
    videos.mkdir(parents=True, exist_ok=True)
    for seed in range(options.num_videos):
        render(6000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE).write(videos / f"{seed:02d}.mp4")
    last = max(list(COMMANDS).index(name) for name in options.only)
    total: Counter[str] = Counter()
    for name in list(COMMANDS)[: last + 1]:
        arguments = [word.replace("RUN", str(run)).replace("VIDEOS", str(videos)) for word in COMMANDS[name][0]]
        if name == "verify --repair":
            damage(run)
        shutil.rmtree(start, ignore_errors=True)
        if run.exists():
            shutil.copytree(run, start)
        began = time.monotonic()
        undisturbed = Command(*arguments, log=work / "log")
        undisturbed.process.communicate()
        busy = time.monotonic() - began
        if undisturbed.process.returncode:
            sys.exit(f"{name} ended with {undisturbed.process.returncode}: see {work / 'log'}")
        expected = hash_files(run)
        restore(run, end)
        if name in options.only:
            outcome = disturbed(arguments, COMMANDS[name][1], start, run, work / "log", busy)
            found = hash_files(run)
            names = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
            outcome.differing = [path for path in names if not CLOCKS.search(path)]
            total += outcome.hits
            row = {"command": name, "undisturbed_seconds": round(busy), "starts": outcome.starts, **outcome.hits}
            leftover = [" ".join(line.split()[:3]) for line in outcome.leftover]
            row |= {"differing": outcome.differing[:5], "leftover": leftover, "not_up": outcome.missed}
            print(json.dumps(row), flush=True)
        restore(end, run)
    print(json.dumps({"kills": total.total(), **total}), flush=True)
    if not options.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main()
