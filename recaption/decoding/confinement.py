"""Confinement of the decoder child: after it, this process can compute, read what is open, and answer; nothing else.

    confine()         {"seccomp": "", "landlock": "Function not implemented", ...}: "" holds, else why it does not

A bug in a codec gives whoever made the video this process. It then has no file to open, no network, no program to start, no
key in its environment and nobody to send a signal to. What a kernel or a container does not allow is left out and reported
(`recaption doctor` shows it); the layers cover for each other.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterable

from recaption.decoding.seccomp import load_filter

MAX_WRITTEN_BYTES = 1 << 20
"""Largest file this process may write: all it has is its log of errors."""
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
NUM_CAPABILITIES = 64
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, CAPSET = 444, 446, {"x86_64": 126, "aarch64": 91}
"""Numbers of system calls; those of Landlock are the same on every machine."""
LANDLOCK_CREATE_RULESET_VERSION = 1
NUM_LANDLOCK_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""By version of Landlock; 16 from version 5 on. All are handled and none is granted."""
LANDLOCK_BIND_AND_CONNECT_TCP, LANDLOCK_ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3
CAPABILITY_VERSION_3 = 0x20080522


def _call(function: str, *arguments: object) -> int:
    """A function of the C library, for its effect.

    Raises:
        OSError: it returned -1.
    """
    result = getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _limit_core_dumps() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_written_bytes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_WRITTEN_BYTES, MAX_WRITTEN_BYTES))


def _leave_network() -> None:
    """Into a network namespace without any interface; only root can do that without a user namespace."""
    try:
        _call("unshare", CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC)
    except OSError:
        _call("unshare", CLONE_NEWNET | CLONE_NEWIPC)


def _drop_capabilities() -> None:
    """Of root, or of the new user namespace, in which every process starts with all of them."""
    for capability in range(NUM_CAPABILITIES):
        try:
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:  # no such capability, or no right to drop it: then there is none to drop
            break
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call("syscall", ctypes.c_long(CAPSET[os.uname().machine]), header, (ctypes.c_uint32 * 6)())


def _refuse_new_privileges() -> None:
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _leave_file_system() -> None:
    """Landlock: no right to any file; where its version has them, no TCP, abstract sockets and signals to others."""
    create, restrict = ctypes.c_long(LANDLOCK_CREATE_RULESET), ctypes.c_long(LANDLOCK_RESTRICT_SELF)
    version = _call("syscall", create, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    rights = (1 << NUM_LANDLOCK_FILE_RIGHTS.get(version, 16)) - 1
    refused = [rights, LANDLOCK_BIND_AND_CONNECT_TCP, LANDLOCK_ABSTRACT_SOCKETS_AND_SIGNALS]
    refused = refused[: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = (ctypes.c_uint64 * len(refused))(*refused)
    ruleset = _call("syscall", create, attributes, ctypes.c_size_t(ctypes.sizeof(attributes)), 0)
    try:
        _call("syscall", restrict, ruleset, 0)
    finally:
        os.close(ruleset)


def _filter_system_calls() -> None:
    load_filter(os.getpid())


LAYERS: dict[str, Callable[[], None]] = {
    "no core dumps": _limit_core_dumps,
    "file size limit": _limit_written_bytes,
    "network namespace": _leave_network,
    "no capabilities": _drop_capabilities,
    "no new privileges": _refuse_new_privileges,
    "landlock": _leave_file_system,
    "seccomp": _filter_system_calls,
}
"""In this order: a namespace needs rights that the later ones take away."""


LAYERS_BEFORE_THREADS = tuple(LAYERS)[:5]
"""All but Landlock and seccomp: importing a library needs files, and its threads would keep a process in its namespace."""


def confine(layers: Iterable[str] = tuple(LAYERS)) -> dict[str, str]:
    """Give up all that decoding does not need, for good. Call it after the last import, before the first thread.

    Args:
        layers: those to apply now, in this order.

    Returns:
        Layer -> "" where it holds, else why it is not available here.
    """
    problems = {}
    for name in layers:
        try:
            LAYERS[name]()
            problems[name] = ""
        except (OSError, ValueError, KeyError, AttributeError) as error:
            problems[name] = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return problems
