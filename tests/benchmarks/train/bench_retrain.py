"""A retrained captioner against its initial weights, on held-out scenes and on the CPU.

    python tests/benchmarks/train/bench_retrain.py --init-from tiny --trainable lit --style notes --steps 150
    python tests/benchmarks/train/bench_retrain.py --init-from tiny --trainable full --style scenes --steps 300

`--style notes` is the use case of retraining: the same scenes captioned in another style. `scenes` are the captions that
`tiny` was trained on. Both are evaluated on descriptive captions of the same scenes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from recaption.captioners.preprocess import FramePreprocessor
from recaption.scenes.captions import fields_in
from train.captioner.clips import CaptionedClip
from train.captioner.evaluation import evaluate, held_out_clips
from train.captioner.scene_clips import SceneClips
from train.captioner.stages import TWO_STAGES
from train.captioner.task import CaptionerSettings, CaptionerTask
from train.engine.settings import TrainerSettings
from train.engine.trainer import train


class NotedScenes(SceneClips):
    """Scenes captioned in the style of a shot log."""

    name = "noted scenes"

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        clip = super().clip(number, preprocessor, num_frames=num_frames, epoch=epoch)
        return dataclasses.replace(clip, captions={**clip.captions, "descriptive": (noted(clip),)})

    def texts(self, count: int) -> list[str]:
        return [_note(fields_in(text)) for text in super().texts(count)]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "name": self.name}


def noted(clip: CaptionedClip) -> str:
    return _note(clip.truth)


def _note(fields: Any) -> str:
    word = f'Sign: "{fields.text}".' if fields.text else "No sign."
    return (
        f"{fields.background.capitalize()}, {fields.surroundings} around. Subject: {fields.colour} {fields.main_object}, "
        f"{fields.action}. {word} Treatment: {fields.style}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init-from", default="tiny")
    parser.add_argument("--trainable", default="lit")
    parser.add_argument("--style", choices=("notes", "scenes"), default="notes")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--stages", nargs="*", default=TWO_STAGES)
    parser.add_argument("--scenes", type=int, default=60, help="held-out scenes to evaluate on")
    parser.add_argument("--validate-every", type=int, default=0)
    parser.add_argument("--out", help="folder for the training")
    options = parser.parse_args()

    source = NotedScenes if options.style == "notes" else SceneClips
    settings = CaptionerSettings(
        init_from=options.init_from,
        trainable=options.trainable,
        stages=tuple(options.stages),
        num_workers=0,
        num_validation_scenes=24,
    )
    task = CaptionerTask(settings, num_batches=options.steps, clips=source(), held_out=source(held_out=True))
    initial = CaptionerTask(
        CaptionerSettings(init_from=options.init_from), clips=source()
    )  # generates the initial captioner's kinds only
    before_captioner = initial.captioner(initial.model)
    clips = held_out_clips(source(held_out=True), options.scenes, before_captioner)
    before = evaluate(before_captioner, clips)

    folder = options.out or tempfile.mkdtemp(prefix="bench-retrain-")
    cpu = time.process_time()
    result = train(
        task,
        TrainerSettings(
            num_steps=options.steps, lr=options.lr, warmup_steps=max(1, options.steps // 10), weight_decay=0.05,
            ema_decay=0.98, device="cpu", checkpoint_every=50, log_every=10, validate_every=options.validate_every,
        ),
        folder,
        progress=False,
    )  # fmt: skip
    cpu = time.process_time() - cpu
    from recaption.captioners.registry import load_captioner

    after = evaluate(load_captioner(folder), clips)
    print(
        f"{options.init_from} {options.trainable}, {result.steps} steps of {settings.batch_size} clips: "
        f"{cpu / 60:.1f} CPU-minutes"
    )
    print(
        f"{options.scenes} held-out scenes, style {options.style}\n\n| metric | initial | retrained |\n| --- | --- | --- |"
    )
    for name in dict.fromkeys([*before, *after]):
        print(f"| {name} | {_shown(before.get(name))} | {_shown(after.get(name))} |")
    print("\nstep, caption loss, contrastive loss, validation CIDEr-D")
    for text in Path(folder, "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        print(line["step"], *(_shown(line.get(key)) for key in ("log/caption", "log/contrastive", "val/cider_d")))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
