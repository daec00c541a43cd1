"""Clip gallery and sample galleries of the report page, and their media files.

    media = Media(run)
    cards(run, tables, media, max_clips=48)      # clips of every state, each with preview, captions and scores
    media.remove_others()                        # files of earlier reports

Files in RUN/report/media are named by the hash of their content: the same run gives the same names, and no name comes
from an input.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from jobs.report.charts import number
from jobs.report.tables import CAPTION_SCHEMA, RunTables, clock
from packing.shards.read import read_sample
from recaption.captions.sets import caption_set_pattern, main_captions
from recaption.errors import VideoError
from recaption.ledger.ledger import ClipState
from recaption.quality.filters import PLUGIN_PREFIX, plugin_scores
from recaption.records import conform
from recaption.run_folder import RunFolder
from recaption.video_io.reader import decode_bytes

SCORE_OF_REASON = {
    "low_motion": "motion",
    "blurry": "sharpness",
    "dark": "luma",
    "bright": "luma",
    "text": "text_area",
    "letterbox": "letterbox",
    "nsfw": "nsfw",
    "low_aesthetic": "aesthetic",
    "low_quality": "blockiness",
    "silent": "silence_fraction",
}
"""Drop reason -> the (first) score that its filter uses."""
SCORES = (
    *("motion", "sharpness", "luma", "text_area", "text_area_ocr", "static_text", "static_text_ocr", "letterbox"),
    *("blockiness", "flicker", "aesthetic", "nsfw", "loudness_lufs", "silence_fraction"),
)
FIELDS = ("main_object", "action", "surroundings", "background", "text", "style", "colour")
MAX_SAMPLED_VIDEOS = 24


class Media:
    """Writes media files for the page and removes unused ones."""

    FOLDER = "report/media"

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._names: set[str] = set()

    def add(self, payload: bytes, extension: str) -> str:
        """Write `payload` unless it exists; returns its link relative to the page."""
        name = f"{hashlib.sha256(payload).hexdigest()[:16]}.{extension}"
        if name not in self._names and not self.run.exists(f"{self.FOLDER}/{name}"):
            self.run.write_bytes(f"{self.FOLDER}/{name}", payload)
        self._names.add(name)
        return f"media/{name}"

    def remove_others(self) -> None:
        """Remove the files that were not added by this report."""
        for name in self.run.list(f"{self.FOLDER}/*"):
            if posixpath.basename(name) not in self._names:
                self.run.remove(name)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One clip of the gallery, as template variables."""

    clip_id: str
    source: str
    """URI of the video without the common folder of all inputs."""
    span: str
    size: str
    state: str
    group: str
    """Group of the filter buttons: `in_shard`, `waiting`, or the reason."""
    caption: str
    before: str
    others: list[tuple[str, str]]
    """(caption set, text) of the other sets."""
    kinds: list[tuple[str, str]]
    """(kind, text) of the whole clip in the same set."""
    windows: list[tuple[str, list[tuple[str, str]]]]
    """(time span, [(kind, text), ...]) in order."""
    fault: str
    """Quality gate that the caption failed."""
    fields: list[tuple[str, str]]
    scores: list[tuple[str, str, bool]]
    """(name, value, True if it dropped the clip)."""
    shard: str
    duplicate_of: str = ""
    """Clip id of the kept duplicate."""
    video: str = ""
    audio: str = ""
    """Of `video`, as `Sample.audio`."""
    poster: str = ""
    unplayable: str = ""
    """Error message if the clip's video cannot be read."""

    @property
    def num_window_texts(self) -> int:
        return sum(len(texts) for _, texts in self.windows)


def choose_clips(clips: Sequence[ClipState], max_clips: int) -> list[int]:
    """Indices of up to `max_clips` clips, evenly spaced within each group.

    At least half are from shards if there are enough; the others take turns over the drop and failure reasons.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        groups["in_shard" if clip.state == "in_shard" else clip.state, clip.reason or ""].append(row)
    inside = groups.pop(("in_shard", ""), [])
    others = [groups[key] for key in sorted(groups, key=lambda key: (key[0] != "waiting", key))]
    num_others = min(sum(map(len, others)), max(max_clips - len(inside), max_clips // 2))
    counts = [0] * len(others)
    while sum(counts) < num_others:
        for i, rows in enumerate(others):
            if counts[i] < len(rows) and sum(counts) < num_others:
                counts[i] += 1
    picks = _evenly(inside, max_clips - num_others)
    return picks + [row for rows, count in zip(others, counts) for row in _evenly(rows, count)]


def _evenly(rows: list[int], count: int) -> list[int]:
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def cards(run: RunFolder, tables: RunTables, media: Media, *, max_clips: int) -> list[Card]:
    """The gallery cards. Clips in shards play the mp4 of the shard; other clips show their preview image."""
    chosen = choose_clips(tables.ledger.clips, max_clips)
    rows = tables.clips.take(chosen).to_pylist() if chosen else []
    ids = {row["clip_id"] for row in rows}
    posters = previews(run, ids)
    others = {name: _texts(run, name, ids) for name in tables.other_sets}
    return [_card(run, tables, media, tables.ledger.clips[i], row, posters, others) for i, row in zip(chosen, rows)]


def _card(
    run: RunFolder,
    tables: RunTables,
    media: Media,
    state: ClipState,
    row: dict[str, Any],
    posters: dict[str, bytes],
    others: dict[str, dict[str, str]],
) -> Card:
    clip_id = row["clip_id"]
    caption = tables.captions.get(clip_id, {})
    fields = caption.get("fields") or {}
    other_captions = tables.other_captions.get(clip_id, [])
    video, unplayable = _video(run, tables, media, state)
    cause = SCORE_OF_REASON.get(state.reason or "", "")
    return Card(
        clip_id=clip_id,
        source=tables.short_uri(row["uri"]),
        span=f"{clock(row['start_seconds'])} – {clock(row['end_seconds'])}",
        size=f"{row['width_px']} × {row['height_px']}, {number(row['fps'])} fps",
        state=state.state,
        group=state.state if state.state in ("in_shard", "waiting") else str(state.reason),
        caption=caption.get("text", ""),
        before=tables.originals.get(clip_id, ""),
        others=[(name, texts[clip_id]) for name, texts in others.items() if texts.get(clip_id)],
        kinds=[(row["kind"].replace("_", " "), row["text"]) for row in other_captions if not row["window"]],
        windows=[(span, texts) for span, texts in _by_window(other_captions).items()],
        fault=(caption.get("fault") or "").replace("_", " "),
        fields=[(name.replace("_", " "), fields[name]) for name in FIELDS if fields.get(name)],
        scores=[
            *[(s.replace("_", " "), number(row[s]), s == cause) for s in SCORES if row.get(s) is not None],
            *_plugin_scores(tables, row),
            *(
                [("text–clip match", number(caption["clip_score"]), False)]
                if caption.get("clip_score") is not None
                else []
            ),
        ],
        shard=state.shard or "",
        duplicate_of=state.duplicate_of or "",
        video=video,
        audio=tables.index[clip_id].audio if video else "",
        poster=media.add(posters[clip_id], "jpg") if clip_id in posters else "",
        unplayable=unplayable,
    )


def _plugin_scores(tables: RunTables, row: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(name, value, True if it is outside of its thresholds) of the scores of plug-ins."""
    found = []
    for name in plugin_scores(tables.clips):
        value = row[PLUGIN_PREFIX + name]
        if value is not None:
            low, high = tables.thresholds.value_of(f"min_{name}"), tables.thresholds.value_of(f"max_{name}")
            is_outside = (low is not None and value < low) or (high is not None and value > high)
            found.append((name.replace("_", " "), number(value), is_outside))
    return found


def _by_window(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Time span -> [(kind, text), ...]; kind is "" for descriptive captions."""
    windows: dict[str, list[tuple[str, str]]] = {}
    for row in sorted((row for row in rows if row["window"]), key=lambda row: row["window"]):
        kind = "" if row["kind"] == "descriptive" else row["kind"].replace("_", " ")
        span = f"{clock(row['start_seconds'])} – {clock(row['end_seconds'])}"
        windows.setdefault(span, []).append((kind, row["text"]))
    return windows


def _video(run: RunFolder, tables: RunTables, media: Media, state: ClipState) -> tuple[str, str]:
    """(link, error message) of a clip in a shard."""
    row = tables.index.get(state.clip_id)
    if state.state != "in_shard" or row is None:
        return "", ""
    try:
        return media.add(read_sample(run, row)["mp4"], "mp4"), ""
    except VideoError as error:
        return "", error.detail


def previews(run: RunFolder, clip_ids: set[str]) -> dict[str, bytes]:
    """Preview JPEGs of the clips, one part in memory at a time."""
    found: dict[str, bytes] = {}
    for name in run.list("previews/part-*.parquet"):
        if len(found) == len(clip_ids):
            break
        wanted = [("clip_id", "in", sorted(clip_ids))]
        table = pq.read_table(io.BytesIO(run.read_bytes(name)), columns=["clip_id", "jpeg"], filters=wanted)
        found |= {row["clip_id"]: row["jpeg"] for row in table.to_pylist()}
    return found


def _texts(run: RunFolder, set_name: str, clip_ids: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name in run.list(caption_set_pattern(set_name)):
        table = main_captions(conform(run.read_table(name), CAPTION_SCHEMA)).select(["clip_id", "text"])
        texts |= {row["clip_id"]: row["text"] for row in table.to_pylist() if row["clip_id"] in clip_ids}
    return texts


def filter_buttons(shown: Sequence[Card]) -> list[tuple[str, str, int]]:
    """(group, label, number of cards), in the order of the cards."""
    counts: dict[str, int] = defaultdict(int)
    for card in shown:
        counts[card.group] += 1
    return [(group, group.replace("_", " "), count) for group, count in counts.items()]


def sample_galleries(run: RunFolder, media: Media) -> list[dict[str, Any]]:
    """Videos with their prompts, and the contact sheet, of each RUN/samples/*/samples.json."""
    galleries = []
    for name in run.list("samples/*/samples.json"):
        listed = json.loads(run.read_bytes(name))
        folder = posixpath.dirname(name)
        prompts = [str(prompt) for prompt in listed.get("prompts", [])]
        expanded = [str(text) for text in listed.get("expanded_prompts", [])]
        videos = []
        for i, relative in enumerate(listed.get("videos", [])[:MAX_SAMPLED_VIDEOS]):
            payload, extension = _read_listed_file(run, folder, relative)
            if payload:
                link = media.add(payload, extension)
                prompt = prompts[i] if i < len(prompts) else ""
                text = expanded[i] if i < len(expanded) else ""
                conditioning = _conditioning_text(listed, i)
                videos.append((link, _poster(payload, media), prompt, text if text != prompt else "", conditioning))
        sheet, extension = _read_listed_file(run, folder, listed.get("contact_sheet") or "")
        galleries.append(
            {
                "name": posixpath.basename(folder),
                "videos": videos,
                "num_hidden": max(len(listed.get("videos", [])) - MAX_SAMPLED_VIDEOS, 0),
                "sheet": media.add(sheet, extension) if sheet else "",
                "settings": [
                    (key.replace("_", " "), number(listed[key]))
                    for key in ("num_frames", "height_px", "width_px", "fps", "num_steps", "guidance", "seed")
                    if isinstance(listed.get(key), int | float)
                ],
            }
        )
    return galleries


def _conditioning_text(listed: dict[str, Any], row: int) -> str:
    """Mode, media and conditioning frames: `extend of bike.mp4, conditioned on frames 1-9 of 21`; "" for text prompts."""

    def entry(name: str, default: Any) -> Any:
        values = listed.get(name) or []
        return values[row] if row < len(values) else default

    mode, media = str(entry("modes", "text")), ", ".join(map(str, entry("media", [])))
    if mode == "text":
        return ""
    spans = ", ".join(
        f"{start + 1}-{end}" if end > start + 1 else f"{end}" for start, end in entry("conditioning_frames", [])
    )
    frames = f", conditioned on frames {spans} of {entry('lengths', 0)}" if spans else ""
    return f"{mode} of {media}{frames}" if media else f"{mode}{frames}"


def _read_listed_file(run: RunFolder, folder: str, relative: str) -> tuple[bytes, str]:
    """(bytes, extension) of a file listed in a samples.json; empty if it is missing or outside of RUN/samples."""
    name = posixpath.normpath(posixpath.join(folder, str(relative).replace("\\", "/")))
    extension = name.rpartition(".")[2].lower()
    if not name.startswith("samples/") or extension not in ("mp4", "webm", "png") or not run.exists(name):
        return b"", ""
    return run.read_bytes(name), extension


def _poster(video: bytes, media: Media) -> str:
    """Link to a JPEG of the video's middle frame; empty if it does not decode."""
    try:
        frames = decode_bytes(video).pixels_THWC
    except VideoError:
        return ""
    jpeg = io.BytesIO()
    Image.fromarray(frames[len(frames) // 2]).save(jpeg, "JPEG", quality=88)
    return media.add(jpeg.getvalue(), "jpg")
