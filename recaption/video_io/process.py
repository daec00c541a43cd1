"""The decoder child process: started on first use, reused, and killed and replaced on timeout or crash.

    header = exchange({"op": "probe", ...}, file.fileno(), receive=buffer_for, wall_seconds=60.0, ...)

Decoding runs in a process of its own because untrusted bytes can do anything to a decoder: four corrupted bytes can abort
decord, others never return (dmlc/decord issue 373: 38 hours). The child imports neither torch nor ray; a crash costs one
video and 0.3 s. Safe with threads (one exchange at a time) and with fork (each process has its own child).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
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

from recaption.decoding.messages import LENGTHS, pack_header, unpack_lengths
from recaption.errors import RecaptionError, VideoError

START_SECONDS = 120.0
"""How long a child may take to import PyAV; 0.3 s on an idle machine, seconds on a loaded one."""
PIPE_BYTES = 1 << 20
"""The most that Linux grants without privileges."""
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
    """A timeout for one exchange; `seconds` may be extended while it runs."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds

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
        left = self.started + self.seconds - time.monotonic()
        # Past the deadline a response that is there already counts as late too: limits hold on a busy machine as well.
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError

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
    """A running `python -m recaption.decoding.worker`."""

    def __init__(self) -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self.requests, requests_of_child = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "recaption.decoding.worker"],
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
    """The child of one process and the lock around it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: _Child | None = None

    def running_child(self) -> _Child:
        """The child, started or replaced where needed."""
        if self.child is not None and (
            self.child.process.poll() is not None or self.child.num_exchanges >= MAX_EXCHANGES
        ):
            self.close()
        if self.child is None:
            self.child = _Child()
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
    ) -> dict[str, Any]:
        child = self.running_child()
        child.num_exchanges += 1
        deadline = _Deadline(wall_seconds)
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


_decoders: dict[int, _Decoder] = {}
"""By process id: a forked process finds no entry of its own and starts its own child."""


def _decoder() -> _Decoder:
    decoder = _decoders.get(os.getpid())
    if decoder is not None:
        return decoder
    for pid in [pid for pid in _decoders if pid != os.getpid()]:
        inherited = _decoders.pop(pid, None)
        if inherited is not None and inherited.child is not None:
            inherited.child.close_pipes()
    atexit.register(close)
    return _decoders.setdefault(os.getpid(), _Decoder())


def close() -> None:
    """End this process's decoder child, if any; the next exchange starts another."""
    decoder = _decoders.get(os.getpid())
    if decoder is not None:
        with decoder.lock:
            decoder.close()


def child_pid() -> int | None:
    """Process id of the running child, for reports and fault tests."""
    decoder = _decoders.get(os.getpid())
    return decoder.child.process.pid if decoder is not None and decoder.child is not None else None


def confinement_report() -> dict[str, str]:
    """What confines the decoder child on this machine: layer -> "" where it holds, else why not.

    Starts the child where it does not run. What the kernel itself says of the child counts, not only the child's word.

    Raises:
        RecaptionError: the child cannot be started.
    """
    decoder = _decoder()
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
) -> dict[str, Any]:
    """Send one request, pass every payload of the response to `receive`, return the last header ("done" or "error").

    The child opens no files: it reads the one with this `descriptor`.

    The timeout is `wall_seconds`, plus `seconds_per_video_second` per second of video once the child knows its length.

    Raises:
        VideoError: decode_timeout, decode_memory, or unreadable where the decoder crashed.
        RecaptionError: the child cannot be started at all.
    """
    decoder = _decoder()
    limits = {"wall_seconds": wall_seconds, "seconds_per_video_second": seconds_per_video_second}
    with decoder.lock:
        for _ in range(MAX_KILLS - 1):
            with contextlib.suppress(_KilledError):  # killed from outside: that should not fail the video
                return decoder.exchange(request, descriptor, receive, **limits)
        return decoder.exchange(request, descriptor, receive, **limits)
