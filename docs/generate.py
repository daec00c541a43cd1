"""Pages made from the code: `python docs/generate.py` writes them, tests/docs/test_generate.py holds them against it.

architecture.md between its two markers: one line per file, from module docstrings; rooms.svg: from the import contracts;
settings.md: every setting, from the dataclasses of the recipe; commands.md: every command with its help on one screen.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "jobs": "the commands",
    "train": "packs to models",
    "packing": "clips to packs",
    "recaption": "video to captions",
}
START, END = "<!-- files: made by docs/generate.py -->", "<!-- end of files -->"
FIRST_LINE_WIDTH = 130


def first_line(path: Path) -> str:
    """First sentence of a module's docstring, as one line; empty where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0].rstrip(":")
    return sentence if len(sentence) <= FIRST_LINE_WIDTH else sentence[: FIRST_LINE_WIDTH - 1].rstrip() + "\u2026"


def file_map() -> str:
    """Every source file with its first docstring line, by package and room."""
    lines: list[str] = []
    for package, purpose in PACKAGES.items():
        lines += [f"### {package}: {purpose}", ""]
        for folder in [ROOT / package, *_rooms(ROOT / package)]:
            files = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
            if not files:
                continue
            name = folder.relative_to(ROOT).as_posix()
            about = first_line(folder / "__init__.py")
            lines += [f"**`{name}/`**" + (f" {about}" if about and folder.name != package else ""), ""]
            lines += ["| file | what it is |", "| --- | --- |"]
            lines += [
                f"| [{p.name}](../{name}/{p.name}) | {first_line(p).replace('|', chr(92) + '|')} |" for p in files
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _rooms(package: Path) -> list[Path]:
    return sorted(p for p in package.rglob("*") if p.is_dir() and any(p.glob("*.py")))


def layers() -> dict[str, list[str]]:
    """Package -> its rooms and files, top (may import what stands below) first, as the import contracts have them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {c["containers"][0]: c["layers"] for c in contracts if c.get("containers", [""])[0] in PACKAGES}


def rooms_svg() -> str:
    """The house: a column per package, rooms from top to bottom, arrows where a package may import another."""
    width, gap, row, top = 190, 50, 26, 74
    found = layers()
    height = top + row * max(len(rooms) for rooms in found.values()) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(PACKAGES) * (width + gap)} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for column, (package, purpose) in enumerate(PACKAGES.items()):
        x = 20 + column * (width + gap)
        rooms = found[package]
        parts.append(
            f'<rect x="{x}" y="16" width="{width}" height="{top + row * len(rooms) - 10}" rx="8" fill="#f6f8fa" '
            'stroke="#8c959f"/>'
        )
        parts.append(f'<text x="{x + 12}" y="38" font-weight="600" font-size="15">{package}</text>')
        parts.append(f'<text x="{x + 12}" y="56" fill="#57606a">{escape(purpose)}</text>')
        for index, room in enumerate(rooms):
            is_room = (ROOT / package / room).is_dir()
            y = top + index * row
            if is_room:
                parts.append(
                    f'<rect x="{x + 10}" y="{y}" width="{width - 20}" height="{row - 5}" rx="4" fill="#ddf4ff" '
                    'stroke="#54aeff"/>'
                )
            num_files = sum(p.name != "__init__.py" for p in (ROOT / package / room).rglob("*.py")) if is_room else 0
            label = f"{room}/" if is_room else f"{room}.py"
            parts.append(f'<text x="{x + 18}" y="{y + 15}">{escape(label)}</text>')
            if is_room:
                parts.append(
                    f'<text x="{x + width - 18}" y="{y + 15}" text-anchor="end" fill="#57606a">{num_files}</text>'
                )
        if column + 1 < len(PACKAGES):
            parts.append(
                f'<path d="M{x + width + 4} 34H{x + width + gap - 4}" stroke="#57606a" stroke-width="1.5" '
                'marker-end="url(#a)"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def architecture() -> str:
    """docs/architecture.md with its file map made anew."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{file_map()}\n{END}{after}"


def settings_page() -> str:
    """docs/settings.md: a section per stage, a table per group of settings."""
    from jobs.recipe.fields import docs_of, fields_of
    from jobs.recipe.presets import RECIPES
    from jobs.recipe.settings import Recipe

    recipe = Recipe(name="")
    named = {name: {f.path: f.value for f in fields_of(make())} for name, make in RECIPES.items()}
    lines = ["# Settings", "", *SETTINGS_ABOUT, ""]
    stage = group = ""
    for field in fields_of(recipe):
        above, _, _ = field.path.rpartition(".")
        if above.split(".")[0] != stage:
            stage = above.split(".")[0]
            lines += ["", f"## {stage}", "", docs_of(Recipe).get(stage) or (type(getattr(recipe, stage)).__doc__ or "")]
        if above != group:
            group = above
            lines += ["", "| flag | type | default | what it does |", "| --- | --- | --- | --- |"]
        others = [
            f"{name}: {_code(values[field.path])}"
            for name, values in named.items()
            if values[field.path] != field.value
        ]
        default = "<br>".join([_code(field.value), *others])
        lines.append(f"| `{field.flag}` | {_code(field.type)} | {default} | {_cell(field.doc)} |")
    return "\n".join(lines) + "\n"


SETTINGS_ABOUT = (
    "Every setting of every stage, made by `python docs/generate.py` from the dataclasses in",
    "[jobs/recipe/settings.py](../jobs/recipe/settings.py). Each is a flag of the commands that it has an effect on,",
    "and a key of `run.yaml` (`--train-dit.trainer.lr` is `train_dit: trainer: lr:`). `run`, `prepare`, `caption`, `shard`",
    "and `encode` write the settings to `RUN/run.yaml`, where later commands find them. A switch is `--x.name` or",
    "`--x.no-name`. Where the recipes `quickstart`, `small` and `base` have another value than the default, it stands",
    "below it.",
)


def commands_page() -> str:
    """docs/commands.md: what `recaption VERB --help` says, for each command."""
    from jobs.cli import FirstPass, default_command
    from jobs.commands import VERBS
    from jobs.recipe.help import EXIT_CODES, flag_of, shown_fields, usage

    lines = ["# Commands", "", *COMMANDS_ABOUT, "", f"Exit codes: {EXIT_CODES}.", ""]
    for verb in VERBS:
        command = default_command(verb, FirstPass())
        own, settings = shown_fields(command)
        lines += [f"## {verb}", "", f"{command.__doc__}", "", f"    {usage(verb, own)}", f"    {command.example}", ""]
        lines += ["| flag | what it does |", "| --- | --- |"]
        lines += [f"| {_code(flag_of(field))} | {_cell(field.doc)} |" for field in own if field.path not in COMMON]
        lines += [f"| {_code(flag_of(field))} | {_cell(field.summary)} |" for field in settings]
        lines.append("")
    return "\n".join(lines)


COMMON = ("json", "address", "num_workers", "progress")


COMMANDS_ABOUT = (
    "Made by `python docs/generate.py` from [jobs/commands.py](../jobs/commands.py). Flags are shown with their default, or",
    "with the type of their value; settings with those of the recipe `quickstart`. Every command also takes `--json` (one",
    "machine-readable object on stdout), `--address` (a Ray cluster; default: a local Ray, started and stopped),",
    "`--num-workers` and `--no-progress`; `--help`, and `--help-all` for every setting that it takes",
    "([settings.md](settings.md)).",
)


def _code(value: object) -> str:
    """A value, as on the command line, in code font."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`".replace("|", "\\|") if text else '`""`'


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def pages() -> dict[str, str]:
    """Path from the root -> what has to stand there."""
    sys.path.insert(0, str(ROOT))
    return {
        "docs/architecture.md": architecture(),
        "docs/rooms.svg": rooms_svg(),
        "docs/settings.md": settings_page(),
        "docs/commands.md": commands_page(),
    }


def main() -> int:
    for name, text in pages().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
