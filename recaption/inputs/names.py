"""Names of inputs: local paths, and URIs of an allow-list of protocols; every file name has one that is valid UTF-8.

    uri_of_path("/data/a::b.mp4")                       # "/data/a::b.mp4": a local name is taken as it is
    uri_of_path("/data/caf\\udce9.mp4")                  # "file:///data/caf%E9.mp4": bytes that are not UTF-8
    local_path("file:///data/caf%E9.mp4")               # "/data/caf\\udce9.mp4", which `open` takes
    local_path("s3://bucket/a.mp4")                     # None

Names come from strangers: nothing in a local name is a URL or a chain of file systems, and a URI is never a chain (`::`).
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from recaption.errors import UsageError

PROTOCOLS = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""Inputs are read from these. Not from others that fsspec knows: some read local files, some unpack or run things."""
HTTP = ("http", "https")
TAR = "tar+"
"""Before the protocol of a tar: a member of it (tars.py)."""
ETAG_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "content_md5",
    "blob_id",
    "mtime",
    "LastModified",
    "updated",
    "created",
)
"""Fields of fsspec's `info` that change with the bytes, the best first."""
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def protocol_of(uri: str) -> str:
    """Protocol of a URI in lower case; "" for a local name."""
    match = _PROTOCOL.match(uri)
    return match[1].lower() if match else ""


def check_protocol(uri: str) -> None:
    """
    Raises:
        UsageError: a protocol that inputs are not read from.
    """
    protocol = protocol_of(uri).removeprefix(TAR)
    if protocol and protocol not in PROTOCOLS:
        raise UsageError(f"{uri}: inputs are not read from {protocol}://, only from {', '.join(PROTOCOLS)}")


def local_path(uri: str) -> str | None:
    """Path of a local input, as `os` takes it; None for a remote one."""
    protocol = protocol_of(uri)
    if not protocol:
        return uri
    if protocol != "file":
        return None
    rest = uri[len("file://") :]
    return unquote(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest, errors="surrogateescape")


def uri_of_path(path: str) -> str:
    """The absolute path itself; as a percent-encoded file:// URI where it is not valid UTF-8, as tables need it."""
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def remote_filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a remote URI; the whole name after the protocol is the path.

    Raises:
        UsageError: a protocol that inputs are not read from.
        ImportError: the package for this protocol is not installed.
    """
    check_protocol(uri)
    filesystem: Any = fsspec.get_filesystem_class(protocol_of(uri))
    return filesystem(**filesystem._get_kwargs_from_urls(uri)), filesystem._strip_protocol(uri)


def etag_of(info: dict[str, Any]) -> str:
    """What fsspec's `info` of a file says about its version; "" where it says nothing."""
    return next((str(info[name]) for name in ETAG_FIELDS if info.get(name)), "")
