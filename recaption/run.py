"""A run folder as tables: what a notebook or a script reads.

    from recaption import open_run

    run = open_run("runs/a")                        # or s3://bucket/runs/a
    clips = run.clips()                             # a pandas DataFrame: spans, scores, state, reason, shard
    clips[clips.reason == "blurry"].sharpness.describe()
    run.captions("main").merge(clips, on="clip_id")
    run.with_filters(min_motion=0.02).clips()       # states under other thresholds; nothing is written
    run.frames(clips.clip_id[0]).pixels_THWC        # uint8 (T, H, W, 3), from the source video
    run.show(clips.clip_id[0])                      # plays in a notebook

Every table is read anew at each call, and is an Arrow table with `as_arrow=True`. docs/tables.md lists the columns.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import html
import io
import tarfile
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from recaption.captions.repeated import read_repeated
from recaption.captions.sets import (
    caption_set_pattern,
    caption_sets,
    default_caption_set,
    main_captions,
    mark_repeated_captions,
)
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import UsageError
from recaption.inputs.open_input import InputState
from recaption.ledger.ledger import Ledger, build_ledger, read_clips
from recaption.ledger.spans import SPAN_PARTS, SPANS_SCHEMA
from recaption.ledger.verdicts import read_verdicts
from recaption.quality.filters import PLUGIN_PREFIX, VERDICT_COLUMN, FilterThresholds, drop_reasons
from recaption.records import Caption, Clip, ClipScores, Sample, Video, schema_of, to_table
from recaption.run_folder import RunFolder
from recaption.video_io.frames import DecodeLimits, Frames
from recaption.video_io.opened_video import open_video

if TYPE_CHECKING:
    import pandas as pd

RUN_YAML = "run.yaml"
CLIP_COLUMNS = schema_of(Clip).names
STATE_COLUMNS = ["state", "reason", "shard", "duplicate_of"]
INDEX = "index.parquet"


def open_run(uri: str) -> Run:
    """Open a run folder for reading.

    Args:
        uri: a local path or a fsspec URI (s3://, gs://, memory://).

    Raises:
        UsageError: there is no run folder.
    """
    folder = RunFolder(uri)
    if not folder.exists(RUN_YAML):
        raise UsageError(f"{uri} is not a run folder: it has no {RUN_YAML} (`recaption prepare --out {uri}` makes one)")
    recipe = (folder.read_yaml(RUN_YAML) or {}).get("recipe") or {}
    thresholds = FilterThresholds(**_known(recipe.get("filters"), FilterThresholds))
    return Run(folder, thresholds, DecodeLimits(**_known((recipe.get("prepare") or {}).get("decode"), DecodeLimits)))


def _known(values: dict[str, Any] | None, settings: type) -> dict[str, Any]:
    """Those of `values` (of run.yaml) that these settings have; the others are their defaults."""
    names = {field.name for field in dataclasses.fields(settings)}
    known = {name: value for name, value in (values or {}).items() if name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}


@dataclass(frozen=True)
class Run:
    """The tables of a run folder."""

    folder: RunFolder
    thresholds: FilterThresholds
    """Of the filters that decide the states of clips; run.yaml's, unless `with_filters` changed them."""
    decode: DecodeLimits
    """Run.yaml's."""

    def __repr__(self) -> str:
        sums = self.summary()
        videos, clips = sums["videos"], sums["clips"]
        return (
            f"open_run({self.folder.uri!r}): {videos['ok']} of {videos['total']} videos read, {clips['kept']} of "
            f"{clips['total']} clips kept, caption sets {', '.join(self.caption_sets) or 'none'}"
        )

    def with_filters(self, **thresholds: Any) -> Run:
        """The same run under other thresholds of filters (docs/settings.md, `filters`); None turns one off.

        Raises:
            UsageError: no such threshold.
        """
        known = list(FilterThresholds.__dataclass_fields__)
        known += [f"{side}_{name}" for name in self._plugin_scores for side in ("min", "max")]
        for name in thresholds:
            if name not in known:
                raise UsageError(f"there is no threshold {name!r}; there are {', '.join(known)}")
        return dataclasses.replace(self, thresholds=self.thresholds.changed(thresholds))

    @property
    def caption_sets(self) -> list[str]:
        """Names of the caption sets, for `captions`."""
        return caption_sets(self.folder)

    def summary(self) -> dict[str, Any]:
        """Counts and seconds of videos and clips by state, as `recaption prepare --json` prints them."""
        return self._ledger().summary()

    # --- tables -------------------------------------------------------------------------------------------------------

    def videos(self, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """One row per input, failures too: the columns of `records.Video`, num_clips, num_kept and kept_seconds.

        An input that `prepare` has not read yet has the status `waiting`.
        """
        videos = self.folder.read_tables("videos/part-*.parquet", schema_of(Video))
        videos = pa.concat_tables([videos, self._waiting(videos)])
        states = self._ledger().clip_table
        is_kept = pc.is_in(states["state"], value_set=pa.array(["in_shard", "waiting"]))
        states = states.append_column("kept", pc.cast(is_kept, pa.int64()))
        states = states.append_column("kept_seconds", pc.multiply(states["kept"].cast(pa.float64()), states["seconds"]))
        sums = states.group_by("uri").aggregate([("clip_id", "count"), ("kept", "sum"), ("kept_seconds", "sum")])
        sums = sums.rename_columns(["uri", "num_clips", "num_kept", "kept_seconds"])
        return _table(_joined(videos, sums, "uri", ["num_clips", "num_kept", "kept_seconds"], zeros=True), as_arrow)

    def clips(self, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """One row per clip: span, seconds, state, reason, shard, duplicate_of, verdict, and all scores.

        `state` is in_shard, waiting (reason: the stage it waits for), dropped or failed (reason: why).
        """
        clips, states = self._clips_and_states()
        spans = clips.select(CLIP_COLUMNS).append_column("seconds", states["seconds"])
        for name in STATE_COLUMNS:
            spans = spans.append_column(name, states[name])
        scores = clips.select([name for name in clips.column_names if name not in CLIP_COLUMNS])
        for name in scores.column_names:
            spans = spans.append_column(name.removeprefix(PLUGIN_PREFIX), scores[name])
        if VERDICT_COLUMN not in spans.column_names:
            spans = spans.append_column(VERDICT_COLUMN, pa.nulls(spans.num_rows, pa.string()))
        return _table(spans, as_arrow)

    def scores(self, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """One row per clip: clip_id, every score, own scorers included, and `dropped_by`.

        `dropped_by` is the drop reason of the first filter, verdict or duplicate that drops the clip, null where none does.
        """
        clips = read_clips(self.folder)
        names = [n for n in clips.column_names if n not in CLIP_COLUMNS and n != VERDICT_COLUMN]
        scores = clips.select(["clip_id", *names])
        scores = scores.rename_columns(["clip_id", *(name.removeprefix(PLUGIN_PREFIX) for name in names)])
        reasons = drop_reasons(clips, self.thresholds, read_pairs(self.folder))
        return _table(scores.append_column("dropped_by", pa.array(reasons, pa.string())), as_arrow)

    def captions(self, set_name: str | None = None, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """One row per caption of a set: the columns of `records.Caption`, fields as `fields.<name>`, and the clip's state.

        Args:
            set_name: default: the set of the shards, or the last.

        Raises:
            UsageError: no such set.
        """
        name = set_name or default_caption_set(self.folder)
        if name is None or name not in self.caption_sets:
            there = ", ".join(self.caption_sets) or "none; `recaption caption` makes one"
            raise UsageError(f"{self.folder.uri} has no caption set {set_name or ''!r} (sets: {there})")
        captions = self.folder.read_tables(caption_set_pattern(name), schema_of(Caption))
        limit = self.thresholds.max_clips_per_caption
        captions = mark_repeated_captions(captions, read_repeated(self.folder, name), limit).flatten()
        states = self._ledger().clip_table.select(["clip_id", "state"]).rename_columns(["clip_id", "clip_state"])
        return _table(_joined(captions, states, "clip_id", ["clip_state"]), as_arrow)

    def samples(self, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """One row per sample of the shards: the columns of `records.Sample`, uri, start_seconds and end_seconds."""
        samples = schema_of(Sample).empty_table()
        if self.folder.exists(INDEX):
            samples = self.folder.read_table(INDEX).select(samples.column_names).cast(samples.schema)
        clips = read_clips(self.folder)
        return _table(_joined(samples, clips, "clip_id", ["uri", "start_seconds", "end_seconds"]), as_arrow)

    def spans(self, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """What lists say of the videos: one row per span, with its clips, texts, licence and metadata; failed ones too."""
        return _table(self.folder.read_tables(SPAN_PARTS, SPANS_SCHEMA), as_arrow)

    def verdicts(self, *, as_arrow: bool = False) -> pd.DataFrame | pa.Table:
        """What people decided: one row per clip with a verdict."""
        return _table(read_verdicts(self.folder), as_arrow)

    # --- clips --------------------------------------------------------------------------------------------------------

    def frames(self, clip_id: str, *, num_frames: int | None = None, short_side_px: int | None = None) -> Frames:
        """Frames of a clip, decoded from its source video.

        Args:
            num_frames: so many, spread evenly; default: every frame.
            short_side_px: scaled to this short side; default: as they are.

        Raises:
            UsageError: no such clip.
            VideoError: the source is gone, cannot be decoded, or has other bytes than when it was prepared.
        """
        clip = self._clip(clip_id)
        start, end = clip["start_frame"], clip["end_frame"]
        count = end - start if num_frames is None else max(1, min(num_frames, end - start))
        indices = [start + (2 * i + 1) * (end - start) // (2 * count) for i in range(count)]
        with open_video(clip["uri"], expected=self._state_of(clip["uri"]), limits=self.decode) as video:
            return video.read_frames(indices, short_side_px=short_side_px)

    def show(self, clip_id: str) -> ClipView:
        """The clip with its captions, state and scores: plays in a notebook, text elsewhere.

        Raises:
            UsageError: no such clip.
        """
        clip = self._clip(clip_id)
        clips, states = self._clips_and_states()
        row = pc.index(clips["clip_id"], clip_id).as_py()
        names = [n for n in clips.column_names if n not in CLIP_COLUMNS and n != VERDICT_COLUMN]
        scores = {name.removeprefix(PLUGIN_PREFIX): clips[name][row].as_py() for name in names}
        captions = {}
        for name in self.caption_sets:
            table = self.folder.read_tables(caption_set_pattern(name), schema_of(Caption))
            texts = main_captions(table.filter(pc.equal(table["clip_id"], clip_id)))["text"].to_pylist()
            if any(texts):
                captions[name] = next(filter(None, texts))
        return ClipView(
            clip_id=clip_id,
            uri=clip["uri"],
            span=f"{clip['start_seconds']:.2f} to {clip['end_seconds']:.2f} s, {clip['width_px']} x {clip['height_px']}",
            state=" ".join(filter(None, (states["state"][row].as_py(), states["reason"][row].as_py()))),
            captions=captions,
            scores={name: value for name, value in scores.items() if value is not None},
            mp4=self._mp4(clip_id),
            jpeg=self._preview(clip_id),
        )

    def _clip(self, clip_id: str) -> dict[str, Any]:
        for name in self.folder.list("clips/part-*.parquet"):
            table = self.folder.read_columns(name, CLIP_COLUMNS)
            row = pc.index(table["clip_id"], clip_id).as_py()
            if row >= 0:
                return dict(table.slice(row, 1).to_pylist()[0])
        known = self.clips(as_arrow=True)["clip_id"].to_pylist()
        near = difflib.get_close_matches(str(clip_id), known[:10_000], 3, 0.5) or known[:3]
        there = f"{len(known)} clips, such as {', '.join(near)}" if known else "no clips yet"
        raise UsageError(f"{self.folder.uri} has no clip {clip_id!r}; it has {there}")

    def _state_of(self, uri: str) -> InputState | None:
        """What `prepare` recorded of an input."""
        names = [*InputState.__dataclass_fields__]
        for part in self.folder.list("videos/part-*.parquet"):
            table = self.folder.read_columns(part, ["uri", *names])
            row = pc.index(table["uri"], uri).as_py()
            if row >= 0:
                return InputState(**table.select(names).slice(row, 1).to_pylist()[0])
        return None

    def _preview(self, clip_id: str) -> bytes:
        for name in self.folder.list("previews/part-*.parquet"):
            table = self.folder.read_columns(name, ["clip_id", "jpeg"])
            row = pc.index(table["clip_id"], clip_id).as_py()
            if row >= 0:
                return bytes(table["jpeg"][row].as_py())
        return b""

    def _mp4(self, clip_id: str) -> bytes:
        """The clip's video in a shard; b"" where it is in none, or the shard is gone."""
        index = self.samples(as_arrow=True)
        row = pc.index(index["clip_id"], clip_id).as_py()
        if row < 0:
            return b""
        sample = index.slice(row, 1).to_pylist()[0]
        start, size = sample["offset_bytes"], sample["num_bytes"]
        try:
            span = self.folder.read_span(sample["shard"], start, start + size)
            with tarfile.open(fileobj=io.BytesIO(span)) as tar:
                member = tar.extractfile(f"{clip_id}.mp4")
                return member.read() if member else b""
        except (FileNotFoundError, tarfile.TarError, KeyError):
            return b""

    # --- joins --------------------------------------------------------------------------------------------------------

    @cached_property
    def _plugin_scores(self) -> list[str]:
        known = {*CLIP_COLUMNS, *schema_of(ClipScores).names, VERDICT_COLUMN}
        return [n.removeprefix(PLUGIN_PREFIX) for n in read_clips(self.folder).column_names if n not in known]

    def _ledger(self) -> Ledger:
        return build_ledger(self.folder, self.thresholds)

    def _clips_and_states(self) -> tuple[pa.Table, pa.Table]:
        return read_clips(self.folder), self._ledger().clip_table

    def _waiting(self, videos: pa.Table) -> pa.Table:
        listed = self.folder.read_columns("inputs.parquet", ["uri"]) if self.folder.exists("inputs.parquet") else videos
        waiting = listed["uri"].filter(pc.invert(pc.is_in(listed["uri"], value_set=videos["uri"].combine_chunks())))
        return to_table([Video(video_id="", uri=uri, status="waiting") for uri in waiting.to_pylist()], Video)


def _joined(left: pa.Table, right: pa.Table, key: str, columns: list[str], *, zeros: bool = False) -> pa.Table:
    """`left` with columns of the first row of `right` that has the same key; null, or 0, where there is none."""
    position = pc.index_in(left[key].combine_chunks(), value_set=right[key].combine_chunks())
    for name in columns:
        values = right[name].combine_chunks().take(position)
        left = left.append_column(name, pc.fill_null(values, 0) if zeros else values)
    return left


def _table(table: pa.Table, as_arrow: bool) -> pd.DataFrame | pa.Table:
    return table if as_arrow else table.to_pandas()


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """What `Run.show` shows of a clip."""

    clip_id: str
    uri: str
    span: str
    state: str
    captions: dict[str, str]
    """Caption set -> main caption."""
    scores: dict[str, float]
    mp4: bytes
    """The clip in its shard, b"" if it is in none."""
    jpeg: bytes
    """Its middle frame."""

    def __repr__(self) -> str:
        lines = [f"{self.clip_id}: {self.state}", f"  {self.uri}, {self.span}"]
        lines += [f"  {name}: {text}" for name, text in self.captions.items()]
        lines.append("  " + ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items()))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        poster = f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}" if self.jpeg else ""
        if self.mp4:
            source = f"data:video/mp4;base64,{base64.b64encode(self.mp4).decode()}"
            picture = f'<video controls loop muted height="240" poster="{poster}" src="{source}"></video>'
        else:
            picture = f'<img height="240" src="{poster}">' if poster else ""
        captions = "".join(f"<p><b>{html.escape(n)}</b> {html.escape(t)}</p>" for n, t in self.captions.items())
        scores = ", ".join(f"{html.escape(name)} {value:.4g}" for name, value in self.scores.items())
        head = f"<p><code>{html.escape(self.clip_id)}</code> <b>{html.escape(self.state)}</b><br>"
        about = f"{html.escape(self.uri)}, {html.escape(self.span)}</p>"
        return f"<div>{picture}{head}{about}{captions}<p><small>{scores}</small></p></div>"
