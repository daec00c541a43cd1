"""One entry of a list: the input that a name in it means, or why it is none.

    entry_of("/data/list.csv", "a.mp4")                        # ListEntry(name="/data/a.mp4")
    entry_of("https://host/list.csv", "sftp://x/a.mp4")        # .refusal: inputs are not read from sftp://

Lists come from strangers: a name is a URI of an allow-list of protocols, an absolute path, or relative to the list. An entry
that cannot be an input is returned too, with the reason: it becomes a failed row.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from urllib.parse import quote

from recaption.errors import UsageError
from recaption.inputs.http import is_own_machine
from recaption.inputs.names import HTTP, TAR, check_protocol, local_path, protocol_of, uri_of_path


@dataclass(frozen=True, kw_only=True, slots=True)
class ListEntry:
    """One entry: an input, or why it is none."""

    name: str
    """URI of the input; of a refused entry what stands there, or where in the list it stands."""
    refusal: str = ""


def existing_file(list_uri: str, line: str, as_bytes: str) -> str | None:
    """The local file that a line names as it stands, spaces and all; None where there is none."""
    list_path = local_path(list_uri)
    if list_path is None:
        return None
    folder = os.path.dirname(os.path.abspath(list_path))
    names = (as_bytes, line, as_bytes.strip(), line.strip(), line.strip().replace("\\", "/"))  # the last: from Windows
    for name in dict.fromkeys(names):
        path = os.path.join(folder, name)
        if name.strip() and "\0" not in name and is_file_name(path):
            return uri_of_path(path)
    return None


def is_file_name(path: str) -> bool:
    """Whether something other than a folder has this name."""
    try:
        return os.path.lexists(path) and not os.path.isdir(path)
    except (OSError, ValueError):
        return False


def entry_of(uri: str, name: str) -> ListEntry:
    """The input that an entry of the list `uri` names: a URI, an absolute path, or a name relative to the list."""
    if protocol_of(name):
        return _entry_of_uri(uri, name)
    if name.startswith("/"):
        return ListEntry(name=uri_of_path(name))
    path = local_path(uri)
    if path is not None:
        return ListEntry(name=uri_of_path(os.path.join(os.path.dirname(path), name)))
    protocol, _, rest = uri.partition("://")
    if protocol in HTTP:
        name = quote(name, safe="/%:@!$&'()*+,;=~?")
    return ListEntry(name=f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), name))}")


def _entry_of_uri(list_uri: str, name: str) -> ListEntry:
    try:
        check_protocol(name)
    except UsageError as error:
        return ListEntry(name=name, refusal=str(error).removeprefix(f"{name}: "))
    path = local_path(name)
    if path is not None:
        literal = name.partition("://")[2]
        return ListEntry(name=uri_of_path(literal if os.path.lexists(literal) else path))
    is_remote_list, place = local_path(list_uri) is None, name.removeprefix(TAR)
    if is_remote_list and protocol_of(place) in HTTP and is_own_machine(place):
        return ListEntry(name=name, refusal="a remote list cannot name this machine's own address")
    return ListEntry(name=name)
