"""The way out: a grown model as a plain one."""

from lightning_morpho.export.merging import merge_
from lightning_morpho.export.plain import export
from lightning_morpho.export.pruning import drop_dead_units_

__all__ = ["drop_dead_units_", "export", "merge_"]
