"""The table of seeds that is printed when training ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from lightning_morpho.telemetry.events import SeedRecord
from lightning_morpho.wording import short_reason


def seed_table(records: Sequence[SeedRecord], most: int = 40) -> Table:
    """Every seed that has left dormancy, one row each, at most ``most``; the caption says what is left out.

    The column "born" is the optimizer step of its germination, "loss without it" the mean rise of the held-out loss
    without the seed, with its lower confidence bound. With whom a seed was judged stands in the event log.
    """
    table = Table(title="Seeds that left dormancy", box=box.HORIZONTALS, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("seed", overflow="fold", min_width=12)
    table.add_column("grew", no_wrap=True)
    table.add_column("born", justify="right", no_wrap=True)
    table.add_column("loss without it", justify="right", no_wrap=True)
    table.add_column("stage (reason)", overflow="fold", min_width=12)
    for record in records[:most]:
        generation = f" #{record.generation}" if record.generation else ""
        table.add_row(
            escape(f"{record.layer}[{record.chunk}]{generation}"),
            record.blueprint,
            str(record.born_step),
            _credit(record),
            f"{record.stage} ({escape(short_reason(record.reason))})",
        )
    if len(records) > most:
        table.caption = f"{len(records) - most} more seeds are in the event log."
    elif not records:
        table.caption = "No seed germinated in this fit."
    return table


def _credit(record: SeedRecord) -> str:
    rise, lower = record.figures.get("rise"), record.figures.get("lower")
    if rise is None or lower is None:
        return "not measured"
    bound = "no bound" if math.isnan(lower) else f"> {lower:+.3f}"
    return f"{rise:+.3f} ({bound})"
