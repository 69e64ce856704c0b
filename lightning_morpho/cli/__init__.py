"""Command line: ``morpho flags``, ``morpho inspect``, ``morpho ab``, ``morpho reference``."""

from lightning_morpho.cli.main import main

__all__ = ["main"]
