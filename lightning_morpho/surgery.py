"""Swapping a model's layers for hybrid ones and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_morpho.allocation import allocate, fill_budget
from lightning_morpho.blueprints import Blueprint, is_eligible_type
from lightning_morpho.config import AUTO, BUDGET, MorphoConfig, check_section
from lightning_morpho.eligibility import EligibilityReport, check_patterns, module_report, reasons_against, shorten
from lightning_morpho.layers import (
    HybridKasminaLayer,
    allocate_links_,
    attach_,
    connect_,
    detach_,
    plan_blueprint,
    plan_route,
    strip_,
)
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.pairs import Pair, find_pairs
from lightning_morpho.rollout import LiveRollout

log = logging.getLogger(__name__)

_GUARD = "_morpho_guard"


def hybrid_layers(model: nn.Module) -> dict[str, HybridKasminaLayer]:
    """The hybrid layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, HybridKasminaLayer)}


def morph_(
    model: nn.Module, config: MorphoConfig | None = None, example: Any = None, *, rollout: LiveRollout | None = None
) -> EligibilityReport:
    """Swap the eligible layers of a model for hybrid ones, in place; what the model computes stays.

    Call it before the optimizer is made. Everything is checked before anything is changed.

    Args:
        model: Any module, a single layer too.
        config: Which layers, what grows, how much.
        example: A batch to find pairs of layers with, as for :func:`~lightning_morpho.find_pairs`; None: they
            are proposed from the code. Both are to be confirmed on a training step.
        rollout: The rollout of the run; None: a new one of ``config.rollout``.

    Returns:
        Every module with the reason why seeds grow in it or not.

    Raises:
        TypeError: If ``model`` is no module, or ``config`` no :class:`MorphoConfig`.
        ValueError: If the model has no eligible layer, no pair for `span`, a pattern matches none, there are more seeds
            than features, the blueprint is unknown, or the budget is too small for one bed.
        LifecycleError: If the model holds hybrid layers already.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(morph_(model))
        2 of 4 modules grow: 1 seed; their beds hold 56 parameters (budget 100,000), 224 bytes.
          -    Sequential  no seeds grow in this type (exactly nn.Linear, nn.Conv1d/2d/3d)
          + 0  Linear      becomes wider with `2`
          - 1  ReLU        no seeds grow in this type (exactly nn.Linear, nn.Conv1d/2d/3d)
          + 2  Linear      1 seed, 1 bed of 56 parameters: span, proposed: `0` -> 1 -> `2`
    """
    config = MorphoConfig() if config is None else config
    check_section("config", config, MorphoConfig)
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module, got {type(model).__name__}.")
    rollout = rollout or LiveRollout(config.rollout, config.model_id)
    if hybrid_layers(model):
        raise LifecycleError("The model holds hybrid layers already; `unmorph_` it first.")
    check_patterns(model, config)
    modules = dict(model.named_modules())
    left = reasons_against(model, config, rollout)
    chosen = [name for name in modules if name not in left]
    pairs, alone = _choose_pairs(model, chosen, config, example)
    filling = config.blueprint.hidden == BUDGET and bool(pairs)
    own = {name: config.of_layer(name) for name in chosen}
    unpaired = [name for name in chosen if name not in _parties(pairs)]
    left |= {
        name: f"no pair for `span`: {alone.get(name, 'it takes another blueprint')}"
        for name in unpaired
        if filling or own[name].blueprint.kind == "span"
    }
    _check_pairs(left, chosen, modules, rollout)
    plans = {
        name: plan_layer(name, modules[name], own[name], pairs.get(name), modules)
        for name in chosen
        if name not in left
    }
    growing = {name: plan for name, plan in plans.items() if name in pairs or name not in _parties(pairs)}
    held = sum(p.numel() for name in plans for p in modules[name].parameters())
    sizes = (p.element_size() for name in plans for p in modules[name].parameters())
    budget = config.budget.limit(held, max(sizes, default=4))
    if filling:
        growing = fill_budget(growing, pairs, config.layers.beds, budget)
        plans |= growing
    counts = dict.fromkeys(plans, 0) | allocate(growing, pairs, config.layers.beds, budget)
    _check_budget(growing, counts, budget)
    funded = {name: pair for name, pair in pairs.items() if counts[name]}
    for name in plans:
        if counts[name] or name in _parties(funded):
            blueprint = replace(own[name].blueprint, hidden=plans[name].config.hidden)
            settled = replace(own[name], blueprint=blueprint)
            attach_(HybridKasminaLayer, modules[name], plans[name], counts[name], settled, name or "model")
    connect_pairs_(modules, funded)
    reports = [
        module_report(name, module, left.get(name), plans, counts, funded, alone, rollout)
        for name, module in modules.items()
    ]
    rollout.apply(hybrid_layers(model))
    if hybrid_layers(model):
        model.__dict__[_GUARD] = model.register_load_state_dict_pre_hook(_refuse_foreign_checkpoint)
    return EligibilityReport(tuple(reports), budget)


def _check_pairs(
    left: Mapping[str, str], chosen: Sequence[str], modules: Mapping[str, nn.Module], rollout: LiveRollout
) -> None:
    """Refuse a model in which `span` finds no pair at all, unless the rollout may have parted one."""
    parted = any(is_eligible_type(type(m)) and not rollout.may_grow(name)[0] for name, m in modules.items())
    if chosen and not parted and all(name in left for name in chosen):
        why = shorten([f"`{name}`: {left[name]}" for name in chosen])
        raise ValueError(
            f"No layer can grow: {why}. `blueprint.kind='auto'` takes `neurons` where there is no pair; "
            "`layers.pairs` names pairs that are not found."
        )


def _refuse_foreign_checkpoint(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Look at all layers before the first is loaded: a checkpoint of another configuration changes nothing."""
    for name, layer in hybrid_layers(model).items():
        saved = state_dict.get(f"{prefix}{name}{'.' if name else ''}morpho._extra_state")
        if saved is not None:
            layer.morpho.check_extra_state(saved)


def _choose_pairs(
    model: nn.Module, chosen: Sequence[str], config: MorphoConfig, example: Any
) -> tuple[dict[str, Pair], dict[str, str]]:
    """Pairs whose layers are all chosen, and for the other layers why they have none."""
    chosen = [name for name in chosen if config.of_layer(name).blueprint.kind in (AUTO, "span")]
    if not chosen:
        return {}, {}
    explicit = config.layers.pairs
    try:
        found = find_pairs(model, example, explicit=explicit)
    except Exception as error:  # whatever a user's forward raises on an example that it can't take
        if example is None:
            raise
        log.warning("The model does not run on its example (%s); pairs are proposed from the code instead.", error)
        found = find_pairs(model, explicit=explicit)
    pairs = {name: pair for name, pair in found.pairs.items() if {name, *pair.producers} <= set(chosen)}
    outside = {
        name: f"its producers {list(pair.producers)} are left out"
        for name, pair in found.pairs.items()
        if name not in pairs
    }
    return pairs, {**found.refused, **outside}


def _parties(pairs: Mapping[str, Pair]) -> set[str]:
    return set(pairs) | {producer for pair in pairs.values() for producer in pair.producers}


def connect_pairs_(modules: Mapping[str, nn.Module], pairs: Mapping[str, Pair]) -> None:
    """Lay taps and links once all layers are swapped."""
    for name, pair in pairs.items():
        connect_(modules[name], [modules[p] for p in pair.producers])  # type: ignore[arg-type, misc]
    for name in pairs:
        layer = modules[name]
        assert isinstance(layer, HybridKasminaLayer)
        allocate_links_(layer.morpho, layer.weight)  # type: ignore[arg-type]


def plan_layer(
    name: str, layer: nn.Module, config: MorphoConfig, pair: Pair | None, modules: Mapping[str, nn.Module]
) -> Blueprint:
    """Describe what grows in a layer, behind its producers if it has any.

    Raises:
        ValueError: For more seeds than features, or an unknown blueprint.
    """
    route = None if pair is None else plan_route(pair, layer, [modules[p] for p in pair.producers])
    if config.blueprint.kind == "span" and route is None:
        config = replace(config, blueprint=replace(config.blueprint, kind=AUTO))  # it only holds a tap
    try:
        return plan_blueprint(layer, config, route)
    except ValueError as error:
        raise ValueError(f"Layer `{name}`: {error}") from error


def _check_budget(plans: dict[str, Blueprint], counts: dict[str, int], budget: int) -> None:
    if plans and not any(counts.values()):
        cheapest = min(plans, key=lambda n: plans[n].numel())
        raise ValueError(
            f"`budget` ({budget:,} parameters) is too small for one bed: the smallest, in `{cheapest}`, needs "
            f"{plans[cheapest].numel():,}. Raise the budget or lower `blueprint.hidden`."
        )


def unmorph_(model: nn.Module, *, discard_live: bool = False) -> list[str]:
    """Give the hybrid layers of a model their own classes back, in place.

    Args:
        model: The model.
        discard_live: Whether seeds that live in it, fossils too, are thrown away: what is left is the host alone,
            with the weights that it learnt beside them.

    Returns:
        Names of the layers.

    Raises:
        LifecycleError: If a layer holds live seeds and they are not to be discarded; then nothing is changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> _ = morph_(model), model[0].request_germination()
        >>> unmorph_(model, discard_live=True), model
        (['0'], Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
        ))
    """
    layers = hybrid_layers(model)
    live = [name for name, layer in layers.items() if not layer.morpho.dormant]
    if live and not discard_live:
        raise LifecycleError(
            f"These layers hold live seeds, removing them would change what they compute: {shorten(live)}. "
            "Cull them first, `export` the model with them, or throw them away with `discard_live=True`."
        )
    if _GUARD in model.__dict__:
        model.__dict__.pop(_GUARD).remove()
    for layer in layers.values():
        strip_(layer) if discard_live else detach_(layer)
    return list(layers)
