"""Confirming pairs while the model runs: a passive look at one training step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from lightning_morpho.pairs.flow import Flow, Opaque, Pair, Value
from lightning_morpho.pairs.operations import Step, module_kind
from lightning_morpho.pairs.structure import check_pair, layers_of, read_pair

_READS = frozenset({"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "equal", "is_nonzero"})

NOT_CALLED = "it was not called in the steps watched"
"""What a probe says of a layer that did not run."""


class PairProbe:
    """Watches one training step, forward and backward, and tells which layers form pairs.

    It sees the model's calls and holds shapes, no tensors; running statistics, random state and
    gradients are those of a step without it. A compiled model runs eagerly meanwhile.

    Args:
        model: The model, before or after its layers were swapped.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with PairProbe(model) as probe:
        ...     model(torch.ones(4, 2)).sum().backward()
        >>> str(probe.verdicts()["2"])
        '`0` -> 1 -> `2`'
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self._layers = layers_of(model)
        self._flow = Flow({layer: name for name, layer in self._layers.items()})
        self._values: Any = WeakIdKeyDictionary()
        self._inside: list[nn.Module] = []
        self._sample: Tensor | None = None
        self._exit = contextlib.ExitStack()
        self._busy = False

    # ------------------------------------------------------------------ context
    def __enter__(self) -> PairProbe:
        self._exit.enter_context(self._watch_modules())
        if "torch._dynamo" in sys.modules:
            self._exit.enter_context(torch.compiler.set_stance("force_eager"))
        self._exit.enter_context(_Mode(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        self._values = WeakIdKeyDictionary()

    @contextlib.contextmanager
    def _watch_modules(self) -> Iterator[None]:
        handles = []
        for name, module in self._modules.items():
            if module in self._flow.names or (name and module_kind(module) is not None):
                handles.append(module.register_forward_pre_hook(self._enter_module, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave_module, with_kwargs=True, always_call=True))
        self._names = {module: name for name, module in self._modules.items()}
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------ modules
    def _enter_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if _recomputing():
            if module in self._flow.names:
                self._flow.calls.append(self._flow.names[module])
        elif not self._inside and isinstance(x, Tensor):
            if module in self._flow.names:
                self._flow.enter(module, self._values.get(x), tuple(x.shape))
            else:
                self._sample = self._take(x)
        self._inside.append(module)

    def _leave_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        while self._inside and self._inside.pop() is not module:
            pass
        x = args[0] if args else next(iter(kwargs.values()), None)
        if self._inside or not isinstance(out, Tensor) or _recomputing():
            return
        if module in self._flow.names:
            self._values[out] = self._flow.leave(module)
            return
        value = self._values.get(x) if isinstance(x, Tensor) else None
        if value is None:
            self._values.pop(out, None)
            return
        assert isinstance(x, Tensor)
        made = self._flow.call_module(module, self._names[module], value, tuple(x.shape))
        self._values[out] = self._compare(made, out)

    # ------------------------------------------------------------------ functions
    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function and note what it did to the channels followed."""
        if self._inside or self._busy:
            return function(*args, **kwargs)
        tensors = [t for t in _tensors((args, kwargs)) if t in self._values]
        if not tensors:
            return self._forget(function(*args, **kwargs))
        shape, self._sample = tuple(tensors[0].shape), self._take(tensors[0])
        values = {id(t): self._values[t] for t in tensors}
        out = function(*args, **kwargs)
        made = list(_tensors(out))
        if not made and getattr(function, "__name__", "") not in _READS:
            return out

        def replaced(item: Any) -> Any:
            if isinstance(item, Tensor):
                return values.get(id(item)) or Opaque()
            return type(item)(map(replaced, item)) if type(item) in (list, tuple) else item

        after = self._flow.call_function(
            function,
            tuple(map(replaced, args)),
            {key: replaced(item) for key, item in kwargs.items()},
            shape,
            tuple(made[0].shape) if made else None,
        )
        if after is not None:
            for tensor in made:
                self._values[tensor] = self._compare(after, tensor)
        return out

    def _forget(self, out: Any) -> Any:
        for tensor in _tensors(out):
            self._values.pop(tensor, None)
        return out

    # ------------------------------------------------------------------ numeric confirmation
    @contextlib.contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Calculate without being seen by the probe itself, and without a gradient."""
        self._busy = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._busy = False

    def _take(self, x: Tensor) -> Tensor | None:
        """Every second channel of a tensor, before an operation that may change it in place."""
        value = self._values.get(x)
        if value is None or value.reason is not None:
            return None
        with self._unwatched():
            return _every_second(x, value).clone()

    def _compare(self, made: Value, out: Tensor) -> Value:
        """Break a value whose last step gives other numbers for every second channel taken alone."""
        sample, self._sample = self._sample, None
        parent = made.parents[0] if len(made.parents) == 1 else None
        if sample is None or made.reason is not None or parent is None or len(made.steps) == len(parent.steps):
            return made
        step = made.steps[-1]
        if step.kind in ("dropout", "flatten", "merge"):
            return made
        with self._unwatched():
            alone = _apply_alone(step, sample, out)
            expected = _every_second(out, made)
            tolerance = 1e-4 if out.dtype in (torch.float32, torch.float64) else 3e-2
            same = alone.shape == expected.shape and torch.allclose(
                alone, expected.to(alone.dtype), tolerance, tolerance, equal_nan=True
            )
        return made if same else made.broken(f"`{step}` mixes the channels of {made.source}")

    # ------------------------------------------------------------------ outcome
    def verdicts(self) -> dict[str, Pair | str]:
        """What each layer turned out to be: the consumer of a pair, or why not."""
        found: dict[str, Pair | str] = {}
        for name in self._layers:
            reads = self._flow.read.get(name)
            found[name] = self._verdict(name, reads) if reads else NOT_CALLED
        return found

    def _verdict(self, name: str, reads: list[Value | None]) -> Pair | str:
        pairs = [read_pair(self._flow, name, value) for value in reads]
        refused = next((pair for pair in pairs if isinstance(pair, str)), None)
        if refused is not None:
            if any(isinstance(pair, Pair) for pair in pairs):
                return (
                    f"not every call reads the same layer's output ({refused}): "
                    "a checkpoint region may separate the layers"
                )
            return refused
        first = pairs[0]
        assert isinstance(first, Pair)
        if any(isinstance(pair, Pair) and pair.key != first.key for pair in pairs):
            return "its calls in one step read different layers"
        return _order(first, self._flow.calls) or check_pair(first, self._modules) or first


class _Mode(TorchFunctionMode):
    """Shows the probe each call of a torch function."""

    def __init__(self, probe: PairProbe) -> None:
        super().__init__()
        self.probe = probe

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.probe.call(func, args, kwargs or {})


def _recomputing() -> bool:
    """Whether the autograd engine runs this: a checkpoint region, of which the order of calls is all that counts."""
    return torch._C._current_graph_task_id() != -1


def _order(pair: Pair, calls: list[str]) -> str | None:
    """Why the calls of a pair's layers come in an order that can't grow, None if they can."""
    parties = {*pair.producers, pair.consumer}
    order = [name for name in calls if name in parties]
    length = len(parties)
    groups = [order[i : i + length] for i in range(0, len(order), length)]
    if all(set(group) == parties and group[-1] == pair.consumer for group in groups):
        return None
    return (
        f"in one step the calls come as {', '.join(order)}, not {', '.join((*pair.producers, pair.consumer))}: "
        "a checkpoint region may separate the layers, or one is called several times"
    )


def _every_second(x: Tensor, value: Value) -> Tensor:
    return x.detach()[:, ::2] if value.layout == "first" else x.detach()[..., ::2]


def _apply_alone(step: Step, sample: Tensor, out: Tensor) -> Tensor:
    """A step on every second channel, with nothing of the host's changed."""
    norm = step.module
    if step.kind != "norm":
        return step.apply(sample, True)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    use_batch = norm.training or norm.running_mean is None
    half = [None if t is None else t[::2] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    mean, variance = (None, None) if use_batch else (half[0], half[1])
    return F.batch_norm(sample, mean, variance, half[2], half[3], use_batch, 0.0, norm.eps)


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from _tensors(part)
