"""Sidecar captions: the text file next to a video that has its original caption.

    find_sidecar("/data/a.mp4").text        # of a.txt, a.mp4.txt, a.TXT, the first that is there
    find_sidecar("/data/b.mp4").refusal     # "b.txt: a link that leads out of its folder"

Input folders come from strangers, and captions are published: a text is a regular file of at most `MAX_SIDECAR_BYTES` in
the folder of its video or below it; a link that leads elsewhere is not followed. Nothing here raises for one video.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass

from recaption.errors import VideoError
from recaption.inputs.http import open_http
from recaption.inputs.names import HTTP, TAR, local_path, protocol_of, remote_filesystem
from recaption.inputs.text_encoding import decode_text

MAX_SIDECAR_BYTES = 64 * 1024
"""About 10,000 words; captions have a few hundred at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """What lies beside a video."""

    text: str = ""
    refusal: str = ""
    """Why a text that is there is not used, with its name; "" where there is none, or it is used."""
    may_pass: bool = False
    """The refusal says nothing about the text: its storage did not answer."""


class _RefusedError(Exception):
    """There is a text, and it is not used."""

    def __init__(self, why: str, *, may_pass: bool = False) -> None:
        super().__init__(why)
        self.may_pass = may_pass


def find_sidecar(uri: str) -> Sidecar:
    """The original caption of a video. A missing text is none; nothing is raised."""
    if uri.startswith(TAR):  # what accompanies it is in the tar too, and was read with it
        return Sidecar()
    path = local_path(uri)
    names = _names(posixpath.basename(uri if path is None else path), with_upper_case=path is not None)
    for name in names:
        try:
            data = _read_remote(uri, name) if path is None else _read_local(os.path.dirname(path), name)
        except _RefusedError as error:
            return Sidecar(refusal=f"{_printable(name)}: {error}", may_pass=error.may_pass)
        if data is not None:
            text = decode_text(data)
            return Sidecar(refusal=f"{_printable(name)}: is no text") if text is None else Sidecar(text=text.strip())
    return Sidecar()


def read_sidecar_caption(uri: str) -> str:
    """The text of `find_sidecar`, or "" where there is none that can be used."""
    return find_sidecar(uri).text


def has_sidecar(uri: str) -> bool:
    """Whether a video has an original caption that can be used."""
    return bool(find_sidecar(uri).text)


def _names(base: str, *, with_upper_case: bool) -> list[str]:
    stem = posixpath.splitext(base)[0]
    extensions = (".txt", ".TXT", ".Txt") if with_upper_case else (".txt",)
    return [name + extension for extension in extensions for name in dict.fromkeys((stem, base))]


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


# --- local ------------------------------------------------------------------------------------------------------------


def _read_local(folder: str, name: str) -> bytes | None:
    """Bytes of a side text; None where there is no such name."""
    path = os.path.join(folder, name)
    try:
        descriptor = _open_inside(folder, path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise _RefusedError("a link to nothing") from None
        return None
    except (OSError, ValueError) as error:
        raise _RefusedError(getattr(error, "strerror", None) or str(error)) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _RefusedError("not a regular file")
        try:
            return _bounded(file.read(MAX_SIDECAR_BYTES + 1))
        except OSError as error:
            raise _RefusedError(error.strerror or str(error)) from None


def _open_inside(folder: str, path: str) -> int:
    """Descriptor of a file in the folder or below it; a pipe does not make it wait."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    if not stat.S_ISLNK(status := os.lstat(path).st_mode):
        if not stat.S_ISREG(status):
            raise _RefusedError("a folder" if stat.S_ISDIR(status) else "not a regular file")
        return os.open(path, flags)
    real_folder, target = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([real_folder, target]) != real_folder:
        raise _RefusedError("a link that leads out of its folder")
    if not stat.S_ISREG(os.lstat(target).st_mode):
        raise _RefusedError("a link to what is no regular file")
    descriptor = os.open(target, flags)
    opened = os.readlink(f"/proc/self/fd/{descriptor}")  # folders on the way may have been exchanged meanwhile
    if os.path.commonpath([real_folder, opened]) != real_folder:
        os.close(descriptor)
        raise _RefusedError("a link that leads out of its folder")
    return descriptor


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_SIDECAR_BYTES:
        raise _RefusedError(f"longer than {MAX_SIDECAR_BYTES} bytes")
    return data


# --- remote -----------------------------------------------------------------------------------------------------------


def _read_remote(uri: str, name: str) -> bytes | None:
    try:
        if protocol_of(uri) in HTTP:
            return _read_http(posixpath.join(posixpath.dirname(uri), name))
        fs, path = remote_filesystem(uri)
        sidecar = posixpath.join(posixpath.dirname(path), name)
        return _bounded(bytes(fs.cat_file(sidecar, start=0, end=MAX_SIDECAR_BYTES + 1)))
    except (FileNotFoundError, IsADirectoryError):
        return None
    except _RefusedError:
        raise
    except VideoError as error:
        if error.reason == "unreadable":  # 404
            return None
        raise _RefusedError(error.detail, may_pass=True) from None
    except Exception as error:  # storage backends have no common exception
        raise _RefusedError(f"{type(error).__name__}: {error}", may_pass=True) from None


def _read_http(uri: str) -> bytes | None:
    with open_http(uri) as remote:
        if "html" in remote.response.headers.get("Content-Type", ""):
            return None  # the page that some servers send in the place of a 404
        data = b""
        for block in remote.blocks():
            data = _bounded(data + block)
        return data
