"""A user's own module as a blueprint."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lightning_morpho.blueprints.base import Blueprint, Source, blueprint_type, register_blueprint
from lightning_morpho.blueprints.site import Site
from lightning_morpho.config import BlueprintConfig
from lightning_morpho.random_state import preserved_random_state

ModuleFactory = Callable[[int, int], nn.Module]
"""``factory(in_features, out_features)``: a new module that maps the one to the other."""

_GAIN = "zero_gain"


class ModuleBlueprint(Blueprint):
    r"""A module of the user's own, times a gain of each output feature that starts at zero.

    .. math:: f(x) = \gamma \odot m(x)

    With ``source="chunk"`` each chunk has a module of its own; all of them run at once through
    ``torch.func.vmap`` where the module allows that, else one after another.

    Attributes:
        factory: Makes the module.
        batched: Whether the modules of all chunks run at once.
    """

    factory: ClassVar[ModuleFactory]

    def __init__(self, site: Site, config: BlueprintConfig) -> None:
        super().__init__(site, config)
        self.template = self._made(0)
        self._names = {name.replace(".", "__"): name for name, _ in self.template.named_parameters()}
        self.batched = self.source == "chunk" and self._can_batch()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by name: the class is made at registration."""
        return _named, (self.kind, self.site, self.config)

    def _made(self, seed: int) -> nn.Module:
        width = self.site.chunks.max_width
        ends = {"chunk": (width, width), "output": (self.site.out_features,) * 2}
        with preserved_random_state():
            torch.manual_seed(seed)
            module = type(self).factory(*ends.get(self.source, (self.site.in_features, self.site.out_features)))
        if not isinstance(module, nn.Module):
            raise TypeError(f"The factory of blueprint `{self.kind}` must return an nn.Module, got {module!r}.")
        buffers = [name for name, _ in module.named_buffers()]
        if buffers or not any(True for _ in module.parameters()):
            has = f"buffers ({', '.join(buffers)})" if buffers else "no parameters"
            raise ValueError(
                f"The module of blueprint `{self.kind}` has {has}: a bed holds parameters alone, and at least one. "
                "Take a norm without running statistics (LayerNorm, GroupNorm), or write a Blueprint."
            )
        return module

    def _can_batch(self) -> bool:
        values = {name: torch.zeros(2, *p.shape) for name, p in self.template.named_parameters()}
        try:
            with preserved_random_state(), torch.no_grad():
                self._batch(values, torch.zeros(2, 3, self.site.chunks.max_width))
        except Exception:  # whatever a module raises that vmap can't look into, such as a branch on data
            return False
        return True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the module, a dot in a name written as two underscores, and ``zero_gain (out,)``."""
        own = {name: tuple(self.template.get_parameter(full).shape) for name, full in self._names.items()}
        if self.source != "chunk":
            return own | {_GAIN: (self.site.out_features,)}
        n, width = self.site.chunks.num_chunks, self.site.chunks.max_width
        return {name: (n, *shape) for name, shape in own.items()} | {_GAIN: (n, 1, width)}

    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """As the factory makes them; the gain zero."""
        chunks = self.site.chunks.num_chunks if self.source == "chunk" else 1
        seeds = torch.randint(2**31, (chunks,), generator=generator).tolist()
        made: list[dict[str, Tensor]] = [dict(self._made(seed).named_parameters()) for seed in seeds]
        with torch.no_grad():
            for name, full in self._names.items():
                drawn = [values[full] for values in made]
                parameters[name].copy_(torch.stack(drawn) if self.source == "chunk" else drawn[0])
            parameters[_GAIN].zero_()

    def train(self, mode: bool) -> None:
        """Whether the module trains or is evaluated: a dropout in it wants to know."""
        if self.template.training != mode:
            self.template.train(mode)

    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """The module's output times the gain."""
        values = {full: parameters[name] for name, full in self._names.items()}
        if self.source != "chunk":
            return functional_call(self.template, values, (source,)) * self.site.per_feature(parameters[_GAIN])
        if self.batched:
            return self._batch(values, source) * parameters[_GAIN]
        chunks = range(self.site.chunks.num_chunks)
        rows = [functional_call(self.template, {n: v[c] for n, v in values.items()}, (source[c],)) for c in chunks]
        return torch.stack(rows) * parameters[_GAIN]

    def _batch(self, values: Mapping[str, Tensor], source: Tensor) -> Tensor:
        def one(chunk_values: dict[str, Tensor], rows: Tensor) -> Tensor:
            return functional_call(self.template, chunk_values, (rows,))

        return vmap(one, randomness="different")(dict(values), source)

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """The user's module, or one for each chunk, and a product."""
        root, graph = nn.Module(), fx.Graph()
        x = graph.placeholder("input")
        gain = parameters[_GAIN]
        if self.source != "chunk":
            root.add_module("module", self._filled({n: parameters[n] for n in self._names}))
            gain, out = self.site.per_feature(gain), graph.call_module("module", (x,))
        else:
            chunks = self.site.chunks
            widths = [stop - start for start, stop in (chunks.bounds(c) for c in range(chunks.num_chunks))]
            gain = self.site.per_feature(torch.cat([g[0, :n] for g, n in zip(gain, widths, strict=True)]))
            columns = graph.call_method("movedim", (x, -1 - self.site.spatial, -1))
            parts = graph.call_method("split", (columns, widths), {"dim": -1})
            made = []
            for c, width in enumerate(widths):
                root.add_module(f"module{c}", self._filled({n: parameters[n][c] for n in self._names}))
                part = graph.call_function(operator.getitem, (parts, c))
                padded = graph.call_function(F.pad, (part, (0, chunks.max_width - width)))
                made.append(graph.call_method("narrow", (graph.call_module(f"module{c}", (padded,)), -1, 0, width)))
            joined = graph.call_function(torch.cat, (made,), {"dim": -1})
            out = graph.call_method("movedim", (joined, -1, -1 - self.site.spatial))
        root.register_parameter("gain", nn.Parameter(gain.detach().clone()))
        graph.output(graph.call_function(operator.mul, (out, graph.get_attr("gain"))))
        return fx.GraphModule(root, graph, "Grown")

    def _filled(self, values: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the module with these parameters."""
        module = copy.deepcopy(self.template)
        first = next(iter(values.values()))
        module.to(first.device, first.dtype)
        with torch.no_grad():
            for name, value in values.items():
                module.get_parameter(self._names[name]).copy_(value)
        return module


def _named(kind: str, site: Site, config: BlueprintConfig) -> Blueprint:
    return blueprint_type(kind)(site, config)


def register_module_blueprint(
    name: str,
    factory: ModuleFactory,
    *,
    source: Source = "input",
    layers: Sequence[type[nn.Module]] = (),
    probe: bool = True,
) -> None:
    """Make modules of your own available as ``blueprint.kind: <name>``.

    Args:
        name: A new name in the registry.
        factory: ``factory(in_features, out_features)`` gives a new module each time. It may draw random numbers,
            not hold buffers.
        source: What the module reads: the layer's ``"input"``, its whole ``"output"``, or each ``"chunk"`` of
            that, features last. In the first two cases it reads and gives the layer's own layout: channels
            first behind a convolution, and there it must keep (``"output"``) or make (``"input"``) the size of
            the layer's output.
        layers: Types of layer that it is for; empty: whichever it works in.
        probe: Whether to try it on small layers now, as :func:`~lightning_morpho.register_blueprint` does.

    Raises:
        ValueError: If the name is taken, the source unknown, or the module gives a wrong shape.

    Example:
        >>> register_module_blueprint("two_layers", lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.Linear(4, o)))
        >>> from lightning_morpho import BlueprintConfig, HybridKasminaLayer, MorphoConfig
        >>> layer = HybridKasminaLayer(nn.Linear(8, 6), MorphoConfig(blueprint=BlueprintConfig(kind="two_layers")))
        >>> layer.request_germination(), layer.morpho.live_parameters
        ([0], 72)
    """
    if source not in ("input", "output", "chunk"):
        raise ValueError(f"`source` must be 'input', 'output' or 'chunk', got {source!r}.")
    members = {"factory": staticmethod(factory), "source": source, "layers": tuple(layers), "__module__": __name__}
    register_blueprint(name, probe=probe)(type(f"Module_{name}", (ModuleBlueprint,), members))
