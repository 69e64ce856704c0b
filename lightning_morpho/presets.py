"""Settings that belong together, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_morpho.checks import check_choice
from lightning_morpho.config import BlueprintConfig, CreditConfig, LayersConfig, LifecycleConfig
from lightning_morpho.tamiyo import Probation


def _adapt_pretrained() -> dict[str, Any]:
    """A trained host, frozen, adapted by low-rank seeds in all its layers, the output layer included.

    Measured choices: probation after 10 % of the steps; a seed is moved as a whole, so one a layer, and a second
    bed for those that win. The probation measures all seeds at one tick, once: its cost is no matter.
    """
    return {
        "layers": LayersConfig(num_seeds=1, beds=2),
        "blueprint": BlueprintConfig(kind="lowrank"),
        "lifecycle": LifecycleConfig(active_ticks=0, alpha_step=1.0),
        "tamiyo": Probation(),
        "credit": CreditConfig(measurements=1024, max_groups=256),
        "every_n_steps": 0.05,
        "freeze_host": True,
    }


PRESETS: Mapping[str, Callable[[], dict[str, Any]]] = {"adapt_pretrained": _adapt_pretrained}


def with_preset(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the callback, those that are None filled by a preset.

    Args:
        name: The preset; None: nothing is filled.
        given: The arguments by name.

    Raises:
        ValueError: For an unknown preset, or if there is nothing left for it to set.

    Example:
        >>> with_preset("adapt_pretrained", {"every_n_steps": 10, "freeze_host": None})["freeze_host"]
        True
    """
    if name is None:
        return dict(given)
    check_choice(name, "preset", PRESETS)
    values = PRESETS[name]()
    if all(given.get(key) is not None for key in values):
        raise ValueError(
            f"`preset` {name!r} has nothing to set: all of {list(values)} are given. In YAML choose it as "
            f"`morpho/preset={name}`."
        )
    return {**given, **{key: value for key, value in values.items() if given.get(key) is None}}
