"""Operations that treat each channel by itself: the only ones that may stand between two paired layers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

Kind = Literal["elementwise", "dropout", "norm", "spatial", "flatten", "merge", "pool_all"]
Layout = Literal["first", "last"]
"""Where the channels lie: axis 1 (convolutions) or the last axis (linear layers)."""

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ACTIVATIONS = (
    "relu gelu silu tanh sigmoid leaky_relu elu selu celu softplus mish hardtanh relu6 hardswish hardsigmoid "
    "logsigmoid softsign tanhshrink softshrink hardshrink threshold"
)
_POINTWISE = "abs square exp sqrt rsqrt sin cos clamp clamp_min clamp_max neg erf clone contiguous"
_SCALAR = "mul div add sub pow true_divide"
_DUNDER = "__rmul__ __radd__ __rsub__ __rdiv__ __rtruediv__ __rpow__"
_DROPOUT = "dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d"
_SPATIAL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d lp_pool1d lp_pool2d interpolate"
)
_ELEMENTWISE_MODULES = (
    "ReLU GELU SiLU Tanh Sigmoid LeakyReLU ELU SELU CELU Softplus Mish Hardtanh ReLU6 Hardswish Hardsigmoid "
    "LogSigmoid Softsign Tanhshrink Softshrink Hardshrink Threshold Identity"
)
_DROPOUT_MODULES = "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"
_SPATIAL_MODULES = (
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
    "AdaptiveMaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d LPPool1d LPPool2d Upsample "
    "UpsamplingNearest2d UpsamplingBilinear2d ConstantPad1d ConstantPad2d ConstantPad3d ZeroPad1d ZeroPad2d ZeroPad3d"
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

FUNCTIONS: dict[str, Callable[..., Tensor]] = {}
"""Own operations by name."""
_NAMES: dict[Any, tuple[str, Kind]] = {}
_MODULES: dict[type[nn.Module], Kind] = {}


def _add_functions(names: str, kind: Kind) -> None:
    """Every spelling of an operation, in-place ones too, leads to the one own operation of that name."""
    for name in names.split():
        spellings = [
            getattr(space, spelling)
            for space in (F, torch, torch.Tensor, operator)
            for spelling in (name, f"{name}_", f"__{name}__", f"__i{name}__")
            if hasattr(space, spelling)
        ]
        FUNCTIONS[name] = spellings[0]
        _NAMES.update({target: (name, kind) for target in spellings})


def _add_modules(names: str, kind: Kind) -> None:
    _MODULES.update({getattr(nn, name): kind for name in names.split() if hasattr(nn, name)})


_add_functions(f"{_ACTIVATIONS} {_POINTWISE} {_SCALAR} {_DUNDER}", "elementwise")
_add_functions(_DROPOUT, "dropout")
_add_functions(_SPATIAL, "spatial")
_add_modules(_ELEMENTWISE_MODULES, "elementwise")
_add_modules(_DROPOUT_MODULES, "dropout")
_add_modules(_SPATIAL_MODULES, "spatial")
_MODULES.update(dict.fromkeys(_NORMS, "norm"))
_NAMES[operator.truediv] = ("div", "elementwise")

PRODUCTS = frozenset({torch.mul, torch.Tensor.mul, torch.Tensor.mul_, operator.mul, operator.imul})
RESHAPES = frozenset({torch.flatten, torch.Tensor.flatten, torch.reshape, torch.Tensor.reshape, torch.Tensor.view})
MEANS = frozenset({torch.mean, torch.Tensor.mean, torch.amax, torch.Tensor.amax})

_Op = TypeVar("_Op")


def register_channelwise(op: _Op, layout: Literal["any", "first"] = "any") -> _Op:
    """Declare that an operation of yours treats each channel by itself, so that width can grow through it.

    Use it as a decorator, on a function of one tensor (and constants), or on an ``nn.Module`` class
    without parameters or buffers. A module's settings are read at each call, never copied.

    Args:
        op: The function or class.
        layout: ``"any"``: works on single elements. ``"first"``: mixes positions, never channels, and
            wants them at axis 1, as pooling does.

    Returns:
        What to use in its place: the class itself, or a function that the pair finder can see.

    Raises:
        TypeError: If ``op`` is neither.

    Example:
        >>> @register_channelwise
        ... def squared_relu(x):
        ...     return torch.relu(x) ** 2
        >>> squared_relu(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    kind: Kind = "spatial" if layout == "first" else "elementwise"
    if isinstance(op, type) and issubclass(op, nn.Module):
        _MODULES[op] = kind
        return op
    if not callable(op):
        raise TypeError(f"`op` must be a function or a subclass of nn.Module, got {op!r}.")

    @functools.wraps(op)
    def visible(x: Any, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function((x,)):
            return handle_torch_function(visible, (x,), x, *args, **kwargs)
        return op(x, *args, **kwargs)

    name = ".".join((op.__module__, getattr(op, "__qualname__", repr(op))))
    FUNCTIONS[name] = visible
    _NAMES[visible] = (name, kind)
    return visible  # type: ignore[return-value]


class _Hole:
    """Stands for the hidden tensor among an operation's arguments."""

    def __repr__(self) -> str:
        return "_"

    def __reduce__(self) -> str:
        return "HOLE"


HOLE = _Hole()


@dataclass(frozen=True, eq=False)
class Step:
    """One per-channel operation between a producer and its consumer.

    Attributes:
        kind: What it does to the layout.
        name: Name of the own operation, or of the host's module.
        module: The host's module, whose settings are followed at each call; None for a function.
        args: Positional arguments of a function, the tensor's place marked.
        kwargs: Its keyword arguments.
    """

    kind: Kind
    name: str
    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two steps the same."""
        return self.kind, self.name, repr(self.args), repr(sorted(self.kwargs.items()))

    def __str__(self) -> str:
        return self.name

    @property
    def may_depend_on_batch(self) -> bool:
        """Whether a number among its arguments could come from the shape of the batch at hand."""
        numbers = self.name in {*_SCALAR.split(), *_DUNDER.split()}
        return self.module is None and (numbers or self.kwargs.get("size") is not None)

    def apply(self, h: Tensor, training: bool) -> Tensor:
        """Do it to other channels; a norm is the bed's matter.

        Args:
            h: New hidden units in the layout that the host's have there.
            training: Whether functional dropout drops.
        """
        if self.kind == "flatten":
            return h.flatten(1)
        if self.kind == "merge":
            return h.flatten(0, -2)
        if self.kind == "pool_all":
            return FUNCTIONS[self.name](h, **self.kwargs)
        if self.module is not None:
            return self.module.forward(h)
        args = [h if a is HOLE else a for a in self.args]
        flags = {"training": training} if self.kind == "dropout" else {}
        return FUNCTIONS[self.name](*args, **{**self.kwargs, **flags})


def _mean_all(h: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return h.mean(dims, keepdim)


def _amax_all(h: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return h.amax(dims, keepdim)


FUNCTIONS |= {"mean": _mean_all, "amax": _amax_all}


def module_kind(module: nn.Module) -> Kind | None:
    """What a module between two layers does, None if it is not known to treat channels by themselves."""
    kind = _MODULES.get(type(module))
    if isinstance(module, nn.PReLU) and type(module) is nn.PReLU and module.num_parameters == 1:
        return "elementwise"
    if isinstance(module, nn.Flatten):
        return "flatten" if (module.start_dim, module.end_dim) == (1, -1) else None
    return kind


def function_step(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Step | None:
    """The own operation for a call of a function with the tensor's place marked; None if there is none."""
    found = _NAMES.get(target) if _hashable(target) else None
    if found is None:
        return None
    name, kind = found
    dropped = {"inplace", "training"} if kind == "dropout" else {"inplace"}
    return Step(kind, name, None, args, {k: v for k, v in kwargs.items() if k not in dropped})


def _hashable(target: Any) -> bool:
    try:
        hash(target)
    except TypeError:
        return False
    return True
