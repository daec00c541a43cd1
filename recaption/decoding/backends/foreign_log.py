"""Errors that another FFmpeg than PyAV's logs: the one inside a backend's wheel, or the system's.

    log = ForeignLog("decord2.libs/libavutil")     # part of the path of a library that this process has loaded
    log.take()                                      # ["error while decoding MB %d %d, bytestream %td"]

Backends conceal damage without a word to their caller; their decoders log it. Messages stay as they are in the source, with
their placeholders: whether there is one is all that matters.
"""

from __future__ import annotations

import ctypes
from collections import deque
from pathlib import Path

AV_LOG_ERROR = 16
_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class ForeignLog:
    """Collects the messages of level ERROR and above of one libavutil.

    Raises:
        ImportError: no such library is loaded.
    """

    def __init__(self, path_part: str) -> None:
        self.lines: deque[str] = deque(maxlen=100)
        self._callback = _Callback(self._emit)  # as long as the library may call it
        library = ctypes.CDLL(_loaded_library(path_part))
        library.av_log_set_callback(self._callback)

    def _emit(self, source: int | None, level: int, message: bytes | None, arguments: int | None) -> None:
        if level & 0xFF <= AV_LOG_ERROR:  # the upper bits are a colour
            self.lines.append((message or b"").decode(errors="replace").strip())

    def take(self) -> list[str]:
        """The messages since the last call."""
        lines = list(self.lines)
        self.lines.clear()
        return lines


def _loaded_library(path_part: str) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path_part in path:
            return f"/{path}"
    raise ImportError(f"no library {path_part} is loaded")
