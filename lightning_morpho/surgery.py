"""Swapping a model's layers for hybrid ones and back, and saying of every module why it was taken or left."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_morpho.allocation import allocate, fill_budget
from lightning_morpho.blueprints import Blueprint, is_eligible_type
from lightning_morpho.config import AUTO, BUDGET, MorphoConfig
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
from lightning_morpho.wording import memory, plural

log = logging.getLogger(__name__)

_GUARD = "_morpho_guard"
WRONG_TYPE = "no seeds grow in this type (exactly nn.Linear, nn.Conv1d/2d/3d)"


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """What was decided about one module.

    Attributes:
        name: Name in the model.
        type: Name of its class.
        taken: Whether seeds grow there.
        reason: Why, or why not.
        cohort: Of a layer that was taken, whether the rollout has it on now, and why.
        seeds: Its seeds, one a chunk; 0 if it was left.
        beds: Germination events that it can hold; 0 if it was left.
        added_parameters: Parameters of its beds, allocated and dormant.
        added_bytes: Memory of these.
        backend: What computes its seeds, once some live and have run; empty where seeds are not dispatched.
    """

    name: str
    type: str
    taken: bool
    reason: str
    cohort: str = ""
    seeds: int = 0
    beds: int = 0
    added_parameters: int = 0
    added_bytes: int = 0
    backend: str = ""


@dataclass(frozen=True)
class EligibilityReport:
    """Every module of a model, and why seeds grow in it or not.

    Attributes:
        modules: One entry a module, in the model's order.
        budget: Limit on added parameters.
    """

    modules: tuple[ModuleReport, ...]
    budget: int

    @property
    def taken(self) -> tuple[ModuleReport, ...]:
        """The modules in which seeds grow."""
        return tuple(m for m in self.modules if m.taken)

    @property
    def seeds(self) -> int:
        """Seeds in the whole model."""
        return sum(m.seeds for m in self.modules)

    @property
    def allocated(self) -> int:
        """Parameters of all beds: what growth may add at most."""
        return sum(m.added_parameters for m in self.modules)

    def __str__(self) -> str:
        """A table, one line a module."""
        return "\n".join([self._headline(), *_table(self.modules)])

    def summary(self) -> str:
        """The same for the layers in which seeds could grow; other modules are only counted."""
        layers = [m for m in self.modules if m.reason != WRONG_TYPE]
        return "\n".join([self._headline(), *_table(layers)])

    def _headline(self) -> str:
        held = memory(sum(m.added_bytes for m in self.modules))
        return (
            f"{len(self.taken)} of {len(self.modules)} modules grow: {plural(self.seeds, 'seed')}; their beds hold "
            f"{self.allocated:,} parameters (budget {self.budget:,}), {held}."
        )


def _table(modules: Sequence[ModuleReport]) -> list[str]:
    width = max((len(m.name) for m in modules), default=0)
    kind = max((len(m.type) for m in modules), default=0)
    notes = {m.name: f"; {m.cohort}" for m in modules if m.cohort.startswith("off")}
    notes |= {m.name: notes.get(m.name, "") + f"; {m.backend}" for m in modules if m.backend}
    return [
        f"  {'+' if m.taken else '-'} {m.name:<{width}}  {m.type:<{kind}}  {m.reason}{notes.get(m.name, '')}"
        for m in modules
    ]


def hybrid_layers(model: nn.Module) -> dict[str, HybridKasminaLayer]:
    """The hybrid layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, HybridKasminaLayer)}


def _shielded(model: nn.Module) -> dict[str, str]:
    """Layers whose weights another module reads without calling them, with the reason."""
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inner = [child for child, _ in module.named_modules() if child]
        elif isinstance(module, nn.TransformerEncoderLayer):
            inner = ["linear1", "linear2"]
        else:
            continue
        why = f"{type(module).__name__} reads its weight without calling it"
        reasons |= {f"{name}.{child}" if name else child: why for child in inner}
    return reasons


def _unfit(name: str, module: nn.Module, config: MorphoConfig, shielded: dict[str, str]) -> str | None:
    """Why seeds can't or shall not grow in a module, whoever is in the cohort; None if they may."""
    if not is_eligible_type(type(module)):
        return WRONG_TYPE
    if name in shielded:
        return shielded[name]
    if not any(fnmatchcase(name, p) for p in config.layers.include):
        return f"not in `layers.include` {list(config.layers.include)}"
    for pattern in config.layers.exclude:
        if fnmatchcase(name, pattern):
            return f"`layers.exclude` has `{pattern}`"
    return None


def _reasons(model: nn.Module, config: MorphoConfig, rollout: LiveRollout) -> dict[str, str]:
    """The modules left out, with the reason.

    Raises:
        ValueError: If that leaves no layer over, the rollout apart.
    """
    shielded = _shielded(model)
    reasons = {n: _unfit(n, m, config, shielded) for n, m in model.named_modules()}
    if None not in reasons.values():
        why = [f"`{name}`: {reason}" for name, reason in reasons.items() if reason != WRONG_TYPE]
        raise ValueError(
            f"No eligible layer: {len(reasons)} modules seen, 0 selected by `layers.include` "
            f"{list(config.layers.include)} and `layers.exclude` {list(config.layers.exclude)}. {_shorten(why)}"
        )
    decisions = {name: rollout.may_grow(name) for name, reason in reasons.items() if reason is None}
    left = {name: why for name, (may_grow, why) in decisions.items() if not may_grow}
    return left | {name: reason for name, reason in reasons.items() if reason is not None}


def _check_patterns(model: nn.Module, config: MorphoConfig) -> None:
    """Refuse patterns that match no layer, before anything else is looked at."""
    candidates = [n for n, m in model.named_modules() if is_eligible_type(type(m))]
    for title, patterns in (("include", config.layers.include), ("exclude", config.layers.exclude)):
        for pattern in patterns:
            if pattern != "*" and not any(fnmatchcase(n, pattern) for n in candidates):
                raise ValueError(
                    f"`layers.{title}` has the pattern {pattern!r}, which matches none of the model's "
                    f"{len(candidates)} eligible layers: {_shorten(candidates)}."
                )
    if not candidates:
        raise ValueError(
            "No eligible layer: the model has no module of exactly the type nn.Linear, nn.Conv1d, nn.Conv2d "
            f"or nn.Conv3d ({len(list(model.modules()))} modules seen)."
        )


def _shorten(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
        ValueError: If the model has no eligible layer, a pattern matches none, there are more seeds
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
    config = config or MorphoConfig()
    rollout = rollout or LiveRollout(config.rollout, config.model_id)
    if hybrid_layers(model):
        raise LifecycleError("The model holds hybrid layers already; `unmorph_` it first.")
    _check_patterns(model, config)
    modules = dict(model.named_modules())
    left = _reasons(model, config, rollout)
    chosen = [name for name in modules if name not in left]
    pairs, alone = _choose_pairs(model, chosen, config, example)
    filling = config.blueprint.hidden == BUDGET and bool(pairs)
    if config.blueprint.kind == "span" or filling:
        left |= {name: f"no pair for `span`: {alone[name]}" for name in chosen if name not in _parties(pairs)}
    plans = {
        name: plan_layer(name, modules[name], config, pairs.get(name), modules) for name in chosen if name not in left
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
            own = replace(config, blueprint=replace(config.blueprint, hidden=plans[name].config.hidden))
            attach_(HybridKasminaLayer, modules[name], plans[name], counts[name], own, name or "model")
    connect_pairs_(modules, funded)
    reports = [
        _report(name, module, left.get(name), plans, counts, funded, alone, rollout) for name, module in modules.items()
    ]
    rollout.apply(hybrid_layers(model))
    if hybrid_layers(model):
        model.__dict__[_GUARD] = model.register_load_state_dict_pre_hook(_refuse_foreign_checkpoint)
    return EligibilityReport(tuple(reports), budget)


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
    if config.blueprint.kind not in (AUTO, "span"):
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


def _report(
    name: str,
    module: nn.Module,
    left: str | None,
    plans: Mapping[str, Blueprint],
    counts: Mapping[str, int],
    pairs: Mapping[str, Pair],
    alone: Mapping[str, str],
    rollout: LiveRollout,
) -> ModuleReport:
    """What was decided about one module."""
    layer = module if isinstance(module, HybridKasminaLayer) else None
    kind = (type(module).__bases__[1] if layer is not None else type(module)).__name__
    if left is not None or layer is None:
        reason = left or f"`budget` is spent: a bed here needs {plans[name].numel():,}"
        return ModuleReport(name=name, type=kind, taken=False, reason=reason)
    beds = counts[name]
    on, why = rollout.decide(name)
    cohort = ("on: " if on else "off for now: ") + why
    if not beds:
        consumer = next(c for c, pair in pairs.items() if name in pair.producers)
        reason = f"becomes wider with `{consumer}`"
        return ModuleReport(name=name, type=kind, taken=True, reason=reason, cohort=cohort)
    held = sum(p.numel() for p in layer.morpho.parameters())
    seeds = plans[name].site.chunks.num_chunks
    reason = f"{plural(seeds, 'seed')}, {plural(beds, 'bed')} of {held // beds:,} parameters"
    if name in pairs:
        reason += f": {plans[name].kind}, proposed: {pairs[name]}"
    elif plans[name].source == "chunk" and seeds > 1:
        reason += f"; at equal cost {seeds} chunks are worth less than one (measured: 72, 43, 19 % for 1, 2, 4)"
    elif name in alone:
        reason += f": {plans[name].kind}, no pair: {alone[name]}"
    return ModuleReport(
        name=name,
        type=kind,
        taken=True,
        reason=reason,
        seeds=seeds,
        beds=beds,
        added_parameters=held,
        added_bytes=sum(p.nbytes for p in layer.morpho.parameters()),
        cohort=cohort,
    )


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
            f"These layers hold live seeds, removing them would change what they compute: {_shorten(live)}. "
            "Cull them first, `export` the model with them, or throw them away with `discard_live=True`."
        )
    if _GUARD in model.__dict__:
        model.__dict__.pop(_GUARD).remove()
    for layer in layers.values():
        strip_(layer) if discard_live else detach_(layer)
    return list(layers)
