"""How wide a net should be: whether to grow, and which hidden units stay."""

from lightning_morpho.sizing.cull import Errors, Score, resize_
from lightning_morpho.sizing.penalty import Penalty, outgoing_weights, shrink_
from lightning_morpho.sizing.whether import assess

__all__ = ["Errors", "Penalty", "Score", "assess", "outgoing_weights", "resize_", "shrink_"]
