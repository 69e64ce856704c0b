"""Hydra application: trains a model that grows, from configuration files and command-line overrides.

.. code-block:: bash

    python -m lightning_morpho.train experiment=mnist1d
    python -m lightning_morpho.train experiment=mnist1d morpho.rollout.enabled=false  # without growth
    python -m lightning_morpho.train experiment=mnist1d morpho/tamiyo=periodic morpho/blueprint=mlp
    python -m lightning_morpho.train --help  # all groups and their choices

The logs, events and checkpoints of a run lie under ``runs/<name>/<time>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_morpho.config import (
    BlueprintConfig,
    BudgetConfig,
    CreditConfig,
    GovernorConfig,
    GraftingConfig,
    LayersConfig,
    LifecycleConfig,
    RolloutConfig,
    StarvationConfig,
    TelemetryConfig,
    WarmupConfig,
    check_section,
)
from lightning_morpho.tamiyo import Tamiyo

SECTIONS: dict[str, type] = {
    "layers": LayersConfig,
    "blueprint": BlueprintConfig,
    "lifecycle": LifecycleConfig,
    "grafting": GraftingConfig,
    "warmup": WarmupConfig,
    "starvation": StarvationConfig,
    "budget": BudgetConfig,
    "rollout": RolloutConfig,
    "tamiyo": Tamiyo,
    "credit": CreditConfig,
    "governor": GovernorConfig,
    "telemetry": TelemetryConfig,
}


def _check_sections(morpho: object) -> None:
    """Refuse a bare string where a config group was meant, before anything is built."""
    if morpho is None:
        return
    if not isinstance(morpho, Mapping):
        raise TypeError(
            f"`morpho` must be a configuration of MorphoCallback or null, got {morpho!r}: Hydra found no "
            "config group for it. Choose it in the defaults list as `morpho: default` and check that this "
            "file exists."
        )
    for name, expected in SECTIONS.items():
        if isinstance(morpho.get(name), str):
            check_section(name, morpho[name], expected)


def _build(node: Any, **kwargs: Any) -> Any:
    """Instantiate a node with plain lists and dicts inside, as Python code would pass them."""
    return instantiate(node, _convert_="all", **kwargs)


def train(cfg: DictConfig) -> dict[str, float]:
    """Train, and test, what a configuration describes.

    Args:
        cfg: Configuration composed from ``train.yaml``. A ``morpho`` node of null trains without growth.

    Returns:
        The last values of all logged metrics, and ``trainable_parameters`` at the end of training.

    Raises:
        TypeError: If ``morpho``, or one of its sections, is a bare string.
    """
    _check_sections(cfg.get("morpho"))
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    callbacks = [] if cfg.get("morpho") is None else [_build(cfg.morpho)]
    data, model = _build(cfg.data), _build(cfg.model)
    loggers = list(_build(cfg.get("logger") or {}).values())
    trainer = _build(cfg.trainer, logger=loggers or False, callbacks=callbacks)
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))

    trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    metrics = dict(trainer.callback_metrics)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if cfg.test:
        trainer.test(model, datamodule=data)
        metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()} | {"trainable_parameters": parameters}


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Run :func:`train` on the configuration of the command line."""
    train(cfg)


if __name__ == "__main__":
    main()
