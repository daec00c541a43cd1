"""Seams: how large the step from a given frame to a made one is, against the usual step between made frames.

    python tests/benchmarks/bench_seams.py --checkpoint RUN/train/main [--num-scenes 4] [--num-steps 30] [--sheet FILE.png]

Scenes that the model never saw are animated from their first frame, extended both ways, extended beyond the length of the
training, connected, looped, filled in between, and edited. For each kind, over the scenes:

    seam ratio    mean absolute step across the border of given and made, over the mean step between neighbouring made
                  frames; 1 is seamless, the goal is 1.5 or less. For a loop also from its last frame to its first.
    given PSNR    given frames as they come back, against their pixels, and against what the compressor alone makes of them
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from recaption.scenes import SIMPLE, render
from train import timeline
from train.conditions import is_trained_for
from train.contact_sheet import contact_sheet_png
from train.requests import Request
from train.sampler import Sampler, SolverSettings
from train.timeline import Timeline

FIRST_SEED = 7_000_000
GOAL = 1.5


def step(video_THWC: np.ndarray, frame: int) -> float:
    """Mean absolute difference of a frame from the one before it, in levels of 255."""
    return float(np.abs(video_THWC[frame].astype(float) - video_THWC[frame - 1].astype(float)).mean())


def seams(given_T: np.ndarray, *, is_loop: bool) -> list[int]:
    """Frames at which given turns into made or back; 0 = from the last frame to the first."""
    edges = (np.flatnonzero(np.diff(given_T.astype(int))) + 1).tolist()
    return edges + ([0] if is_loop else [])


def made_steps(video_THWC: np.ndarray, given_T: np.ndarray) -> list[float]:
    """Steps between neighbouring made frames."""
    return [step(video_THWC, t) for t in range(1, len(given_T)) if not given_T[t] and not given_T[t - 1]]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(float) - other.astype(float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def requests_of(seed: int, sampler: Sampler) -> dict[str, Request]:
    """One request of every kind about one scene."""
    size = sampler.size(None, None, None)
    length = sampler.longest_frames
    scene = render(
        seed, num_frames=2 * length, height_px=size.height_px, width_px=size.width_px, fps=size.fps, **SIMPLE
    )
    video, grid = scene.frames_THWC, sampler.grid
    half = length // 2 + 1
    made_from: dict[str, Timeline] = {
        "image": timeline.animated(video[0], length, grid),
        "extend": timeline.extended(video[:half], sampler.default_new_frames("extend"), grid),
        "extend, 3 windows": timeline.extended(video[:half], 2 * length - 2, grid),
        "extend-back": timeline.led_up_to(video[half:length], sampler.default_new_frames("extend-back"), grid),
        "connect": timeline.connected(
            [video[:5], video[5 + sampler.default_new_frames("connect") :][:4]],
            sampler.default_new_frames("connect"),
            grid,
        ),
        "loop": timeline.looped(video[:half], sampler.default_new_frames("loop"), sampler.overlap_frames, grid),
        "inbetween": timeline.between([video[0], video[length - 1]], [0, length - 1], length, grid),
        "edit": timeline.edited(video[:length], 0.6, grid),
    }
    asked = {
        name: Request(text=scene.long_caption, timeline=one, seed=seed)
        for name, one in made_from.items()
        if is_trained_for(one.mode, sampler.conditions)
    }
    if is_trained_for("loop", sampler.conditions):
        asked["text, looped"] = Request(
            text=scene.long_caption,
            timeline=timeline.blank(length, size.height_px, size.width_px),
            closing_frames=sampler.default_new_frames("loop"),
        )
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--num-scenes", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    sampler = Sampler.from_checkpoint(arguments.checkpoint)
    names, requests = [], []
    for index in range(arguments.num_scenes):
        for name, request in requests_of(FIRST_SEED + index, sampler).items():
            names.append(name)
            requests.append(request)
    settings = SolverSettings(num_steps=arguments.num_steps, guidance=arguments.guidance)
    made = sampler.make(requests, settings, progress=True)
    ratios, usual, kept, kept_by_compressor = (defaultdict(list) for _ in range(4))
    for name, request, one in zip(names, requests, made):
        video, given_T, asked = one.video_THWC, one.given_T, request.timeline
        is_loop = asked.mode == "loop" or bool(request.closing_frames)
        if request.closing_frames:  # what was made first is given to what closes it
            given_T = np.arange(len(given_T)) < asked.num_frames
        steps = made_steps(video, given_T)
        usual[name].append(np.mean(steps))
        ratios[name] += [step(video, frame) / max(np.mean(steps), 1e-6) for frame in seams(given_T, is_loop=is_loop)]
        source_T = asked.given_T[asked.start : asked.end]
        if source_T.any():
            shown = video[: len(source_T)][source_T]
            source = asked.frames_THWC[asked.start : asked.end]
            kept[name].append(psnr(shown, source[source_T]))
            if source_T[0]:
                first = sampler.codec.decode(
                    sampler.codec.encode(source[:1]), sampler.grid.token_shape(1, *source.shape[1:3])
                )
                kept_by_compressor[name].append(float(np.abs(first.astype(int) - video[:1]).max()))
    print(
        f"{arguments.checkpoint}: {arguments.num_scenes} scenes, {arguments.num_steps} steps, guidance {arguments.guidance}"
    )
    print(
        "kind                 seam ratio: median   worst   within 1.5   step between made   given PSNR   first frame off by"
    )
    for name in dict.fromkeys(names):
        row = f"{name:20s} "
        if ratios[name]:
            share = np.mean(np.array(ratios[name]) <= GOAL)
            row += f"{np.median(ratios[name]):18.2f} {np.max(ratios[name]):7.2f} {share:12.2f}"
        else:
            row += " " * 39
        row += f" {np.mean(usual[name]):19.2f}"
        row += f" {np.mean(kept[name]):9.1f} dB" if kept[name] else " " * 13
        row += f" {np.max(kept_by_compressor[name]):10.0f} of 255" if kept_by_compressor[name] else ""
        print(row)
    if arguments.sheet:
        rows = [i for i in range(len(names)) if i < len(set(names))]
        sources = [requests[i].timeline.frames_THWC if names[i] == "edit" else None for i in rows]
        given = [made[i].given_T for i in rows]
        arguments.sheet.write_bytes(
            contact_sheet_png(
                [made[i].video_THWC for i in rows], [names[i] for i in rows], given=given, sources=sources
            )
        )


if __name__ == "__main__":
    main()
