"""What a run tells: statistics of activations, the event log, lines in the terminal, metrics for the loggers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_morpho.config import TelemetryConfig
from lightning_morpho.engine import GrowthEngine
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.lifecycle import Stage
from lightning_morpho.rollout import RolloutChange
from lightning_morpho.telemetry import EVENTS_FILE, ChunkStatistics, Event, Refusal, append_event


class Reporter:
    """Telemetry of one fit.

    Args:
        trainer: The Trainer, its loggers ready.
        layers: The hybrid layers by name.
        config: What is observed and where it goes.
        device: Device of the layers.
        sample: Whether activations may be sampled at all.
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
        self.layers = layers
        self.every_n_steps = config.every_n_steps
        sampled = layers if sample and config.every_n_steps else {}
        self._statistics = {name: ChunkStatistics(layer.chunks).to(device) for name, layer in sampled.items()}
        self._events: list[Event | Refusal] = []
        log_dir = trainer.log_dir or trainer.default_root_dir
        wanted = config.events and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._path = Path(log_dir) / EVENTS_FILE if wanted else None

    # ------------------------------------------------------------------ activations
    def open(self, batch: int) -> None:
        """Sample the activations of this training batch, if it is one that is to be sampled."""
        if self._statistics and batch % self.every_n_steps == 0:
            for name, statistics in self._statistics.items():
                self.layers[name].morpho.observe(statistics.update)

    def close(self) -> None:
        """Sample no more."""
        for name in self._statistics:
            self.layers[name].morpho.observe(None)

    def collect(self) -> None:
        """Give the layers the statistics since the last tick, over all ranks."""
        for name, statistics in self._statistics.items():
            if statistics.update_called:
                values = statistics.compute()
                self.layers[name].morpho.health = {k: v.reshape(-1).cpu() for k, v in values.items()}
                statistics.reset()

    # ------------------------------------------------------------------ events
    def note(self, event: Event | Refusal) -> None:
        """Keep an event until :meth:`tell`."""
        self._events.append(event)

    @property
    def pending(self) -> bool:
        """Whether there are events to tell."""
        return bool(self._events)

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
            t = event.transition
            key = (t.layer, f"{t.source.name} -> {t.target.name} ({t.reason})")
            together[key] = together.get(key, 0) + 1
        for (layer, what), count in together.items():
            self._say(f"{layer}: {'1 seed' if count == 1 else f'{count} seeds'} {what}")
        self._events.clear()

    def tell_rollout(self, change: RolloutChange | None, tick: int) -> None:
        """Write and print a change of the rollout, if there is one."""
        if change is not None:
            now = {"tick": tick, "step": self.trainer.global_step, "epoch": self.trainer.current_epoch}
            self.write(change.to_dict(**now))
            self._say(f"rollout, {change}")

    def _say(self, text: str) -> None:
        rank_zero_info(f"morpho: step {self.trainer.global_step}: {text}")


def growth_metrics(engine: GrowthEngine, *, layers_on: bool) -> dict[str, float]:
    """What one tick logs; a statistic that was not measured is left out.

    Args:
        engine: The engine, after its tick.
        layers_on: Whether to log how many layers the rollout has turned on.
    """
    counts = engine.counts()
    table = next(iter(engine.layers.values())).morpho.lifecycle_table
    values = {
        "morpho/run/added_parameters": float(engine.live_parameters),
        "morpho/run/germinations": float(sum(layer.morpho.events for layer in engine.layers.values())),
        "morpho/run/seeds_dormant": float(counts[Stage.DORMANT]),
        "morpho/run/seeds_live": float(sum(counts[stage] for stage in table.live)),
        "morpho/run/seeds_fossilized": float(counts[Stage.FOSSILIZED]),
        "morpho/run/seeds_recovering": float(sum(counts[stage] for stage in table.recovery)),
    }
    if layers_on:
        values["morpho/run/layers_on"] = float(len(engine.on))
    for name, layer in engine.on.items():
        values[f"morpho/{name}/alpha"] = float(layer.morpho.state.alpha.mean())
        for statistic, chunks in layer.morpho.health.items():
            values[f"morpho/{name}/{statistic}"] = float(chunks.mean())
    return {name: value for name, value in values.items() if not math.isnan(value)}
