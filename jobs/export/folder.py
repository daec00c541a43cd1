"""The folder of an export across runs: what it was made with, which parts are done, which files are stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jobs.export.files.lance_table import FRAGMENTS, has_files
from jobs.export.layouts import Layout
from jobs.export.settings import ExportSettings
from packing.shards.index import is_committed
from recaption.errors import PASSING_REASONS, UsageError
from recaption.folder_lock import RUN_LOCK
from recaption.run_folder import RunFolder

STATE = ".recaption/export.yaml"
"""Settings of the export; written before the first clip."""


def check_folder(folder: RunFolder, settings: ExportSettings) -> None:
    """Make sure that the folder is empty or of an export with clips of the same bytes, and write its settings into it.

    Raises:
        UsageError: it is not.
    """
    values = {**settings.to_dict(), "kinds": list(settings.kinds)}
    state = {"video_hash": settings.video_hash, "settings": values}
    if folder.exists(STATE):
        before = folder.read_yaml(STATE)
        if before["video_hash"] != settings.video_hash:
            names = sorted(name for name, value in values.items() if before["settings"].get(name) != value)
            raise UsageError(
                f"{folder.uri} holds an export with other settings ({', '.join(names)}): use another --out, or remove it"
            )
        folder.remove_temporary_files()
        if before == state:
            return
    elif folder.exists("") and any(
        not str(name).endswith(RUN_LOCK) for name in folder.fs.ls(folder.root, detail=False)
    ):
        raise UsageError(f"{folder.uri} is not empty and holds no export: use a new --out")
    folder.write_yaml(STATE, state)


def committed_parts(
    folder: RunFolder, layout: Layout, hashes: Mapping[str, str], *, is_worth_a_try: Callable[[str, str], bool]
) -> set[str]:
    """Names of the parts that are complete, made from this plan, and without failures that are worth another try.

    Args:
        is_worth_a_try: of a clip that failed for a reason of `PASSING_REASONS`: (clip id, reason) -> whether it may be over.

    Clips whose files are not as long as they were written are removed: those that are left are taken as complete.
    """
    sizes = _sizes(folder, layout)
    for name in folder.list(f"{_parts_folder(layout)}/*.parquet"):
        for row in folder.read_columns(name, ["file", "num_video_bytes"]).to_pylist():
            if row["file"] in sizes and sizes[row["file"]] != row["num_video_bytes"]:
                folder.remove(row["file"])
                del sizes[row["file"]]
    return {
        name
        for name, key in hashes.items()
        if _is_whole(folder, layout, name, key, sizes) and not _has_clips_worth_a_try(folder, name, is_worth_a_try)
    }


def _is_whole(folder: RunFolder, layout: Layout, name: str, key: str, sizes: dict[str, int]) -> bool:
    if layout.container == "tars":
        return is_committed(folder, name, key)
    if not folder.exists(f"{name}.parquet"):
        return False
    metadata = folder.table_metadata(f"{name}.parquet")
    if metadata["plan_hash"] != key or layout.container == "lance":
        return metadata["plan_hash"] == key and has_files(folder, layout.folder, metadata[FRAGMENTS])
    for row in folder.read_columns(f"{name}.parquet", ["clip_id", "file", "num_video_bytes", "status"]).to_pylist():
        if row["status"] == "ok":
            sidecars = [layout.sidecar_path(row["clip_id"], extension) for extension in layout.sidecars]
            if sizes.get(row["file"]) != row["num_video_bytes"] or any(one not in sizes for one in sidecars):
                return False
    return True


def _has_clips_worth_a_try(folder: RunFolder, name: str, is_worth_a_try: Callable[[str, str], bool]) -> bool:
    rows = folder.read_columns(f"{name}.parquet", ["clip_id", "reason"]).to_pylist()
    return any(row["reason"] in PASSING_REASONS and is_worth_a_try(row["clip_id"], row["reason"]) for row in rows)


def remove_stale(folder: RunFolder, layout: Layout, hashes: Mapping[str, str], clip_ids: set[str]) -> int:
    """Remove parts, tars and clips that are not in the plan any more; the number of files removed."""
    planned = {f"{name}.parquet" for name in hashes} | {f"{name}.tar" for name in hashes}
    parts = _parts_folder(layout)
    stale = [*folder.list(f"{parts}/*.parquet"), *folder.list(f"{parts}/*.tar")]
    stale = [name for name in stale if name not in planned]
    wanted = {layout.clip_path(clip_id) for clip_id in clip_ids}
    wanted |= {layout.sidecar_path(clip_id, extension) for clip_id in clip_ids for extension in layout.sidecars}
    stale += [name for name in _sizes(folder, layout) if name not in wanted]
    for name in stale:
        folder.remove(name)
    return len(stale)


def _parts_folder(layout: Layout) -> str:
    return layout.part_name(0).rpartition("/")[0]


def _sizes(folder: RunFolder, layout: Layout) -> dict[str, int]:
    """Name -> bytes of the files of clips that are in the folder."""
    prefix = folder.root.rstrip("/") + "/"
    suffixes = (".mp4", *(f".{extension}" for extension in layout.sidecars))
    found: dict[str, int] = {}
    for name in layout.folders():
        if folder.exists(name):
            files = folder.fs.find(folder.path(name), detail=True)
            found |= {str(path).removeprefix(prefix): info["size"] for path, info in files.items()}
    return {name: size for name, size in found.items() if name.endswith(suffixes)}
