"""Following channels from layer to layer: one set of rules for traced graphs and for observed calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lightning_morpho.pairs.operations import (
    HOLE,
    MEANS,
    PRODUCTS,
    RESHAPES,
    Layout,
    Step,
    function_step,
    module_kind,
)

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """A consumer, its producers, and what stands between them.

    Attributes:
        consumer: Name of the layer that reads the hidden units.
        producers: Names of the layers that make them: one, or two whose outputs are multiplied.
        branches: Operations after each producer, before the product; empty for a single producer.
        steps: Operations before the consumer.
    """

    consumer: str
    producers: tuple[str, ...]
    branches: tuple[tuple[Step, ...], ...]
    steps: tuple[Step, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two pairs the same."""
        branches = tuple(tuple(step.key for step in branch) for branch in self.branches)
        return self.consumer, self.producers, branches, tuple(step.key for step in self.steps)

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The operations of all branches, then those after the product."""
        return (*(step for branch in self.branches for step in branch), *self.steps)

    def __str__(self) -> str:
        branches = [" -> ".join((f"`{p}`", *map(str, b))) for p, b in zip(self.producers, self.branches, strict=True)]
        head = branches[0] if len(branches) == 1 else "(" + " * ".join(branches) + ")"
        return " -> ".join((head, *map(str, self.steps), f"`{self.consumer}`"))


@dataclass(eq=False)
class Value:
    """What is known of one tensor: whose channels it carries, or why they can't be followed.

    Attributes:
        producers: Layers whose output channels these are.
        branches: Steps of each of them before a product.
        steps: Steps since.
        layout: Where the channels lie.
        spatial: Spatial axes behind them.
        reason: Why they can't be followed any more; None while they can.
        parents: The tensors that this one was made from.
        uses: Who read it.
    """

    producers: tuple[str, ...]
    branches: tuple[tuple[Step, ...], ...] = ((),)
    steps: tuple[Step, ...] = ()
    layout: Layout = "last"
    spatial: int = 0
    reason: str | None = None
    parents: tuple[Value, ...] = ()
    uses: list[str] = field(default_factory=list)

    def broken(self, reason: str) -> Value:
        """A tensor made from this one, whose channels can't be followed."""
        return Value(self.producers, reason=self.reason or reason, parents=(self,))

    def after(self, step: Step | None, layout: Layout | None = None, spatial: int | None = None) -> Value:
        """A tensor made from this one by a step; None: by nothing."""
        return replace(
            self,
            steps=self.steps if step is None else (*self.steps, step),
            layout=layout or self.layout,
            spatial=self.spatial if spatial is None else spatial,
            parents=(self,),
            uses=[],
        )

    @property
    def source(self) -> str:
        """The producers, for messages."""
        return " and ".join(f"`{p}`" for p in self.producers)

    def branch(self) -> str | None:
        """Why the hidden units are not the consumer's alone, None if they are."""
        if len(self.uses) > 1:
            return f"the output of {self.source} is used {len(self.uses)} times ({', '.join(self.uses)}): a branch"
        return next((reason for reason in (parent.branch() for parent in self.parents) if reason), None)


class Flow:
    """Collects what each layer reads, call by call.

    Args:
        names: Name of each layer, by the layer.

    Attributes:
        read: What each layer read, one entry a call; None for a tensor that comes from no layer.
        calls: Layers in the order of their calls.
    """

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        self.names = names
        self.read: dict[str, list[Value | None]] = {}
        self.calls: list[str] = []

    def enter(self, layer: nn.Module, value: Value | None, shape: Shape | None = None) -> None:
        """A layer is called with a tensor."""
        name, spatial = self.names[layer], spatial_axes(layer)
        self.calls.append(name)
        if value is not None:
            value.uses.append(f"`{name}`")
            layout: Layout = "first" if spatial else "last"
            if value.reason is None and (value.layout, value.spatial) != (layout, spatial) and value.spatial + spatial:
                value = value.broken(f"the channels of {value.source} are not those that `{name}` reads")
            if shape is not None and spatial and len(shape) != spatial + 2:
                value = value.broken(f"`{name}` is called without a batch axis")
        self.read.setdefault(name, []).append(value)

    def leave(self, layer: nn.Module) -> Value:
        """What a layer gives."""
        spatial = spatial_axes(layer)
        return Value((self.names[layer],), layout="first" if spatial else "last", spatial=spatial)

    def call_module(self, module: nn.Module, name: str, value: Value, shape: Shape | None = None) -> Value:
        """What another module makes of a tensor."""
        value.uses.append(f"`{name}`")
        if value.reason is not None:
            return value.broken("")
        kind = module_kind(module)
        if kind is None:
            return value.broken(f"`{name}` ({type(module).__name__}) is not known to treat channels by themselves")
        if isinstance(module, nn.Identity):
            return value.after(None)
        if kind == "flatten":
            return _flatten(value)
        first = value.layout == "first" or (shape is not None and len(shape) == 2) or shape is None
        if (kind == "spatial" and value.layout != "first") or (kind == "norm" and not first):
            return value.broken(f"`{name}` ({type(module).__name__}) does not see the channels of {value.source}")
        return value.after(Step(kind, name, module))

    def call_function(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shape: Shape | None = None,
        made: Shape | None = None,
    ) -> Value | None:
        """What a function makes of its arguments; None if no channels are followed into it.

        Args:
            target: The function.
            args: Its positional arguments, tensors replaced by their values.
            kwargs: Its keyword arguments, likewise.
            shape: Shape of the tensor it reads, None if unknown.
            made: Shape of what it gives, None if unknown.
        """
        values = [v for v in _flat((args, tuple(kwargs.values()))) if isinstance(v, Value)]
        if not values:
            return None
        label = describe(target)
        for value in values:
            value.uses.append(f"`{label}`")
        if len(values) == 2 and target in PRODUCTS and all(v.reason is None for v in values):
            return _product(*values)
        value = values[0]
        if len(values) > 1:
            sources = " and ".join(dict.fromkeys(v.source for v in values))
            return value.broken(f"`{label}` joins the outputs of {sources}")
        if value.reason is not None:
            return value.broken("")
        if target in RESHAPES:
            return _reshape(value, label, args[1:], kwargs, shape, made)
        if target in MEANS:
            return _pool_all(value, label, args[1:], kwargs)
        step = function_step(target, *_holed(args, kwargs))
        if step is None:
            return value.broken(f"`{label}` after {value.source} is not known to treat channels by themselves")
        if any(_opaque(a) for a in _flat((args, tuple(kwargs.values())))):
            return value.broken(f"an argument of `{label}` after {value.source} is no constant")
        if step.kind == "spatial" and value.layout != "first":
            return value.broken(f"`{label}` does not see the channels of {value.source}")
        return value.after(None if step.name in ("clone", "contiguous") else step)


def spatial_axes(layer: nn.Module) -> int:
    """Spatial axes of an eligible layer: 0 for a linear one."""
    return len(layer.kernel_size) if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 0


def describe(target: Any) -> str:
    """A function's name, for messages."""
    return str(getattr(target, "__name__", target)).strip("_")


class Opaque:
    """A tensor (or what a trace has in its place) that carries no channels of a layer."""


def _opaque(argument: Any) -> bool:
    return isinstance(argument, Opaque)


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, (list, tuple)):
        return [leaf for item in arguments for leaf in _flat(item)]
    return [arguments]


def _holed(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the one tensor replaced by its mark; one given by keyword comes first."""
    named = [k for k, v in kwargs.items() if isinstance(v, Value)]
    rest = {k: v for k, v in kwargs.items() if k not in named}
    return (*(HOLE for _ in named), *(HOLE if isinstance(a, Value) else a for a in args)), rest


def _product(a: Value, b: Value) -> Value:
    if len(a.producers) + len(b.producers) > 2 or a.producers == b.producers or a.layout != b.layout:
        return a.broken(f"the product of {a.source} and {b.source} is not one of two layers' outputs")
    return Value((*a.producers, *b.producers), (a.steps, b.steps), (), a.layout, a.spatial, None, (a, b))


def _flatten(value: Value) -> Value:
    if value.layout == "first":
        return value.after(Step("flatten", "flatten"), "last", 0)
    return value.after(None)  # behind a linear layer of (batch, features) it does nothing; shapes are confirmed


def _reshape(
    value: Value, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: Shape | None, made: Shape | None
) -> Value:
    """Accept flatten(1) with the channels first, and the merging of batch axes; nothing else."""
    if shape is not None and made is not None:
        return _reshape_observed(value, label, shape, made)
    if label == "flatten":
        start = kwargs.get("start_dim", args[0] if args else 0)
        end = kwargs.get("end_dim", args[1] if len(args) > 1 else -1)
        if start == 1 and end == -1:
            return _flatten(value)
        if start == 0 and end in (1, -2) and value.layout == "last":
            return value.after(Step("merge", "merge"))
    sizes = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    if label in ("view", "reshape") and len(sizes) == 2:
        if sizes[1] == -1 and value.layout == "first" and _opaque(sizes[0]):
            return _flatten(value)
        if sizes[0] == -1 and isinstance(sizes[1], int) and value.layout == "last":
            return value.after(Step("merge", "merge"))
    return value.broken(f"`{label}` regroups the channels of {value.source}")


def _reshape_observed(value: Value, label: str, shape: Shape, made: Shape) -> Value:
    if made == shape:
        return value.after(None)
    whole = len(made) == 2 and made[0] == shape[0] and made[1] == _product_of(shape[1:])
    if value.layout == "first" and whole:
        return value.after(Step("flatten", "flatten"), "last", 0)
    if value.layout == "last" and len(made) == 2 and made[-1] == shape[-1]:
        return value.after(Step("merge", "merge"))
    return value.broken(f"`{label}` from {shape} to {made} regroups the channels of {value.source}")


def _product_of(sizes: Shape) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _pool_all(value: Value, label: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
    """Accept a mean or maximum over all spatial axes and no other."""
    dims = kwargs.get("dim", args[0] if args else None)
    keepdim = bool(kwargs.get("keepdim", args[1] if len(args) > 1 else False))
    dims = (dims,) if isinstance(dims, int) else dims
    if isinstance(dims, (list, tuple)) and all(isinstance(d, int) for d in dims) and value.spatial:
        axes = tuple(sorted(d if d > 0 else d + value.spatial + 2 for d in dims))
        if axes == tuple(range(2, value.spatial + 2)):
            step = Step("pool_all", label, None, (), {"dims": axes, "keepdim": keepdim})
            return value.after(step) if keepdim else value.after(step, "last", 0)
    return value.broken(f"`{label}` mixes the channels of {value.source}")
