"""Command line: ``morpho report``, ``watch``, ``inspect``, ``export``, ``flags``, ``ab``, ``replay``, ``reference``."""

from lightning_morpho.cli.main import main

__all__ = ["main"]
