"""Small intact videos over containers and codecs, rendered with the `ffmpeg` program: what bench_mutations.py damages.

render_seeds(folder)        folder/h264-mp4.mp4, folder/vp9-webm.webm, ...; encoders that this ffmpeg lacks are left out
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = "testsrc2=size=160x96:rate=12:duration=3"
H264, HEVC = (
    ["-c:v", "libx264", "-preset", "ultrafast"],
    ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=0"],
)
SEEDS: dict[str, list[str]] = {
    "h264.mp4": [*H264, "-g", "12"],
    "h264_b.mp4": ["-c:v", "libx264", "-bf", "3", "-g", "250"],
    "h264_444.mp4": [*H264, "-pix_fmt", "yuv444p"],
    "h264_10bit.mp4": [*H264, "-pix_fmt", "yuv420p10le"],
    "h264_fragmented.mp4": [*H264, "-g", "12", "-movflags", "frag_keyframe+empty_moov"],
    "h264_faststart.mp4": [*H264, "-movflags", "+faststart"],
    "h264_interlaced.mp4": ["-c:v", "libx264", "-flags", "+ildct+ilme"],
    "h264.mov": [*H264],
    "h264.mkv": [*H264, "-g", "12"],
    "h264.flv": [*H264, "-g", "12"],
    "h264.ts": [*H264, "-g", "12"],
    "h264.avi": [*H264, "-bf", "0"],
    "h264.3gp": [*H264],
    "h264.h264": [*H264, "-bf", "0"],
    "h264_sound.mp4": ["-f", "lavfi", "-i", "sine=duration=3", *H264, "-c:a", "aac"],
    "hevc.mp4": [*HEVC, "-tag:v", "hvc1"],
    "hevc.mkv": [*HEVC],
    "hevc.ts": [*HEVC],
    "hevc_10bit.mp4": [*HEVC, "-pix_fmt", "yuv420p10le"],
    "vp8.webm": ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "12"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "12"],
    "vp9.mp4": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"],
    "vp9_alpha.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-pix_fmt", "yuva420p"],
    "av1.mp4": ["-c:v", "libsvtav1", "-preset", "12"],
    "av1.mkv": ["-c:v", "libsvtav1", "-preset", "12"],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-r", "25"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-r", "25"],
    "mpeg1.mpg": ["-c:v", "mpeg1video", "-r", "25"],
    "mpeg4.avi": ["-c:v", "mpeg4"],
    "mpeg4.mp4": ["-c:v", "mpeg4", "-bf", "2"],
    "msmpeg4.avi": ["-c:v", "msmpeg4"],
    "wmv2.wmv": ["-c:v", "wmv2"],
    "flv1.flv": ["-c:v", "flv"],
    "theora.ogv": ["-c:v", "libtheora"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"],
    "mjpeg.mov": ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"],
    "prores.mov": ["-c:v", "prores_ks"],
    "dnxhd.mov": ["-c:v", "dnxhd", "-profile:v", "dnxhr_lb", "-pix_fmt", "yuv422p", "-s", "256x128"],
    "ffv1.mkv": ["-c:v", "ffv1", "-level", "3"],
    "huffyuv.avi": ["-c:v", "huffyuv", "-pix_fmt", "yuv422p"],
    "raw.avi": ["-c:v", "rawvideo", "-pix_fmt", "yuv420p", "-s", "64x48"],
    "png.mov": ["-c:v", "png", "-s", "80x48"],
    "gif.gif": [],
    "webp.webp": ["-c:v", "libwebp_anim"],
    "h264.mxf": [*H264, "-r", "25"],
    "mpeg2.mxf": ["-c:v", "mpeg2video", "-r", "25"],
    "h264.nut": [*H264],
    "h264.asf": [*H264],
}
"""File name -> arguments of ffmpeg for it."""


def render_seeds(folder: Path) -> Path:
    """Render all of `SEEDS` into a new folder."""
    folder.mkdir(parents=True)
    for name, arguments in SEEDS.items():
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-nostdin",
            "-f",
            "lavfi",
            "-i",
            SOURCE,
            *arguments,
            "-bitexact",
            str(folder / name),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            (folder / name).unlink(missing_ok=True)
    return folder
