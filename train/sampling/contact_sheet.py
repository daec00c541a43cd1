"""Sampled videos as numbered mp4s and one contact sheet.

    files = write(videos, "RUN/samples", ["a red circle moves left"], fps=8)
    files.videos, files.contact_sheet

On the sheet a conditioning frame has a green border; the source video of an edit is above it, with a blue border.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from recaption.run_folder import RunFolder

SHEET_COLUMNS = 8
SHEET_FRAME_PX = 128
"""Minimum height of a frame on the contact sheet; smaller frames are enlarged by an integer factor."""
BORDER_PX = 5
CONDITIONING_COLOUR, SOURCE_COLOUR = (0, 160, 60), (40, 90, 220)
LEGEND = "green border: conditioning frame   blue border: source of the edit"


@dataclass(frozen=True, kw_only=True)
class SampleFiles:
    """Paths of the files that `write` wrote."""

    videos: tuple[str, ...]
    contact_sheet: str


def write(
    videos: Sequence[np.ndarray],
    out_dir: str,
    prompts: Sequence[str],
    fps: int | Fraction,
    *,
    condition_masks: Sequence[np.ndarray] | None = None,
    sources: Sequence[np.ndarray | None] | None = None,
) -> SampleFiles:
    """Write one numbered mp4 per video and a contact sheet; `out_dir` may be any fsspec URI.

    Args:
        condition_masks, sources: as of `contact_sheet_png`.
    """
    from recaption.video_io.writer import encode_video

    folder = RunFolder(out_dir)
    names = []
    for index, video_THWC in enumerate(videos):
        names.append(f"sample-{index:04d}.mp4")
        folder.write_bytes(names[-1], encode_video(video_THWC, fps=fps))
    sheet = contact_sheet_png(videos, prompts, condition_masks=condition_masks, sources=sources)
    folder.write_bytes("contact_sheet.png", sheet)
    return SampleFiles(
        videos=tuple(folder.path(name) for name in names), contact_sheet=folder.path("contact_sheet.png")
    )


def contact_sheet_png(
    videos: Sequence[np.ndarray],
    prompts: Sequence[str],
    *,
    condition_masks: Sequence[np.ndarray] | None = None,
    sources: Sequence[np.ndarray | None] | None = None,
) -> bytes:
    """PNG with one row per video: its prompt, then frames from first to last.

    Args:
        condition_masks: per video, bool (T): its conditioning frames.
        sources: per video, the frames of the video it is an edit of, or None.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=16)
    gap_px, text_px = 4, 26
    rows: list[tuple[str, list[np.ndarray]]] = []
    for index, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        source = sources[index] if sources else None
        strips = [] if source is None else [_strip(source, gap_px, np.ones(len(source), bool), SOURCE_COLOUR)]
        mask_T = condition_masks[index] if condition_masks else None
        rows.append((prompt, [*strips, _strip(video, gap_px, mask_T, CONDITIONING_COLOUR)]))
    has_conditioning = any(mask.any() for mask in condition_masks or ())
    has_borders = has_conditioning or any(len(strips) > 1 for _, strips in rows)
    width = max(strip.shape[1] for _, strips in rows for strip in strips) + 2 * gap_px
    height = sum(text_px + sum(strip.shape[0] + gap_px for strip in strips) for _, strips in rows) + gap_px
    sheet = Image.new("RGB", (width, height + text_px * has_borders), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap_px
    for prompt, strips in rows:
        draw.text((gap_px, top), _ellipsized(prompt, width - 2 * gap_px, font.getlength), fill="black", font=font)
        top += text_px
        for strip in strips:
            sheet.paste(Image.fromarray(strip), (gap_px, top))
            top += strip.shape[0] + gap_px
    if has_borders:
        draw.text((gap_px, top), _ellipsized(LEGEND, width - 2 * gap_px, font.getlength), fill="black", font=font)
    target = io.BytesIO()
    sheet.save(target, "PNG")
    return target.getvalue()


def _strip(
    video_THWC: np.ndarray, gap_px: int, bordered_T: np.ndarray | None, colour: tuple[int, int, int]
) -> np.ndarray:
    """At most SHEET_COLUMNS frames side by side, small ones enlarged, those of `bordered_T` with a border."""
    num_frames, height_px = video_THWC.shape[:2]
    chosen = np.linspace(0, num_frames - 1, min(SHEET_COLUMNS, num_frames)).round().astype(int)
    factor = max(1, -(-SHEET_FRAME_PX // height_px))
    frames = video_THWC[chosen].repeat(factor, axis=1).repeat(factor, axis=2)
    for frame, index in zip(frames, chosen):
        if bordered_T is not None and bordered_T[index]:
            frame[:BORDER_PX] = frame[-BORDER_PX:] = frame[:, :BORDER_PX] = frame[:, -BORDER_PX:] = colour
    gap = np.full((frames.shape[1], gap_px, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)


def _ellipsized(text: str, width_px: int, length_px: Callable[[str], float]) -> str:
    """`text` on one line, cut to the width of the sheet."""
    text = " ".join(text.split())
    if length_px(text) <= width_px:
        return text
    while text and length_px(text + "...") > width_px:
        text = text[:-1]
    return text + "..."
