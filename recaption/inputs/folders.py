"""Files below a local folder or of a local glob: linked folders are followed once, what cannot be read is named.

    found = FolderFiles()
    walk("/data/videos", found)             # or match("/data/*/take-?/**/*.mp4", found)
    found.paths, found.num_companions, found.unreadable

A folder that was read under one name is not read again under another, so that a loop of links ends; real folders come
before links to them.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from recaption.inputs.companions import is_companion, is_companion_folder, video_stems

MAGIC = re.compile(r"[*?[]")


@dataclass
class FolderFiles:
    """What was found; names are as `os` has them, with surrogates for bytes that are not UTF-8."""

    paths: list[str] = field(default_factory=list)
    companions: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folder -> why its files cannot be listed."""
    seen: set[tuple[int, int]] = field(default_factory=set)
    """(device, inode) of folders."""


@dataclass(frozen=True)
class _Listing:
    folders: list[str]
    """Names, sorted."""
    linked_folders: list[str]
    files: list[str]
    """Everything else: files, links to files, broken links, pipes."""

    @cached_property
    def stems(self) -> frozenset[str]:
        return video_stems(self.files)


def _list(folder: str, found: FolderFiles) -> _Listing:
    folders: list[str] = []
    linked: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_folder(entry):
                    files.append(entry.name)
                else:
                    (linked if entry.is_symlink() else folders).append(entry.name)
    except OSError as error:
        found.unreadable[folder] = error.strerror or str(error)
    return _Listing(sorted(folders), sorted(linked), sorted(files))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: a file that cannot be read
        return False


def _is_new(folder: str, found: FolderFiles) -> bool:
    try:
        status = os.stat(folder)
    except OSError as error:
        found.unreadable[folder] = error.strerror or str(error)
        return False
    key = (status.st_dev, status.st_ino)
    is_new = key not in found.seen
    found.seen.add(key)
    return is_new


def walk(folder: str, found: FolderFiles) -> None:
    """Add every file below a folder."""
    for path, listing in _folders(folder, found):
        for name in listing.files:
            _add(path, name, listing.stems, found)


def _folders(folder: str, found: FolderFiles) -> Iterator[tuple[str, _Listing]]:
    """(path, listing) of a folder and of all below it; of linked ones last. Companion folders are counted, not returned."""
    linked = [folder]
    while linked:
        waiting = [linked.pop(0)]
        while waiting:
            path = waiting.pop()
            if not _is_new(path, found):
                continue
            listing = _list(path, found)
            yield path, listing
            for name in listing.folders:
                if is_companion_folder(name):
                    _count_companions(os.path.join(path, name), found)
            names = [name for name in listing.folders if not is_companion_folder(name)]
            waiting += [os.path.join(path, name) for name in reversed(names)]
            linked += [os.path.join(path, name) for name in listing.linked_folders if not is_companion_folder(name)]


def _count_companions(folder: str, found: FolderFiles) -> None:
    for path, _, files in os.walk(folder):
        found.companions += [os.path.join(path, name) for name in files]


def _add(folder: str, name: str, stems: frozenset[str], found: FolderFiles) -> None:
    path = os.path.join(folder, name)

    def read_head(num_bytes: int) -> bytes:
        if not os.path.isfile(path):
            raise OSError("not a regular file")
        with open(path, "rb") as file:
            return file.read(num_bytes)

    (found.companions if is_companion(name, stems, read_head) else found.paths).append(path)


# --- globs ------------------------------------------------------------------------------------------------------------


def match(pattern: str, found: FolderFiles) -> None:
    """Add the files that match `*`, `?`, `[...]` and `**` (any number of folders). Names that start with a dot match only
    patterns that do; companions only a pattern that ends in their extension."""
    parts = pattern.rstrip("/").split("/")
    first = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    folder = os.path.abspath("/".join(parts[:first]) + "/" if first else ".")
    if os.path.isdir(folder):
        _match(folder, parts[first:], found)


def _match(folder: str, parts: list[str], found: FolderFiles) -> None:
    part, rest = parts[0], parts[1:]
    if part == "**":
        below = FolderFiles()
        for path, _ in list(_folders(folder, below)):
            _match(path, rest or ["*"], found)
        found.unreadable |= below.unreadable
        found.companions += below.companions
        return
    if not MAGIC.search(part):
        path = os.path.join(folder, part)
        if rest and os.path.isdir(path):
            _match(path, rest, found)
        elif not rest and os.path.lexists(path) and not os.path.isdir(path):
            found.paths.append(path)
        return
    listing = _list(folder, found)
    fits = re.compile(fnmatch.translate(part)).match
    if rest:
        for name in [*listing.folders, *listing.linked_folders]:
            if fits(name) and part.startswith(".") == name.startswith("."):
                _match(os.path.join(folder, name), rest, found)
        return
    for name in listing.files:
        if fits(name) and part.startswith(".") == name.startswith("."):
            _add_match(folder, name, part, listing.stems, found)


def _add_match(folder: str, name: str, part: str, stems: frozenset[str], found: FolderFiles) -> None:
    extension = os.path.splitext(part)[1]
    if extension and not MAGIC.search(extension):
        found.paths.append(os.path.join(folder, name))
    else:
        _add(folder, name, stems, found)
