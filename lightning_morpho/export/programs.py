"""A plain model as a program: ``torch.export`` and ONNX."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.export.example import Example

METADATA_FILE = "lightning_morpho.json"
"""Name of the metadata inside a ``.pt2`` file."""


def trace(plain: nn.Module, example: Example, *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """The program of a plain model in evaluation mode.

    Args:
        plain: The model.
        example: How it is called.
        dynamic_batch: Whether the program takes any number of samples.

    Raises:
        ValueError: If the model can't be traced, or not for any number of samples.
    """
    example = example.resized(max(2, example.batch or 2))  # a batch of one sample would be taken for a constant
    shapes = _batch_axes(example) if dynamic_batch else None
    try:
        return torch.export.export(plain, example.args, dict(example.kwargs), dynamic_shapes=shapes)
    except Exception as error:  # whatever the user's forward does not allow
        way_out = " If it is tied to the number of samples, pass `dynamic_batch=False`." if dynamic_batch else ""
        raise ValueError(
            f"`torch.export` can't trace {type(plain).__name__}; the formats 'pt' and 'safetensors' need no trace."
            f"{way_out} It says: {error}"
        ) from error


def _batch_axes(example: Example) -> Any:
    """The first axis of each batched tensor is free, in the structure of the arguments."""

    def free(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return {0: torch.export.Dim.DYNAMIC} if example.is_batched(tree) else None
        if isinstance(tree, Mapping):
            return {key: free(value) for key, value in tree.items()}
        return type(tree)(free(value) for value in tree) if isinstance(tree, (list, tuple)) else None

    return free(dict(example.kwargs)) if example.kwargs else free(example.args)


def write_program(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a ``.pt2`` file."""
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(dict(metadata))})


def load_program(path: Path) -> nn.Module:
    """The module of a ``.pt2`` file."""
    return torch.export.load(path).module()


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ``.onnx`` file; weights above 2 GB go into a second file beside it."""
    with _quiet("torch.onnx"):
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    made.model.metadata_props.update(metadata)
    made.save(path)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Leave out what a logger says below errors: the exporter warns of optional packages that nobody asked for."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class OnnxModel:
    """An ``.onnx`` file run by onnxruntime on the CPU.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Run it on the tensors among the arguments."""
        names = [entry.name for entry in self.session.get_inputs()]
        named = dict(kwargs) if set(names) <= set(kwargs) else None
        tensors = Example(args, kwargs).tensors if named is None else [named[name] for name in names]
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(value) for value in self.session.run(None, feed)]
