"""The command line: help on one screen, which flags it shows, and how a process ends."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.cluster.worker_errors import user_facing_error
from jobs.commands import VERBS
from jobs.recipe.fields import fields_of
from jobs.recipe.presets import quickstart

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "Makefile",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ("settings.md", "commands.md")),
    *(
        path
        for path in sorted((ROOT / "examples").rglob("*"))
        if path.suffix in (".md", ".sh", ".py", ".yaml", ".ipynb")
    ),
]
STABLE = {  # `Stable: the commands` of the design
    "run": "--videos --out --recipe --stop-after",
    "prepare": "--videos --out",
    "caption": "--run --captioner --set",
    "shard": "--run --captions",
    "encode": "--run --compressor",
    "plan": "--run --lengths --ranks --capacity",
    "train captioner": "--run --name --init-from",
    "train compressor": "--run --name",
    "train dit": "--run --name --init-from",
    "sample": "--checkpoint --prompt",
    "export": "--run --to --out",
    "report": "--run",
    "verify": "--run",
    "doctor": "",
}
FLAG = re.compile(r"--[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*(?![a-z0-9.*-]*\*)")


def help_of(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*arguments]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def shown():
    """Command -> the flags in its help; `--no-name` counts as `--name`, which the same switch is."""
    return {verb: flags_in(help_of(*verb.split(), "--help")) for verb in VERBS}


def flags_in(text):
    return {re.sub(r"(--|\.)no-", r"\1", flag) for flag in FLAG.findall(text)} - {"--help", "--help-all"}


def commands_in(text):
    """(command, its flags) of every `recaption VERB ...` or `python -m jobs VERB ...`; of an unnamed model: all three."""
    text = re.sub(r"\\\n", " ", text)
    names = "|".join({verb.split()[0] for verb in VERBS})
    for line in re.findall(rf"(?:recaption|-m jobs) +((?:{names})\b[^`\n]*)", text):
        line = line.split("    #")[0]
        words = line.split()
        models = re.findall(r"[a-z]+", words[1]) if words[0] == "train" and len(words) > 1 else [""]
        verbs = [f"{words[0]} {model}".strip() for model in models if f"{words[0]} {model}".strip() in VERBS]
        yield verbs or [verb for verb in VERBS if verb.split()[0] == words[0]], flags_in(line)


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_is_one_screen(verb, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = help_of(*verb.split(), "--help")
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert f"recaption {verb}: " in lines[0]
    assert VERBS[verb].example in text
    assert f"recaption {verb} --help-all" in text
    assert "docs/settings.md" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_with_all_flags_has_every_setting_that_the_command_takes(verb, shown):
    command = VERBS[verb]
    text = help_of(*verb.split(), "--help-all")
    assert shown[verb] <= flags_in(text)
    if hasattr(command, "settings") and not command.takes and verb != "sample":
        assert {field.flag for field in fields_of(quickstart())} <= flags_in(text)


def test_the_settings_in_the_help_are_few_and_have_a_text():
    for verb, command in VERBS.items():
        assert len(command.shown) == len(set(command.shown)) <= 32, verb
        settings = {field.path: field for field in fields_of(quickstart())}
        if verb == "sample":
            settings = {field.path: field for field in fields_of(quickstart().sample)}
        assert [path for path in command.shown if not settings[path].doc] == [], verb


def test_help_of_train_lists_the_models():
    text = help_of("train", "--help")
    for model in ("captioner", "compressor", "dit"):
        assert f"recaption train {model}" in text


def test_help_shows_the_defaults_of_the_recipe():
    assert "--shard.buckets.fps 8 " in help_of("run", "--help")
    assert "--shard.buckets.fps 16 " in help_of("run", "--recipe", "base", "-h")


def test_the_stable_flags_are_in_the_help(shown):
    for verb, flags in STABLE.items():
        assert set(flags.split()) | {"--json", "--address"} <= shown[verb], verb


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_flags_of_commands_in_the_documents_are_in_the_help(path, shown):
    for verbs, flags in commands_in(path.read_text(encoding="utf-8")):
        for flag in flags:
            assert any(flag in shown[verb] for verb in verbs), f"{flag} is not in the help of {verbs}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_in_the_documents_are_in_the_help_of_a_command(path, shown):
    in_help = set().union(*shown.values())
    settings = {flag for flag in flags_in(path.read_text(encoding="utf-8")) if "." in flag}
    assert settings <= in_help


def test_the_documents_name_flags_at_all(shown):
    found = [flags for path in DOCUMENTS for _, flags in commands_in(path.read_text(encoding="utf-8")) if flags]
    assert len(found) > 10


# --- how a process ends -----------------------------------------------------------------------------------------------

PATCHED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and their children too
import jobs.commands
from jobs.cli import main

def stand_in(command):
    {body}

jobs.commands.Doctor.__call__ = stand_in
sys.exit(main(["doctor"]))
"""


def child(body, **options):
    code = PATCHED.format(body=body.strip().replace("\n", "\n    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        **options,
    )  # fmt: skip


def test_our_own_failure_ends_with_70_a_traceback_and_one_line():
    process = child("raise KeyError('a bug')")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 70
    assert out == ""
    *trace, last = err.strip().splitlines()
    assert "Traceback" in "\n".join(trace)
    assert "KeyError: 'a bug'" in trace
    assert last.startswith("recaption: this is a fault of recaption")


def test_a_failure_while_printing_ends_with_70():
    process = child("return {'cores': object(), 'free_disk_bytes': 'none'}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 70
    assert "this is a fault of recaption" in err


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 2, "interrupted")]
)
def test_a_signal_is_one_sentence(number, code, word):
    process = child("print('ready', file=sys.stderr, flush=True)\ntime.sleep(100)")
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err == f"recaption: {word}: finished parts are safe, run the same command again to go on\n"
    assert out == ""


def test_a_fault_of_a_worker_is_a_fault_of_ours(monkeypatch, capsys):
    def fail(self):
        raise user_facing_error("shard", kind="ZeroDivisionError", text="division by zero", where="  File ...")

    monkeypatch.setattr(VERBS["doctor"], "__call__", fail)
    assert main(["doctor"]) == 70
    error = capsys.readouterr().err
    assert "shard: a worker failed: ZeroDivisionError: division by zero" in error
    assert "this is a fault of recaption" in error


def test_a_file_whose_name_starts_with_a_dash_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "-dash.mp4").touch()
    monkeypatch.chdir(tmp_path)
    seen = {}
    monkeypatch.setattr(VERBS["prepare"], "__call__", lambda self: seen.update(videos=self.videos) or {"failures": []})
    main(["prepare", "--videos", "a.mp4", "-dash.mp4", "--out", "run", "--json"])
    assert seen["videos"] == ("a.mp4", "./-dash.mp4")
    assert main(["prepare", "--videos", "-other.mp4", "--out", "run"]) == 2  # there is no such file


WITH_RAY = """
from jobs.cluster.cluster import Cluster
from tests.jobs.test_cli import Sleeper
with Cluster(num_workers=1, progress=False) as cluster:
    for row in cluster.run_parts(Sleeper, {}, [{}], title="sleep"):
        pass
"""


class Sleeper:
    """A stage worker that waits for its end."""

    def __call__(self, part):
        import time
        from pathlib import Path

        Path(os.environ["READY"]).write_text("ready")
        time.sleep(200)


@pytest.mark.timeout(280)
def test_sigterm_while_ray_works_is_one_sentence_without_a_stack_trace(tmp_path, monkeypatch):
    import time

    ready = tmp_path / "ready"
    monkeypatch.setenv("READY", str(ready))
    process = child(WITH_RAY)
    deadline = time.monotonic() + 200
    while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ready.exists(), process.communicate(timeout=60)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.strip().splitlines()[-1].startswith("recaption: stopped by SIGTERM: finished parts are safe")
    assert "SIGTERM received" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", ["sample --help-all", "verify --help-all", "doctor --json"])
def test_a_reader_that_goes_away_gives_no_traceback(arguments):
    """`recaption ... | head -c 1`, with a pipe that is closed before anything is written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
    )
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(timeout=120) == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
