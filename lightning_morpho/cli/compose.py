"""Configurations of the command line: a config name with overrides, or a composed YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lightning_morpho.config import MorphoConfig


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which configuration is meant."""
    parser.add_argument("config", help="name of a config (train), or path of a composed YAML file")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides such as experiment=mnist1d")
    parser.add_argument("--config-dir", type=Path, help="folder of your own configs (default: the package's)")


def load_config(config: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> DictConfig:
    """Compose a configuration, or read one that was composed.

    Args:
        config: Name of a config, or path of a YAML file (such as ``.hydra/config.yaml`` of a run).
        overrides: Hydra overrides.
        config_dir: Folder of the config; None: the package's.

    Raises:
        ValueError: If there is no such config or an override does not fit.
    """
    if config.endswith((".yaml", ".yml")):
        loaded = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_dotlist(list(overrides)))
        if not isinstance(loaded, DictConfig):
            raise ValueError(f"`{config}` must hold a mapping.")
        return loaded
    try:
        with (
            initialize_config_dir(str(config_dir.resolve()), version_base="1.3")
            if config_dir is not None
            else initialize_config_module("lightning_morpho.configs", version_base="1.3")
        ):
            return compose(config, list(overrides))
    except HydraException as error:
        raise ValueError(str(error)) from error


def build(node: Any) -> Any:
    """Instantiate a node with plain lists and dicts inside.

    Raises:
        ValueError: With the message of what refused to be built.
    """
    try:
        return instantiate(node, _convert_="all")
    except HydraException as error:
        raise ValueError(str(error)) from error


def model_and_config(config: DictConfig) -> tuple[nn.Module, MorphoConfig]:
    """The model of a configuration, and how it grows.

    Raises:
        ValueError: If one of the two is missing.
    """
    for key in ("model", "morpho"):
        if config.get(key) is None:
            raise ValueError(f"The configuration has no `{key}`; it has {list(config)}. Add it, or choose another one.")
    callback: Any = build(config.morpho)
    model = build(config.model)
    model.configure_model() if hasattr(model, "configure_model") else None
    return model, callback.config
