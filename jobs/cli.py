"""The console script `recaption`: parses a command, runs it, prints its summary.

Exit codes: 0 all good, 1 finished but some inputs failed (they are listed), 2 usage error (one sentence on stderr),
3 `verify` found damage. With `--json` stdout carries exactly one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from jobs.commands import VERBS, Run
from jobs.recipe import presets as recipes
from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import Recipe
from jobs.summary import exit_code, print_summary
from recaption.errors import RecaptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        return _usage_error(f"no command {verb!r}: there are {', '.join(VERBS)}")
    try:
        command = parse(verb, rest)
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints worker deaths on stdout
            summary = command()  # type: ignore[operator]
    except RecaptionError as error:
        return _usage_error(str(error))
    except SystemExit as stop:  # tyro: --help, or unknown flags (already explained on stderr)
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _usage_error("interrupted: finished parts are safe, run the same command again to go on")
    if command.json:
        print(json.dumps(summary))
    else:
        print_summary(verb, summary)
    return exit_code(verb, summary)


def parse(verb: str, arguments: Sequence[str]) -> Any:
    """The command's dataclass filled from the flags; other settings come from the recipe or the run folder.

    Raises:
        UsageError: unknown recipe, or no such run folder.
    """
    cls: Any = VERBS[verb]
    defaults: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.name == "settings" and verb != "sample":
            defaults["settings"] = _recipe_for(verb, arguments)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            defaults[f.name] = tyro.MISSING
    return tyro.cli(
        cls,
        args=list(arguments),
        default=cls(**defaults),
        prog=f"recaption {verb}",
        description=f"{cls.__doc__}\n\nExample: {cls.example}",
    )


def _recipe_for(verb: str, arguments: Sequence[str]) -> Recipe:
    """The recipe whose settings are the defaults of the flags."""
    recipe_name = _flag(arguments, "--recipe")
    run_uri = _flag(arguments, "--run")
    if verb == "prepare" and (_flag(arguments, "--what-if") or _flag(arguments, "--what_if")):
        run_uri = _flag(arguments, "--out")  # reads a run folder, so its own recipe is used
    if recipe_name or not run_uri or any(a in ("-h", "--help") for a in arguments):
        return recipes.load_recipe(recipe_name or "quickstart")
    from jobs.recipe.run_inputs import RUN_YAML
    from recaption.run_folder import RunFolder

    if verb == "train" and not RunFolder(run_uri).exists(RUN_YAML):
        return recipes.quickstart()
    return open_run(run_uri)[1]


def _flag(arguments: Sequence[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :]
    return None


def _overview() -> str:
    lines = ["recaption: raw video to a re-captioned, packed training set and a diffusion transformer.", ""]
    lines += [f"  recaption {verb:<9} {(cls.__doc__ or '').splitlines()[0]}" for verb, cls in VERBS.items()]
    lines += ["", "recaption VERB --help explains a command. Start with:", f"  {Run.example}"]
    return "\n".join(lines)


def _usage_error(message: str) -> int:
    print(f"recaption: {message}", file=sys.stderr)
    return 2
