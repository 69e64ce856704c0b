"""Statistics of activations, metrics, events and what is shown of them."""

from lightning_morpho.telemetry.events import (
    EVENTS_FILE,
    AnyEvent,
    Event,
    Finding,
    Notice,
    Refusal,
    Restored,
    SeedRecord,
    append_event,
    read_events,
)
from lightning_morpho.telemetry.growth import LayerGrowth, RunGrowth, SeedCredit, SeedStates
from lightning_morpho.telemetry.metrics import ChunkCorrelation, ChunkGradients, ChunkStatistics, ForwardTime
from lightning_morpho.telemetry.report import write_report
from lightning_morpho.telemetry.sampling import Sampler
from lightning_morpho.telemetry.saved_run import SavedRun, SeedLife, read_run
from lightning_morpho.telemetry.table import seed_table

__all__ = [
    "EVENTS_FILE",
    "ChunkCorrelation",
    "ChunkGradients",
    "ChunkStatistics",
    "Event",
    "Finding",
    "ForwardTime",
    "LayerGrowth",
    "Notice",
    "AnyEvent",
    "Refusal",
    "Restored",
    "RunGrowth",
    "Sampler",
    "SavedRun",
    "SeedCredit",
    "SeedLife",
    "SeedRecord",
    "SeedStates",
    "append_event",
    "read_events",
    "read_run",
    "seed_table",
    "write_report",
]
