"""The layers themselves: a class swapped in over ``nn.Linear`` or ``nn.ConvNd``, which stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from lightning_morpho.blueprints import Blueprint, Route, Site, Span, blueprint_type, is_eligible_type
from lightning_morpho.chunks import ChunkManager
from lightning_morpho.config import AUTO, BUDGET, MorphoConfig
from lightning_morpho.layers.overview import health_report, layer_stats
from lightning_morpho.layers.seeds import SeedBeds
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.pairs import Pair
from lightning_morpho.pairs.structure import out_channels, positions_of
from lightning_morpho.state import LogicalSeed


class ChunkedKasminaLayer(nn.Module):
    """A base layer whose output is split into chunks, each with a seed.

    Constructing it swaps the class of the given layer in place, as ``torch.nn.utils.parametrize`` does,
    and returns that same object: ``isinstance(layer, nn.Linear)``, ``layer.weight``, the keys of its
    ``state_dict`` and its hooks stay. It gains one child module, ``morpho``, that holds the seeds.

    The kind of network that grows is chosen here, by ``config.blueprint.kind``, among those that
    :func:`~lightning_morpho.register_blueprint` knows. The original design's method ``register_blueprint`` on a
    layer is left out: the parameters of all beds are made with the layer, optimizers and checkpoints hold them, and
    another kind needs others. ``unmorph_`` and ``morph_`` change it while every seed is dormant.

    Args:
        layer: Exactly an ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
        config: Number of seeds and beds, blueprint, lifecycle; its patterns, budget and rollout concern
            whole models and are not looked at here.
        name: Name in events and messages.

    Raises:
        TypeError: If the layer's type is another one.
        ValueError: For more seeds than features, or an unknown blueprint.

    Example:
        >>> from lightning_morpho import LayersConfig
        >>> layer = ChunkedKasminaLayer(nn.Linear(8, 6), MorphoConfig(layers=LayersConfig(num_seeds=3)))
        >>> layer.request_germination([0, 2])
        [0, 2]
        >>> layer.seed(2)
        LogicalSeed(chunk=2, generation=0, stage=LOADING, alpha=1, age=0, blueprint='neurons')
    """

    morpho: SeedBeds
    _morpho_idle: bool

    def __new__(
        cls, layer: nn.Module | None = None, config: MorphoConfig | None = None, name: str = "layer"
    ) -> ChunkedKasminaLayer:
        """Return the given layer, swapped; everything is checked before anything changes."""
        if layer is None:  # a copy in the making: `torch.nn.utils.parametrize` copies like this
            return object.__new__(cls)
        config = config or MorphoConfig()
        return attach_(cls, layer, plan_blueprint(layer, config), config.layers.beds, config, name)

    def __init__(self, layer: nn.Module, config: MorphoConfig | None = None, name: str = "layer") -> None:
        # nn.Module's own would erase the parameters of the layer that __new__ returned.
        pass

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy by the two classes that make up the dynamic one."""
        return _bare, _origin(type(self)), self.__dict__

    def _choose_path(self) -> None:
        # Lies in the layer's own __dict__: the one thing that a dormant forward pass looks at.
        self.__dict__["_morpho_idle"] = self.morpho.idle

    def forward(self, input: Tensor) -> Tensor:
        """The base layer's output, plus what the seeds add."""
        if self._morpho_idle:
            return super().forward(input)
        return self.morpho(input, super().forward(input))

    @property
    def num_seeds(self) -> int:
        """Seeds of this layer, one a chunk."""
        return len(self.morpho.state)

    @property
    def chunks(self) -> ChunkManager:
        """Layout of the chunks."""
        return self.morpho.blueprint.site.chunks

    def seed(self, chunk: int) -> LogicalSeed:
        """View of the current seed of a chunk.

        Raises:
            ValueError: For a chunk out of range.
        """
        self.chunks.check_index(chunk)
        return self.morpho.seed_at(chunk)

    def request_germination(self, chunks: int | Iterable[int] | None = None) -> list[int]:
        """Grow the blueprint in these chunks at once. The layer's output does not change by it.

        Args:
            chunks: One chunk, several, or None for every dormant one.

        Returns:
            The chunks that germinated.

        Raises:
            ValueError: For a chunk out of range or named twice.
            LifecycleError: If a seed is not dormant or no bed is free.
        """
        return self.morpho.germinate([int(chunks)] if isinstance(chunks, (int, np.integer)) else chunks)

    def cancel_germination(self, chunk: int) -> None:
        """Take a live seed back: it fades out over the next ticks and is culled.

        Raises:
            ValueError: For a chunk out of range.
            LifecycleError: If its seed is not live.
        """
        self.morpho.cancel([chunk])

    def get_layer_stats(self) -> dict[str, Any]:
        """Sums over all seeds, as plain values that go into JSON or a logger.

        Returns:
            ``blueprint``; ``seeds``: how many are in each stage that any is in; ``kept_seeds``: fossils, those of
            earlier generations too; ``germinations`` so far; ``beds``; ``free_beds``: germinations that the layer can
            still take, 0 before its pair is confirmed; ``kept_parameters`` of the beds with fossils alone and
            ``live_parameters`` of all else in use; ``mean_alpha`` of the live seeds, NaN without any; ``errors``
            contained so far.

        Example:
            >>> from lightning_morpho import BlueprintConfig, LayersConfig
            >>> config = MorphoConfig(layers=LayersConfig(num_seeds=3), blueprint=BlueprintConfig(hidden=4))
            >>> layer = ChunkedKasminaLayer(nn.Linear(8, 6), config)
            >>> _ = layer.request_germination([0, 2])
            >>> stats = layer.get_layer_stats()
            >>> stats["seeds"], stats["live_parameters"], stats["mean_alpha"]
            ({'DORMANT': 1, 'LOADING': 2}, 60, 1.0)
        """
        return layer_stats(self.morpho)

    def get_health_report(self) -> list[dict[str, Any]]:
        """One entry a seed, in the order of the chunks, as plain values.

        Returns:
            For each: ``chunk``, ``generation``, ``stage``, ``alpha``, ``age`` in ticks, ``errors``, ``recovering``
            and ``statistics`` of its chunk by name as last sampled; NaN for one that was not measured.

        Example:
            >>> layer = ChunkedKasminaLayer(nn.Linear(8, 6))
            >>> entry = layer.get_health_report()[0]
            >>> entry["stage"], entry["errors"], entry["statistics"]["gradient_ratio"]
            ('DORMANT', 0, nan)
        """
        return health_report(self.morpho)

    def advance(self, losses: Sequence[float | None] = ()) -> None:
        """One decision tick, in a loop of your own: ages rise, stages advance, blend weights move.

        Args:
            losses: Validation loss at each tick so far, for the gates that look at it.
        """
        self.morpho.advance(losses, self.weight)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """The base layer's, and the seeds'."""
        return f"{super().extra_repr()}, seeds={self.num_seeds}, beds={len(self.morpho.beds)}"


class HybridKasminaLayer(ChunkedKasminaLayer):
    """Base and chunked implementation behind one switch.

    While every seed is dormant both are the same function, bit for bit. Switching keeps all state; in the
    base implementation the beds get no gradient, and nothing of the seeds moves or ages in a fit.
    """

    @property
    def implementation(self) -> Literal["base", "chunked"]:
        """Which implementation runs: ``"chunked"``, or ``"base"`` as if there were no seeds."""
        return "base" if self.morpho.off else "chunked"

    @implementation.setter
    def implementation(self, value: Literal["base", "chunked"]) -> None:
        if value not in ("base", "chunked"):
            raise ValueError(f"`implementation` must be 'base' or 'chunked', got {value!r}.")
        self.morpho.switch(value == "chunked")

    def set_features(self, features: Mapping[str, bool]) -> None:
        """Say which further features (such as ``fused_kernels``) the rollout gives this layer."""
        if features != self.morpho.features:
            self.morpho.features = dict(features)
            self.morpho.refresh()


def plan_blueprint(layer: nn.Module, config: MorphoConfig, route: Route | None = None) -> Blueprint:
    """Check that seeds can grow in a layer, and describe what they would be.

    Args:
        layer: The layer.
        config: Kind of network and number of seeds; kind ``"auto"`` is ``"span"`` with a route, else
            ``"neurons"``.
        route: The way from its producers, if it has any.

    Raises:
        TypeError: If the layer's type is not an eligible one.
        ValueError: For more seeds than features, an unknown blueprint, or one that suits the layer or the blend
            not.
    """
    if not is_eligible_type(type(layer)):
        raise TypeError(
            f"`layer` must be exactly an nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, got {type(layer).__name__}."
        )
    features = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    site = Site.of(layer, ChunkManager(int(features), config.layers.num_seeds))  # type: ignore[arg-type]
    kind, blueprint = config.blueprint.kind, config.blueprint
    if blueprint.hidden == BUDGET:  # a single layer has no budget to fill; `morph_` fills that of a model
        blueprint = replace(blueprint, hidden=AUTO)
    if route is not None and kind in (AUTO, "span"):
        return _blendable(Span(site, blueprint, route), config.grafting.blend)
    chosen = blueprint_type("neurons" if kind == AUTO else kind)
    if chosen.layers and type(layer) not in chosen.layers:
        raise ValueError(
            f"Blueprint `{chosen.kind}` is for {[t.__name__ for t in chosen.layers]}, "
            f"got a layer {type(layer).__name__}: "
            "leave it out with `layers.exclude`, or choose another `blueprint.kind`."
        )
    made = chosen(site, blueprint)
    return _blendable(made, config.grafting.blend)


def _blendable(blueprint: Blueprint, blend: str) -> Blueprint:
    """Refuse a blend that would not do what it says with this kind of network."""
    sources = {"add": None, "multiply": ("chunk", "input", "output"), "lerp": ("chunk",)}[blend]
    if sources is not None and blueprint.source not in sources:
        raise ValueError(
            f"`grafting.blend: {blend}` can't be used with blueprint `{blueprint.kind}`, which reads the layer's "
            f"{blueprint.source}: choose a `blueprint.kind` that reads one of {list(sources)} "
            "(`mlp` reads the chunk), or `grafting.blend: add`."
        )
    return blueprint


def plan_route(pair: Pair, consumer: nn.Module, producers: Sequence[nn.Module]) -> Route:
    """The way of new hidden units through a pair of layers."""
    sites = tuple(Site.of(p, ChunkManager(out_channels(p), 1)) for p in producers)
    biased = tuple(getattr(p, "bias", None) is not None for p in producers)
    return Route(pair, sites, biased, positions_of(pair, producers[0], consumer))


def attach_(
    mixin: type[ChunkedKasminaLayer],
    layer: nn.Module,
    blueprint: Blueprint,
    beds: int,
    config: MorphoConfig,
    name: str,
) -> ChunkedKasminaLayer:
    """Swap the class of a layer in place and give it seeds."""
    seeds = SeedBeds(name, blueprint, beds, layer.weight, config)  # type: ignore[arg-type]
    layer.__class__ = _swapped(mixin, type(layer))
    layer.morpho = seeds
    assert isinstance(layer, ChunkedKasminaLayer)
    seeds.on_change = layer._choose_path
    layer._choose_path()
    return layer


def detach_(layer: ChunkedKasminaLayer) -> nn.Module:
    """Give a dormant layer its own class back, in place.

    Raises:
        LifecycleError: If a seed lives in it: its function would change.
    """
    if not layer.morpho.dormant:
        raise LifecycleError(
            f"Layer `{layer.morpho.name}` holds live seeds; removing them would change what it computes. "
            "Cull them first."
        )
    return strip_(layer)


def strip_(layer: ChunkedKasminaLayer) -> nn.Module:
    """Give a layer its own class back, in place, whatever lives in it."""
    del layer.morpho
    for key in [k for k in layer.__dict__ if k.startswith("_morpho")]:
        del layer.__dict__[key]
    layer.__class__ = _without_seeds(type(layer))  # type: ignore[assignment]
    return layer


_SWAPPED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _swapped(mixin: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The dynamic class of two, always the same object."""
    if (mixin, base) not in _SWAPPED:
        name = mixin.__name__.removesuffix("KasminaLayer") + base.__name__
        _SWAPPED[mixin, base] = type(name, (mixin, base), {"__module__": mixin.__module__})
    return _SWAPPED[mixin, base]


def _origin(kind: type[nn.Module]) -> tuple[type[nn.Module], type[nn.Module]]:
    """Mixin and base class of a dynamic class, or of one that a parametrization derived from it."""
    return next(pair for pair, swapped in _SWAPPED.items() if swapped in kind.__mro__)


def _without_seeds(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that a layer has without seeds; parametrizations made after the swap stay."""
    mixin, base = _origin(kind)
    if kind is _SWAPPED[mixin, base]:
        return base
    members = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), members)


def _bare(mixin: type[nn.Module], base: type[nn.Module]) -> nn.Module:
    """An instance of the dynamic class without any state, for pickle and copy."""
    return object.__new__(_swapped(mixin, base))
