"""Text, quality and NSFW scores on real clips: detection rates and CPU time.

    PYTHONPATH=. python tests/benchmarks/recaption/bench_scores.py FIXTURES/real                  about 4 CPU-minutes
    PYTHONPATH=. python tests/benchmarks/recaption/bench_scores.py FIXTURES/real --models         without model scorers

The clips have no overlays of their own; test patterns and title cards among the fixtures are left out. Six kinds of
watermarks are overlaid on every clip: a word across the middle at 45 % opacity, a small name in a corner, an outlined
address at the bottom, a logo, a thin line of 4 % of the height, and a word tiled over the picture at 30 %. Cells are `a/b`:
b clips have a score (not None), a of them are above the threshold. Blockiness: the clips as they are, and re-encoded
with ffmpeg.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recaption.quality.model_scorers import load_scorers
from recaption.quality.overlay_text import overlay_text_fraction
from recaption.quality.scores import ScoreSettings, blockiness, flicker, text_fraction
from recaption.scenes.renderer import render
from recaption.shots.clips import cut_to_clips
from recaption.shots.detect import find_shots_in
from recaption.video_io.reader import scan

EXCLUDED = ("test1.mp4", "scene_cuts.mp4", "av1_video.mkv", "bt709", "h264_10bits", "h265")
"""Title cards, a screen recording and test patterns: they contain text."""
CAMERAS = ("pans left", "pans right", "zooms in", "zooms out")
WATERMARKS = ("across", "corner", "address", "logo", "thin", "tiled")
ENCODINGS = {
    "MPEG-4 q 12": "-c:v mpeg4 -q:v 12",
    "MPEG-4 q 31": "-c:v mpeg4 -q:v 31",
    "JPEG q 31": "-c:v mjpeg -q:v 31",
    "H.264 crf 40": "-c:v libx264 -crf 40 -preset veryfast",
    "H.264 crf 48": "-c:v libx264 -crf 48 -preset veryfast",
}


@dataclass(frozen=True)
class Clip:
    name: str
    small_THWC: np.ndarray
    pts_seconds: np.ndarray
    detail_THWC: np.ndarray
    size_px: tuple[int, int]


def luma(pixels_THWC: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in pixels_THWC])


def clips_of(path: Path) -> list[Clip]:
    found = scan(path)
    if found.video.status != "ok":
        return []
    pts, small, detail = found.pts_seconds, found.small, found.detail
    end_seconds = float(pts[0]) + found.video.duration_seconds
    spans = cut_to_clips(find_shots_in(small.pixels_THWC, pts), pts, end_seconds, max_seconds=10, min_seconds=1)
    clips = []
    for _, start, end in spans:
        chosen = (detail.indices >= start) & (detail.indices < end)
        if chosen.sum() >= 2:
            size_px = (found.video.height_px, found.video.width_px)
            frames = detail.pixels_THWC[chosen]
            clips.append(Clip(f"{path.name}@{start}", small.pixels_THWC[start:end], pts[start:end], frames, size_px))
    return clips


def panning_scene(seed: int) -> Clip:
    """Five seconds of a scene without text, two frames a second, with camera motion."""
    camera = CAMERAS[seed % len(CAMERAS)]
    scene = render(70_000 + seed, num_frames=40, height_px=256, width_px=400, fps=8, text="", camera=camera)
    pixels = scene.frames_THWC
    return Clip(f"scene {seed}", pixels, np.arange(40) / 8, pixels[::4], (256, 400))


def watermark(height: int, width: int, kind: str) -> np.ndarray:
    """(H, W, 4) RGBA, rendered at twice the size and downscaled."""
    tall, wide = 2 * height, 2 * width
    image = Image.new("RGBA", (wide, tall))
    draw = ImageDraw.Draw(image)

    def write(text: str, size: float, x: float, y: float, opacity: float, anchor: str = "mm", stroke: int = 0) -> None:
        font = ImageFont.load_default(max(6, int(size * tall)))
        alpha = int(255 * opacity)
        place = (x * wide, y * tall)
        shade = (0, 0, 0, alpha)
        draw.text(place, text, (255, 255, 255, alpha), font, anchor, stroke_width=stroke, stroke_fill=shade)

    if kind == "across":
        write("stockfootage", 0.12, 0.5, 0.5, 0.45, stroke=1)
    if kind == "corner":
        write("clips.example", 0.055, 0.97, 0.95, 0.85, "rm")
    if kind == "address":
        write("www.example.org", 0.06, 0.5, 0.93, 0.95, stroke=2)
    if kind == "logo":
        x, y, radius = 0.9 * wide, 0.13 * tall, 0.08 * tall
        box = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(box, outline=(255, 255, 255, 200), width=int(0.012 * tall))
        write("TV9", 0.064, 0.9, 0.13, 0.8)
    if kind == "thin":
        write("© 2021 Somebody Productions", 0.04, 0.03, 0.96, 0.9, "lm")
    if kind == "tiled":
        for y in np.arange(0.12, 1, 0.25):
            for x in np.arange(0.15, 1, 0.33):
                write("SAMPLE", 0.06, x, y, 0.3)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def watermarked(frames_THWC: np.ndarray, kind: str) -> np.ndarray:
    overlay = watermark(*frames_THWC.shape[1:3], kind)
    alpha = overlay[..., 3:].astype(np.float32) / 255
    return (frames_THWC * (1 - alpha) + overlay[..., :3] * alpha).round().astype(np.uint8)


def text_table(name: str, score: Callable[[np.ndarray], float | None], clips: list[Clip], threshold: float) -> None:
    cells = []
    seconds = time.process_time()
    for kind in ("none", *WATERMARKS):
        values = [score(c.detail_THWC if kind == "none" else watermarked(c.detail_THWC, kind)) for c in clips]
        scored = [value for value in values if value is not None]
        cells.append(f"{sum(value > threshold for value in scored)}/{len(scored)}")
        if kind == "none":
            seconds = (time.process_time() - seconds) / len(clips)
    print(f"| {name} > {threshold:g} | {len(clips)} | {' | '.join(cells)} | {seconds * 1000:.0f} |", flush=True)


def blockiness_table(paths: list[Path]) -> None:
    print("\n| video | " + " | ".join(["as it is", *ENCODINGS]) + " |\n| --- " + "| --- " * (len(ENCODINGS) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            cells = []
            for options in ("", *ENCODINGS.values()):
                source = path
                if options:
                    source = Path(folder) / "a.mkv"
                    command = ["ffmpeg", "-v", "error", "-y", "-i", str(path), "-t", "3", "-an", "-threads", "1"]
                    subprocess.run([*command, *options.split(), str(source)], check=True)
                found = scan(source)
                size_px = (found.video.height_px, found.video.width_px)
                value = blockiness(luma(found.detail.pixels_THWC[:8]), size_px)
                cells.append("-" if value is None else f"{value:.2f}")
            print(f"| {path.name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=["ocr", "nsfw"])
    parser.add_argument("--every", type=int, default=2, help="run the OCR on every n-th clip")
    parser.add_argument("--scenes", type=int, default=40, help="number of rendered scenes (not used for tuning)")
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.rglob("*") if p.is_file() and not p.name.startswith(EXCLUDED))
    clips = [clip for path in paths for clip in clips_of(path)]
    print("| score, threshold | clips | no watermark | " + " | ".join(WATERMARKS) + " | CPU-ms per clip |")
    print("| --- | --- | --- | " + "--- | " * len(WATERMARKS) + "--- |")
    text_table("text_area", lambda f: float(np.mean([text_fraction(x) for x in luma(f)])), clips, 0.005)
    text_table("static_text", lambda f: overlay_text_fraction(luma(f)), clips, 0.005)
    scenes = [panning_scene(seed) for seed in range(args.scenes)]
    text_table("static_text, rendered scenes", lambda f: overlay_text_fraction(luma(f)), scenes, 0.005)
    scorers = load_scorers(ScoreSettings(models=tuple(args.models)))
    print("".join(f"unavailable: {name}: {reason}\n" for name, reason in scorers.unavailable.items()), end="")
    loaded = dict(zip((name for name in args.models if name not in scorers.unavailable), scorers.loaded, strict=True))
    if "ocr" in loaded:
        cache: dict[bytes, dict[str, float | None]] = {}

        def score(frames_THWC: np.ndarray, column: str) -> float | None:
            indices = np.linspace(0, len(frames_THWC) - 1, min(4, len(frames_THWC))).round().astype(int)
            key = hashlib.sha256(frames_THWC[indices].tobytes()).digest()
            if key not in cache:
                cache[key] = loaded["ocr"].score(frames_THWC[indices])
            return cache[key][column]

        # the second and third row reuse the boxes of the first: only its CPU time is valid
        sample = clips[:: args.every]
        text_table("text_area_ocr, 4 frames", lambda f: score(f, "text_area_ocr"), sample, 0.005)
        text_table("text_area_ocr, 4 frames", lambda f: score(f, "text_area_ocr"), sample, 0.02)
        text_table("static_text_ocr, 4 frames", lambda f: score(f, "static_text_ocr"), sample, 0.002)
    if "nsfw" in loaded:
        started = time.process_time()
        nsfw = [nsfw_of(loaded["nsfw"], clip) for clip in clips]
        seconds = (time.process_time() - started) / len(clips)
        worst = ", ".join(f"{value:.2f} {name}" for value, name in sorted(nsfw, reverse=True)[:3])
        spread = np.quantile([value for value, _ in nsfw], [0.5, 0.9])
        print(f"\nnsfw, 8 frames: median {spread[0]:.2f}, 90 % below {spread[1]:.2f}, highest {worst}")
        print(f"nsfw: {seconds:.2f} CPU-s a clip")
    flickers = sorted((flicker(luma(clip.small_THWC), clip.pts_seconds) or 0.0, clip.name) for clip in clips)
    print(f"flicker: median {flickers[len(flickers) // 2][0]:.4f}, highest {flickers[-1][0]:.4f} {flickers[-1][1]}")
    blockiness_table([path for path in paths if clips_of(path) and clips_of(path)[0].size_px[0] <= 560][::3])


def nsfw_of(scorer, clip: Clip) -> tuple[float, str]:
    indices = np.linspace(0, len(clip.detail_THWC) - 1, min(8, len(clip.detail_THWC))).round().astype(int)
    return scorer.score(clip.detail_THWC[indices])["nsfw"], clip.name


if __name__ == "__main__":
    main()
