"""The files in which a plain model leaves, and how each is loaded again."""

from __future__ import annotations

import copy
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_morpho.export.example import Example
from lightning_morpho.export.programs import OnnxModel, load_program, trace, write_onnx, write_program
from lightning_morpho.export.source import architecture_source

Loaded = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all formats of one export share.

    Attributes:
        plain: The exported model.
        host: The model as it was before growth: its class and sizes.
        example: How it is called.
        metadata: Plain strings that go into the files.
        dynamic_batch: Whether programs take any number of samples.
    """

    plain: nn.Module
    host: nn.Module
    example: Example
    metadata: Mapping[str, str]
    dynamic_batch: bool

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The traced model; made once for all formats that need it."""
        return trace(self.plain, self.example, dynamic_batch=self.dynamic_batch)


class Format(ABC):
    """A kind of file. Its name is its suffix.

    Attributes:
        packages: What it needs beyond torch.
        extra: The extra of this package that installs them.
        traced: Whether it holds a program, made for one example.
    """

    packages: tuple[str, ...] = ()
    extra = ""
    traced = False

    def check(self, model: nn.Module) -> None:
        """Check all that can be known before anything is written.

        Raises:
            ImportError: If a package is missing.
        """
        try:
            for package in self.packages:
                importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"The format {self.extra!r} needs `pip install 'lightning-morpho[{self.extra}]'`: {error}"
            ) from error

    def files(self, name: str) -> list[str]:
        """Names of the files beside the main one."""
        return []

    @abstractmethod
    def write(self, work: Work, path: Path) -> Loaded:
        """Write it, and load it again."""

    @abstractmethod
    def loading(self, work: Work, name: str) -> str:
        """The code that loads it."""


class Whole(Format):
    """The plain model as it is, by ``torch.save``."""

    def write(self, work: Work, path: Path) -> Loaded:
        """Write it, and load it again."""
        torch.save(work.plain, path)
        loaded: Loaded = torch.load(path, weights_only=False)
        return loaded

    def loading(self, work: Work, name: str) -> str:
        """The code that loads it."""
        return f'import torch\n\nmodel = torch.load("{name}.pt", weights_only=False)  # needs your own classes'


class Program(Format):
    """A program, by ``torch.export``."""

    traced = True

    def write(self, work: Work, path: Path) -> Loaded:
        """Write it, and load it again."""
        write_program(work.program, path, work.metadata)
        return load_program(path)

    def loading(self, work: Work, name: str) -> str:
        """The code that loads it."""
        return f'import torch\n\nmodel = torch.export.load("{name}.pt2").module()'


class Onnx(Format):
    """An ONNX graph."""

    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    traced = True

    def check(self, model: nn.Module) -> None:
        """Check packages and precision.

        Raises:
            ImportError: If a package is missing.
            ValueError: If the model holds bfloat16, which can't be checked by numpy.
        """
        super().check(model)
        if any(p.dtype is torch.bfloat16 for p in model.parameters()):
            raise ValueError(
                "The format 'onnx' is checked in numpy, which has no bfloat16: export a copy in float32, such as "
                "`copy.deepcopy(model).float()`."
            )

    def write(self, work: Work, path: Path) -> Loaded:
        """Write it, and load it again."""
        write_onnx(work.program, path, work.metadata)
        return OnnxModel(path)

    def loading(self, work: Work, name: str) -> str:
        """The code that loads it."""
        return (
            f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}.onnx")\n'
            "outputs = session.run(None, {session.get_inputs()[0].name: batch.numpy()})"
        )


class Weights(Format):
    """The weights, and the architecture as Python source."""

    packages = ("safetensors",)
    extra = "safetensors"

    def files(self, name: str) -> list[str]:
        """The source; its name can be imported."""
        return [f"{self._module(name)}.py"]

    def _module(self, name: str) -> str:
        return re.sub(r"\W", "_", f"_{name}" if name[:1].isdigit() else name)

    def write(self, work: Work, path: Path) -> Loaded:
        """Write both, and fill a copy of the host with them."""
        from safetensors.torch import save_model

        version = work.metadata["lightning-morpho_version"]
        source = architecture_source(work.host, work.plain, weights=path.name, version=version)
        path.with_name(f"{self._module(path.stem)}.py").write_text(source, encoding="utf-8")
        save_model(work.plain, str(path), dict(work.metadata))
        space: dict[str, Any] = {"__name__": self._module(path.stem)}
        exec(compile(source, self._module(path.stem), "exec"), space)
        loaded: Loaded = space["load"](copy.deepcopy(work.host), str(path))
        return loaded

    def loading(self, work: Work, name: str) -> str:
        """The code that loads it."""
        return (
            f"from {self._module(name)} import load  # the Python file beside the weights\n\n"
            f'model = load(fresh, "{name}.safetensors")  # fresh: a {type(work.host).__name__} as before it grew'
        )


FORMATS: Mapping[str, Format] = {"pt": Whole(), "pt2": Program(), "onnx": Onnx(), "safetensors": Weights()}
"""The formats by name."""
