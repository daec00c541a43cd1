"""The run folder: every file in it is written whole or not at all.

    run = RunFolder("s3://bucket/runs/a")          # or a local path, gs://, memory://
    run.write_table("clips/part-00000.parquet", table, {"recipe_hash": "..."})
    run.table_metadata("clips/part-00000.parquet")["recipe_hash"]

A local file is written under a temporary name in the same folder, flushed to disk, re-opened and compared, then renamed.
On object stores a put is atomic by itself; its size is asked for afterwards. So whatever exists under its final name is
complete: stages skip it. Where the storage fails, that is one `StorageError` with the file and the cause.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from recaption.errors import RecaptionError, StorageError
from recaption.records import conform

TEMPORARY_SUFFIX = ".tmp"
"""`<final name>.<random>.tmp`: ignored by every reader, removed by the next run."""


def recipe_hash(settings: Any) -> str:
    """First 12 hex digits of the sha256 of `settings` (anything JSON can write) in canonical JSON."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class RunFolder:
    """Paths below are relative to the run folder, with forward slashes."""

    def __init__(self, uri: str) -> None:
        self.fs, self.root = fsspec.url_to_fs(str(uri))
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        if self.is_local:
            self.root = os.path.abspath(self.root)
        self.uri = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def __repr__(self) -> str:
        return f"RunFolder({self.uri!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return RunFolder, (self.uri,)

    def path(self, *parts: str) -> str:
        """Path that `self.fs` understands."""
        return posixpath.join(self.root, *parts)

    @contextmanager
    def _storage(self, action: str, name: str) -> Iterator[None]:
        """Whatever a storage backend raises, as one sentence. A file that is missing or broken stays what it is."""
        try:
            yield
        except (FileNotFoundError, RecaptionError, pa.ArrowInvalid):
            raise
        except Exception as error:  # botocore, aiohttp, gcsfs and the kernel have no root in common
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StorageError(f"{self.path(name)} cannot be {action}: {cause}") from error

    def exists(self, name: str) -> bool:
        with self._storage("looked for", name):
            self._forget_listings()
            return bool(self.fs.exists(self.path(name)))

    def _forget_listings(self) -> None:
        # fsspec remembers what a bucket held; workers in other processes have written since.
        if not self.is_local:
            self.fs.invalidate_cache()

    def list(self, pattern: str) -> list[str]:
        """Relative names that match a glob pattern (`clips/part-*.parquet`), sorted; temporary files left out."""
        prefix = self.root.rstrip("/") + "/"
        with self._storage("listed", pattern):
            self._forget_listings()
            names = [str(p).removeprefix(prefix) for p in self.fs.glob(self.path(pattern))]
        return sorted(n for n in names if not n.endswith(TEMPORARY_SUFFIX))

    def read_bytes(self, name: str) -> bytes:
        with self._storage("read", name):
            return bytes(self.fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, payload: bytes) -> None:
        """Write whole or not at all; an existing file of that name is replaced in one step.

        Raises:
            StorageError: the disk is full, the storage is gone, or what was written does not read back the same.
        """
        with self._storage("written", name):
            if self.is_local:
                self._write_local(self.path(name), payload)
            else:
                self._put(self.path(name), payload)

    def _put(self, final: str, payload: bytes) -> None:
        self.fs.pipe_file(final, payload)
        self._forget_listings()
        if self.fs.size(final) != len(payload):
            raise OSError(f"{len(payload)} bytes were sent, {self.fs.size(final)} are there")

    def _write_local(self, final: str, payload: bytes) -> None:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        temporary = f"{final}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
        try:
            with open(temporary, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != hashlib.sha256(payload).hexdigest():
                raise OSError("it does not read back as it was written")
            os.replace(temporary, final)
        except BaseException:
            with suppress(OSError):  # on a storage that is gone the first error is the one to tell
                os.remove(temporary)
            raise

    def remove(self, name: str) -> None:
        if self.exists(name):
            with self._storage("removed", name):
                self.fs.rm(self.path(name), recursive=True)

    def remove_temporary_files(self) -> None:
        """Clear what a killed run left behind. Only before workers start. Object stores have none: a put is atomic."""
        if not self.is_local:
            return
        for path in self.fs.glob(self.path("**/*" + TEMPORARY_SUFFIX)):
            self.fs.rm(path, recursive=True)

    def copy_to_local(self, name: str, local_path: str) -> None:
        with (
            self._storage("read", name),
            self.fs.open(self.path(name), "rb") as source,
            open(local_path, "wb") as target,
        ):
            shutil.copyfileobj(source, target)

    # --- tables -----------------------------------------------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
        """One parquet file. `metadata` (recipe hashes, what went in) can be read back without reading the rows."""
        encoded = {k.encode(): v.encode() for k, v in (metadata or {}).items()}
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(encoded), sink, compression="zstd")
        self.write_bytes(name, sink.getvalue())

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.read_bytes(name)))

    def read_columns(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of one file; the others are not fetched from storage."""
        with self._storage("read", name), self.fs.open(self.path(name), "rb") as file:
            return pq.read_table(file, columns=[*columns])

    def table_metadata(self, name: str) -> dict[str, str]:
        with self._storage("read", name), self.fs.open(self.path(name), "rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        return {k.decode(): v.decode() for k, v in metadata.items() if k != b"ARROW:schema"}

    def read_tables(self, pattern: str, schema: pa.Schema) -> pa.Table:
        """All parts that match, in name order, as one table; an empty table of `schema` where there are none."""
        tables = [conform(self.read_table(name), schema) for name in self.list(pattern)]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    # --- text -------------------------------------------------------------------------------------------------------

    def write_yaml(self, name: str, value: Any) -> None:
        self.write_bytes(name, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())

    def read_yaml(self, name: str) -> Any:
        return yaml.safe_load(self.read_bytes(name))
