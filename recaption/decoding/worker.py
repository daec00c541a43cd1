"""Main loop of the decoder child: requests by socket on stdin, responses on its original stdout; it can be killed any time.

    python -m recaption.decoding.worker [decord|torchcodec]     started by recaption/video_io/process.py, never by hand

No torch, no ray, no pyarrow: it must start in a fraction of a second and stay at ~80 MB. Everything is imported at start:
then the process is confined (confinement.py) and can open nothing any more, modules included. With a backend (backends/) it
is another process, larger and slower to start, whose memory the parent watches: torch alone maps more than the limit.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any, BinaryIO

import av

from recaption.decoding import webp
from recaption.decoding.backends.interface import Backend, RefusalError, load_backend
from recaption.decoding.confinement import LAYERS, LAYERS_BEFORE_THREADS, confine
from recaption.decoding.handlers import HANDLERS, Send
from recaption.decoding.libav_log import ERROR_LOG, capture_errors, mapped_bytes
from recaption.decoding.messages import LENGTHS, decode_request, limit_text, pack_header, unpack_lengths
from recaption.decoding.video_file import VideoFile, error_text
from recaption.errors import VideoError

ORPHAN_CHECK_SECONDS = 2.0
"""How often the child checks that its parent still lives."""
UNUSED_MODULES = ("av.__main__", "av.datasets")
NO_LIMIT_BYTES = 1 << 62
"""Of memory, with a backend: the parent watches what is resident."""
LAZY_MODULES = ("numpy.linalg", "numpy.fft", "numpy.ma", "numpy.lib.stride_tricks")


def serve_request(header: dict[str, Any], file: BinaryIO, send: Send, backend: Backend | None = None) -> None:
    """Handle one request; every failure is sent as an "error" message with one of `FAILURE_REASONS`.

    Args:
        header: of a request (messages.py), with its `limits` (`DecodeLimits`).
        file: the video, as the parent opened it.
    """
    limits = header["limits"]
    if backend is not None:
        limits = limits | {"max_memory_bytes": NO_LIMIT_BYTES}
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    video: VideoFile | None = None
    ERROR_LOG.lines.clear()
    try:
        if mapped_bytes() > limits["max_memory_bytes"]:
            # RLIMIT_AS only refuses new memory: freed memory of earlier files might happen to suffice for a small one
            raise MemoryError
        if backend is None:
            resource.setrlimit(resource.RLIMIT_AS, (limits["max_memory_bytes"], hard))
        video = VideoFile(file, limits)
        video.backend = backend
        request = decode_request(header)
        HANDLERS[type(request)](video, request, send)
        return
    except VideoError as error:
        reason, detail = error.reason, error.detail
    except MemoryError:
        reason, detail = (
            "decode_memory",
            f"decoding needs more than {limit_text('max_memory_bytes', limits['max_memory_bytes'])}",
        )
    except BrokenPipeError:
        raise
    except Exception as error:  # the boundary of the child: no input may end it without a response
        reason, detail = "unreadable", f"{type(error).__name__}: {error_text(error)}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    send({"kind": "error", "reason": reason, "detail": detail, "video": video.video_fields if video else {}})


def import_everything() -> None:
    """Import what PyAV, numpy and Pillow would otherwise import when it is first needed."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.startswith(UNUSED_MODULES):
            importlib.import_module(module.name)
    for name in LAZY_MODULES:
        importlib.import_module(name)
    webp.import_plugins()


def receive_request(requests: socket.socket) -> tuple[dict[str, Any], int] | None:
    """(header, descriptor of the file) of the next request; None where the parent has closed its end."""
    prefix, descriptors, _, _ = socket.recv_fds(requests, LENGTHS.size, 1)
    if not prefix:
        return None
    num_header_bytes, _ = unpack_lengths(prefix + _receive_exactly(requests, LENGTHS.size - len(prefix)))
    return json.loads(_receive_exactly(requests, num_header_bytes)), descriptors[0]


def _receive_exactly(requests: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        part = requests.recv(min(num_bytes - len(received), 1 << 20))
        if not part:
            raise EOFError("the request ends early")
        received += part
    return bytes(received)


def _exit_with_parent() -> None:
    """End this process once its parent is gone: a decoder in an endless loop would run for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Serve requests until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    responses = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not break the message stream
    requests = socket.socket(fileno=0)
    name = sys.argv[1] if len(sys.argv) > 1 else "av"
    # a backend may start threads when it is imported; a process with threads cannot leave its namespace
    confinement = confine(LAYERS_BEFORE_THREADS) if name != "av" else {}
    import_everything()
    backend: Backend | None = None
    problem = ""
    try:
        backend = load_backend(name) if name != "av" else None
    except (ImportError, RefusalError) as error:
        problem = str(error)
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # the second damaged file must be logged too
    capture_errors()

    def send(header: dict[str, Any], blob: memoryview | bytes = b"") -> None:
        view = memoryview(blob).cast("B")
        for part in (memoryview(pack_header(header, len(view))), view):
            while part:
                part = part[os.write(responses, part) :]

    mapped_bytes()  # opens the file that it reads later
    confinement |= confine([layer for layer in LAYERS if layer not in confinement])
    _exit_with_parent()
    send({"kind": "ready", "confinement": confinement, "version": getattr(backend, "version", ""), "problem": problem})
    with contextlib.suppress(BrokenPipeError):
        while received := receive_request(requests):
            header, descriptor = received
            with open(descriptor, "rb") as file:
                serve_request(header, file, send, backend)


if __name__ == "__main__":
    main()
