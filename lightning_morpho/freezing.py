"""A host that stands still while its seeds train, and beds that every optimizer takes."""

from __future__ import annotations

from torch import nn

from lightning_morpho.layers import GrownParameters
from lightning_morpho.surgery import hybrid_layers


class FrozenHost:
    """Keeps everything of a model but its beds from training, until :meth:`thaw`.

    Parameters that trained stop to (``requires_grad=False``), those of losses and metrics too. Norms with running
    statistics (BatchNorm) go on with the statistics that they have, in training too, and don't update them.
    Dropout stays as it is.

    Args:
        model: A model with hybrid layers.

    Example:
        >>> from lightning_morpho import morph_
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> report = morph_(model)
        >>> host = FrozenHost(model)
        >>> host.hold_statistics(), model[0].weight.requires_grad, model[1].training
        (None, False, False)
        >>> host.thaw(), model[0].weight.requires_grad
        (None, True)
    """

    def __init__(self, model: nn.Module) -> None:
        seeds = [layer.morpho for layer in hybrid_layers(model).values()]
        beds = {id(p) for held in seeds for p in held.parameters()}
        inner = {id(m) for held in seeds for m in held.modules()}
        self._parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in beds]
        self._norms = [
            m for m in model.modules() if getattr(m, "running_mean", None) is not None and id(m) not in inner
        ]
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def hold_statistics(self) -> None:
        """To be called before each training batch: Trainers put the whole model into training mode."""
        for norm in self._norms:
            if norm.training:
                norm.eval()

    def thaw(self) -> None:
        """Let everything train again that did."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._parameters = []


def beds_of_model(model: nn.Module) -> list[GrownParameters]:
    """All beds and links of a model."""
    return [bed for layer in hybrid_layers(model).values() for bed in layer.morpho.grown()]


def show_beds_(model: nn.Module) -> None:
    """Let all beds look trainable while optimizers are made.

    Many ``configure_optimizers`` take only parameters with ``requires_grad``. Free beds have none, and would come
    to the optimizer later, in another order in a resumed run than in the first one; with a frozen host there would
    be nothing to optimize at all. :func:`hide_free_beds_` ends it.
    """
    for bed in beds_of_model(model):
        bed.show()


def hide_free_beds_(model: nn.Module) -> None:
    """Let beds look as they are again: only those that train have ``requires_grad``."""
    for bed in beds_of_model(model):
        bed.hide()
