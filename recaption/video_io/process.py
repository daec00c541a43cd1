"""The decoder child process: started on first use, reused, and killed and replaced on timeout or crash.

    header = exchange({"op": "probe", ...}, file.fileno(), receive=buffer_for, wall_seconds=60.0, ...)

Decoding runs in a process of its own because untrusted bytes can do anything to a decoder: four corrupted bytes can abort
decord, others never return (dmlc/decord issue 373: 38 hours). The child imports neither torch nor ray; a crash costs one
video and 0.3 s. Safe with threads (one exchange at a time) and with fork (each process has its own child). A backend
(recaption/decoding/backends) has a child of its own beside PyAV's, and its memory is watched from here.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recaption.decoding.messages import LENGTHS, limit_text, pack_header, unpack_lengths
from recaption.errors import RecaptionError, UsageError, VideoError

START_SECONDS = 120.0
"""How long a child may take to import PyAV; 0.3 s on an idle machine, seconds on a loaded one."""
PIPE_BYTES = 1 << 20
"""The most that Linux grants without privileges."""
WORKER = "recaption.decoding.worker"
"""The module that the child runs."""
WATCH_SECONDS = 0.05
"""How often the resident memory of a child with a backend is looked at while it works."""
MAX_EXCHANGES = 512
"""A child is replaced after so many files, to bound what decoders leak."""
MAX_KILLS = 4
"""Consecutive SIGKILLs of the decoder, while decoding or starting, after which the video is taken to be the cause."""
KILLED = f"the decoder was killed {MAX_KILLS} times, as the kernel does when memory runs out"
"""Detail of the error after `MAX_KILLS`."""
INHERITED_VARIABLES = (
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
)
"""What the child gets of this process's environment, beside PYTHONPATH."""
Receive = Callable[[dict[str, Any], int], memoryview]
"""(header, payload bytes) -> writable memory of exactly that many bytes."""


class _KilledError(VideoError):
    """The child got a SIGKILL, which comes from outside: the request is retried."""


class _Deadline:
    """A timeout for one exchange; `seconds` may be extended while it runs.

    Args:
        watch: called now and then while it waits; may raise.
    """

    def __init__(self, seconds: float, watch: Callable[[], None] | None = None) -> None:
        self.started = time.monotonic()
        self.seconds, self.watch = seconds, watch

    def wait(self, *, read: int | None = None, write: int | None = None) -> None:
        """Wait until one end of a pipe is ready. `poll`, not `select`, which fails on descriptors above 1023.

        Raises:
            TimeoutError: not ready before the deadline.
        """
        poll = select.poll()
        if read is not None:
            poll.register(read, select.POLLIN)
        if write is not None:
            poll.register(write, select.POLLOUT)
        while True:
            left = self.started + self.seconds - time.monotonic()
            if left <= 0:  # a response that is there already counts as late too: limits hold on a busy machine as well
                raise TimeoutError
            if self.watch is None:
                wait_seconds = left
            else:
                self.watch()
                wait_seconds = min(left, WATCH_SECONDS)
            if poll.poll(wait_seconds * 1000):
                return

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What this process does with the frames is not the decoder's time."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.started += time.monotonic() - started


def _environment() -> dict[str, str]:
    """Environment of the child: what Python needs to start, and none of the keys and tokens of this process."""
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    package_parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**inherited, **threads, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}


class _Child:
    """A running `python -m recaption.decoding.worker`, with a backend or (`av`) without.

    Raises:
        UsageError: the backend is not installed, or does not load.
    """

    def __init__(self, backend: str = "av") -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self.requests, requests_of_child = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, backend],
            stdin=requests_of_child.fileno(),
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            bufsize=0,
            env=_environment(),
            start_new_session=True,  # Ctrl-C reaches the parent, which then closes the child
        )
        requests_of_child.close()
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self.requests.setblocking(False)
        with contextlib.suppress(OSError, AttributeError):  # 64 KiB by default: too many switches between processes
            fcntl.fcntl(self.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.num_exchanges = 0
        try:
            header, _ = self.read_header(_Deadline(START_SECONDS))
        except (EOFError, TimeoutError) as error:
            stderr = self.stderr_tail()
            self.close()
            if self.process.returncode == -signal.SIGKILL:
                raise _KilledError("decode_memory", KILLED) from None
            raise RecaptionError(f"the decoder process does not start ({error!r}): {stderr}") from None
        assert header["kind"] == "ready"
        self.confinement: dict[str, str] = header["confinement"]
        self.version: str = header["version"]
        if header["problem"]:
            self.close()
            install = f"pip install 'recaption[{backend}]'"
            raise UsageError(f"--prepare.decode.backend {backend} does not work here: {header['problem']} ({install})")

    def send(self, request: dict[str, Any], descriptor: int, deadline: _Deadline) -> None:
        """Send a request and the descriptor of its file, which goes along with the first byte."""
        view, descriptors = memoryview(pack_header(request, 0)), [descriptor]
        while view:
            deadline.wait(write=self.requests.fileno())
            with contextlib.suppress(BlockingIOError):
                view = view[socket.send_fds(self.requests, [view[: 1 << 16]], descriptors) :]
                descriptors = []

    def read_into(self, view: memoryview, deadline: _Deadline) -> None:
        while view:
            deadline.wait(read=self.stdout.fileno())
            num_read = os.readv(self.stdout.fileno(), [view])
            if not num_read:
                raise EOFError("the pipe closed")
            view = view[num_read:]

    def read_header(self, deadline: _Deadline) -> tuple[dict[str, Any], int]:
        prefix = bytearray(LENGTHS.size)
        self.read_into(memoryview(prefix), deadline)
        num_header_bytes, num_payload_bytes = unpack_lengths(prefix)
        encoded = bytearray(num_header_bytes)
        self.read_into(memoryview(encoded), deadline)
        return json.loads(encoded), num_payload_bytes

    def check_resident(self, max_bytes: int) -> None:
        """
        Raises:
            VideoError: decode_memory, where more of its memory is resident.
        """
        with contextlib.suppress(OSError, IndexError):  # it has ended: its pipe says so
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
            if int(pages) * resource.getpagesize() > max_bytes:
                detail = f"decoding needs more than {limit_text('max_memory_bytes', max_bytes)}"
                raise VideoError("decode_memory", detail)

    def stderr_tail(self) -> str:
        """Last 500 characters that the child wrote to stderr."""
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")[-500:].strip()

    def exit_reason(self) -> VideoError:
        """The error that describes why the child ended."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return VideoError("unreadable", "the decoder closed its pipe without a response")
        stderr = self.stderr_tail()
        if any(message in stderr for message in ("bad_alloc", "MemoryError", "annot allocate memory")):
            return VideoError("decode_memory", f"the decoder ran out of memory: {stderr[-200:]}")
        if code == -signal.SIGKILL:
            return _KilledError("decode_memory", KILLED)
        if code < 0:
            return VideoError("unreadable", f"decoder crashed with signal {-code}")
        return VideoError("unreadable", f"decoder ended with code {code}: {stderr[-200:]}")

    def close(self) -> None:
        """Kill the child and free its pipes. Safe to repeat."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process's ends of the pipes only: after a fork the child belongs to the parent."""
        for file in (self.requests, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                file.close()


class _Decoder:
    """The child of one process for one backend, and the lock around it."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.lock = threading.Lock()
        self.child: _Child | None = None

    def running_child(self) -> _Child:
        """The child, started or replaced where needed."""
        if self.child is not None and (
            self.child.process.poll() is not None or self.child.num_exchanges >= MAX_EXCHANGES
        ):
            self.close()
        if self.child is None:
            self.child = _Child(self.backend)
        return self.child

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None

    def exchange(
        self,
        request: dict[str, Any],
        descriptor: int,
        receive: Receive,
        *,
        wall_seconds: float,
        seconds_per_video_second: float,
        max_resident_bytes: int | None = None,
    ) -> dict[str, Any]:
        child = self.running_child()
        child.num_exchanges += 1
        watch = None if max_resident_bytes is None else functools.partial(child.check_resident, max_resident_bytes)
        deadline = _Deadline(wall_seconds, watch)
        try:
            with _reopened(descriptor) as descriptor_of_child:
                child.send(request, descriptor_of_child, deadline)
            while True:
                header, num_payload_bytes = child.read_header(deadline)
                if num_payload_bytes:
                    with deadline.paused():
                        memory = receive(header, num_payload_bytes)
                    child.read_into(memory, deadline)
                if header["kind"] == "length":
                    deadline.seconds = wall_seconds + seconds_per_video_second * header["seconds"]
                    with deadline.paused():
                        receive(header, 0)
                elif header["kind"] == "error":
                    if header["reason"] == "decode_memory":
                        self.close()  # a heap that hit its limit stays fragmented
                    return header
                elif header["kind"] == "done":
                    return header
        except TimeoutError:
            self.close()
            raise VideoError("decode_timeout", f"not decoded within {deadline.seconds:.3g} s") from None
        except (EOFError, ConnectionError):
            error = child.exit_reason()
            self.close()
            raise error from None
        except BaseException:
            self.close()  # a response read in part cannot be continued
            raise


@contextlib.contextmanager
def _reopened(descriptor: int) -> Iterator[int]:
    """A second, read-only descriptor of the same file with its own position, also where the file has no name any more."""
    try:
        reopened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    except OSError as error:
        raise VideoError("unreadable", f"cannot be opened for the decoder: {error.strerror}") from None
    try:
        yield reopened
    finally:
        os.close(reopened)


_decoders: dict[tuple[int, str], _Decoder] = {}
"""By process id and backend: a forked process finds no entry of its own and starts its own child."""


def _decoder(backend: str = "av") -> _Decoder:
    key = (os.getpid(), backend)
    decoder = _decoders.get(key)
    if decoder is not None:
        return decoder
    for other in [other for other in _decoders if other[0] != os.getpid()]:
        inherited = _decoders.pop(other, None)
        if inherited is not None and inherited.child is not None:
            inherited.child.close_pipes()
    atexit.register(close)
    return _decoders.setdefault(key, _Decoder(backend))


def _own_decoders() -> list[_Decoder]:
    return [decoder for (pid, _), decoder in list(_decoders.items()) if pid == os.getpid()]


def close() -> None:
    """End this process's decoder children, if any; the next exchange starts another."""
    for decoder in _own_decoders():
        with decoder.lock:
            decoder.close()


def child_pid(backend: str = "av") -> int | None:
    """Process id of the running child, for reports and fault tests."""
    decoder = _decoders.get((os.getpid(), backend))
    return decoder.child.process.pid if decoder is not None and decoder.child is not None else None


def child_pids() -> list[int]:
    """Process ids of all running children of this process."""
    return [decoder.child.process.pid for decoder in _own_decoders() if decoder.child is not None]


def start(backend: str) -> str:
    """Start the child with this backend where it does not run; the version of the backend.

    Raises:
        UsageError: the backend is not installed, or does not load: in one sentence, with the remedy.
    """
    decoder = _decoder(backend)
    with decoder.lock:
        return decoder.running_child().version


def confinement_report(backend: str = "av") -> dict[str, str]:
    """What confines the decoder child on this machine: layer -> "" where it holds, else why not.

    Starts the child where it does not run. What the kernel itself says of the child counts, not only the child's word.

    Raises:
        RecaptionError: the child cannot be started.
    """
    decoder = _decoder(backend)
    with decoder.lock:
        child = decoder.running_child()
        report = dict(child.confinement)
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        shares_network = _network_namespace("self") == _network_namespace(str(child.process.pid))
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    confirmed = {
        "seccomp": fields.get("Seccomp") == "2",
        "no new privileges": fields.get("NoNewPrivs") == "1",
        "no capabilities": int(fields.get("CapPrm", "1"), 16) == 0,
        "network namespace": not shares_network,
    }
    for name, holds in confirmed.items():
        if not holds and not report[name]:
            report[name] = "the kernel does not confirm it"
    return report


def _network_namespace(pid: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    return None


def exchange(
    request: dict[str, Any],
    descriptor: int,
    *,
    receive: Receive,
    wall_seconds: float,
    seconds_per_video_second: float,
    backend: str = "av",
    max_resident_bytes: int | None = None,
) -> dict[str, Any]:
    """Send one request, pass every payload of the response to `receive`, return the last header ("done" or "error").

    The child opens no files: it reads the one with this `descriptor`.

    The timeout is `wall_seconds`, plus `seconds_per_video_second` per second of video once the child knows its length.

    Args:
        backend: whose child; `av` is PyAV alone.
        max_resident_bytes: the child is killed where more of its memory is resident. None: it limits itself.

    Raises:
        VideoError: decode_timeout, decode_memory, or unreadable where the decoder crashed.
        RecaptionError: the child cannot be started at all.
    """
    decoder = _decoder(backend)
    limits: dict[str, Any] = {"wall_seconds": wall_seconds, "seconds_per_video_second": seconds_per_video_second}
    limits["max_resident_bytes"] = max_resident_bytes
    with decoder.lock:
        for _ in range(MAX_KILLS - 1):
            with contextlib.suppress(_KilledError):  # killed from outside: that should not fail the video
                return decoder.exchange(request, descriptor, receive, **limits)
        return decoder.exchange(request, descriptor, receive, **limits)
