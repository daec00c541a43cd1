"""Prints the end of a command, at most 20 lines: the counts that matter and what to open; and computes its exit code.

Every number is in `--json` and on the report page. A row of `ROWS` is a label and a format string over the summary; it is
left out where the summary lacks one of its values, or one is empty.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.text

from recaption.errors import FAILURE_REASONS

MAX_LISTED, MAX_WARNINGS, MAX_WORDS = 3, 2, 8
"""Failures or problems, warnings, and entries of a dictionary or list that are shown."""


Row = tuple[str, str]


LEDGER: tuple[Row, ...] = (
    ("videos", "{videos[ok]:,} of {videos[total]:,} read"),
    ("clips", "{clips[kept]:,} of {clips[total]:,} kept, {seconds[kept]:.0f} of {seconds[total]:.0f} seconds"),
    ("dropped", "{clips[dropped]}"),
)


ROWS: dict[str, tuple[Row, ...]] = {
    "run": (
        *LEDGER,
        ("left out", "{stages[prepare][left_out_files]:,} files that accompany videos"),
        ("captions", "{stages[caption][captions]:,}"),
        ("clip score", "{stages[caption][matched_score]:.3f}"),
        ("samples", "{stages[shard][samples]:,} in {stages[shard][shards]:,} shards"),
        ("packs", "{stages[plan][num_packs]:,}, fill {stages[plan][fill]:.1%}"),
        ("training", "{stages[train][steps]:,} steps, loss {stages[train][loss]:.4f}"),
        ("shards", "{run}/shards"),
        ("checkpoint", "{stages[train][checkpoint]}"),
        ("sampled", "{stages[sample][contact_sheet]}"),
        ("report", "{report}"),
    ),
    "prepare": (
        *LEDGER,
        ("verdicts", "{verdicts}; {new_verdicts:,} new"),
        ("removed", "{removed[videos]:,} videos, {removed[clips]:,} clips, {removed[samples]:,} samples of shards"),
        ("left out", "{left_out_files:,} files that accompany videos"),
        ("parts", "{computed_parts:,} computed, {skipped_parts:,} were there"),
        ("not scored", "{absent_scores}"),
        ("tables", "{run}/videos and {run}/clips"),
        ("next", "recaption caption --run {run}"),
    ),
    "caption": (
        ("captions", "{captions:,}"),
        ("further kinds", "{further}"),
        ("bad", "{bad}"),
        ("left to PyAV", "{decoder_fallbacks}"),
        ("texts refused", "{refused_texts}"),
        ("clip score", "{matched_score:.3f}, with captions of other clips {mismatched_score:.3f}"),
        ("parts", "{computed_parts:,} computed, {skipped_parts:,} were there"),
        ("caption set", "{run}/captions/{set}"),
        ("next", "recaption shard --run {run}"),
    ),
    "shard": (
        ("samples", "{samples:,} in {shards:,} shards"),
        ("buckets", "{buckets}"),
        ("left out", "{rejected}"),
        ("left to PyAV", "{decoder_fallbacks}"),
        ("shards", "{run}/shards"),
        ("next", "recaption encode --run {run}"),
    ),
    "encode": (
        ("samples", "{samples:,}, {tokens:,} latent tokens, {dtype}"),
        ("PSNR", "{round_trip_psnr_db[mean]:.1f} dB after decoding, worst {round_trip_psnr_db[min]:.1f} dB"),
        ("texts", "{text}"),
        ("latents", "{run}/latents/{latents}"),
        ("next", "recaption train dit --run {run}"),
    ),
    "plan": (
        ("samples", "{num_samples:,}"),
        ("packs", "{num_packs:,} of {capacity:,} tokens in {num_steps:,} steps on {num_ranks:,} ranks"),
        ("policy", "{policy}"),
        ("fill", "{fill:.2%}"),
        ("rank efficiency", "{rank_efficiency:.2%}"),
        ("rejected", "{rejected}"),
        ("rejected seconds", "{rejected_seconds}"),
        ("by rule", "{by_rule}"),
        ("dropped tokens", "{dropped_token_fraction:.1%}"),
        (
            "memory",
            "{memory[model_state_bytes]:GB} of model state, {memory[activations_bytes]:GB} of activations a rank",
        ),
    ),
    "train": (
        ("steps", "{steps:,}"),
        ("resumed from", "{resumed_from:,}"),
        ("loss", "{loss:.4f}, {skipped_steps:,} steps skipped"),
        ("validation", "{validation}"),
        ("speed", "{tokens_per_second:,.0f} tokens per second"),
        ("evaluated", "{measures}"),
        ("evaluation", "{evaluation}"),
        ("samples", "{contact_sheet}"),
        ("checkpoint", "{checkpoint}"),
        ("curves", "{run}/train/{name}/metrics.jsonl"),
    ),
    "sample": (("videos", "{videos:first}"), ("contact sheet", "{contact_sheet}")),
    "export": (
        ("clips", "{clips[exported]:,} of {clips[total]:,}, {seconds[exported]:.0f} seconds, {bytes:GB}"),
        ("copied", "{copied:,} whole files, {cut:,} cut at keyframes, {encoded:,} encoded"),
        ("to export", "{clips[to_export]:,} of {clips[total]:,}, {seconds[to_export]:.0f} seconds"),
        ("estimate", "{estimated_bytes:GB}, if {copied_at_most:,} clips are copied and the others encoded"),
        ("dropped", "{clips[dropped]}"),
        ("failed", "{clips[failed]}"),
        ("no caption", "{clips[waiting][caption]:,}"),
        ("parts", "{computed_parts:,} computed, {skipped_parts:,} were there"),
        ("files", "{files}"),
        ("how to load it", "{export}/README.md"),
    ),
    "report": (("report", "{report}"),),
    "verify": (
        *LEDGER,
        ("captions checked", "{pairs}"),
        ("samples checked", "{samples_checked}"),
        ("repaired", "{repaired}"),
        ("found", "{found:,} problems before the repair"),
        ("nothing lost or damaged", "{ok}"),
    ),
    "doctor": (
        ("machine", "{cores} cores, {free_disk_bytes:GB} of disk free"),
        ("GPUs", "{gpus}"),
        ("bfloat16", "GPU {bf16}, CPU matrix units {cpu_bf16_matrix_units}"),
        ("python", "{python}, torch {torch}, ray {ray}, PyAV {pyav}"),
        ("other decoders", "{decoders}"),
        ("decodes", "{decodes}"),
        ("encodes", "{encodes}"),
        ("decoding is confined by", "{confinement}"),
        ("not confined by", "{confinement_missing}"),
        ("tiny captioner", "{weights[tiny]}"),
        ("hub", "{weights[hub]}"),
        ("extras", "{extras}"),
    ),
}


LISTS: tuple[tuple[str, str, str], ...] = (
    ("failures", "{uri}: {reason}", "all of them: {run}/videos, or --json"),
    (
        "trimmed",
        "{uri}: {duration_seconds:.1f} s kept, {truncated_seconds:.1f} s lost",
        "all of them: {run}/videos, or --json",
    ),
    ("problems", "{kind}: {where}: {detail}", "all of them: --json"),
)
"""Key of the summary, one line of the list, and where the whole list is."""


def exit_code(verb: str, summary: dict[str, Any]) -> int:
    """0 all good, 1 finished but some inputs failed, 3 `verify` found damage."""
    if verb == "verify":
        return 0 if summary["ok"] else 3
    has_failed = summary.get("failures") or summary.get("videos_failed") or _has_failed_clips(summary)
    return 1 if has_failed or errors_of(summary) else 0


def _has_failed_clips(summary: dict[str, Any]) -> bool:
    """Whether a stage could not read or write clips: their reasons are among those that it counts."""
    stages = (summary, *summary.get("stages", {}).values())
    return any(
        reason in FAILURE_REASONS for one in stages for key in ("bad", "rejected") for reason in one.get(key, {})
    )


def errors_of(summary: dict[str, Any]) -> list[str]:
    """What a stage could not do at all, or has to do again: one sentence each."""
    stages = summary.get("stages", {}).values()
    return [error for one in (summary, *stages) for error in one.get("errors", [])]


def print_summary(verb: str, summary: dict[str, Any], **flags: Any) -> None:
    """Print the end of a command on stdout.

    Args:
        flags: of the command; `run`, the run folder, is in the paths that are shown.
    """
    if "waterfall" in summary:  # of `prepare --what-if`, which is a table
        from jobs.report import what_if

        print(what_if.as_text(summary))
        return
    console = rich.console.Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    values = flags | summary
    rows = [(label, text) for label, template in ROWS[verb.split()[0]] if (text := _filled(template, values))]
    width = max((len(label) for label, _ in rows), default=0)
    for label, text in rows:
        console.print(rich.text.Text.assemble((f"{label:<{width}}", "dim"), "  ", text))
    for warning in _warnings(summary)[:MAX_WARNINGS]:
        console.print(f"WARNING: {warning}", style="yellow")
    for key, template, where in LISTS:
        lines = [template.format(**row) for row in summary.get(key, [])]
        _print_list(console, key, lines, where.format_map({"run": "RUN", **values}))
    refused = [f"{name}: {why}" for name, why in summary.get("refused", {}).items()]
    _print_list(console, "not repaired", refused, "all of them: --json")
    if "compared" in summary:  # of `plan --compare`
        from jobs.plan import as_text

        print(as_text(summary["compared"]))
    if "epochs" in summary:  # of `plan --epochs`
        from jobs.plan import epochs_as_text

        print(epochs_as_text(summary["epochs"]))


def _warnings(summary: dict[str, Any]) -> list[str]:
    stages = summary.get("stages", {}).values()
    return [warning for one in (summary, *stages) for warning in one.get("warnings", [])]


def _print_list(console: rich.console.Console, title: str, lines: Sequence[str], where: str) -> None:
    if not lines:
        return
    console.print(f"{title}: {len(lines):,}", style="red")
    for line in lines[:MAX_LISTED]:
        console.print(f"  {line}")
    if len(lines) > MAX_LISTED:
        console.print(f"  ... and {len(lines) - MAX_LISTED:,} more; {where}")


def _filled(template: str, values: dict[str, Any]) -> str:
    """The template with its values; "" where one of them is missing."""
    try:
        return _FORMATTER.vformat(template, (), values)
    except _MissingError:
        return ""


class _MissingError(Exception):
    pass


class _Formatter(string.Formatter):
    """`str.format` that writes dictionaries and lists in words, and knows bytes as GB."""

    def get_field(self, name: str, args: Any, kwargs: Any) -> Any:
        try:
            value, key = super().get_field(name, args, kwargs)
        except (KeyError, TypeError):
            raise _MissingError from None
        if value is None or (value != 0 and not value):
            raise _MissingError
        return value, key

    def format_field(self, value: Any, spec: str) -> str:
        if spec == "GB":
            return f"{value / 1e9:.2f} GB"
        if spec == "first":
            return value[0] + (f" and {len(value) - 1:,} more" if len(value) > 1 else "")
        return format(value, spec) if spec else _in_words(value)


_FORMATTER = _Formatter()


def _in_words(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(one, bool) for one in value.values()):
        missing = [name for name, is_there in value.items() if not is_there]
        there = ", ".join(name for name, is_there in value.items() if is_there) or "none"
        return there + (f"; not {', '.join(missing)}" if missing else "")
    if isinstance(value, dict):
        return _cut([f"{name} {_in_words(one)}" for name, one in value.items()])
    if isinstance(value, list):
        return _cut([_in_words(one) for one in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _cut(words: Sequence[str]) -> str:
    return ", ".join(words[:MAX_WORDS]) + (f" and {len(words) - MAX_WORDS} more" if len(words) > MAX_WORDS else "")
