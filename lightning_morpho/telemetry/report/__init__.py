"""The report of a run: one self-contained HTML file."""

from lightning_morpho.telemetry.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
