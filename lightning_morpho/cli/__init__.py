"""Command line: ``morpho report``, ``watch``, ``inspect``, ``export``, ``flags``, ``ab``, ``reference``."""

from lightning_morpho.cli.main import main

__all__ = ["main"]
