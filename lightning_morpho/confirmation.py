"""Telling a model's spans what a batch or a training step showed about their pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_morpho.blueprints import Span
from lightning_morpho.eligibility import EligibilityReport, ModuleReport
from lightning_morpho.kernels import Backend
from lightning_morpho.pairs import Pair, find_pairs
from lightning_morpho.surgery import hybrid_layers


def decide_pairs_(model: nn.Module, verdicts: Mapping[str, Pair | str]) -> dict[str, str]:
    """Tell the spans of a model what was found about their pairs.

    Args:
        model: The model, with its layers swapped.
        verdicts: Pair of each layer, or why it has none, as a :class:`~lightning_morpho.PairProbe` found. Layers
            left out stay as they are.

    Returns:
        Why pairs were refused, by consumer; empty if all were confirmed.
    """
    refused = {}
    for name, layer in hybrid_layers(model).items():
        blueprint = layer.morpho.blueprint
        if isinstance(blueprint, Span) and name in verdicts:
            reason = _compare(blueprint.route.pair, verdicts[name])
            layer.morpho.decide_pair(reason)
            if reason is not None:
                refused[name] = reason
    return refused


def _compare(proposed: Pair, seen: Pair | str) -> str | None:
    """Why a pair is not as it was proposed, None if it is."""
    if isinstance(seen, str):
        return seen
    return None if seen.key == proposed.key else f"it was proposed as {proposed}, but the model runs {seen}"


def confirm_pairs_(model: nn.Module, example: Any, **kwargs: Any) -> dict[str, str]:
    """Confirm the pairs of a swapped model at once, on an example; for training loops of your own.

    Args:
        model: The model.
        example: A batch, as for :func:`~lightning_morpho.find_pairs`.
        **kwargs: Its other arguments.

    Returns:
        Why pairs were refused, by consumer; empty if all were confirmed.
    """
    found = find_pairs(model, example, **kwargs)
    return decide_pairs_(model, {**found.refused, **found.pairs})


def unconfirmed(model: nn.Module) -> list[str]:
    """Layers whose pairs are still to be confirmed."""
    return [n for n, layer in hybrid_layers(model).items() if not layer.morpho.confirmed and not layer.morpho.refused]


BACKENDS = {
    Backend.FUSED: "fused kernels",
    Backend.BATCHED: "batched matrix products",
    Backend.REFERENCE: "plain operations: no kernel takes this dtype, device or activation",
}
"""What computes a layer's seeds, in the words of the eligibility report."""


def review(report: EligibilityReport, model: nn.Module) -> EligibilityReport:
    """The report with what was found since: about proposed pairs, and what computes the seeds that live."""
    layers = hybrid_layers(model)

    def word(entry: ModuleReport) -> ModuleReport:
        seeds = layers[entry.name].morpho if entry.name in layers else None
        if seeds is None:
            return entry
        backend = getattr(seeds.plan, "backend", None)
        if backend is not None:
            entry = replace(entry, backend=BACKENDS[backend])
        if not seeds.confirmed and seeds.refused is None:
            return entry
        verdict = "confirmed" if seeds.confirmed else f"refused ({seeds.refused})"
        return replace(entry, reason=entry.reason.replace("proposed:", f"{verdict}:"))

    return EligibilityReport(tuple(map(word, report.modules)), report.budget)


def fallbacks(before: EligibilityReport, after: EligibilityReport) -> list[str]:
    """Layers whose seeds turned out to be computed by plain operations since an earlier report."""
    slow = BACKENDS[Backend.REFERENCE]
    known = {entry.name for entry in before.modules if entry.backend == slow}
    return [entry.name for entry in after.modules if entry.backend == slow and entry.name not in known]
