"""Sidecar captions: text files that lie beside a video under its name."""

from __future__ import annotations

import posixpath

import fsspec

SIDE_FILES = frozenset(
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


def read_side_text(uri: str) -> str:
    """The text that came with a video: the .txt file of the same name beside it, or "" where there is none."""
    fs, path = fsspec.url_to_fs(uri)
    side = posixpath.splitext(path)[0] + ".txt"
    return fs.cat_file(side).decode(errors="replace").strip() if fs.exists(side) else ""
