"""What the page of a run says without a script: the story, key figures, the tables of modules and settings."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from lightning_morpho.config import CreditConfig, MorphoConfig, TelemetryConfig
from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.run_log import METRICS_FILE
from lightning_morpho.telemetry.saved_run import SavedRun
from lightning_morpho.telemetry.story import best_of, main_metric, parameters_of, tell
from lightning_morpho.wording import duration, plural


@dataclasses.dataclass(frozen=True)
class Tile:
    """A key figure.

    Attributes:
        label: What it is.
        value: The figure.
        note: What it compares with.
    """

    label: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value of the configuration.

    Attributes:
        key: Its key, dotted.
        value: The value, as YAML would show it.
        changed: Whether it differs from the default; None if the default is not known.
    """

    key: str
    value: str
    changed: bool | None


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the configuration.

    Attributes:
        kind: Its class where there is a choice of several, else empty.
        settings: Its values.
    """

    kind: str
    settings: list[Setting]


def page_summary(log: SavedRun) -> dict[str, Any]:
    """The variables of the template but for style, scripts and data."""
    start = next(reversed(log.of_kind("start")), {})
    return {
        "name": log.name,
        "folder": str(log.folder),
        "status": log.outcome or "no end recorded: it goes on, or was killed",
        "story": tell(log),
        "tiles": _tiles(log),
        "notes": _notes(log),
        "modules": log.modules,
        "settings": settings_of(start.get("config", {})),
        "versions": start.get("versions", {}),
        "has_seeds": bool(log.lives),
        "has_metrics": bool(log.metrics),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _tiles(log: SavedRun) -> list[Tile]:
    stages = Counter(life.stage for life in log.lives)
    kept, culled = stages[Stage.FOSSILIZED.name], stages[Stage.CULLED.name]
    living = sum(life.living for life in log.lives)
    tiles = [Tile("Seeds kept", f"{kept:,} of {len(log.lives):,}", f"{culled:,} culled, {living:,} growing")]
    before, after = parameters_of(log)
    if before is not None and after is not None:
        tiles.append(Tile("Parameters", f"{after:,}", f"from {before:,} (× {after / before:.3g})"))
    best = best_of(log, main_metric(log.metrics))
    if best is not None:
        note = f"at step {best.step:,}" + ("" if best.before is None else f"; {best.before:.4g} before growth")
        tiles.append(Tile(f"Best {best.metric}", f"{best.value:.4g}", note))
    tiles.append(
        Tile("Optimizer steps", f"{log.last_step:,}", "" if log.seconds is None else f"in {duration(log.seconds)}")
    )
    return tiles


def _notes(log: SavedRun) -> list[str]:
    """What this page can't show, and why."""
    notes = []
    first = next(iter(log.of_kind("fit_start")), None)
    if first is None:
        notes.append("The log has no start of a fit: the file is incomplete.")
    elif first["step"]:
        notes.append(f"The run was resumed at step {first['step']:,}; what happened before is in another folder's log.")
    if log.replaced:
        notes.append(f"{plural(log.replaced, 'line')} of the log are replaced by a later fit and not shown.")
    if not log.of_kind("start"):
        notes.append(f"There is no `{METRICS_FILE}`: modules, configuration and the time it took are not known.")
    if not log.metrics:
        notes.append(f"There are no curves: {log.source}.")
    return notes


def settings_of(config: Mapping[str, Any]) -> dict[str, Section]:
    """The configuration by section.

    Example:
        >>> sections = settings_of({"budget": {"type": "BudgetConfig", "parameters": 20_000}, "seed": 0})
        >>> [(name, s.key, s.value, s.changed) for name, section in sections.items() for s in section.settings]
        [('budget', 'parameters', '20000', True), ('run', 'seed', '0', False)]
    """
    known = dataclasses.asdict(MorphoConfig()) | {
        "credit": dataclasses.asdict(CreditConfig()),
        "telemetry": dataclasses.asdict(TelemetryConfig()),
    }
    defaults = json.loads(json.dumps(known))
    sections = {key: _section(key, value, defaults) for key, value in config.items() if isinstance(value, Mapping)}
    single = [_setting(key, value, defaults) for key, value in config.items() if not isinstance(value, Mapping)]
    return sections | ({"run": Section("", single)} if single else {})


def _section(key: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Section:
    items = [(name, value) for name, value in _flat(values) if name != "type"]
    kind = "" if key in defaults else values.get("type", "")
    return Section(kind, [_setting(name, value, defaults.get(key)) for name, value in items])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        items += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return items


def _setting(key: str, value: Any, defaults: Mapping[str, Any] | None) -> Setting:
    flat = dict(_flat(defaults or {}))
    shown = value if isinstance(value, str) else json.dumps(value)
    return Setting(key, shown, value != flat[key] if key in flat else None)
