"""Which layers form pairs between which hidden units can grow."""

from lightning_morpho.pairs.find import PairReport, explicit_pair, find_pairs
from lightning_morpho.pairs.flow import Pair
from lightning_morpho.pairs.operations import Step, register_channelwise
from lightning_morpho.pairs.probe import NOT_CALLED, PairProbe

__all__ = [
    "NOT_CALLED",
    "Pair",
    "PairProbe",
    "PairReport",
    "Step",
    "explicit_pair",
    "find_pairs",
    "register_channelwise",
]
