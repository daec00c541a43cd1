"""Videos of web pages, by yt-dlp (`pip install recaption[yt-dlp]`), where `--prepare.decode.page-videos` asks for it.

    fetch_page_video("https://host/watch?v=abc", "/tmp/x/input", budget)       # "page:22": the format that it chose

Off by default: a page says whose its videos are, and what may be done with them. Where its video comes with other bytes the
next time, its row is `source_changed`, like that of any other input.
"""

from __future__ import annotations

import os
from typing import Any

from recaption.errors import VideoError

FORMATS = "best[ext=mp4][vcodec!=none]/best[vcodec!=none]"
"""One file as the page has it: what is joined from two has other bytes each time."""
PAGE_ETAG = "page:"
"""Begins the etag of a video of a page, which nobody can ask for again without fetching it."""
FINAL_WORDS = (
    "unavailable",
    "private",
    "removed",
    "not available",
    "unsupported url",
    "no video",
    "copyright",
    "sign in",
)
"""In what yt-dlp says of a video that nobody gets."""


def fetch_page_video(uri: str, path: str, budget: Any) -> str:
    """Download the video of a page to a file; returns its etag.

    Args:
        budget: as of `download`: told the size and every block.

    Raises:
        VideoError: unreadable, too_large or fetch_failed.
    """
    try:
        import yt_dlp
    except ImportError:
        raise VideoError("fetch_failed", "a video of a page needs `pip install recaption[yt-dlp]`", uri=uri) from None
    done = 0

    def on_progress(state: dict[str, Any]) -> None:
        nonlocal done
        now = int(state.get("downloaded_bytes") or 0)
        budget.relative_update(max(0, now - done))
        done = max(done, now)

    options = {
        "format": FORMATS,
        "outtmpl": path,
        "noplaylist": True,
        "max_filesize": budget.max_bytes,
        "progress_hooks": [on_progress],
        "quiet": True,
        "noprogress": True,
        "no_warnings": True,
        "cachedir": False,
        "nopart": True,
        "overwrites": True,
    }
    try:
        with yt_dlp.YoutubeDL(options) as loader:
            found = loader.extract_info(uri, download=True)
    except VideoError:
        raise
    except Exception as error:  # yt-dlp's extractors raise anything
        said = " ".join(str(error).split())[:200]
        is_final = any(word in said.lower() for word in FINAL_WORDS)
        raise VideoError("unreadable" if is_final else "fetch_failed", f"yt-dlp: {said}", uri=uri) from None
    if not os.path.isfile(path):
        raise VideoError("unreadable", "yt-dlp found no video of an allowed size on this page", uri=uri)
    return f"{PAGE_ETAG}{(found or {}).get('format_id', '')}"
