"""What a run tells: statistics of activations, the event log, lines in the terminal, metrics for the loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_morpho.config import TelemetryConfig
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.integrations.description import describe_model
from lightning_morpho.integrations.ranks import gather_objects
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.rollout import RolloutChange
from lightning_morpho.telemetry import (
    EVENTS_FILE,
    AnyEvent,
    Finding,
    Notice,
    Refusal,
    Restored,
    Sampler,
    append_event,
)
from lightning_morpho.telemetry.figures import (
    LayerFigures,
    layer_figures,
    live_seeds,
    records_by_layer,
    run_figures,
)
from lightning_morpho.telemetry.run_log import FORMAT, METRICS_FILE, RunLog

MOST_LIVE = 32
MOST_RECORDS = 1000


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
        wanted = config.events and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._path = Path(log_dir) / EVENTS_FILE if wanted else None
        self._log = RunLog(Path(log_dir) / METRICS_FILE if wanted and trainer.is_global_zero else None)
        self._host_parameters = describe_model(trainer.lightning_module)["parameters"]
        self._began = time.perf_counter()
        self.rollbacks = 0

    def collect(self) -> None:
        """Begin a tick: give the layers the statistics since the last one, over all ranks."""
        self._began = time.perf_counter()
        self.sampler.collect(gather_objects)

    # ------------------------------------------------------------------ events
    def note(self, event: AnyEvent) -> None:
        """Keep an event until :meth:`tell`."""
        self._events.append(event)

    @property
    def pending(self) -> bool:
        """Whether there are events to tell."""
        return bool(self._events)

    @property
    def folder(self) -> Path | None:
        """Where this process writes; None if it writes nothing."""
        return self._path.parent if self._path is not None and self.trainer.is_global_zero else None

    def write(self, entry: dict[str, Any]) -> None:
        """Add one line to the event log."""
        if self._path is not None and self.trainer.is_global_zero:
            append_event(self._path, entry)

    def tell(self) -> None:
        """Write the new events to the log file, and one line for those that belong together."""
        together: dict[tuple[str, str], int] = {}
        for event in self._events:
            self.write(event.to_dict(epoch=self.trainer.current_epoch))
            if isinstance(event, Refusal):
                self._say(f"{event.layer}: not grown ({event.reason})")
                continue
            if isinstance(event, Finding):
                self._say(f"{event.layer}: {event.text}")
                continue
            if isinstance(event, Restored):
                self._say(str(event))
                continue
            if isinstance(event, Notice):
                key = (event.layer, f"{event.event} ({event.reason})")
                together[key] = together.get(key, 0) + 1
                continue
            t = event.transition
            key = (t.layer, f"{t.source.name} -> {t.target.name} ({t.reason})")
            together[key] = together.get(key, 0) + 1
        for line in event_lines(together):
            self._say(line)
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
        if self._log.path is None:
            return
        logged = {n: float(v) for n, v in self.trainer.callback_metrics.items() if not n.startswith("morpho/")}
        changed = self._log.changed_values(logged)
        if changed:
            self._write("metrics", ticks, values=changed)

    def tell_tick(self, engine: GrowthEngine, pl_module: LightningModule, *, layers_on: bool) -> None:
        """Write the figures of a tick, and log them.

        Args:
            engine: The engine, after its tick.
            pl_module: The module that logs.
            layers_on: Whether to log how many layers the rollout has turned on.
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
            tick_seconds=time.perf_counter() - self._began,
        )
        if self._log.path is not None:
            self._write_tick(engine, figures, run)
        if self._config.log:
            pl_module.log_dict(_series(figures, run, layers_on), sync_dist=self.trainer.world_size > 1)

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
        """Write how the fit ended."""
        self._write("end", engine.ticks, outcome=outcome, seeds=engine.records[:MOST_RECORDS])

    def _write(self, kind: str, ticks: int, **content: Any) -> None:
        self._log.write(kind, tick=ticks, step=self.trainer.global_step, epoch=self.trainer.current_epoch, **content)

    def _say(self, text: str) -> None:
        rank_zero_info(f"morpho: step {self.trainer.global_step}: {text}")


def _series(figures: list[LayerFigures], run: Mapping[str, float], layers_on: bool) -> dict[str, float]:
    """What one tick logs; a statistic that was not measured is left out."""
    values = {f"morpho/run/{name}": value for name, value in run.items() if layers_on or name != "layers_on"}
    for layer in figures:
        if layer.on:
            values |= {f"morpho/{layer.name}/{name}": value for name, value in layer.values.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def event_lines(counts: Mapping[tuple[str, str], int], most: int = 8) -> list[str]:
    """One line a layer for what happened to its seeds; one line for all layers where it happened to many.

    Args:
        counts: Seeds, by layer and by what happened.
        most: Most layers that get a line each.

    Example:
        >>> event_lines({("net.0", "DORMANT -> LOADING"): 2, ("net.2", "DORMANT -> LOADING"): 1})
        ['net.0: 2 seeds DORMANT -> LOADING', 'net.2: 1 seed DORMANT -> LOADING']
        >>> event_lines({(f"net.{i}", "ACTIVE -> CULLED"): 1 for i in range(37)})
        ['37 layers, net.0 ... net.36: 37 seeds ACTIVE -> CULLED']
    """
    layers: dict[str, list[str]] = {}
    for layer, what in counts:
        layers.setdefault(what, []).append(layer)
    lines = []
    for what, names in layers.items():
        groups = [names] if len(names) > most else [[name] for name in names]
        for group in groups:
            seeds = sum(counts[name, what] for name in group)
            title = f"{len(group)} layers, {group[0]} ... {group[-1]}" if len(group) > 1 else group[0]
            lines.append(f"{title}: {'1 seed' if seeds == 1 else f'{seeds} seeds'} {what}")
    return lines
