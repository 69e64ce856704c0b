"""What a blueprint is, and the registry of those there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_morpho.blueprints.probe import probe as probe_blueprint
from lightning_morpho.blueprints.site import Site
from lightning_morpho.checks import check_choice
from lightning_morpho.config import BlueprintConfig

Source = Literal["chunk", "input", "output", "producer"]

ACTIVATION_MODULES: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "selu": F.selu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Blueprint(ABC):
    """A kind of network that a seed grows, described for all chunks of a layer at once.

    A blueprint owns no parameters: a bed does, and hands them to it. It must give exactly zero right
    after :meth:`reset_`, and yet receive a gradient: through a final factor of zero.

    Args:
        site: Geometry of the base layer.
        config: Its hyper-parameters.

    Attributes:
        kind: Its name in the registry.
        source: What it reads: the layer's ``"input"``, its ``"output"``, each ``"chunk"`` of that, or the
            input of the ``"producer"`` layer before it.
        layers: Types of layer that it is for, all of which it must work in; empty: not declared, and it must work in
            one of them at least.
        folds: Whether what it adds is linear in the layer's input, so that export puts it into the layer's own
            weights with :meth:`fold`.

    Raises:
        ValueError: For an unknown activation.
    """

    kind: ClassVar[str] = ""
    source: ClassVar[Source]
    layers: ClassVar[tuple[type[nn.Module], ...]] = ()
    folds: bool = False

    def __init__(self, site: Site, config: BlueprintConfig) -> None:
        check_choice(config.activation, "blueprint.activation", sorted(ACTIVATIONS))
        self.site = site
        self.config = config
        self.activation = ACTIVATIONS[config.activation]

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of a bed, by name."""

    @abstractmethod
    def reset_(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Draw new parameters in place, from a CPU generator, such that the output is exactly zero."""

    @abstractmethod
    def grow(self, parameters: Mapping[str, Tensor], source: Tensor) -> Tensor:
        """The seeds' contribution, before alpha.

        Args:
            parameters: The bed's parameters.
            source: The layer's input in its own layout; or for ``source="chunk"`` all chunks of the
                layer's output as ``(N, M, width)``, M positions, narrow chunks padded with zeros.

        Returns:
            ``source="chunk"``: ``(N, M, width)``; else the layer's output layout.
        """

    @property
    def units(self) -> int:
        """Hidden units of a bed that can be removed one by one; 0 where the sizing rule does not reach."""
        return 0

    def train(self, mode: bool) -> None:  # noqa: B027
        """Say whether the model trains or is evaluated; only a blueprint that differs between them cares."""

    def norms(self) -> list[nn.Module]:
        """New norms of a bed, one for each norm of the host that its units pass; none by default."""
        return []

    def plain(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        """The same function as a module made of ``torch.nn`` parts alone, for export.

        Args:
            parameters: The bed's parameters.

        Returns:
            A module that maps what the blueprint reads (for ``source="chunk"`` the layer's whole output)
            to the contribution, in the layer's output layout.

        Raises:
            NotImplementedError: If the blueprint does not say how.
        """
        raise NotImplementedError(
            f"Blueprint `{self.kind}` has no plain form: give {type(self).__name__} a method `plain`, "
            "or cull its seeds before `export`."
        )

    def fold(
        self, parameters: Mapping[str, Tensor], alpha: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What seeds add to the weight and the bias of their layer, for kinds with ``folds``, for export.

        Args:
            parameters: The bed's parameters.
            alpha: Blend weight of each output feature, ``(out_features,)``.
            weight: The base layer's weight, ``(out_features, in_features / groups, *kernel)``.
            bias: Its bias, ``(out_features,)``, or None.

        Returns:
            What to add to each, in their shapes; None for a bias to which nothing is added.

        Raises:
            NotImplementedError: If the blueprint does not fold.
        """
        raise NotImplementedError(f"Blueprint `{self.kind}` does not fold into the weights of its layer.")

    def merge(self, parameters: Sequence[Mapping[str, Tensor]], alphas: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """One network that gives the weighted sum of several, so that one launch does for all beds.

        Args:
            parameters: Parameters of each bed.
            alphas: Blend weight of each output feature of each bed, ``(out_features,)``.

        Returns:
            Parameters for :meth:`grow`, None if this kind has no such form.
        """
        return None

    def numel(self) -> int:
        """Parameters of one bed."""
        own = sum(torch.Size(shape).numel() for shape in self.shapes().values())
        return own + sum(p.numel() for norm in self.norms() for p in norm.parameters())


_REGISTRY: dict[str, type[Blueprint]] = {}


def register_blueprint(name: str, *, probe: bool = True) -> Callable[[type[Blueprint]], type[Blueprint]]:
    """Class decorator: make a :class:`Blueprint` available as ``blueprint.kind: <name>``.

    The class is tried on small layers first, linear ones and convolutions, so that a wrong shape, a newborn that is
    not exactly zero, or one without a gradient shows here and not in a run.

    Args:
        name: A new name in the registry.
        probe: Whether to try it; False for one that needs a large layer or a GPU.

    Raises:
        ValueError: If the name is taken, or the class does not do what a blueprint must; then it is not registered.
        TypeError: If the class is no Blueprint.

    Example:
        >>> @register_blueprint("scale")  # doctest: +ELLIPSIS
        ... class Scale(Blueprint):
        ...     source = "output"
        ...
        ...     def shapes(self):
        ...         return {"gain": (self.site.out_features,)}
        ...
        ...     def reset_(self, parameters, generator):
        ...         parameters["gain"].fill_(0.5)
        ...
        ...     def grow(self, parameters, source):
        ...         return source * self.site.per_feature(parameters["gain"])
        Traceback (most recent call last):
            ...
        lightning_morpho.blueprints.probe.ProbeError: Blueprint `scale` in Linear(...) with 2 seeds must give ...
    """

    def register(blueprint: type[Blueprint]) -> type[Blueprint]:
        if name in _REGISTRY:
            raise ValueError(f"A blueprint named {name!r} is registered already: {_REGISTRY[name].__name__}.")
        if not (isinstance(blueprint, type) and issubclass(blueprint, Blueprint)):
            raise TypeError(f"`{name}` must be a subclass of Blueprint, got {blueprint!r}.")
        before, blueprint.kind = blueprint.kind, name
        if probe and blueprint.source != "producer":
            try:
                probe_blueprint(blueprint)
            except ValueError:
                blueprint.kind = before
                raise
        _REGISTRY[name] = blueprint
        return blueprint

    return register


def blueprint_type(name: str, key: str = "blueprint.kind") -> type[Blueprint]:
    """The blueprint class of that name.

    Args:
        name: Name in the registry.
        key: Where the name stands, for the message.

    Raises:
        ValueError: For an unknown name, with those there are.
    """
    check_choice(name, key, sorted(_REGISTRY))
    return _REGISTRY[name]


def uniform_(weight: Tensor, fan_in: int, generator: torch.Generator) -> None:
    r"""Fill with :math:`U(-1/\sqrt{fan_{in}}, 1/\sqrt{fan_{in}})`, torch's default for layers, in place."""
    draw = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        weight.copy_((2 * draw - 1) / fan_in**0.5)


def reset_silent_(parameters: Mapping[str, Tensor], fan_in: int, generator: torch.Generator) -> None:
    """Torch's default for ``w_in`` and, if there is one, ``b_in``, zero for ``w_out``: silent, with a live gradient."""
    uniform_(parameters["w_in"], fan_in, generator)
    if "b_in" in parameters:
        uniform_(parameters["b_in"], fan_in, generator)
    with torch.no_grad():
        parameters["w_out"].zero_()
