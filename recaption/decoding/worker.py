"""The decoder child: reads requests on stdin, answers on its original stdout, dies without harm.

    python -m recaption.decoding.worker      started by process.py, never by hand

No torch, no ray, no pyarrow: it must start in a fraction of a second and stay at ~80 MB.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

import av

from recaption.decoding import handlers as decode_answers
from recaption.decoding.libav_log import LOGGED, listen, mapped_bytes
from recaption.decoding.messages import LENGTHS, pack_header, unpack_lengths
from recaption.decoding.video_file import VideoFile, error_text
from recaption.errors import VideoError

ORPHAN_CHECK_SECONDS = 2.0


def answer(request: dict[str, Any], payload: bytes, send: decode_answers.Send) -> None:
    """Answer one request; whatever goes wrong becomes a reason of the closed list."""
    limits = request["limits"]
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    video: VideoFile | None = None
    LOGGED.lines.clear()
    try:
        if mapped_bytes() > limits["max_memory_bytes"]:
            # RLIMIT_AS only refuses new memory: what earlier files have freed might do for a small one, by luck
            raise MemoryError
        resource.setrlimit(resource.RLIMIT_AS, (limits["max_memory_bytes"], hard))
        video = VideoFile(request["path"], payload, limits)
        decode_answers.ANSWERS[request["op"]](video, request, send)
        return
    except VideoError as error:
        reason, detail = error.reason, error.detail
    except (MemoryError, ImportError):  # parts of PyAV are mapped when first needed
        reason, detail = "decode_memory", f"decoding needs more than max_memory_bytes = {limits['max_memory_bytes']}"
    except BrokenPipeError:
        raise
    except Exception as error:  # the boundary of the child: no input may end it without an answer
        reason, detail = "unreadable", f"{type(error).__name__}: {error_text(error)}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        if video is not None:
            video.close()
    send({"kind": "error", "reason": reason, "detail": detail, "video": video.known if video else {}})


def _end_with_parent() -> None:
    """A decoder that spins for ever must not outlive the parent that would have killed it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Serve until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not break the message stream
    _end_with_parent()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # the second damaged file must say so too
    listen()

    def send(header: dict[str, Any], blob: memoryview | bytes = b"") -> None:
        view = memoryview(blob).cast("B")
        for part in (memoryview(pack_header(header, len(view))), view):
            while part:
                part = part[os.write(answers, part) :]

    send({"kind": "ready"})
    stdin = sys.stdin.buffer
    with contextlib.suppress(BrokenPipeError):
        while len(prefix := stdin.read(LENGTHS.size)) == LENGTHS.size:
            num_header_bytes, num_payload_bytes = unpack_lengths(prefix)
            request = json.loads(stdin.read(num_header_bytes))
            answer(request, stdin.read(num_payload_bytes), send)


if __name__ == "__main__":
    main()
