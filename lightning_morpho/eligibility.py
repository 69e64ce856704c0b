"""Which modules of a model can grow, and why the others can't: told of every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lightning_morpho.blueprints import Blueprint, is_eligible_type
from lightning_morpho.config import MorphoConfig
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.pairs import Pair
from lightning_morpho.rollout import LiveRollout, idle_patterns
from lightning_morpho.wording import memory, plural

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


def reasons_against(model: nn.Module, config: MorphoConfig, rollout: LiveRollout) -> dict[str, str]:
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
            f"{list(config.layers.include)} and `layers.exclude` {list(config.layers.exclude)}. {shorten(why)}"
        )
    decisions = {name: rollout.may_grow(name) for name, reason in reasons.items() if reason is None}
    left = {name: why for name, (may_grow, why) in decisions.items() if not may_grow}
    return left | {name: reason for name, reason in reasons.items() if reason is not None}


def check_patterns(model: nn.Module, config: MorphoConfig) -> None:
    """Refuse patterns that match no layer, before anything else is looked at."""
    candidates = [n for n, m in model.named_modules() if is_eligible_type(type(m))]
    layers = config.layers
    for title, patterns in (("include", layers.include), ("exclude", layers.exclude), ("kinds", layers.kinds)):
        for pattern in patterns:
            if pattern != "*" and not any(fnmatchcase(n, pattern) for n in candidates):
                raise ValueError(
                    f"`layers.{title}` has the pattern {pattern!r}, which matches none of the model's "
                    f"{len(candidates)} eligible layers: {shorten(candidates)}."
                )
    for title in ("allowlist", "blocklist"):
        for pattern in idle_patterns(getattr(config.rollout, title), config.rollout.unit, config.model_id, candidates):
            raise ValueError(
                f"`rollout.{title}` has the pattern {pattern!r}, which matches none of the {len(candidates)} eligible "
                f"layers of the model {config.model_id!r}: {shorten(candidates)}. A layer of another model is written "
                "`<model id>/<layer>`."
            )
    if not candidates:
        raise ValueError(
            "No eligible layer: the model has no module of exactly the type nn.Linear, nn.Conv1d, nn.Conv2d "
            f"or nn.Conv3d ({len(list(model.modules()))} modules seen)."
        )


def shorten(names: list[str], most: int = 12) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def module_report(
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
