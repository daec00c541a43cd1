"""System call filter of the decoder child: what decoding an open file needs, and nothing else (seccomp, classic BPF).

    load_filter(os.getpid())         from here on open, socket, fork and execve are EPERM; new threads are allowed

A list of what is allowed, not of what is not: a system call that the kernel gets next year is refused too. The numbers are
those of x86_64 and aarch64 (Linux's unistd_64.h and asm-generic/unistd.h); other machines go without a filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Mapping

NUMBERS: Mapping[str, tuple[int, int | None]] = {
    # the open file, the pipe and the socket
    "read": (0, 63),
    "write": (1, 64),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "preadv": (295, 69),
    "close": (3, 57),
    "fstat": (5, 80),
    "dup": (32, 23),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # memory
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    # threads and their locks
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # signals to itself, time, and what it may know of itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    # allowed for some arguments only: `_conditions`
    "clone": (56, 220),
    "newfstatat": (262, 79),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "clone3": (435, 435),
}
"""Name -> number on x86_64 and on aarch64 (None: that machine has no such call)."""
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP_NUMBER = {"x86_64": 317, "aarch64": 277}
CLONE_THREAD = 0x10000
AT_EMPTY_PATH = 0x1000
PR_SET_NAME = 15
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which sends signals."""
IOCTL_COMMANDS = (0x5401, 0x541B, 0x5450, 0x5451)
"""TCGETS (isatty), FIONREAD, FIONCLEX, FIOCLEX: what Python asks about a descriptor."""

ALLOW, KILL = 0x7FFF0000, 0x80000000
_ERRNO = 0x00050000
REFUSE, UNKNOWN = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load_argument(index: int) -> bytes:
    """The lower half of an argument: all that the kernel looks at in an int or a flag."""
    return _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * index)


def _argument_is(index: int, values: Iterable[int]) -> list[bytes]:
    allowed = [_instruction(_JUMP_IF_EQUAL, value, 0, 1) + _instruction(_RETURN, ALLOW) for value in values]
    return [_load_argument(index), *allowed, _instruction(_RETURN, REFUSE)]


def _argument_has_bit(index: int, bit: int) -> list[bytes]:
    allowed = _instruction(_JUMP_IF_ANY_BIT, bit, 0, 1) + _instruction(_RETURN, ALLOW)
    return [_load_argument(index), allowed, _instruction(_RETURN, REFUSE)]


def _conditions(pid: int) -> dict[str, list[bytes]]:
    """Instructions for the calls whose arguments matter; each ends in a verdict."""
    return {
        "clone": _argument_has_bit(0, CLONE_THREAD),
        "clone3": [_instruction(_RETURN, UNKNOWN)],  # its flags are out of a filter's reach: libc falls back to clone
        "newfstatat": _argument_has_bit(3, AT_EMPTY_PATH),  # fstat of newer C libraries
        "tgkill": _argument_is(0, [pid]),  # abort
        "prlimit64": _argument_is(0, [0, pid]),
        "prctl": _argument_is(0, [PR_SET_NAME]),
        "fcntl": _argument_is(1, FCNTL_COMMANDS),
        "ioctl": _argument_is(1, IOCTL_COMMANDS),
    }


def filter_program(machine: str, pid: int) -> bytes:
    """The BPF program, 8 bytes an instruction: another architecture's calls kill, unlisted calls are EPERM."""
    column = ("x86_64", "aarch64").index(machine)
    conditions = _conditions(pid)
    program = [
        _instruction(_LOAD, _ARCH_OFFSET),
        _instruction(_JUMP_IF_EQUAL, AUDIT_ARCH[machine], 1, 0) + _instruction(_RETURN, KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    for name, numbers in NUMBERS.items():
        number = numbers[column]
        if number is not None:
            verdict = b"".join(conditions.get(name, [_instruction(_RETURN, ALLOW)]))
            program += [_instruction(_JUMP_IF_EQUAL, number, 0, len(verdict) // 8), verdict]
    return b"".join([*program, _instruction(_RETURN, REFUSE)])


class _Program(ctypes.Structure):
    _fields_ = (("num_instructions", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def load_filter(pid: int) -> None:
    """Load the filter into this process: all its threads, for good. Needs no_new_privs.

    Raises:
        OSError: the kernel does not take it, or this is another machine than x86_64 and aarch64.
    """
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no system call numbers for {machine}")
    program = filter_program(machine, pid)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(header))
    if libc.syscall(ctypes.c_long(SECCOMP_NUMBER[machine]), *arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
