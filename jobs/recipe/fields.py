"""The fields of a tree of settings: path, type, value and docstring of each, for the help and for docs/settings.md.

for field in fields_of(quickstart()):
    field.flag, field.type, field.value, field.doc     # "--shard.buckets.fps", "int", 8, "Frames per second of ..."
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Field:
    """One setting."""

    path: str
    """Names joined by dots, `shard.buckets.fps`."""
    type: str
    """Annotation, as it stands in the source."""
    value: Any
    doc: str

    @property
    def flag(self) -> str:
        return "--" + self.path.replace("_", "-")

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        return re.split(r"(?<!e\.g)[.;](?:\s|$)", " ".join(self.doc.split()))[0]


def fields_of(settings: Any, prefix: str = "") -> Iterator[Field]:
    """Every field of a dataclass instance; those of nested dataclasses in place of them."""
    cls: Any = type(settings)
    docs = docs_of(cls)
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{f.name}.")
        elif not str(f.type).startswith("tyro.conf.Suppress"):
            yield Field(path=prefix + f.name, type=str(f.type), value=value, doc=docs.get(f.name, ""))


@cache
def docs_of(cls: type) -> dict[str, str]:
    """Field -> the string below it in the source of the class, or of a base class."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base) or not hasattr(sys.modules[base.__module__], base.__name__):
            continue  # no settings, or made by `restricted`
        definition: Any = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        for node, below in zip(definition.body, [*definition.body[1:], None]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                docs[node.target.id] = inspect.cleandoc(str(text))
    return docs


def restricted(settings: Any, paths: Sequence[str]) -> Any:
    """The settings with flags only for the fields, or whole groups of fields, at `paths`: an instance of a subclass."""
    cls: Any = type(settings)
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)}
    fields: list[tuple[str, Any, Any]] = []
    for name, value in values.items():
        below = [path.partition(".")[2] for path in paths if path.startswith(name + ".")]
        if below:
            values[name] = restricted(value, below)
            fields.append((name, type(values[name]), dataclasses.field(default=values[name])))
        elif name not in paths:
            fields.append((name, Annotated[hints[name], tyro.conf.Fixed], dataclasses.field(default=value)))
    subclass = dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True)
    subclass.__doc__ = cls.__doc__
    return subclass(**values)
