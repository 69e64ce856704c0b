"""The way out: a grown model as a plain one."""

from lightning_morpho.export.formats import FORMATS
from lightning_morpho.export.merging import merge_
from lightning_morpho.export.plain import export
from lightning_morpho.export.pruning import drop_dead_units_
from lightning_morpho.export.saving import ExportReport, save_export

__all__ = ["FORMATS", "ExportReport", "drop_dead_units_", "export", "merge_", "save_export"]
