"""A run on one screen of a terminal: its figures, a curve, the seeds of each layer, the last events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.happenings import happenings
from lightning_morpho.telemetry.metric_files import Curve
from lightning_morpho.telemetry.saved_run import SavedRun
from lightning_morpho.telemetry.story import best_of, main_metric, parameters_of
from lightning_morpho.wording import duration, plural

# Order, mark, mark where only ASCII can be shown, colour: the marks alone tell stages apart.
_FAMILIES: tuple[tuple[str, str, str, str, tuple[Stage, ...]], ...] = (
    ("kept", "■", "#", "green", (Stage.FOSSILIZED,)),
    ("judged", "●", "o", "magenta", (Stage.ACTIVE, Stage.EVALUATING, Stage.FINE_TUNING)),
    ("grafting", "◆", "*", "cyan", (Stage.GRAFTING, Stage.STABILIZATION)),
    ("new", "▲", "^", "blue", (Stage.GERMINATED, Stage.LOADING, Stage.TRAINING)),
    ("leaving", "✕", "x", "red", (Stage.CULLED, Stage.CANCELLED, Stage.ROLLED_BACK, Stage.ERROR_RECOVERY)),
    ("dormant", "·", ".", "bright_black", (Stage.DORMANT,)),
)
_FAMILY = {stage.name: family[0] for family in _FAMILIES for stage in family[4]}
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*#@"
_WIDE = 90
"""Columns from which figures and curve stand side by side."""


@dataclass(frozen=True)
class RunView:
    """A run as rich draws it, fitted to the terminal's size.

    Args:
        run: The run.
        now: Unix time; None: the time at which it is drawn.
        rows: Lines to fill; None: as many as there is something to say.
    """

    run: SavedRun
    now: float | None = None
    rows: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Panels from top to bottom."""
        plain = options.ascii_only
        wide = options.max_width >= _WIDE
        left = Panel(_figures(self.run), title="run", title_align="left")
        right = Panel(_curve(self.run, options.max_width // (2 if wide else 1) - 4, plain), title_align="left")
        body: list[RenderableType]
        if wide:
            together = Table.grid(expand=True)
            together.add_column(ratio=1)
            together.add_column(ratio=1)
            together.add_row(left, right)
            body = [together]
        else:
            body = [left, right]
        room = None if self.rows is None else max(self.rows - 15 - (0 if wide else 9), 6)
        layers = _layers(self.run, options.max_width - 4, plain, None if room is None else room // 2)
        listed = _events(self.run, 12 if room is None else max(room - room // 2 - 1, 3))
        yield Group(
            _headline(self.run, time.time() if self.now is None else self.now),
            *body,
            Panel(layers, title="seeds", subtitle=_legend(plain), title_align="left", subtitle_align="left"),
            Panel(listed, title="last events", title_align="left"),
        )


# ------------------------------------------------------------------ the top
def _headline(run: SavedRun, now: float) -> RenderableType:
    start = next(reversed(run.of_kind("start")), None)
    total = None if start is None else start["trainer"]["total_steps"]
    row = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(run.name, style="bold"), _pace(run, total)]
    if total:
        cells.insert(1, ProgressBar(total=total, completed=min(run.last_step, total), width=24))
    row.add_row(*cells, Text(state_of(run, now), style="bold"))
    return row


def _pace(run: SavedRun, total: int | None) -> str:
    """Steps done, time taken, time left."""
    steps = f"step {run.last_step:,}" + (f" of {total:,}" if total else "")
    if run.seconds is None:
        return steps
    first = next((entry["step"] for entry in run.of_kind("start")), 0)
    done = run.last_step - first
    left = "" if not total or not done or run.outcome else f", about {duration(_left(run, total, done))} left"
    return f"{steps}, {duration(run.seconds)}{left}"


def _left(run: SavedRun, total: int, done: int) -> float:
    return (run.seconds or 0.0) / done * max(total - run.last_step, 0)


def state_of(run: SavedRun, now: float) -> str:
    """What a run is doing: how it ended, or how long it has been silent."""
    if run.outcome is not None:
        return run.outcome
    written = [entry["time"] for entry in run.entries if "time" in entry]
    if not written or now - written[-1] < 60:
        return "running"
    return f"silent for {duration(now - written[-1])}"


# ------------------------------------------------------------------ figures and curve
def _figures(run: SavedRun) -> Table:
    grid = Table.grid(padding=(0, 2))
    before, after = parameters_of(run)
    rows = {"loss at the last tick": _number(next((tick.get("loss") for tick in reversed(run.of_kind("tick"))), None))}
    if before is not None and after is not None:
        rows["parameters"] = f"{after:,} (from {before:,}, x {after / before:.3g})"
    stages = Counter(life.stage for life in run.lives)
    kept, culled = stages[Stage.FOSSILIZED.name], stages[Stage.CULLED.name]
    living = sum(life.living for life in run.lives)
    rows["seeds"] = f"{len(run.lives):,} germinated, {kept:,} kept, {culled:,} culled, {living:,} growing"
    best = best_of(run, main_metric(run.metrics))
    if best is not None:
        rows[f"best {best.metric}"] = f"{best.value:.4g} at step {best.step:,}"
    seconds = run.metrics.get("morpho/run/tick_seconds")
    if seconds is not None and run.seconds:
        rows["decision ticks"] = (
            f"{plural(len(seconds.values), 'tick')}, {sum(seconds.values) / run.seconds:.1%} of time"
        )
    for name, value in rows.items():
        grid.add_row(Text(name, style="dim"), value)
    return grid


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _curve(run: SavedRun, width: int, plain: bool) -> RenderableType:
    metric = main_metric(run.metrics)
    if metric is None:
        return Text("no curve yet", style="dim")
    curve = run.metrics[metric]
    born = sorted({life.spells[0].start for life in run.lives})
    low, high = min(curve.values), max(curve.values)
    ends = f"{low:.4g} to {high:.4g}, now {curve.values[-1]:.4g}"
    below = Text(event_marks(curve, born, width, "^" if plain else "▲"), style="blue")
    return Group(Text.assemble((metric, "bold"), "  ", ends), sparkline(curve, width, plain), below)


def sparkline(curve: Curve, width: int, plain: bool = False) -> str:
    """A curve as one line of blocks, over the steps.

    Example:
        >>> sparkline(Curve((1, 2, 3, 4), (0.0, 1.0, 2.0, 7.0), (None,) * 4), 4)
        '▁▂▃█'
    """
    blocks = _ASCII_BLOCKS if plain else _BLOCKS
    low, high = min(curve.values), max(curve.values)
    last: dict[int, float] = {}
    for step, value in zip(curve.steps, curve.values, strict=True):
        last[_column(curve, step, width)] = value
    heights = []
    value = curve.values[0]
    for column in range(width):
        value = last.get(column, value)
        heights.append(blocks[round((value - low) / (high - low) * 7) if high > low else 0])
    return "".join(heights)


def event_marks(curve: Curve, steps: Sequence[int], width: int, mark: str) -> str:
    """A line with a mark wherever one of ``steps`` lies under the curve's sparkline.

    Example:
        >>> event_marks(Curve((1, 2, 3, 4), (0.0,) * 4, (None,) * 4), [3], 4, "^")
        '  ^ '
    """
    columns = {_column(curve, step, width) for step in steps if step <= curve.steps[-1]}
    return "".join(mark if column in columns else " " for column in range(width))


def _column(curve: Curve, step: int, width: int) -> int:
    first, last = curve.steps[0], curve.steps[-1]
    return max(0, (step - first) * (width - 1) // (last - first)) if last > first else 0


# ------------------------------------------------------------------ seeds
def stages_by_layer(run: SavedRun) -> dict[str, dict[str, int]]:
    """Number of seeds in each stage, by layer, as the last tick found them; before it, as far as it is known."""
    tick = next(reversed(run.of_kind("tick")), None)
    growing = {module["name"]: module["seeds"] for module in run.modules if module["seeds"]}
    if tick is not None and tick.get("layers"):
        layers = {name: dict(layer["stages"]) for name, layer in tick["layers"].items()}
        return {name: stages for name, stages in layers.items() if name in growing or not growing}
    stages = {name: {Stage.DORMANT.name: seeds} for name, seeds in growing.items()}
    newest = {(life.layer, life.chunk): life for life in run.lives}
    for (layer, _), life in newest.items():
        own = stages.setdefault(layer, {})
        stage = life.stage if life.spells[-1].end is None else Stage.DORMANT.name
        own[stage] = own.get(stage, 0) + 1
        if own.get(Stage.DORMANT.name) and layer in growing:
            own[Stage.DORMANT.name] -= 1
    return stages


def _layers(run: SavedRun, width: int, plain: bool, most: int | None) -> RenderableType:
    stages = stages_by_layer(run)
    if not stages:
        return Text("no layer known yet", style="dim")
    shown = list(stages)
    if most is not None and len(shown) > most:
        busiest = sorted(shown, key=lambda name: _awake(stages[name]), reverse=True)[: most - 1]
        shown = [name for name in shown if name in busiest]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, overflow="crop", max_width=max(width // 3, 12))
    bar = max(8, min(48, width // 3))
    for name in shown:
        grid.add_row(escape(name), stage_bar(stages[name], bar, plain), _counts(stages[name]))
    if len(shown) < len(stages):
        grid.add_row(Text(f"and {plural(len(stages) - len(shown), 'more layer')}", style="dim"))
    return grid


def _awake(stages: Mapping[str, int]) -> int:
    return sum(count for stage, count in stages.items() if stage != Stage.DORMANT.name)


def _by_family(stages: Mapping[str, int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for stage, count in stages.items():
        counts[_FAMILY[stage]] += count
    return counts


def stage_bar(stages: Mapping[str, int], width: int, plain: bool = False) -> Text:
    """The seeds of a layer as marks: one a seed if they fit, else in proportion, at least one for any.

    Example:
        >>> str(stage_bar({"DORMANT": 2, "FOSSILIZED": 1}, 10)), str(stage_bar({"DORMANT": 990, "LOADING": 10}, 10))
        ('■··', '▲·········')
    """
    counts = _by_family(stages)
    total = sum(counts.values())
    text = Text()
    for name, mark, ascii_mark, colour, _ in _FAMILIES:
        if counts.get(name):
            size = counts[name] if total <= width else max(1, round(counts[name] / total * width))
            text.append((ascii_mark if plain else mark) * size, style=colour)
    text.truncate(width)
    return text


def _counts(stages: Mapping[str, int]) -> str:
    counts = _by_family(stages)
    return ", ".join(f"{counts[family[0]]:,} {family[0]}" for family in _FAMILIES if counts.get(family[0]))


def _legend(plain: bool) -> Text:
    marks = [
        Text.assemble((ascii_mark if plain else mark, colour), (f" {name}", "dim"))
        for name, mark, ascii_mark, colour, _ in _FAMILIES
    ]
    return Text(" ").join(marks)


# ------------------------------------------------------------------ events
def _events(run: SavedRun, most: int) -> RenderableType:
    lines = [str(happening) for happening in happenings(run.entries)]
    if not lines:
        return Text("nothing yet", style="dim")
    return Text("\n".join(lines[-most:]), no_wrap=True, overflow="crop")
