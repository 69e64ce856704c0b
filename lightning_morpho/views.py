"""What Tamiyo sees of layers, and of the seeds that have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lightning_morpho.blueprints import Span
from lightning_morpho.layers import HybridKasminaLayer, SeedBeds
from lightning_morpho.lifecycle import Stage
from lightning_morpho.tamiyo import LayerView, Outcome, SeedView
from lightning_morpho.telemetry.events import SeedRecord
from lightning_morpho.telemetry.field_reports import ENDED, FieldReport, TrialCost, by_kind_and_layer, field_report

_DIGITS = 3
"""Significant digits of a statistic: what the event log keeps is then what was decided on, in a third of the space."""


def layer_view(name: str, layer: HybridKasminaLayer, position: int, *, waited: bool) -> LayerView:
    """What Tamiyo sees of a layer.

    Args:
        name: Name of the layer.
        layer: The layer.
        position: Its place among the model's layers.
        waited: Whether the rollout once had it switched off.
    """
    seeds, blueprint = layer.morpho, layer.morpho.blueprint
    return LayerView(
        name=name,
        position=position,
        kind=seeds.kind,
        features=layer.chunks.num_features,
        width=blueprint.route.producers[0].out_features if isinstance(blueprint, Span) else layer.chunks.num_features,
        bed_parameters=blueprint.numel(),
        free_beds=seeds.free_beds,
        germinations=seeds.events,
        late=waited and not seeds.events,
        dormant=tuple(seeds.state.where(Stage.DORMANT).tolist()),
        seeds=_seed_views(layer),
        statistics={name: rounded(values.tolist()) for name, values in seeds.health.items()},
    )


def _seed_views(layer: HybridKasminaLayer) -> tuple[SeedView, ...]:
    seeds, state = layer.morpho, layer.morpho.state
    views = []
    for chunk in (state.stage != Stage.DORMANT).nonzero()[0].tolist():
        seed = seeds.seed_at(chunk)
        views.append(
            SeedView(
                chunk=chunk,
                generation=seed.generation,
                stage=seed.stage,
                age=seed.age,
                alpha=seed.alpha,
                bed=seed.bed,
                fading=bool(state.fading[chunk]),
                due=bool(seeds.stages.due(chunk)),
                units=_units_alive(seeds, seed.bed),
            )
        )
    return tuple(views)


def _units_alive(seeds: SeedBeds, bed: int | None) -> int | None:
    return None if bed is None or not seeds.blueprint.units else int(seeds.bed_at(bed).alive.sum())


def rounded(values: Iterable[float]) -> tuple[float, ...]:
    """Values to three significant digits.

    Example:
        >>> rounded([0.123456, 1234.5, float("nan")])
        (0.123, 1230.0, nan)
    """
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)


def reports_of(
    records: Sequence[SeedRecord],
    losses: Sequence[float | None],
    layers: Mapping[str, HybridKasminaLayer],
    step: int,
    trials: Iterable[TrialCost] = (),
) -> dict[tuple[str, int, int], FieldReport]:
    """Field reports of the seeds that have ended.

    Args:
        records: Records of all seeds.
        losses: Validation loss at each tick.
        layers: The hybrid layers by name.
        step: Optimizer steps done.
        trials: What the trials of each tick have cost.
    """
    costs = {cost.tick: cost for cost in trials}
    born = Counter(record.born_tick for record in records)
    positions = {name: position for position, name in enumerate(layers)}
    sharing = Counter((record.layer, record.born_tick) for record in records)
    return {
        record.key: field_report(
            record,
            losses,
            place=(positions[record.layer], len(positions)),
            parameters=layers[record.layer].morpho.blueprint.numel() / sharing[record.layer, record.born_tick],
            step=step,
            seconds=None,
            trial=costs.get(record.born_tick),
            sharing=born[record.born_tick],
        )
        for record in records
        if record.stage in ENDED and record.layer in layers
    }


def outcomes_of(reports: Iterable[FieldReport]) -> tuple[Outcome, ...]:
    """What seeds were worth, by blueprint and layer."""
    return tuple(
        Outcome.of(kind, layer, [(report.gain or 0.0, report.parameters) for report in group])
        for (kind, layer), group in by_kind_and_layer(reports).items()
    )


def live_chunks(layer: HybridKasminaLayer) -> list[int]:
    """Chunks whose seeds are neither dormant, nor kept, nor gone."""
    seeds = layer.morpho
    return [int(chunk) for chunk in seeds.state.where(*seeds.lifecycle_table.live)]
