"""Statistics of activations, metrics, events and what is shown of them."""

from lightning_morpho.telemetry.events import (
    EVENTS_FILE,
    Event,
    Finding,
    Refusal,
    SeedRecord,
    append_event,
    read_events,
)
from lightning_morpho.telemetry.metrics import ChunkStatistics
from lightning_morpho.telemetry.table import seed_table

__all__ = [
    "EVENTS_FILE",
    "ChunkStatistics",
    "Event",
    "Finding",
    "Refusal",
    "SeedRecord",
    "append_event",
    "read_events",
    "seed_table",
]
