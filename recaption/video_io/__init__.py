"""Frame-exact video reading and deterministic video writing."""

from recaption.inputs.open_input import InputState
from recaption.video_io.frames import DecodeLimits, Frames
from recaption.video_io.opened_video import OpenedVideo, open_video
from recaption.video_io.reader import probe, read_clip, read_frames, scan
from recaption.video_io.writer import encode_video, write_video

__all__ = [
    "DecodeLimits",
    "Frames",
    "InputState",
    "OpenedVideo",
    "encode_video",
    "open_video",
    "probe",
    "read_clip",
    "read_frames",
    "scan",
    "write_video",
]
