"""An example batch: how a model is called, and whether it gives the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.random_state import preserved_random_state


@dataclass(frozen=True)
class Example:
    """Arguments of a model's forward.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any, device: torch.device | str = "cpu") -> Example:
        """Read what a person gives: a tuple or list of arguments, a dict of them, or one argument.

        Example:
            >>> Example.of({"x": torch.ones(2, 3)}).batch
            2
        """
        moved = _map(example, lambda tensor: tensor.detach().to(device))
        if isinstance(moved, Mapping):
            return cls((), dict(moved))
        return cls(tuple(moved) if isinstance(moved, (tuple, list)) else (moved,))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return tensors_in((self.args, dict(self.kwargs)))

    @property
    def batch(self) -> int | None:
        """Size of the first axis of the first tensor; None if there is none."""
        return next((len(tensor) for tensor in self.tensors if tensor.ndim), None)

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether a tensor has one entry for each sample."""
        return tensor.ndim > 0 and len(tensor) == self.batch

    def resized(self, batch: int) -> Example:
        """The same with another number of samples, repeated if need be."""

        def resize(tensor: Tensor) -> Tensor:
            if not self.is_batched(tensor):
                return tensor
            return tensor[torch.arange(batch, device=tensor.device) % len(tensor)]

        return Example(_map(self.args, resize), _map(dict(self.kwargs), resize))

    def run(self, model: Callable[..., Any]) -> list[Tensor]:
        """The tensors that a model gives, on the CPU; random numbers are the same each time."""
        with preserved_random_state(), torch.no_grad():
            torch.manual_seed(0)
            return [tensor.detach().cpu() for tensor in tensors_in(model(*self.args, **self.kwargs))]


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _map(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(value, change) for value in tree)
    return tree


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples, dicts and dataclasses, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [tensor for value in tree.values() for tensor in tensors_in(value)]
    if isinstance(tree, (list, tuple)):
        return [tensor for value in tree for tensor in tensors_in(value)]
    if is_dataclass(tree) and not isinstance(tree, type):
        return [tensor for entry in fields(tree) for tensor in tensors_in(getattr(tree, entry.name))]
    return []


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what each module was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def largest_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Largest absolute difference between two lists of tensors; infinite if they don't match in number or shape.

    Example:
        >>> largest_difference([torch.tensor([1.0, float("nan")])], [torch.tensor([1.5, float("nan")])])
        0.5
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    largest = 0.0
    for a, b in zip(expected, actual, strict=True):
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        apart = (a - b).abs().masked_fill(same, 0).nan_to_num(float("inf"))
        largest = max(largest, float(apart.max()) if apart.numel() else 0.0)
    return largest
