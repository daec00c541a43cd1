"""Renders a page template to self-contained HTML with a hash-based content security policy."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.report.charts import number
from jobs.report.tables import duration
from jobs.report.thresholds import amount


def render_page(template: str, **context: Any) -> str:
    """HTML of a template, with style sheet and script inlined."""
    here = Path(__file__).parent / "templates"
    files = {kind: (here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "duration": duration, "percent": lambda fraction: f"{fraction:.0%}"}
    environment.filters["amount"] = amount
    return environment.get_template(template).render(
        **context,
        css=Markup(files["css"]),
        js=Markup(files["js"]),
        css_hash=_csp_hash(files["css"]),
        js_hash=_csp_hash(files["js"]),
    )


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
