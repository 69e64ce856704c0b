"""The pair finder: static proposals, or what a batch confirms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.checks import suggest
from lightning_morpho.pairs.flow import Pair
from lightning_morpho.pairs.operations import FUNCTIONS, HOLE, Step, function_step, module_kind
from lightning_morpho.pairs.probe import PairProbe
from lightning_morpho.pairs.static import propose
from lightning_morpho.pairs.structure import check_pair, layers_of
from lightning_morpho.random_state import preserved_random_state


@dataclass(frozen=True)
class PairReport:
    """The pairs of a model, and why other layers have none.

    Attributes:
        pairs: Pair of each consumer, by its name.
        refused: Why there is none, by the name of the layer.
        confirmed: Whether the model was run to see them; else they are proposals.
    """

    pairs: Mapping[str, Pair]
    refused: Mapping[str, str]
    confirmed: bool

    def __str__(self) -> str:
        """One line a layer."""
        word = "confirmed" if self.confirmed else "proposed"
        lines = [f"{word}: {pair}" for pair in self.pairs.values()]
        return "\n".join([*lines, *(f"none: `{name}`: {reason}" for name, reason in self.refused.items())])


def find_pairs(
    model: nn.Module,
    example: Any = None,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    explicit: Sequence[Sequence[str]] = (),
) -> PairReport:
    """Find the pairs of layers between which hidden units can grow.

    Args:
        model: The model, before or after its layers were swapped. Nothing of it changes.
        example: A batch: the model is run on it, forward only, which confirms at once. None: pairs are
            proposed from the code.
        forward: How to run it, ``forward(model, example)``; None: ``model(*example)`` for a tuple or
            list, ``model(**example)`` for a dict, else ``model(example)``.
        explicit: Pairs that you know of: names of producer, of what stands between (modules, or
            operations such as ``"relu"``), and of the consumer.

    Raises:
        ValueError: If an explicit pair names what is not there, or can't grow.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> print(find_pairs(model))
        proposed: `0` -> 1 -> `2`
        none: `0`: its input does not come from a layer
    """
    layers, modules = layers_of(model), dict(model.named_modules())
    if example is None:
        verdicts = propose(model, layers)
    else:
        with _isolated(model), PairProbe(model) as probe:
            _run(model, example, forward)
        verdicts = _without_stray_numbers(probe.verdicts(), lambda: propose(model, layers))
    for path in explicit:
        pair = explicit_pair(model, path)
        verdicts[pair.consumer] = pair
    pairs, refused = {}, {}
    for name, verdict in verdicts.items():
        reason = verdict if isinstance(verdict, str) else check_pair(verdict, modules)
        if reason is None:
            assert isinstance(verdict, Pair)
            pairs[name] = verdict
        else:
            refused[name] = reason
    return PairReport(pairs, refused, example is not None)


def _without_stray_numbers(
    seen: dict[str, Pair | str], propose_again: Callable[[], dict[str, Pair | str]]
) -> dict[str, Pair | str]:
    """Refuse pairs with numbers that may come from the batch's shape, unless they stand in the code as well."""
    doubtful = {
        name: next((str(step) for step in pair.all_steps if step.may_depend_on_batch), None)
        for name, pair in seen.items()
        if isinstance(pair, Pair)
    }
    doubtful = {name: step for name, step in doubtful.items() if step is not None}
    in_code = propose_again() if doubtful else {}
    for name, step in doubtful.items():
        pair, proposed = seen[name], in_code[name]
        assert isinstance(pair, Pair)
        if not isinstance(proposed, Pair) or proposed.key != pair.key:
            seen[name] = f"`{step}` uses a number that may depend on the batch; the code could not be traced to tell"
    return seen


def explicit_pair(model: nn.Module, path: Sequence[str]) -> Pair:
    """The pair that a user describes by names.

    Args:
        model: The model.
        path: Producer, what stands between, consumer.

    Raises:
        ValueError: If a name is unknown, or the pair can't grow.
    """
    layers, modules = layers_of(model), dict(model.named_modules())
    if len(path) < 2 or path[0] not in layers or path[-1] not in layers:
        raise ValueError(
            f"`layers.pairs`: an entry names a producer, what stands between, and a consumer, got {list(path)}; "
            f"the eligible layers are {list(layers)}."
        )
    pair = Pair(path[-1], (path[0],), ((),), tuple(_named_step(name, modules) for name in path[1:-1]))
    reason = check_pair(pair, modules)
    if reason is not None:
        raise ValueError(f"`layers.pairs`: {list(path)} can't grow: {reason}.")
    return pair


def _named_step(name: str, modules: Mapping[str, nn.Module]) -> Step:
    if name in modules:
        kind = module_kind(modules[name])
        if kind is None:
            raise ValueError(
                f"`layers.pairs`: `{name}` ({type(modules[name]).__name__}) is not known to treat channels by "
                "themselves; declare its class with `register_channelwise`."
            )
        return Step("flatten", "flatten") if kind == "flatten" else Step(kind, name, modules[name])
    if name == "flatten":
        return Step("flatten", "flatten")
    if name not in FUNCTIONS:
        named = sorted(known for known in FUNCTIONS if not known.startswith("_"))
        raise ValueError(
            f"`layers.pairs`: {name!r} is neither a module of the model nor an operation: {suggest(name, named)}"
        )
    step = function_step(FUNCTIONS[name], (HOLE,), {})
    assert step is not None
    return step


def _run(model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Any] | None) -> None:
    with torch.enable_grad():
        if forward is not None:
            forward(model, example)
        elif isinstance(example, Mapping):
            model(**example)
        elif isinstance(example, (tuple, list)):
            model(*example)
        else:
            model(example)


@contextlib.contextmanager
def _isolated(model: nn.Module) -> Iterator[None]:
    """Put back buffers, gradients and random state."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    gradients: list[tuple[Tensor, Tensor | None]] = [(p, p.grad) for p in model.parameters()]
    with preserved_random_state():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient
