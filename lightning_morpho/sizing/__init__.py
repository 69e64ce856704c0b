"""How wide a net should be: whether to grow, and which hidden units stay."""

from lightning_morpho.sizing.cull import Score, resize_
from lightning_morpho.sizing.penalty import Penalty, outgoing_weights, shrink_
from lightning_morpho.sizing.whether import assess

__all__ = ["Penalty", "Score", "assess", "outgoing_weights", "resize_", "shrink_"]
