"""Small tasks for examples and tests: data and hosts that train in seconds."""

from lightning_morpho.tasks.mnist1d import MNIST1D, ConvClassifier

__all__ = ["MNIST1D", "ConvClassifier"]
