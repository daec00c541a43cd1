"""Every exception of the project, on one page.

A user's mistake is a `UsageError` (exit code 2, one sentence). A bad video is a `VideoError` whose `reason` comes from
the closed list below; jobs turn it into a row, never into a crash.
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
    "write_failed",
)
"""Why an input, or one clip of it, could not be used. Closed: tests and reports read it."""


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
    "duplicate",
    "bad_caption",
    "no_bucket",
)
"""Why a readable clip is left out. Closed, in the order in which verdicts are reached."""


class RecaptionError(Exception):
    """Root of everything this project raises on purpose."""


class UsageError(RecaptionError, ValueError):
    """The user can mend this: wrong path, wrong name, settings that contradict each other. Exit code 2."""


class RecipeMismatchError(UsageError):
    """A run folder holds outputs of another recipe."""


class WeightsUnreachableError(UsageError):
    """Weights named by the user can neither be found on disk nor downloaded."""


class EndpointDownError(UsageError):
    """An HTTP endpoint that answers nobody: not there, or refusing all."""


class CheckpointMismatchError(UsageError):
    """A checkpoint belongs to another model than the one it is loaded into."""


class SampleTooLongError(UsageError):
    """One sample alone exceeds the capacity of a pack."""


class ErrorBudgetError(RecaptionError):
    """More inputs failed than the recipe's `max_failed_share` allows."""


class StorageError(RecaptionError, OSError):
    """The run folder's storage failed: full, gone, refusing, or not giving back what was put there."""


class VideoError(RecaptionError):
    """One video, or one clip of it, cannot be used; the job goes on without it."""

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
