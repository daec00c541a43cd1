"""Expands PATH arguments (files, folders, globs, lists, URIs) to a sorted list of inputs; nothing may be lost here.

    expand_paths(["clips/", "more/*.mp4", "list.txt", "s3://bucket/raw"])  -> ["/data/clips/a.mp4", ...]
    find_inputs(["clips/"]).refused, .num_companions                       -> {"/data/clips/closed": "..."}, 11

A folder means every file below it except those that accompany videos (companions.py), which are counted. What is named and
cannot be an input, such as a folder that may not be read or an empty entry of a list, is `refused`: it becomes a failed row.
What lists name is kept on disk (`FoundInputs.listed`), with their spans, captions and metadata.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recaption.errors import UsageError
from recaption.inputs.companions import is_companion, is_companion_folder, video_stems
from recaption.inputs.folders import MAGIC, FolderFiles, match, walk
from recaption.inputs.lists.read_list import LIST_EXTENSIONS, OTHER_TABLES, is_list, read_list
from recaption.inputs.lists.store import RowStore
from recaption.inputs.names import HTTP, check_protocol, local_path, protocol_of, remote_filesystem, uri_of_path
from recaption.inputs.tars import is_tar, videos_in

REFUSED = "not an input: "
"""Begins the detail of the failed row of what is named and cannot be an input."""


@dataclass
class FoundInputs:
    """The inputs that some paths mean."""

    uris: set[str] = field(default_factory=set)
    """Of files, folders, globs and URIs."""
    refused: dict[str, str] = field(default_factory=dict)
    """What is named and cannot be an input -> why."""
    companions: set[str] = field(default_factory=set)
    """Files of folders and globs that are left out because they accompany videos."""
    listed: RowStore | None = None
    """What lists name, with what they say of it; None where there are no lists."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> column of lists, where it was named."""
    video_root: str = ""

    @property
    def num_companions(self) -> int:
        return len(self.companions)

    def all_names(self) -> list[str]:
        """Inputs and what is refused, sorted: each becomes a row. In memory, unlike `listed`."""
        return sorted({*self.uris, *self.refused, *(self.listed.names() if self.listed else ())})

    def __enter__(self) -> FoundInputs:
        return self

    def __exit__(self, *_: object) -> None:
        if self.listed is not None:
            self.listed.close()

    def add_tar(self, uri: str) -> int:
        """Take in the videos of a tar; returns how many.

        Raises:
            UsageError: it cannot be read, or is no uncompressed tar.
        """
        if self.listed is None:
            self.listed = RowStore()
        return self.listed.add(videos_in(uri))

    def add_list(self, uri: str) -> int:
        """Take in the entries of a list; returns how many.

        Raises:
            UsageError: it cannot be read, is no list, or no column names the videos.
        """
        if self.listed is None:
            self.listed = RowStore()
        return self.listed.add(read_list(uri, self.columns, self.video_root))


def expand_paths(paths: Iterable[str]) -> list[str]:
    """Files, folders, globs, lists and URIs -> unique URIs, sorted; also of what will be a failed row.

    Raises:
        UsageError: a path does not exist, or has no input file.
    """
    with find_inputs(paths) as found:
        return found.all_names()


def find_inputs(paths: Iterable[str], *, columns: Mapping[str, str] | None = None, video_root: str = "") -> FoundInputs:
    """As `expand_paths`, with what was refused, what was left out, and what lists say of their videos.

    Args:
        columns: role -> column of lists (`lists.columns.parse_columns`), where names are not recognised.
        video_root: folder or URI in which relative names of lists are looked up first.

    Raises:
        UsageError: a path does not exist, or has no input file.
    """
    found = FoundInputs(columns=columns or {}, video_root=video_root)
    for path in paths:
        one = FoundInputs(columns=found.columns, video_root=video_root, listed=found.listed)
        num_listed = _expand_one(path, one)
        num_listed += _expand_tars(one)
        if not (one.uris or one.refused or num_listed):
            left_out = f", only {one.num_companions} files that accompany videos" if one.companions else ""
            raise UsageError(f"{path}: no video file there{left_out}")
        found.uris |= one.uris
        found.refused |= one.refused
        found.companions |= one.companions
        found.listed = one.listed
    if not (found.uris or found.refused or found.listed):
        raise UsageError(f"no inputs: pass --videos with files, folders, globs or lists ({', '.join(LIST_EXTENSIONS)})")
    found.companions -= found.uris
    found.refused = {name: why for name, why in found.refused.items() if name not in found.uris}
    return found


def _expand_one(name: str, found: FoundInputs) -> int:
    """Add what a path means; returns the number of entries of the list, if it is one."""
    path = _local_candidate(name)
    if path is None:
        return _expand_remote(name, found)
    if os.path.isdir(path):
        _add_files(walk, path, found)
        if uri_of_path(path) in found.refused:
            raise UsageError(f"{name}: cannot be read: {found.refused[uri_of_path(path)]}")
    elif os.path.lexists(path):
        return _add_file_or_list(uri_of_path(path), found)
    elif MAGIC.search(path):
        _add_files(match, path, found)
    else:
        raise UsageError(f"{name}: no such file or folder")
    return 0


def _expand_tars(found: FoundInputs) -> int:
    """Replace the tars of folders and globs by the videos in them; one without any accompanies videos."""
    count = 0
    for uri in sorted(filter(is_tar, found.uris)):
        found.uris.discard(uri)
        try:
            num_videos = found.add_tar(uri)
        except UsageError as error:
            found.refused[uri] = str(error).removeprefix(f"{uri}: ")
            continue
        count += num_videos
        if not num_videos:
            found.companions.add(uri)
    return count


def _local_candidate(name: str) -> str | None:
    """The local path that a name on the command line means; None for a URI of another protocol."""
    if os.path.lexists(name):
        return name
    path = local_path(name)
    if path is None or name == path:
        home = os.path.expanduser(name)
        return home if path is not None and os.path.lexists(home) else path
    literal = name.partition("://")[2]
    return literal if os.path.lexists(literal) else path


def _add_files(search: Callable[[str, FolderFiles], None], path: str, found: FoundInputs) -> None:
    files = FolderFiles()
    search(path, files)
    found.uris |= {uri_of_path(one) for one in files.paths}
    found.companions |= {uri_of_path(one) for one in files.companions}
    found.refused |= {uri_of_path(one): why for one, why in files.unreadable.items()}


def _add_file_or_list(uri: str, found: FoundInputs) -> int:
    if uri.lower().endswith(OTHER_TABLES):
        raise UsageError(
            f"{uri}: lists are read from {', '.join(LIST_EXTENSIONS)} files, not from "
            f"{posixpath.splitext(uri)[1].lower()} files"
        )
    if is_list(uri):
        return found.add_list(uri)
    if is_tar(uri):
        return found.add_tar(uri)
    found.uris.add(uri)
    return 0


# --- remote -----------------------------------------------------------------------------------------------------------


def _expand_remote(name: str, found: FoundInputs) -> int:
    check_protocol(name)
    if protocol_of(name) in HTTP:  # has no folders; whether it is there is for its row to say
        return _add_file_or_list(name, found)
    try:
        fs, root = remote_filesystem(name)
        if MAGIC.search(root) and not fs.exists(root):
            wanted = posixpath.splitext(root)[1]
            _add_remote_files(fs, [p for p in fs.glob(root) if fs.isfile(p)], found, root="", wanted=wanted)
        elif not fs.exists(root):
            raise UsageError(f"{name}: no such file or folder")
        elif fs.isdir(root):
            _add_remote_files(fs, fs.find(root), found, root=root)
        else:
            return _add_file_or_list(fs.unstrip_protocol(root), found)
    except UsageError:
        raise
    except Exception as error:  # storage backends have no common exception
        raise UsageError(f"{name}: cannot be listed: {type(error).__name__}: {error}") from error
    return 0


def _add_remote_files(fs: Any, paths: list[str], found: FoundInputs, *, root: str, wanted: str = "") -> None:
    stems: dict[str, list[str]] = {}
    for path in paths:
        stems.setdefault(posixpath.dirname(path), []).append(posixpath.basename(path))
    stems_of = {folder: video_stems(names) for folder, names in stems.items()}
    for path in paths:
        folder, base = posixpath.split(path)
        below_root = posixpath.dirname(path.removeprefix(root)).split("/")

        def read_head(num_bytes: int, path: str = path) -> bytes:
            return bytes(fs.cat_file(path, start=0, end=num_bytes))

        is_left_out = any(map(is_companion_folder, below_root)) or is_companion(base, stems_of[folder], read_head)
        is_wanted = bool(wanted) and not MAGIC.search(wanted) and base.endswith(wanted)
        uri = fs.unstrip_protocol(path)
        (found.companions if is_left_out and not is_wanted else found.uris).add(uri)
