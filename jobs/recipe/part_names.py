"""Names of the files in which a stage commits its parts."""

from __future__ import annotations


def part_name(folder: str, part: int) -> str:
    return f"{folder}/part-{part:05d}.parquet"


def part_number(name: str) -> int:
    """`clips/part-00012.parquet` -> 12."""
    return int(name.rsplit("-", 1)[1].removesuffix(".parquet"))
