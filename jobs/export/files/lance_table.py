"""The Lance table of an export: parts are fragments that workers write, the driver makes them one table.

    fragments = write_fragments(uri, rows)         # a worker: JSON that names the data files of its part
    commit(uri, [fragments, ...])                  # the driver; what no part names any more is removed

Clips are a blob column, read one by one with `take_blobs`. Needs the extra `recaption[lance]`. The rows of an export are the
same every time; names of Lance's files are random.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa

from jobs.export.clip_files import metadata_of
from recaption.captions.text import CAPTION_KINDS
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

FRAGMENTS = "fragments"
"""Metadata of the table of a part: its fragments."""
_TYPES = {
    **dict.fromkeys(("clip_id", "caption", "captioner", "source", "id", "licence", "metadata"), pa.string()),
    "captions": pa.struct([(kind, pa.string()) for kind in (*CAPTION_KINDS, "original")]),
    **dict.fromkeys(("source_start_seconds", "source_end_seconds", "seconds", "fps"), pa.float64()),
    **dict.fromkeys(("num_frames", "height_px", "width_px"), pa.int64()),
    "frame_span": pa.list_(pa.int64()),
    "audio": pa.string(),
    **dict.fromkeys(("source_audio_channels", "source_audio_rate_hz"), pa.int64()),
}
"""Of the columns but `scores` and `video`."""


def import_lance() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import lance
    except ImportError:
        raise UsageError("--to lance needs the package pylance: pip install 'recaption[lance]'") from None
    return lance


def table_schema(scores: Iterable[str]) -> pa.Schema:
    """Columns of the table: the metadata of clips with these scores, and `video`, a blob."""
    types = {**_TYPES, "scores": pa.struct([(name, pa.float64()) for name in scores])}
    blob = pa.field("video", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    return pa.schema([*(pa.field(name, kind) for name, kind in types.items()), blob])


def write_fragments(uri: str, rows: Iterator[tuple[dict[str, Any], bytes]]) -> str:
    """Write the clips of a part; JSON of the fragments, for `commit`.

    Args:
        uri: of the table, which need not exist.
        rows: columns of `ExportedClip` and the mp4 of each clip; one at a time is in memory.
    """
    first = next(rows, None)
    if first is None:
        return "[]"
    lance = import_lance()
    scores = sorted(metadata_of(first[0])["scores"])
    schema = table_schema(scores)
    batches = (
        pa.RecordBatch.from_pylist([metadata_of(row) | {"video": mp4}], schema=schema)
        for row, mp4 in itertools.chain([first], rows)
    )
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    mode = "overwrite" if RunFolder(uri).exists("_versions") else "create"  # neither touches the table that is there
    fragments = lance.fragment.write_fragments(reader, uri, schema=schema, mode=mode)
    return json.dumps({"scores": scores, "fragments": [fragment.to_json() for fragment in fragments]})


def has_files(folder: RunFolder, table: str, fragments: str) -> bool:
    """Whether all data files that a part names are there."""
    return all(folder.exists(f"{table}/data/{name}") for name in _data_files(fragments))


def commit(folder: RunFolder, table: str, parts: Sequence[str]) -> None:
    """Make the table that of these fragments, and remove all others; nothing where it is that already.

    Args:
        table: name below the folder.
        parts: of `write_fragments`, in the order of the rows.
    """
    written = [json.loads(part) for part in parts if part != "[]"]
    if not written:
        if folder.exists(table):
            folder.fs.rm(folder.path(table), recursive=True)
        return
    lance = import_lance()
    uri = folder.uri + "/" + table
    wanted = [name for part in parts for name in _data_files(part)]
    if folder.exists(f"{table}/_versions"):
        there = lance.dataset(uri)
        if [file.path for one in there.get_fragments() for file in one.metadata.files] == wanted:
            return
    texts = [json.dumps(fragment) for part in written for fragment in part["fragments"]]
    fragments = [lance.fragment.FragmentMetadata.from_json(text) for text in texts]
    operation = lance.LanceOperation.Overwrite(table_schema(written[0]["scores"]), fragments)
    dataset = lance.LanceDataset.commit(uri, operation)
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)


def _data_files(fragments: str) -> list[str]:
    part = json.loads(fragments)
    return [file["path"] for one in (part["fragments"] if part else ()) for file in one["files"]]
