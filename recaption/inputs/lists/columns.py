"""Which column of a list holds what: recognised by the names of public data sets, or named by `--columns`.

    find_columns(["videoID", "url", "timestamp", "caption"], {}, "panda.csv").span                 # "timestamp"
    find_columns(["clip", "text"], parse_columns(["video=clip"]), "mine.csv").video                # "clip"

Known names: those of OpenVid-1M, Panda-70M, Koala-36M, WebVid, InternVid, MSR-VTT, VidGen-1M, MiraData, ActivityNet
Captions, Open-Sora-Plan, video2dataset, and of our own tables. Capitals, spaces, dots and underscores do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from recaption.errors import UsageError

KNOWN_NAMES: dict[str, str] = {
    "video": "uri path video file videopath filepath filename videofile videofilename mediapath localpath clippath mp4",
    "url": "url videourl contenturl videolink downloadurl link",
    "id": "videoid youtubeid ytid vid videoname clipid key id uid",
    "folder": "pagedir",
    "caption": (
        "caption captions text videocaption sentence sentences description cap prompt densecaption longcaption recaption "
        "shortcaption texts"
    ),
    "start": "start starttime starttimestamp startseconds startsec starts begin begintime clipstart",
    "end": "end endtime endtimestamp endseconds endsec ends stop stoptime clipend",
    "span": "timestamp timestamps span spans segment segments clips timespan interval",
    "start_frame": "startframe framestart beginframe startframeindex",
    "end_frame": "endframe frameend stopframe endframeindex",
    "frames": "frameidx framerange framespan framestamp",
    "source": "sourceurl originalurl webpageurl pageurl source",
    "licence": "license licence licenseurl licenceurl rights",
}
"""Role -> names that a column of it may have, the best first; without capitals, spaces and signs."""
YOUTUBE_IDS = ("youtubeid", "ytid")
"""Columns of ids that are YouTube's whatever else the list has."""
WEBVID_CAPTION = "name"
"""Of a list with `contentUrl`: what it calls its captions."""
TIMES_OF_URL = frozenset({"video_id", "url", "start time", "end time"})
"""MSR-VTT: its times are those in the video of the URL, its files are cut already."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a list by role; "" = it has none."""

    video: str = ""
    """Path or URI of the file; Hugging Face's {"path": ..., "bytes": ...} too."""
    url: str = ""
    id: str = ""
    folder: str = ""
    """Below which the file of this id lies (WebVid's page_dir)."""
    captions: tuple[str, ...] = ()
    """The first one's text is the original caption."""
    start: str = ""
    end: str = ""
    span: str = ""
    """Start and end, or a list of such pairs."""
    start_frame: str = ""
    end_frame: str = ""
    frames: str = ""
    """As `span`, in frames."""
    source: str = ""
    licence: str = ""
    has_youtube_ids: bool = False
    has_times_of_url: bool = False
    """Times are not those of a local file."""

    @property
    def has_spans(self) -> bool:
        return bool(self.start or self.end or self.span or self.start_frame or self.end_frame or self.frames)

    @cached_property
    def used(self) -> set[str]:
        """Columns that have a role; the others are metadata."""
        values = [getattr(self, field.name) for field in fields(self)]
        return {*self.captions, *(value for value in values if isinstance(value, str))} - {""}


ROLES = (*KNOWN_NAMES,)


def parse_columns(named: Sequence[str]) -> dict[str, str]:
    """`["video=clip", "caption=text"]` -> `{"video": "clip", "caption": "text"}`; `start=` means: it has none.

    Raises:
        UsageError: not ROLE=COLUMN, or an unknown role.
    """
    found = {}
    for one in named:
        role, equals, column = one.partition("=")
        if not equals or role not in ROLES:
            raise UsageError(f"--columns {one}: give ROLE=COLUMN, where ROLE is one of {', '.join(ROLES)}")
        found[role] = column
    return found


def find_columns(names: Sequence[str], named: Mapping[str, str], where: str) -> Columns:
    """
    Args:
        names: of all columns of the list.
        named: role -> column, of `parse_columns`.
        where: the list, for errors.

    Raises:
        UsageError: a named column does not exist, or no column says where the videos are.
    """
    chosen = {role: _known(names, role) for role in ROLES}
    if not chosen["caption"] and _key(chosen["url"]) == "contenturl":
        chosen["caption"] = next((name for name in names if _key(name) == WEBVID_CAPTION), "")
    chosen |= named
    captions = tuple(filter(None, chosen.pop("caption").split(",")))
    there = ", ".join(names[:40])
    for column in (*captions, *(chosen[role] for role in named if role != "caption")):
        if column and column not in names:
            raise UsageError(f"{where}: there is no column {column!r} (columns: {there})")
    if not (chosen["video"] or chosen["url"] or chosen["id"]):
        raise UsageError(
            f"{where}: no column names the videos (columns: {there}); name it: --columns video=COLUMN "
            "(or url=, id=; caption=, start=, end=, span=)"
        )
    if chosen["span"] and (chosen["start"] or chosen["end"]) and "span" not in named:
        chosen["span"] = ""
    return Columns(
        **chosen,
        captions=captions,
        has_youtube_ids=_key(chosen["id"]) in YOUTUBE_IDS,
        has_times_of_url=set(names) >= TIMES_OF_URL and not named.keys() & {"start", "end"},
    )


def _known(names: Sequence[str], role: str) -> str:
    keys = {_key(name): name for name in reversed(names)}
    return next((keys[known] for known in KNOWN_NAMES[role].split() if known in keys), "")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
