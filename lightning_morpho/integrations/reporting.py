"""What a run tells: statistics of activations, the event log, lines in the terminal, metrics for the loggers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_morpho.config import TelemetryConfig
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.integrations.description import describe_model
from lightning_morpho.integrations.loggers import LAYOUT, RichLoggers
from lightning_morpho.integrations.progress import GrowthOnBar, above_the_bar
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.integrations.tick_clock import TickClock
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.rollout import RolloutChange
from lightning_morpho.telemetry import (
    EVENTS_FILE,
    AnyEvent,
    Restored,
    Sampler,
    SeedRecord,
    seed_table,
)
from lightning_morpho.telemetry.events import LogFile
from lightning_morpho.telemetry.figures import (
    LayerFigures,
    credit_of,
    layer_figures,
    live_seeds,
    records_by_layer,
    run_figures,
)
from lightning_morpho.telemetry.lines import event_lines
from lightning_morpho.telemetry.run_log import FORMAT, METRICS_FILE, RunLog
from lightning_morpho.telemetry.series import histograms, scalar_series, seed_map, seed_map_key, top_seeds_text

MOST_LIVE = 32
MOST_RECORDS = 1000
JOB_LOG_WIDTH = 120
MONITORED = tuple(
    f"morpho/run/{name}"
    for name in ("parameters", "added_parameters", "germinations", "seeds_live", "seeds_fossilized")
)
"""Series that other callbacks can monitor; each costs Lightning as much time as all that goes to loggers directly."""


class Reporter:
    """Telemetry of one fit.

    Args:
        trainer: The Trainer, its loggers ready.
        layers: The hybrid layers by name.
        config: What is observed and where it goes.
        device: Device of the layers.
        sample: Whether activations may be sampled at all.

    Attributes:
        sampler: Samples the layers.
        rollbacks: Times that the run or its rollout was set back.
    """

    def __init__(
        self,
        trainer: Trainer,
        layers: Mapping[str, HybridKasminaLayer],
        config: TelemetryConfig,
        device: torch.device,
        *,
        sample: bool,
    ) -> None:
        self.trainer = trainer
        self._config = config
        self.sampler = Sampler(
            layers,
            config.every_n_steps,
            device,
            activations=sample,
            gradients=config.level != "minimal",
            detailed=config.level == "full",
        )
        self._events: list[AnyEvent] = []
        log_dir = trainer.log_dir or trainer.default_root_dir
        writes = config.events and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._events_file = LogFile(Path(log_dir) / EVENTS_FILE) if writes else None
        self._log = RunLog(Path(log_dir) / METRICS_FILE if writes else None)
        self._host_parameters = describe_model(trainer.lightning_module)["parameters"]
        self.rollbacks = 0
        self._layers = layers
        self._bar = GrowthOnBar(trainer)
        rich = config.log and config.level != "minimal" and trainer.is_global_zero
        self._rich = RichLoggers(trainer.loggers if rich else [])
        self._rich.give("layout", LAYOUT)
        self._given: dict[str, bytes] = {}

    def collect(self) -> None:
        """Begin a tick: give the layers the statistics since the last one, over all ranks."""
        self.sampler.collect(gather_objects)

    def close(self) -> None:
        """Leave layers and progress bar as they were."""
        self.sampler.close()
        self._bar.close()

    def state_dict(self) -> dict[str, Any]:
        """What the run counts."""
        return {"rollbacks": self.rollbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.rollbacks = state["rollbacks"]

    # ------------------------------------------------------------------ events
    def note(self, event: AnyEvent) -> None:
        """Keep an event until :meth:`tell`."""
        self.rollbacks += isinstance(event, Restored)
        self._events.append(event)

    @property
    def pending(self) -> bool:
        """Whether there are events to tell."""
        return bool(self._events)

    @property
    def folder(self) -> Path | None:
        """Where this process writes; None if it writes nothing."""
        return None if self._events_file is None else self._events_file.path.parent

    def write(self, entry: dict[str, Any]) -> None:
        """Add one line to the event log."""
        if self._events_file is not None:
            self._events_file.add(entry)

    def tell(self) -> None:
        """Write the new events to the log file, and one line for those that belong together."""
        for event in self._events:
            self.write(event.to_dict(epoch=self.trainer.current_epoch))
        for line in event_lines(self._events):
            self._say(line)
        self._bar.tell(self.trainer.global_step, self._events)
        self._events.clear()

    def tell_rollout(self, change: RolloutChange | None, tick: int) -> None:
        """Write and print a change of the rollout, if there is one."""
        if change is not None:
            now = {"tick": tick, "step": self.trainer.global_step, "epoch": self.trainer.current_epoch}
            self.write(change.to_dict(**now))
            self._say(f"rollout, {change}")

    # ------------------------------------------------------------------ the run log
    def begin(self, ticks: int, description: Mapping[str, Any], *, resumed: bool) -> None:
        """Write what the run starts from."""
        self._write("start", ticks, format=FORMAT, resumed=resumed, **description)

    def tell_metrics(self, ticks: int) -> None:
        """Write what the run itself logged and was not written yet."""
        if not self._log.writes:
            return
        logged = {n: float(v) for n, v in self.trainer.callback_metrics.items() if not n.startswith("morpho/")}
        changed = self._log.changed_values(logged)
        if changed:
            self._write("metrics", ticks, values=changed)

    def tell_tick(self, engine: GrowthEngine, pl_module: LightningModule, clock: TickClock) -> None:
        """Write the figures of a tick, log them, and show them on the progress bar.

        Args:
            engine: The engine, after its tick.
            pl_module: The module that logs.
            clock: What the tick has taken so far.
        """
        records = records_by_layer(engine.records)
        figures = [
            layer_figures(layer, records.get(name, {}), self.sampler.forward_ms.get(name, math.nan))
            for name, layer in engine.layers.items()
        ]
        run = run_figures(
            engine.layers,
            figures,
            host_parameters=self._host_parameters,
            rollbacks=self.rollbacks,
            tick_seconds=clock.seconds,
            tick_share=clock.share,
            trials=engine.inquiry.trials,
        )
        if self._log.writes:
            self._write_tick(engine, figures, run)
        self._bar.show(live=int(run["seeds_live"]), kept=int(run["seeds_fossilized"]))
        if self._config.log:
            series = scalar_series(figures, run, engine.records, self._config.level)
            monitored = {name: series.pop(name) for name in MONITORED}
            pl_module.log_dict(monitored, sync_dist=self.trainer.world_size > 1)  # equal anyway; Lightning warns
            self._log_series(series)
            self._draw(figures, engine.records)

    @property
    def _step(self) -> int:
        """Where Lightning puts what is logged now."""
        return max(self.trainer.global_step - 1, 0)

    def _log_series(self, series: dict[str, float]) -> None:
        """Give loggers all other figures directly.

        Through ``log_dict`` each would cost a reduction over the ranks, and time at each step until the epoch ends.
        """
        if series and self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(series | {"epoch": self.trainer.current_epoch}, self._step)

    def _draw(self, figures: list[LayerFigures], records: Sequence[SeedRecord]) -> None:
        """Histograms, the best seeds and the map of all; each if it has changed."""
        top = top_seeds_text(figures)
        self._give_changed("text", "morpho/top_seeds", top, top.encode())
        if self._rich.takes("histogram"):
            for name, values in histograms(figures).items():
                self._give_changed("histogram", name, values, values.tobytes())
        if not self._rich.takes("image"):
            return
        growing = [f for f in figures if len(self._layers[f.name].morpho.beds)]
        first = list(dict.fromkeys(record.layer for record in records))
        growing.sort(key=lambda f: first.index(f.name) if f.name in first else len(first))
        picture = seed_map(growing)
        if self._give_changed("image", "morpho/seed_map", picture, picture.tobytes()):
            self._rich.give("text", "morpho/seed_map_key", seed_map_key(growing), self._step)

    def _give_changed(self, kind: str, name: str, content: Any, told: bytes) -> bool:
        """Give loggers what differs from what they were given last; whether it does."""
        if told == self._given.get(name, b""):
            return False
        self._given[name] = told
        self._rich.give(kind, name, content, self._step)
        return True

    def _write_tick(self, engine: GrowthEngine, figures: list[LayerFigures], run: Mapping[str, float]) -> None:
        self._write(
            "tick",
            engine.ticks,
            loss=engine.losses[-1],
            run=run,
            layers={f.name: {"on": f.on, "stages": f.stages, "values": f.values} for f in figures},
            live=live_seeds(figures, engine.records, MOST_LIVE),
            seeds=self._log.changed_maps({f.name: f.maps() for f in figures}),
        )

    def end(self, engine: GrowthEngine, outcome: str) -> None:
        """Write how the fit ended, and give the table of seeds to loggers that take tables."""
        self._write("end", engine.ticks, outcome=outcome, seeds=engine.records[:MOST_RECORDS])
        records = engine.records[:MOST_RECORDS]
        columns = ("layer", "chunk", "generation", "blueprint", "born_step", "stage")
        rows = [[*(getattr(r, name) for name in columns), *credit_of(r), r.reason] for r in records]
        if rows:
            names = [*columns, "credit", "credit_lower", "credit_upper", "reason"]
            self._rich.give("table", "morpho/seeds", names, rows, self._step)

    def print_table(self, records: Sequence[SeedRecord]) -> None:
        """Print the table of seeds, if it is wanted."""
        if self._config.table and self.trainer.is_global_zero:
            console = rich.get_console()
            width = None if console.is_terminal or console.is_jupyter else max(console.width, JOB_LOG_WIDTH)
            with above_the_bar():
                console.print(seed_table(records), width=width, crop=False)

    def _write(self, kind: str, ticks: int, **content: Any) -> None:
        self._log.write(kind, tick=ticks, step=self.trainer.global_step, epoch=self.trainer.current_epoch, **content)

    def _say(self, text: str) -> None:
        with above_the_bar():
            rank_zero_info(f"morpho: step {self.trainer.global_step}: {text}")
