"""What the child answers about audio: the levels of a scan, and the packets of a span. Damage is said, never raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from recaption.decoding.audio.cut import cut_audio
from recaption.decoding.audio.levels import measure
from recaption.decoding.audio.tracks import to_message
from recaption.decoding.damage.checked_decoder import error_text
from recaption.decoding.messages import AudioRequest

if TYPE_CHECKING:
    from recaption.decoding.video_file import VideoFile


def send_levels(video: VideoFile, start_seconds: float, send: Callable[..., None]) -> None:
    """Measure the sound of a whole video: its energies as a message, and its columns of `records.Video`.

    Call it once the length of the video is known.
    """
    if video.is_webp:
        return
    send({"kind": "audio"}, b"\0")
    try:
        levels = measure(video, start_seconds, start_seconds + video.video_fields["duration_seconds"])
    except Exception as error:  # whatever is wrong with the audio, the video is good
        video.video_fields["audio_detail"] = f"{type(error).__name__}: {error_text(error)}"
        return
    video.video_fields.update(levels.fields)
    if len(levels.energies_N2):
        send({"kind": "bytes"}, np.ascontiguousarray(levels.energies_N2, "<f4").data)


def audio(video: VideoFile, request: AudioRequest, send: Callable[..., None]) -> None:
    """The audio tracks of a span, ready to be written."""
    seconds = request.end_seconds - request.start_seconds
    send({"kind": "length", "seconds": seconds, "streams": {}})
    header, payload = to_message(
        cut_audio(video, request.start_seconds, request.end_seconds, may_copy=request.may_copy)
    )
    if payload:
        send({"kind": "bytes"}, payload)
    send({"kind": "done", "count": 0, **header})
