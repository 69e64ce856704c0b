"""What a run starts from: configuration, versions, model, eligibility. Plain values for the run log."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_morpho.blueprints import is_eligible_type
from lightning_morpho.eligibility import EligibilityReport
from lightning_morpho.integrations.duration import total_steps
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.telemetry.run_log import plain

PACKAGES = ("lightning-morpho", "torch", "lightning", "torchmetrics", "numpy", "triton")


def describe_versions() -> dict[str, str]:
    """Version of each package that matters, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_trainer(trainer: Trainer) -> dict[str, Any]:
    """Length, devices and precision of a fit."""
    return {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "total_steps": total_steps(trainer),
        "world_size": trainer.world_size,
        "device": str(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
    }


def describe_model(pl_module: LightningModule) -> dict[str, Any]:
    """Size of the host, without what growth has prepared."""
    host = [p for name, p in pl_module.named_parameters() if ".morpho." not in f".{name}"]
    return {
        "class": type(pl_module).__name__,
        "parameters": sum(p.numel() for p in host),
        "trainable": sum(p.numel() for p in host if p.requires_grad),
        "modules": sum(".morpho" not in f".{name}" for name, _ in pl_module.named_modules()),
    }


def describe_layer(layer: HybridKasminaLayer) -> dict[str, Any]:
    """Geometry of a hybrid layer and of what may grow there."""
    seeds = layer.morpho
    return {
        "type": next(kind.__name__ for kind in type(layer).__mro__ if is_eligible_type(kind)),
        "features": layer.chunks.num_features,
        "seeds": layer.num_seeds if len(seeds.beds) else 0,
        "beds": len(seeds.beds),
        "bed_parameters": seeds.blueprint.numel() if len(seeds.beds) else 0,
        "blueprint": seeds.kind,
        "producers": [tap.producer.name for tap in seeds.inlets],
    }


def describe_section(section: object) -> object:
    """A section of the configuration as plain values, with its type where that is a choice."""
    content = plain(section)
    if is_dataclass(section) and isinstance(content, dict):
        return {"type": type(section).__name__, **content}
    return content


def describe_run(
    trainer: Trainer,
    pl_module: LightningModule,
    layers: Mapping[str, HybridKasminaLayer],
    report: EligibilityReport | None,
    sections: Mapping[str, object],
) -> dict[str, Any]:
    """The content of a ``"start"`` line, see :mod:`lightning_morpho.telemetry.run_log`.

    Args:
        trainer: The Trainer.
        pl_module: Its module, layers swapped.
        layers: The hybrid layers by name.
        report: What was decided about each module, None for a model that was swapped before.
        sections: The callback's arguments by name.
    """
    return {
        "versions": describe_versions(),
        "config": {name: describe_section(section) for name, section in sections.items()},
        "trainer": describe_trainer(trainer),
        "model": describe_model(pl_module),
        "eligibility": None if report is None else plain(report),
        "layers": {name: describe_layer(layer) for name, layer in layers.items()},
    }
