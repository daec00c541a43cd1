"""The help of a command: on one screen (`--help`), and with every setting (`--help-all`)."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence

import rich.console
import rich.table
import tyro

from jobs.recipe.fields import Field, fields_of
from jobs.recipe.flags import Common

COLUMNS, DEFAULT_WIDTH = 100, 20


EXIT_CODES = "0 all good, 1 some inputs failed, 2 wrong use, 3 verify found damage, 70 fault of recaption, 143 SIGTERM"


def print_help(verb: str, command: Common, recipe: str | None = None) -> None:
    """At most 60 lines: own flags, the settings in `command.shown`, an example, and how to see the rest."""
    columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
    console = rich.console.Console(width=columns, markup=False, highlight=False, emoji=False)
    own, settings = shown_fields(command)
    console.print(f"recaption {verb}: {command.__doc__}\n")
    console.print(f"Usage:   {usage(verb, own)}\nExample:\n  {command.example}\n", soft_wrap=True)
    console.print(_table("Flags", own, columns))
    if settings:
        defaults = f"recipe {recipe or 'quickstart'}" if hasattr(command, "recipe") else "the run folder's run.yaml"
        console.print()
        console.print(
            _table(f"Settings, shown as in {defaults}" if verb != "sample" else "Settings", settings, columns)
        )
    console.print(f"\nExit codes: {EXIT_CODES}.")
    console.print(f"Every setting: recaption {verb} --help-all, or docs/settings.md.")


def print_all_flags(verb: str, command: Common) -> None:
    """Every flag, as tyro prints them."""
    parser = tyro.extras.get_parser(
        type(command),
        default=command,
        prog=f"recaption {verb}",
        description=f"{command.__doc__}\n\nExample: {command.example}\n\nExit codes: {EXIT_CODES}.",
        config=(tyro.conf.SuppressFixed,),
    )
    print(parser.format_help())


def shown_fields(command: Common) -> tuple[list[Field], list[Field]]:
    """The command's own flags, those of every command last; and the settings that its help lists."""
    own, settings = [], {}
    for field in fields_of(command):
        group, _, path = field.path.partition(".")
        if group == "settings":
            settings[path] = dataclasses.replace(field, path=path)
        else:
            own.append(dataclasses.replace(field, path=path or group))
    common = {f.name for f in dataclasses.fields(Common)}
    own.sort(key=lambda field: field.path in common)
    return own, [settings[path] for path in command.shown]


def usage(verb: str, own: Sequence[Field]) -> str:
    required = (f" {field.flag} {_kind_of(field)}" for field in own if field.value is tyro.MISSING)
    return f"recaption {verb}{''.join(required)} [FLAGS]"


def flag_of(field: Field) -> str:
    """A flag with its default, or else the type of its value; of a switch, the form that changes something.

    `--videos STR...`, `--shard.buckets.fps 8`, `--json`, `--no-progress`
    """
    if field.value is False:
        return field.flag
    if field.value is True:
        return re.sub(r"(--|\.)([^.]*)$", r"\1no-\2", field.flag)
    return f"{field.flag} {_default_of(field) or _kind_of(field)}"


def _default_of(field: Field) -> str:
    if field.value is None or field.value is tyro.MISSING:
        return ""
    text = " ".join(map(str, field.value)) if isinstance(field.value, tuple) else str(field.value)
    return text if len(text) <= DEFAULT_WIDTH else text[: DEFAULT_WIDTH - 1].rstrip() + "\u2026"


def _kind_of(field: Field) -> str:
    return re.sub(r"tuple\[(\w+).*\]", r"\1...", field.type.partition(" | ")[0]).upper()


def _table(title: str, fields: Sequence[Field], columns: int) -> rich.table.Table:
    table = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False, title=title,
                             title_justify="left", title_style="bold")  # fmt: skip
    flags = [f"  {flag_of(field)}" for field in fields]
    width = max(map(len, flags))
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, columns - width - 4))
    for flag, field in zip(flags, fields):
        table.add_row(flag, f"On by default: {field.summary}" if field.value is True else field.summary)
    return table
