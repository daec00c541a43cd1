"""The console script `recaption`: parses a command, runs it, prints its summary, or its help.

Exit codes: 0 all good, 1 finished but some inputs failed (they are listed), 2 usage error (one sentence on stderr),
3 `verify` found damage, 70 a fault of recaption itself (of its workers too), 141 the reader of stdout went away,
143 SIGTERM.
With `--json` stdout carries exactly one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import tyro

from jobs.cluster.worker_errors import WorkerFaultError
from jobs.commands import VERBS
from jobs.recipe import presets as recipes
from jobs.recipe.fields import restricted
from jobs.recipe.flags import Common
from jobs.recipe.help import print_all_flags, print_help
from jobs.recipe.run_inputs import RUN_YAML, open_run
from jobs.recipe.settings import Recipe, from_dict, to_dict
from jobs.summary import errors_of, exit_code, print_summary
from recaption.errors import RecaptionError, UsageError
from recaption.run_folder import RunFolder

FAULT, READER_GONE, STOPPED = 70, 141, 143
"""Exit codes: EX_SOFTWARE of sysexits.h, and those of a process which SIGPIPE or SIGTERM ends."""


SAFE = "finished parts are safe, run the same command again to go on"
OUR_FAULT = f"this is a fault of recaption, not of your input; {SAFE}, and please report it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _sigterm_as_interrupt() as received:
            code, show = _run(argv)
    except WorkerFaultError as error:
        return _complain(OUR_FAULT, FAULT, f"{error}\n")
    except RecaptionError as error:
        return _complain(str(error), 2)
    except SystemExit as stop:  # tyro: unknown flags; training: SIGTERM (both already explained on stderr)
        return stop.code if isinstance(stop.code, int) else _complain(str(stop.code), FAULT) if stop.code else 0
    except KeyboardInterrupt:
        return _complain(f"stopped by SIGTERM: {SAFE}", STOPPED) if received else _complain(f"interrupted: {SAFE}", 2)
    except Exception:
        return _fault()
    return _print(show, code)


def _run(argv: Sequence[str]) -> tuple[int, Callable[[], object]]:
    """(exit code, what prints the result) of a command line."""
    verb = next((verb for verb in (" ".join(argv[:2]), *argv[:1]) if verb in VERBS), None)
    if verb is None:
        return _overview(argv)
    rest = [_as_path(argument) for argument in argv[len(verb.split()) :]]
    first = first_pass(verb, rest)
    if first.help or first.help_all:
        default = default_command(verb, first)
        if first.help_all:
            return 0, lambda: print_all_flags(verb, default)
        return 0, lambda: print_help(verb, default, first.recipe)
    command = parse(verb, rest)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints worker deaths on stdout
        summary = command()
    code = exit_code(verb, summary)
    for error in errors_of(summary):
        print(f"recaption: {verb}: {error}", file=sys.stderr)
    if command.json:
        return code, lambda: print(json.dumps(summary))
    flags = {f.name: getattr(command, f.name) for f in dataclasses.fields(command)}
    return code, lambda: print_summary(verb, summary, **{"run": flags.get("out"), **flags})


def _as_path(argument: str) -> str:
    """`-dash.mp4` as `./-dash.mp4` where there is such a file; flags have two dashes, or are -h."""
    is_other = not argument.startswith("-") or argument.startswith("--") or argument in ("-", "-h")
    return argument if is_other or not os.path.lexists(argument) else f"./{argument}"


def _overview(argv: Sequence[str]) -> tuple[int, Callable[[], object]]:
    """For a command line without a command: the list of all, or of the trainings."""
    is_train = argv[:1] == ["train"]
    listed = [verb for verb in VERBS if verb.startswith("train ")] if is_train else list(VERBS)
    rest = argv[1:] if is_train else argv
    if rest and rest[0] not in ("-h", "--help", "--help-all"):
        known = ", ".join(dict.fromkeys(verb.split()[is_train] for verb in listed))
        raise UsageError(f"{'train' if is_train else 'no command'} {rest[0]!r}: there are {known}")
    name, about, start = ("", "raw video to a re-captioned, packed training set and a diffusion transformer", "run")
    if is_train:
        name, about, start = ("train ", "trains one of the three models", "train dit")
    lines = [f"recaption {name.strip()}".strip() + f": {about}.", ""]
    lines += [f"  recaption {verb:<17} {VERBS[verb].__doc__}" for verb in listed]
    lines += ["", f"recaption {name}{'MODEL' if is_train else 'VERB'} --help explains one of them. Start with:"]
    lines += [f"  {VERBS[start].example}"]
    return (0 if rest else 2), lambda: print("\n".join(lines))


# --- parsing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstPass:
    """The flags that decide what the defaults of the others are, and the two that print them."""

    help: Annotated[bool, tyro.conf.arg(aliases=["-h"])] = False
    help_all: bool = False
    recipe: str | None = None
    run: str | None = None
    out: str | None = None
    what_if: tuple[str, ...] = ()
    verdicts: str | None = None
    remove: str | None = None


def first_pass(verb: str, arguments: Sequence[str]) -> FirstPass:
    """Parse these flags only."""
    return tyro.cli(
        FirstPass,
        args=list(arguments),
        prog=f"recaption {verb}",
        add_help=False,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )[0]


def parse(verb: str, arguments: Sequence[str]) -> Any:
    """The command's dataclass filled from the flags; other settings come from the recipe or the run folder.

    Raises:
        UsageError: unknown recipe, or no such run folder.
    """
    default = default_command(verb, first_pass(verb, arguments))
    command: Any = tyro.cli(
        type(default), args=list(arguments), default=default, prog=f"recaption {verb}", add_help=False
    )
    if not command.takes:
        return command
    return dataclasses.replace(command, settings=from_dict(to_dict(command.settings)))


def default_command(verb: str, first: FirstPass) -> Common:
    """The command before its flags are applied."""
    cls: Any = VERBS[verb]
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.name == "settings" and verb != "sample":
            recipe = _recipe_for(verb, first)
            values["settings"] = restricted(recipe, cls.takes) if cls.takes else recipe
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            values[f.name] = tyro.MISSING
    return cls(**values)


def _recipe_for(verb: str, first: FirstPass) -> Recipe:
    """The recipe whose settings are the defaults of the flags."""
    of_a_run = first.what_if or first.verdicts or first.remove  # forms of `prepare` that read a run folder's clips
    run_uri = first.out if verb == "prepare" and of_a_run else first.run
    if first.recipe or not run_uri or verb == "run" or first.help or first.help_all:
        return recipes.load_recipe(first.recipe or "quickstart")
    if verb.startswith("train ") and not RunFolder(run_uri).exists(RUN_YAML):
        return recipes.quickstart()
    return open_run(run_uri)[1]


# --- endings ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[list[int]]:
    """SIGTERM ends the command as Ctrl-C does, which Ray and all clean-up code know; yields the signals received."""
    received: list[int] = []
    process = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once
        if os.getpid() != process:  # a forked child: as if it had no handler
            os.kill(os.getpid(), number)
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield received
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


def _print(show: Callable[[], object], code: int) -> int:
    """Print the result; `recaption ... | head` ends without a word."""
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return READER_GONE
    except Exception:
        return _fault()
    return code


def _fault() -> int:
    trace = traceback.format_exc()
    return _complain(OUR_FAULT, FAULT, trace)


def _complain(message: str, code: int, before: str = "") -> int:
    try:
        print(f"{before}recaption: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Send what is still buffered nowhere; the interpreter would write it at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
