"""All exceptions of the project, and the closed lists of failure and drop reasons.

A user's mistake is a `UsageError` (exit code 2, one sentence). A bad video is a `VideoError` whose `reason` is one of
`FAILURE_REASONS`; jobs turn it into a row with that reason, never into a crash.
"""

from __future__ import annotations

FAILURE_REASONS = (
    "unreadable",
    "no_video_stream",
    "truncated",
    "decode_timeout",
    "decode_memory",
    "frame_mismatch",
    "zero_frames",
    "too_large",
    "source_changed",
    "fetch_failed",
    "bad_span",
    "write_failed",
)
"""Why an input, or one clip of it, could not be used. Closed list: tests and reports read it."""
PASSING_REASONS = ("source_changed", "fetch_failed")
"""Those that say nothing about the data: such rows are tried again by the next run."""
DROP_REASONS = (
    "too_short",
    "too_long",
    "low_motion",
    "blurry",
    "dark",
    "bright",
    "text",
    "letterbox",
    "nsfw",
    "low_aesthetic",
    "low_quality",
    "silent",
    "hdr",
    "interlaced",
    "transparent",
    "plugin",
    "rejected",
    "removed",
    "duplicate",
    "bad_caption",
    "no_bucket",
)
"""Why a readable clip is dropped. Closed list, in the order in which filters are applied."""


class RecaptionError(Exception):
    """Base class of all exceptions that this project raises on purpose."""


class UsageError(RecaptionError, ValueError):
    """The user can fix this: wrong path, wrong name, settings that contradict each other. Exit code 2."""


class FolderInUseError(UsageError):
    """Another command works on the folder; the message says which, where and since when."""


class RecipeMismatchError(UsageError):
    """The run folder has outputs that were made with another recipe."""


class WeightsUnreachableError(UsageError):
    """Weights named by the user are neither on disk nor downloadable."""


class EndpointDownError(UsageError):
    """An HTTP endpoint is unreachable, or rejects every request."""


class CheckpointMismatchError(UsageError):
    """A checkpoint is of another model than the one it is loaded into."""


class SampleTooLongError(UsageError):
    """One sample alone exceeds the capacity of a pack."""


class ErrorBudgetError(RecaptionError):
    """More inputs failed than the recipe's `max_failed_share` allows."""


class StorageError(RecaptionError, OSError):
    """The storage of the run folder failed: full, unreachable, access denied, or reading back other bytes."""


class OutsideRunError(StorageError):
    """A name that does not stay in the run folder: absolute, with `..`, or through a link that leads out."""


class VideoError(RecaptionError):
    """One video, or one clip of it, cannot be used; the job continues without it.

    Args:
        reason: one of `FAILURE_REASONS`.
    """

    def __init__(self, reason: str, detail: str, *, uri: str = "") -> None:
        if reason not in FAILURE_REASONS:
            raise ValueError(f"{reason = } is not in FAILURE_REASONS")
        super().__init__(f"{uri}: {reason}: {detail}" if uri else f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.uri = uri

    def __reduce__(self) -> tuple[object, ...]:
        return _video_error, (self.reason, self.detail, self.uri)


def _video_error(reason: str, detail: str, uri: str) -> VideoError:
    return VideoError(reason, detail, uri=uri)
