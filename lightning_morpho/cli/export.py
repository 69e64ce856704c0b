"""``morpho export``: a checkpoint of a grown model as files that need no code of ours."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from lightning_morpho.checkpoint import load_grown_, read_checkpoint
from lightning_morpho.cli.compose import add_config_arguments, build, load_config, model_and_config
from lightning_morpho.cli.parsing import add_command
from lightning_morpho.export import FORMATS, save_export
from lightning_morpho.telemetry.events import SeedRecord

DESCRIPTION = """Write the grown model of a checkpoint as files that need no code of ours to be loaded.
Each is loaded again and compared with the grown model; nothing is written if one differs.
A model card lies beside them."""
EPILOG = """example:
  morpho export runs/mnist1d/2026-01-31_12-00-00/.hydra/config.yaml --ckpt last.ckpt --to pt2 onnx --out exported/net
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "export",
        run,
        help="write a grown model as plain PyTorch, torch.export, ONNX or safetensors, with a model card",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_config_arguments(parser)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder and name of the files, without a suffix")
    parser.add_argument("--to", nargs="+", default=["pt", "pt2"], choices=list(FORMATS), help="formats")
    parser.add_argument("--module", default="", help="part of the model that is exported, such as net (default: all)")
    parser.add_argument("--example", type=Path, help="file of a batch, by torch.save (default: a validation batch)")
    parser.add_argument("--keep-unread", action="store_true", help="keep hidden units that nothing reads")
    parser.add_argument("--static-batch", action="store_true", help="programs take as many samples as the example has")
    parser.add_argument("--tolerance", type=float, help="largest difference accepted (default: 1e-5 in float32)")


def run(options: argparse.Namespace) -> int:
    """Build the model, load the checkpoint into it, export, and print the differences."""
    config = load_config(options.config, options.overrides, options.config_dir)
    model, morpho = model_and_config(config)
    checkpoint = read_checkpoint(options.ckpt)
    try:
        load_grown_(model, checkpoint, pairs=morpho.layers.pairs)
        report = save_export(
            model.get_submodule(options.module),
            options.out,
            _example(options, config, model),
            formats=options.to,
            prune=not options.keep_unread,
            dynamic_batch=not options.static_batch,
            tolerance=options.tolerance,
            records=seed_records(checkpoint),
            origin=f"checkpoint `{options.ckpt.name}`",
        )
    except (RuntimeError, AttributeError, ImportError) as error:  # of loading, of `--module`, of a missing package
        raise ValueError(str(error)) from error
    print(report)
    return 0


def seed_records(checkpoint: Mapping[str, Any]) -> list[SeedRecord]:
    """What a checkpoint of the callback knows of each seed that left dormancy; nothing of other checkpoints."""
    states = [s for s in checkpoint.get("callbacks", {}).values() if isinstance(s, Mapping) and "engine" in s]
    return [SeedRecord(**record) for state in states for record in state["engine"]["records"]]


def _example(options: argparse.Namespace, config: DictConfig, model: nn.Module) -> Any:
    """The arguments of one call of what is exported."""
    if options.example is not None:
        return torch.load(options.example, map_location="cpu", weights_only=True)
    if getattr(model, "example_input_array", None) is not None:
        return model.example_input_array
    if config.get("data") is None:
        raise ValueError("The configuration has no `data` to take an example batch of: give one with `--example`.")
    data: Any = build(config.data)
    data.prepare_data()
    data.setup("fit")
    return forward_arguments(next(iter(data.val_dataloader())), model.get_submodule(options.module))


def forward_arguments(batch: Any, module: nn.Module) -> Any:
    """What of a batch a module's forward is called with: the first of several tensors, or the keys that it names.

    Example:
        >>> forward_arguments([torch.ones(2, 3), torch.zeros(2)], nn.Linear(3, 1)).shape
        torch.Size([2, 3])
        >>> list(forward_arguments({"input": torch.ones(2, 3), "label": torch.ones(2)}, nn.Linear(3, 1)))
        ['input']
    """
    if isinstance(batch, Mapping):
        names = inspect.signature(module.forward).parameters
        return {key: value for key, value in batch.items() if key in names}
    return batch[0] if isinstance(batch, (list, tuple)) else batch
