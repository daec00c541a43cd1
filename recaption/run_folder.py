"""The run folder, local or remote: every file in it is written whole or not at all.

    run = RunFolder("s3://bucket/runs/a")          # or a local path, gs://, memory://
    run.write_table("clips/part-00000.parquet", table, {"recipe_hash": "..."})
    run.table_metadata("clips/part-00000.parquet")["recipe_hash"]

A local file is written under a temporary name in the same folder, flushed to disk, re-opened and compared, then renamed.
On object stores a put is atomic; the size is compared afterwards. So a file that exists under its final name is complete,
and stages skip it. A storage failure is one `StorageError` with the file and the cause.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from recaption.errors import OutsideRunError, RecaptionError, StorageError
from recaption.records import conform

TEMPORARY_SUFFIX = ".tmp"
"""`<final name>.<random>.tmp`: ignored by every reader, removed by the next run."""
HASH_FORMAT_VERSION = 1
"""`format_version` in every hash of settings. Raise it where equal settings come to mean something else."""


def recipe_hash(settings: Any) -> str:
    """First 12 hex digits of the sha256 of `settings` (any JSON value) and the format version as canonical JSON."""
    document = {"format_version": HASH_FORMAT_VERSION, "settings": settings}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class RunFolder:
    """Atomic reads and writes below one folder. Names are relative to it, with forward slashes."""

    def __init__(self, uri: str) -> None:
        self.fs, self.root = fsspec.url_to_fs(str(uri))
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        if self.is_local:
            self.root = os.path.abspath(self.root)
        self.uri = self.root if self.is_local else self.fs.unstrip_protocol(self.root)
        self._folders_inside: set[str] = set()
        """Folders that were found to lie in the run folder, whatever links lead to them."""

    def __repr__(self) -> str:
        return f"RunFolder({self.uri!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return RunFolder, (self.uri,)

    def path(self, *parts: str) -> str:
        """Absolute path for `self.fs`.

        Raises:
            OutsideRunError: a name that is absolute or goes up.
        """
        name = posixpath.join("", *parts)
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise OutsideRunError(f"{name!r} is not a name inside the run folder {self.uri}")
        return posixpath.join(self.root, name)

    def path_inside(self, name: str) -> str:
        """`path` of a file to be read or written, which no link leads out of the run folder.

        Raises:
            OutsideRunError: as `path`, or a link leads out of the run folder.
        """
        path = self.path(name)
        if self.is_local:
            folder = os.path.dirname(path)
            if folder not in self._folders_inside:
                self._check_inside(name, folder)
                self._folders_inside.add(folder)
            if os.path.islink(path):
                self._check_inside(name, path)
        return path

    def _check_inside(self, name: str, path: str) -> None:
        root, target = os.path.realpath(self.root), os.path.realpath(path)
        if target != root and not target.startswith(root.rstrip("/") + "/"):
            raise OutsideRunError(
                f"{self.path(name)} leads out of the run folder by a link, to {target}: move it into the folder "
                "(the run folder itself may be a link)"
            )

    @contextmanager
    def _storage_errors(self, action: str, name: str) -> Iterator[None]:
        """Turn what a storage backend raises into a `StorageError`; missing and corrupt files keep their exceptions."""
        try:
            yield
        except (FileNotFoundError, RecaptionError, pa.ArrowInvalid):
            raise
        except Exception as error:  # botocore, aiohttp, gcsfs and the kernel have no common base class
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StorageError(f"{self.path(name)} cannot be {action}: {cause}") from error

    def exists(self, name: str) -> bool:
        with self._storage_errors("checked", name):
            self._invalidate_listings()
            return bool(self.fs.exists(self.path(name)))

    def _invalidate_listings(self) -> None:
        # fsspec caches the listing of a bucket; workers in other processes may have written since.
        if not self.is_local:
            self.fs.invalidate_cache()

    def list(self, pattern: str) -> list[str]:
        """Relative names that match a glob pattern (`clips/part-*.parquet`), sorted, without temporary files."""
        prefix = self.root.rstrip("/") + "/"
        with self._storage_errors("listed", pattern):
            self._invalidate_listings()
            names = [str(p).removeprefix(prefix) for p in self.fs.glob(self.path(pattern))]
        return sorted(n for n in names if not n.endswith(TEMPORARY_SUFFIX))

    def read_bytes(self, name: str) -> bytes:
        with self._storage_errors("read", name):
            return bytes(self.fs.cat_file(self.path_inside(name)))

    def read_span(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, fewer where it is shorter.

        Raises:
            FileNotFoundError: no such file.
        """
        path = self.path_inside(name)
        if self.is_local:  # fsspec's overhead per open of a local file is longer than reading a latent
            with open(path, "rb", buffering=0) as file:
                end = min(end, os.fstat(file.fileno()).st_size)  # a table may claim any size
                file.seek(start)
                return file.read(max(0, end - start))
        return bytes(self.fs.cat_file(path, start=start, end=end))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._storage_errors("read", name):
            return int(self.fs.size(self.path_inside(name)))

    def open(self, name: str) -> Any:
        """A file for reading its bytes; a context manager."""
        with self._storage_errors("read", name):
            return self.fs.open(self.path_inside(name), "rb")

    def write_bytes(self, name: str, payload: bytes) -> None:
        """Write whole or not at all; an existing file of that name is replaced atomically.

        Raises:
            StorageError: the disk is full, the storage is unreachable, or the file does not read back as written.
        """
        with self._storage_errors("written", name):
            if self.is_local:
                self._write_local(self.path_inside(name), payload)
            else:
                self._put(self.path(name), payload)

    def _put(self, final: str, payload: bytes) -> None:
        self.fs.pipe_file(final, payload)
        self._invalidate_listings()
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
            with suppress(OSError):  # where the storage is gone, the first error is the one to report
                os.remove(temporary)
            raise

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there; of a link the link."""
        if self.is_local and os.path.islink(self.path(name)):
            with self._storage_errors("removed", name):
                os.remove(self.path(name))
        elif self.exists(name):
            with self._storage_errors("removed", name):
                self.fs.rm(self.path_inside(name), recursive=True)

    def remove_temporary_files(self) -> None:
        """Remove what a killed run left. Only before workers start. Object stores have none: a put is atomic."""
        if not self.is_local:
            return
        for path in self.fs.glob(self.path("**/*" + TEMPORARY_SUFFIX)):
            self.fs.rm(path, recursive=True)

    # --- tables -----------------------------------------------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
        """Write one parquet file. `metadata` (such as recipe hashes) can be read without reading the rows.

        With checksums of its pages: without, a flipped bit in 1 of 40 places gives other rows and no error.
        """
        encoded = {k.encode(): v.encode() for k, v in (metadata or {}).items()}
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(encoded), sink, compression="zstd", write_page_checksum=True)
        self.write_bytes(name, sink.getvalue())

    def write_batches(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """As `write_table`, a row group per table: only the compressed file is in memory as a whole."""
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table)
        self.write_bytes(name, sink.getvalue())

    def read_batches(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one file, some thousands at a time."""
        with (
            self._storage_errors("read", name),
            self.fs.open(self.path_inside(name), "rb") as file,
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            yield from parquet.iter_batches(8192, columns=None if columns is None else [*columns])

    def read_rows_of(self, name: str, column: str, value: int) -> pa.Table:
        """The rows in which an integer column, by which the file is sorted, has this value; others are hardly read."""
        with (
            self._storage_errors("read", name),
            self.fs.open(self.path_inside(name), "rb", cache_type="none") as file,
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            index = parquet.schema_arrow.names.index(column)
            bounds = [parquet.metadata.row_group(i).column(index).statistics for i in range(parquet.num_row_groups)]
            groups = [i for i, one in enumerate(bounds) if one is None or one.min <= value <= one.max]
            table = parquet.read_row_groups(groups)
        return table.filter(pc.equal(table[column], value))

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.read_bytes(name)), page_checksum_verification=True)

    def read_columns(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of one file, in this order; the others are not read from storage.

        Raises:
            KeyError: a column is missing.
        """
        # cache_type: fsspec's default reads 5 MB ahead, which is all of most parts.
        with (
            self._storage_errors("read", name),
            self.fs.open(self.path_inside(name), "rb", cache_type="none") as file,
            pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True) as parquet,
        ):
            table = parquet.read(columns=[*columns])
        return table.select([*columns])

    def table_metadata(self, name: str) -> dict[str, str]:
        with self._storage_errors("read", name), self.fs.open(self.path_inside(name), "rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        return {k.decode(): v.decode() for k, v in metadata.items() if k != b"ARROW:schema"}

    def read_tables(self, pattern: str, schema: pa.Schema) -> pa.Table:
        """All parts that match, in name order, as one table; an empty table of `schema` where there are none."""
        return self.read_parts(self.list(pattern), schema)

    def read_parts(self, names: Sequence[str], schema: pa.Schema) -> pa.Table:
        """The rows of these files, in this order: several files at a time, and only the columns of `schema`.

        Raises:
            KeyError: a file lacks a column.
        """
        with ThreadPoolExecutor() as threads:
            tables = threads.map(lambda name: conform(self.read_columns(name, schema.names), schema), names)
            return pa.concat_tables([schema.empty_table(), *tables])

    # --- text -------------------------------------------------------------------------------------------------------

    def write_yaml(self, name: str, value: Any) -> None:
        self.write_bytes(name, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())

    def read_yaml(self, name: str) -> Any:
        return yaml.safe_load(self.read_bytes(name))
