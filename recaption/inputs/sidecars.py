"""Sidecar captions: a .txt file next to a video with the same name."""

from __future__ import annotations

import posixpath

import fsspec

SIDECAR_EXTENSIONS = frozenset(
    [
        ".json",
        ".jsonl",
        ".txt",
        ".csv",
        ".tsv",
        ".parquet",
        ".md",
        ".yaml",
        ".yml",
        ".srt",
        ".vtt",
        ".ass",
        ".nfo",
        ".log",
        ".html",
        ".htm",
        ".xml",
        ".py",
        ".sh",
        ".tar",
        ".zip",
        ".gz",
        ".license",
    ]
)
"""Extensions of files that accompany videos; a folder of inputs is read without them."""


def read_sidecar_caption(uri: str) -> str:
    """The original caption of a video: the .txt file of the same name next to it, or "" where there is none."""
    fs, path = fsspec.url_to_fs(uri)
    sidecar = posixpath.splitext(path)[0] + ".txt"
    return fs.cat_file(sidecar).decode(errors="replace").strip() if fs.exists(sidecar) else ""
