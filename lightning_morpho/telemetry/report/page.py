"""Template, style, scripts and data of a run, joined to one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lightning_morpho.telemetry.report.data import page_data
from lightning_morpho.telemetry.report.summary import page_summary
from lightning_morpho.telemetry.saved_run import SavedRun, read_run

REPORT_FILE = "report.html"
SCRIPTS = ("d3.min.js", "plot.umd.min.js", "theme.js", "parts.js", "tables.js", "charts.js", "seeds.js")
"""In the order in which they depend on each other; the first two are d3 and Observable Plot."""

LICENSES = ("d3.LICENSE", "plot.LICENSE")
"""Of these two; each copy of them has to carry it."""


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        run: Its folder, one above it that holds no other run, or its event log.
        out: File of the report; None: ``report.html`` in the folder of the run.

    Returns:
        The file.

    Raises:
        ValueError: If there is no run, or more than one.
        OSError: If the report can't be written.
    """
    log = read_run(run)
    path = (Path(run) if Path(run).is_dir() else log.folder) / REPORT_FILE if out is None else Path(out)
    html = render_report(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def render_report(log: SavedRun) -> str:
    """The report as text of one HTML file."""
    scripts = [_asset(name) for name in SCRIPTS]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = mark_code
    return environment.from_string(_asset("report.html.j2")).render(
        page_summary(log),
        style=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        licenses=[_asset(name) for name in LICENSES],
        data=Markup(json_in_html(page_data(log))),
        policy=content_policy(scripts),
    )


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def mark_code(text: str) -> Markup:
    """Text with what stands in backticks as code; the rest is escaped.

    Example:
        >>> mark_code("`net.0` < 3")
        Markup('<code>net.0</code> &lt; 3')
    """
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def json_in_html(data: Mapping[str, Any]) -> str:
    r"""JSON that can stand in a ``<script>``: nothing in it can end the element.

    Example:
        >>> json_in_html({"layer": "</script>"})
        '{"layer":"\\u003c/script>"}'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def content_policy(scripts: list[str]) -> str:
    """A content security policy: these scripts, inline styles, and nothing from anywhere.

    Example:
        >>> content_policy(["alert(1)"]).split("; ")[:2]
        ["default-src 'none'", "style-src 'unsafe-inline'"]
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"
