"""Pages that are made from the code are those that lie in docs/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


PAGES = generate.pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_current(name):
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name], "run: python docs/generate.py"


def test_every_source_file_says_in_one_line_what_it_is():
    files = [p for package in generate.PACKAGES for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py"]
    assert [p.relative_to(ROOT).as_posix() for p in files if not generate.first_line(p)] == []
