"""torchmetrics metrics of growth itself, by seed, layer and run, for loops that have no callback to log them.

What a layer's seeds are is the same on every rank, so that the values of several ranks are one value: they are
not added up. Credit alone is estimated from data, and takes those of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_morpho.evidence import paired_bounds
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.events import SeedRecord
from lightning_morpho.telemetry.field_reports import TrialCost
from lightning_morpho.telemetry.figures import (
    RUN_FIGURES,
    Records,
    layer_figures,
    records_by_layer,
    run_figures,
    seed_figures,
)

_SEED = ("stage", "age", "alpha", "generation", "errors", "parameters", "credit", "credit_lower", "credit_upper")
_LAYER = ("alpha", "active_share", "added_parameters", "errors", "credit")
_RUN = tuple(RUN_FIGURES)


class GrowthMetric(Metric):
    """What the metrics of growth share: the newest values, by name; NaN where nothing was measured."""

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def _add(self, names: Sequence[str], shape: tuple[int, ...]) -> None:
        self._names = tuple(names)
        for name in names:
            self.add_state(f"now_{name}", torch.full(shape, math.nan, dtype=torch.float64), dist_reduce_fx="max")

    def _set(self, values: Mapping[str, Any]) -> None:
        for name in self._names:
            state: Tensor = getattr(self, f"now_{name}")
            setattr(self, f"now_{name}", torch.as_tensor(values[name], dtype=state.dtype).to(state.device))

    def compute(self) -> dict[str, Tensor]:
        """The newest values by name, float64."""
        return {name: getattr(self, f"now_{name}") for name in self._names}

    def plot(self, val: Mapping[str, Tensor] | None = None, ax: Any = None) -> Any:
        """Draw the values; see :meth:`torchmetrics.Metric.plot`."""
        values = self.compute() if val is None else val
        return self._plot({name: value.detach().cpu() for name, value in values.items()}, ax)


class SeedStates(GrowthMetric):
    """Stage, age, alpha, generation, errors, parameters and credit of each seed of a layer, ``(N,)`` each.

    What they mean: :data:`~lightning_morpho.telemetry.figures.SEED_FIGURES`.

    Args:
        num_seeds: Seeds of the layer.

    Example:
        >>> from torch import nn
        >>> from lightning_morpho import BlueprintConfig, LayersConfig, MorphoConfig
        >>> config = MorphoConfig(layers=LayersConfig(num_seeds=2), blueprint=BlueprintConfig(kind="mlp"))
        >>> layer = HybridKasminaLayer(nn.Linear(4, 6), config)
        >>> layer.request_germination([1])
        [1]
        >>> states = SeedStates(num_seeds=2)
        >>> states.update(layer)
        >>> states.compute()["alpha"]
        tensor([0., 1.], dtype=torch.float64)
    """

    def __init__(self, num_seeds: int) -> None:
        super().__init__()
        self.num_seeds = num_seeds
        self._add(_SEED, (num_seeds,))

    def update(self, layer: HybridKasminaLayer, records: Records | None = None) -> None:
        """Look at the layer's seeds.

        Args:
            layer: The layer.
            records: What is known of its seeds that left dormancy, for their credit.
        """
        if layer.num_seeds != self.num_seeds:
            raise ValueError(f"`layer` must have {self.num_seeds} seeds, got {layer.num_seeds}.")
        self._set(seed_figures(layer.morpho, records or {}))


class LayerGrowth(GrowthMetric):
    """Histogram of stages, active share, mean alpha, added parameters, errors and credit of a layer.

    ``stages`` counts the seeds in each :class:`~lightning_morpho.Stage`; the others are those of
    :data:`~lightning_morpho.telemetry.figures.LAYER_FIGURES`.
    """

    stages: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._add(_LAYER, ())
        self.add_state("stages", torch.zeros(len(Stage), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, layer: HybridKasminaLayer, records: Records | None = None) -> None:
        """Look at the layer; arguments as for :meth:`SeedStates.update`."""
        found = layer_figures(layer, records or {})
        self._set(found.values)
        self.stages = torch.tensor([found.stages.get(s.name, 0) for s in Stage], device=self.stages.device)

    def compute(self) -> dict[str, Tensor]:
        """``stages``, one count a stage, and the figures, scalars."""
        return super().compute() | {"stages": self.stages}


class RunGrowth(GrowthMetric):
    """Parameters, growth ratio, return per added parameter, tick cost, rollbacks and cohort of a run.

    All of :data:`~lightning_morpho.telemetry.figures.RUN_FIGURES`, scalars.

    Args:
        host_parameters: Parameters of the model before :func:`~lightning_morpho.morph_`.
    """

    def __init__(self, host_parameters: int) -> None:
        super().__init__()
        self.host_parameters = host_parameters
        self._add(_RUN, ())

    def update(
        self,
        layers: Mapping[str, HybridKasminaLayer],
        records: Sequence[SeedRecord] = (),
        *,
        rollbacks: int = 0,
        tick_seconds: float = math.nan,
        tick_share: float = math.nan,
        trials: Sequence[TrialCost] = (),
    ) -> None:
        """Look at all layers.

        Args:
            layers: The hybrid layers by name.
            records: Seeds that left dormancy, such as ``engine.records``.
            rollbacks: Times that the run was set back.
            tick_seconds: Duration of the tick.
            tick_share: Share of the time that ticks took.
            trials: What trials have cost.
        """
        by_layer = records_by_layer(records)
        figures = [layer_figures(layer, by_layer.get(name, {})) for name, layer in layers.items()]
        self._set(
            run_figures(
                layers,
                figures,
                host_parameters=self.host_parameters,
                rollbacks=rollbacks,
                tick_seconds=tick_seconds,
                tick_share=tick_share,
                trials=trials,
            )
        )


class SeedCredit(Metric):
    """Credit of a seed with its interval: how much the held-out loss rises without it, paired batch by batch.

    Args:
        confidence: Level of each one-sided bound, in (0.5, 1).

    Raises:
        ValueError: If ``confidence`` is out of range.

    Example:
        >>> credit = SeedCredit()
        >>> credit.update(without=torch.tensor([1.0, 1.2, 0.9]), complete=torch.tensor([0.8, 0.9, 0.8]))
        >>> {name: round(float(value), 3) for name, value in credit.compute().items()}
        {'rise': 0.2, 'lower': 0.031, 'upper': 0.369}
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    differences: list[Tensor]

    def __init__(self, confidence: float = 0.95) -> None:
        super().__init__()
        if not 0.5 < confidence < 1:
            raise ValueError(f"`confidence` must be in (0.5, 1), got {confidence}.")
        self.confidence = confidence
        self.add_state("differences", [], dist_reduce_fx="cat")

    def update(self, without: Tensor, complete: Tensor) -> None:
        """Add batches.

        Args:
            without: Their losses without the seed, ``(B,)`` or a scalar.
            complete: The same batches' losses with it, same shape.
        """
        if without.shape != complete.shape:
            raise ValueError(
                f"`without` and `complete` must be losses of the same batches, got shapes {tuple(without.shape)} and "
                f"{tuple(complete.shape)}."
            )
        self.differences.append((without.detach().double() - complete.detach().double()).reshape(-1))

    def compute(self) -> dict[str, Tensor]:
        """``rise``, ``lower`` and ``upper``, in loss units; bounds are NaN with fewer than two batches."""
        found = dim_zero_cat(self.differences).tolist() if len(self.differences) else []
        bounds = paired_bounds(found, self.confidence)
        return {
            "rise": torch.tensor(bounds.mean),
            "lower": torch.tensor(bounds.lower),
            "upper": torch.tensor(bounds.upper),
        }

    def plot(self, val: Mapping[str, Tensor] | None = None, ax: Any = None) -> Any:
        """Draw the three values; see :meth:`torchmetrics.Metric.plot`."""
        return self._plot(dict(self.compute() if val is None else val), ax)
