"""Swapping a model's layers for hybrid ones and back, and saying of every module why it was taken or left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lightning_morpho.blueprints import Blueprint, is_eligible_type
from lightning_morpho.config import MorphoConfig
from lightning_morpho.layers import HybridKasminaLayer, attach_, detach_, plan_blueprint
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.rollout import LiveRollout

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
        memory = sum(m.added_bytes for m in self.modules) / 2**20
        return (
            f"{len(self.taken)} of {len(self.modules)} modules grow: {_plural(self.seeds, 'seed')}; their beds hold "
            f"{self.allocated:,} parameters (budget {self.budget:,}), {memory:.2f} MiB."
        )


def _table(modules: Sequence[ModuleReport]) -> list[str]:
    width = max((len(m.name) for m in modules), default=0)
    kind = max((len(m.type) for m in modules), default=0)
    waiting = {m.name: f"; {m.cohort}" for m in modules if m.cohort.startswith("off")}
    return [
        f"  {'+' if m.taken else '-'} {m.name:<{width}}  {m.type:<{kind}}  {m.reason}{waiting.get(m.name, '')}"
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


def _allocate(plans: dict[str, Blueprint], beds: int, budget: int) -> dict[str, int]:
    """Beds of each layer: one each, narrowest layers first, then a second one, until the budget is spent."""
    counts = dict.fromkeys(plans, 0)
    order = sorted(plans, key=lambda n: plans[n].site.out_features)
    left = budget
    for _ in range(beds):
        for name in order:
            cost = plans[name].numel()
            if cost <= left:
                counts[name] += 1
                left -= cost
    return counts


def morph_(
    model: nn.Module, config: MorphoConfig | None = None, *, rollout: LiveRollout | None = None
) -> EligibilityReport:
    """Swap the eligible layers of a model for hybrid ones, in place; what the model computes stays.

    Call it before the optimizer is made. Everything is checked before anything is changed.

    Args:
        model: Any module, a single layer too.
        config: Which layers, what grows, how much.
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
        2 of 4 modules grow: 2 seeds; their beds hold 192 parameters (budget 100,000), 0.00 MiB.
          -    Sequential  no seeds grow in this type (exactly nn.Linear, nn.Conv1d/2d/3d)
          + 0  Linear      1 seed, 1 bed of 104 parameters
          - 1  ReLU        no seeds grow in this type (exactly nn.Linear, nn.Conv1d/2d/3d)
          + 2  Linear      1 seed, 1 bed of 88 parameters
    """
    config = config or MorphoConfig()
    rollout = rollout or LiveRollout(config.rollout, config.model_id)
    if hybrid_layers(model):
        raise LifecycleError("The model holds hybrid layers already; `unmorph_` it first.")
    _check_patterns(model, config)
    modules = dict(model.named_modules())
    left = _reasons(model, config, rollout)
    plans = {name: _plan(name, module, config) for name, module in modules.items() if name not in left}
    held = sum(p.numel() for name in plans for p in modules[name].parameters())
    budget = config.budget.limit(held)
    counts = _allocate(plans, config.layers.beds, budget)
    _check_budget(plans, counts, budget)

    reports = []
    for name, module in modules.items():
        kind = type(module).__name__
        if name in left:
            reports.append(ModuleReport(name=name, type=kind, taken=False, reason=left[name]))
            continue
        beds, cost = counts[name], plans[name].numel()
        if beds == 0:
            reason = f"`budget.parameters` is spent: a bed here needs {cost:,}"
            reports.append(ModuleReport(name=name, type=kind, taken=False, reason=reason))
            continue
        on, why = rollout.decide(name)
        layer = attach_(HybridKasminaLayer, module, plans[name], beds, config, name or "model")
        reports.append(
            ModuleReport(
                name=name,
                type=kind,
                taken=True,
                reason=f"{_plural(layer.num_seeds, 'seed')}, {_plural(beds, 'bed')} of {cost:,} parameters",
                seeds=layer.num_seeds,
                beds=beds,
                added_parameters=beds * cost,
                added_bytes=sum(p.nbytes for p in layer.morpho.parameters()),
                cohort=("on: " if on else "off for now: ") + why,
            )
        )
    rollout.apply(hybrid_layers(model))
    return EligibilityReport(tuple(reports), budget)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _plan(name: str, layer: nn.Module, config: MorphoConfig) -> Blueprint:
    try:
        return plan_blueprint(layer, config)
    except ValueError as error:
        raise ValueError(f"Layer `{name}`: {error}") from error


def _check_budget(plans: dict[str, Blueprint], counts: dict[str, int], budget: int) -> None:
    if plans and not any(counts.values()):
        cheapest = min(plans, key=lambda n: plans[n].numel())
        raise ValueError(
            f"`budget.parameters` ({budget:,}) is too small for one bed: the smallest, in `{cheapest}`, needs "
            f"{plans[cheapest].numel():,}. Raise the budget or lower `blueprint.hidden`."
        )


def unmorph_(model: nn.Module) -> list[str]:
    """Give the hybrid layers of a model their own classes back, in place.

    Returns:
        Names of the layers.

    Raises:
        LifecycleError: If a layer holds live seeds; then nothing is changed.
    """
    layers = hybrid_layers(model)
    live = [name for name, layer in layers.items() if not layer.morpho.dormant]
    if live:
        raise LifecycleError(
            f"These layers hold live seeds, removing them would change what they compute: {_shorten(live)}. "
            "Cull them first."
        )
    for layer in layers.values():
        detach_(layer)
    return list(layers)
