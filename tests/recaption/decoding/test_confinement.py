"""What a confined process can still do: compute, use threads, read what is open. All else is refused, by each layer."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys

import pytest

from recaption.decoding import seccomp
from recaption.decoding.confinement import LAYERS
from recaption.decoding.seccomp import ALLOW, AUDIT_ARCH, KILL, NUMBERS, REFUSE, UNKNOWN

TRY_EVERYTHING = """
import ctypes, json, os, resource, signal, socket, sys, threading
import numpy as np
from recaption.decoding import confinement

layers, parent, path = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
confinement.LAYERS = {name: confinement.LAYERS[name] for name in layers}
opened = open(path, "rb")
libc = ctypes.CDLL(None, use_errno=True)
problems = confinement.confine()

def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def fork():
    if os.fork() == 0:
        os._exit(0)

def connect():
    with socket.socket() as one:
        one.settimeout(1)
        one.connect(("127.0.0.1", 9))

def write_much():
    with open(path + ".large", "wb") as file:
        file.write(bytes(2 << 20))

attempts = {
    "open": lambda: open(path).close(),
    "create": lambda: open(path + ".new", "w").close(),
    "list": lambda: os.listdir("/"),
    "remove": lambda: os.unlink(path + ".existing"),
    "socket": lambda: socket.socket().close(),
    "connect": connect,
    "fork": fork,
    "execve": lambda: os.execv("/absent", ["/absent"]),
    "signal to the parent": lambda: os.kill(parent, 0),
    "limits of the parent": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
    "ptrace": lambda: call({"x86_64": 101, "aarch64": 117}[os.uname().machine], 16, 1 << 29, 0, 0),
    "io_uring": lambda: call(425, 1, None),
    "a namespace": lambda: libc.unshare(0x10000000) and call(-1),
    "more than a megabyte": write_much,
}
outcomes = {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcomes[name] = 0
    except OSError as error:
        outcomes[name] = error.errno
seen = []
threads = [threading.Thread(target=lambda: seen.append(np.arange(1000).sum())) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
works = {"threads": len(seen), "read": len(opened.read()), "memory": np.zeros(64 << 20, np.uint8).nbytes}
print(json.dumps({"problems": problems, "outcomes": outcomes, "works": works}))
"""


def try_everything(layers, tmp_path):
    path = tmp_path / "open"
    path.write_bytes(b"12345")
    (tmp_path / "open.existing").write_bytes(b"")
    command = [sys.executable, "-P", "-c", TRY_EVERYTHING, json.dumps(layers), str(os.getpid()), str(path)]
    result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout)
    assert result["works"] == {"threads": 3, "read": 5, "memory": 64 << 20}
    missing = {name: problem for name, problem in result["problems"].items() if problem}
    if missing:
        pytest.skip(f"not available on this machine: {missing}")
    return result["outcomes"]


def test_nothing_can_be_opened_started_or_reached(tmp_path):
    outcomes = try_everything(list(LAYERS), tmp_path)
    assert set(outcomes.values()) <= {errno.EPERM, errno.EACCES}, outcomes


def test_the_system_call_filter_alone_refuses_everything(tmp_path):
    outcomes = try_everything(["no new privileges", "seccomp"], tmp_path)
    assert set(outcomes.values()) == {errno.EPERM}, outcomes


def test_landlock_alone_refuses_files(tmp_path):
    outcomes = try_everything(["no new privileges", "landlock"], tmp_path)
    assert {outcomes[name] for name in ("open", "create", "list", "remove")} == {errno.EACCES}, outcomes
    assert outcomes["fork"] == 0, "this test shows nothing about Landlock"


def test_the_namespace_alone_has_no_network(tmp_path):
    outcomes = try_everything(["network namespace", "no capabilities"], tmp_path)
    assert outcomes["connect"] == errno.ENETUNREACH, outcomes
    assert outcomes["open"] == 0


def test_the_file_size_limit_alone_stops_a_large_file(tmp_path):
    outcomes = try_everything(["file size limit"], tmp_path)
    assert outcomes["more than a megabyte"] == errno.EFBIG


# --- the filter on both machines, run by an interpreter of its own ----------------------------------------------------


def verdict(machine, number, *arguments, arch=None, pid=77):
    """What the kernel would do with a system call."""
    call = struct.pack("<iIQ6Q", number, arch or AUDIT_ARCH[machine], 0, *[*arguments, *[0] * 6][:6])
    program = list(struct.iter_unpack("<HBBI", seccomp.filter_program(machine, pid)))
    position = accumulator = 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", call, value)
        elif code == 0x06:
            return value
        else:
            is_true = accumulator == value if code == 0x15 else bool(accumulator & value)
            assert code in (0x15, 0x45)
            position += if_true if is_true else if_false


REFUSED = {
    "x86_64": (2, 41, 42, 56, 57, 58, 59, 62, 101, 257, 319, 322, 425, 437),
    "aarch64": (56, 117, 129, 198, 203, 221, 281, 279, 425, 437),
}
"""open, socket, connect, clone without flags, fork, execve, kill, ptrace, memfd_create, io_uring_setup, openat2, ..."""


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_the_filter_refuses_by_number_and_by_argument(machine):
    numbers = {name: pair[list(AUDIT_ARCH).index(machine)] for name, pair in NUMBERS.items()}
    assert len({n for n in numbers.values() if n is not None}) == len([n for n in numbers.values() if n is not None])
    for number in REFUSED[machine]:
        assert verdict(machine, number) == REFUSE, number
    assert all(verdict(machine, numbers[name]) == ALLOW for name in ("read", "write", "mmap", "futex", "exit_group"))
    assert verdict(machine, numbers["clone"], 0x3D0F00) == ALLOW, "glibc's flags of a thread"
    assert verdict(machine, numbers["clone"], 0x1200011) == REFUSE, "glibc's flags of a fork"
    assert verdict(machine, numbers["clone3"], 1) == UNKNOWN
    assert verdict(machine, numbers["tgkill"], 77, 77, 6) == ALLOW
    assert verdict(machine, numbers["tgkill"], 1, 1, 9) == REFUSE
    assert verdict(machine, numbers["prctl"], 15) == ALLOW
    assert verdict(machine, numbers["prctl"], 22) == REFUSE
    assert verdict(machine, numbers["newfstatat"], 5, 0, 0, 0x1000) == ALLOW
    assert verdict(machine, numbers["newfstatat"], 5, 0, 0, 0) == REFUSE
    assert verdict(machine, numbers["fcntl"], 1, 8) == REFUSE, "F_SETOWN sends signals"
    assert verdict(machine, numbers["ioctl"], 0, 0x5412) == REFUSE, "TIOCSTI types into a terminal"
    assert verdict(machine, numbers["read"], arch=0x40000003) == KILL, "the 32-bit numbers of the same machine"
    assert verdict(machine, 0x40000000 | numbers["read"]) == REFUSE, "x32 numbers"
