"""Expands PATH arguments (files, folders, globs, lists, URIs) to a sorted list of inputs; nothing may be lost here.

    expand_paths(["clips/", "more/*.mp4", "list.txt", "s3://bucket/raw"])  -> ["/data/clips/a.mp4", ...]

A folder means every file below it except those with `SIDECAR_EXTENSIONS`: a file of unknown type is an input, and fails
later with a reason.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterable

import fsspec
import pyarrow.parquet as pq

from recaption.errors import UsageError
from recaption.inputs.sidecars import SIDECAR_EXTENSIONS

LIST_EXTENSIONS = (".txt", ".parquet")
"""Files that list inputs."""
URI_COLUMNS = ("uri", "path", "url", "video", "file")
"""Columns that a .parquet list may have its inputs in; the first that exists is read."""


def expand_paths(paths: Iterable[str]) -> list[str]:
    """Files, folders, globs, .txt/.parquet lists and fsspec URIs -> unique URIs, sorted.

    Raises:
        UsageError: a path does not exist, or has no input file.
    """
    inputs: set[str] = set()
    for path in paths:
        expanded = _expand_one(path)
        if not expanded:
            raise UsageError(f"{path}: no video file there")
        inputs.update(expanded)
    if not inputs:
        raise UsageError("no inputs: pass --videos with files, folders, globs or a .txt/.parquet list")
    return sorted(inputs)


def _expand_one(path: str) -> list[str]:
    fs, root = fsspec.url_to_fs(path)

    def name(full: str) -> str:
        return full if _is_local(fs) else fs.unstrip_protocol(full)

    if any(c in root for c in "*?[") and not fs.exists(root):
        return [name(p) for p in fs.glob(root) if fs.isfile(p) and not posixpath.basename(p).startswith(".")]
    if not fs.exists(root):
        raise UsageError(f"{path}: no such file or folder")
    if fs.isdir(root):
        files = fs.find(root)
        return [name(p) for p in files if _is_input(p)]
    if root.endswith(LIST_EXTENSIONS):
        return _read_list(fs, root)
    return [name(root)]


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return "file" in protocols


def _is_input(path: str) -> bool:
    base = posixpath.basename(path)
    return not base.startswith(".") and posixpath.splitext(base)[1].lower() not in SIDECAR_EXTENSIONS


def _read_list(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Inputs of a text file, one per line (`#` starts a comment), or of a parquet table with one of `URI_COLUMNS`.

    An input that is listed but does not exist is returned too: it becomes a failed row, not a missing one.
    """
    if path.endswith(".txt"):
        lines = fs.cat_file(path).decode().splitlines()
        entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    else:
        table = pq.read_table(io.BytesIO(fs.cat_file(path)))
        column = next((c for c in URI_COLUMNS if c in table.column_names), None)
        if column is None:
            raise UsageError(f"{path}: needs a column named one of {', '.join(URI_COLUMNS)}, has {table.column_names}")
        entries = [str(v) for v in table.column(column).to_pylist()]
    folder = posixpath.dirname(path)
    return [e if "://" in e or e.startswith("/") else posixpath.join(folder, e) for e in entries]
