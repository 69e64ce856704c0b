"""Writing a grown model to files that need no code of ours, each checked before it stands."""

from __future__ import annotations

import copy
import importlib.metadata
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.export.card import Origin, layer_rows, model_card, seed_rows
from lightning_morpho.export.example import Example, evaluating, largest_difference
from lightning_morpho.export.formats import FORMATS, Work
from lightning_morpho.export.plain import export
from lightning_morpho.random_state import preserved_random_state
from lightning_morpho.surgery import hybrid_layers, unmorph_
from lightning_morpho.telemetry.events import SeedRecord

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Largest difference that is accepted, for outputs up to 1 in size; beyond, relative to the largest output."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how close it is to the grown model.

    Attributes:
        files: The files; the card is the last.
        differences: Largest absolute difference of the outputs by format.
        scale: Size of the largest output, at least 1; the tolerance is relative to it.
        limit: Differences above it would have been refused.
        before: Parameters before growth.
        after: Parameters of what was written.
    """

    files: tuple[Path, ...]
    differences: Mapping[str, float]
    scale: float
    limit: float
    before: int
    after: int

    def __str__(self) -> str:
        """One line a format, then the files."""
        lines = [f"{self.before:,} parameters before growth, {self.after:,} now"]
        lines += [
            f"{name}: largest difference {d:.1e} (limit {self.limit:.1e})" for name, d in self.differences.items()
        ]
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])


def _judged(difference: float, scale: float, limit: float) -> str:
    outputs = f"outputs up to {scale:.3g}, " if scale > 1 else ""
    return f"{difference:.1e} ({outputs}limit {limit:.1e})"


@preserved_random_state()
def save_export(
    model: nn.Module,
    path: str | Path,
    example: Any,
    *,
    formats: Sequence[str] = ("pt", "pt2"),
    prune: bool = True,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
    records: Sequence[SeedRecord] = (),
    origin: str = "",
) -> ExportReport:
    """Export a grown model to files, with a model card (``.md``) beside them.

    ===============  ==================================================================================
    ``pt``           the plain model, whole (``torch.save``); who loads it needs your own classes
    ``pt2``          a program (``torch.export``); who loads it needs torch alone
    ``onnx``         an ONNX graph, run with onnxruntime; needs the extra ``onnx``
    ``safetensors``  the weights with metadata, and a Python file that makes a fresh model of your class,
                     built as it was before it grew, the grown one; needs the extra ``safetensors``
    ===============  ==================================================================================

    Each file is loaded again and compared with the grown model, in evaluation mode, on the example and on another
    number of samples. If one differs by more than the tolerance, or can't be written, nothing is.

    Args:
        model: The grown model; it is not changed.
        path: Folder and name of the files, without a suffix.
        example: A batch as the model's forward takes it: one argument, a tuple or list of them, or a dict.
        formats: Which files to write.
        prune: As in :func:`export`.
        dynamic_batch: Whether programs take any number of samples: the first axis of each tensor of the example that
            is as long there as the first tensor.
        tolerance: Largest difference accepted, relative to the largest output where that exceeds 1. None: 1e-5 in
            float32, 1e-10 in float64, 0.01 in float16, 0.05 in bfloat16.
        records: Evidence of each seed, for the card: ``callback.engine.records``.
        origin: What the model was trained from, for the card and the metadata.

    Returns:
        What was written, and the differences.

    Raises:
        ValueError: If a format is unknown, the model does not run on the example or can't be traced, or a file differs
            too much.
        NotImplementedError: If a module of your own grew and ``"safetensors"`` is asked for.
        ImportError: If a package for a format is missing.

    Example:
        >>> from lightning_morpho import confirm_pairs_, morph_
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = morph_(model), confirm_pairs_(model, torch.ones(3, 4)), model[2].request_germination()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_export(model, f"{folder}/net", torch.ones(3, 4), formats=["pt"])
        ...     [path.name for path in report.files], report.differences["pt"] < 1e-6
        (['net.pt', 'net.md'], True)
    """
    model, path = getattr(model, "_orig_mod", model), Path(path)
    _check_formats(formats, model)
    call = Example.of(example, next((p.device for p in model.parameters()), "cpu"))
    with evaluating(model):
        plain, host = export(model, prune=prune), copy.deepcopy(model)
        references = _references(model, call, dynamic_batch and any(FORMATS[name].traced for name in formats))
    unmorph_(host, discard_live=True)
    scale, tolerance = _scale(references[0][1]), _tolerance(references[0][1], tolerance)
    limit = scale * tolerance
    about = _origin(host, plain, origin)
    work = Work(plain=plain, host=host, example=call, metadata=about.metadata(), dynamic_batch=dynamic_batch)
    with _staging(path.parent) as folder:
        differences = {name: _write(work, name, folder / path.name, references) for name in formats}
        _check_differences(differences, limit)
        seeds = seed_rows(hybrid_layers(model), records)
        card = model_card(about, layer_rows(host, plain), seeds, _file_rows(work, path.name, differences, scale, limit))
        (folder / f"{path.name}.md").write_text(card, encoding="utf-8")
        made = [file.replace(path.parent / file.name) for file in sorted(folder.iterdir())]
    files = sorted(made, key=lambda file: file.suffix == ".md")
    return ExportReport(
        files=tuple(files),
        differences=differences,
        scale=scale,
        limit=limit,
        before=about.before,
        after=about.after,
    )


def _check_formats(formats: Sequence[str], model: nn.Module) -> None:
    if isinstance(formats, str) or not formats or not set(formats) <= FORMATS.keys():
        raise ValueError(f"`formats` must be a list of some of {list(FORMATS)}, got {formats!r}.")
    for name in formats:
        FORMATS[name].check(model)


def _references(model: nn.Module, call: Example, dynamic_batch: bool) -> list[tuple[Example, list[Tensor]]]:
    """What the model gives for the example, and for another number of samples."""
    try:
        references = [(call, call.run(model))]
    except Exception as error:  # whatever the user's forward does not allow
        raise ValueError(
            f"`example` must be what {type(model).__name__}'s forward takes (one argument, a tuple or list of them, "
            f"or a dict): it does not run on it. It says: {error}"
        ) from error
    if dynamic_batch and call.batch is not None:
        other = call.resized(call.batch + 3)
        try:
            references.append((other, other.run(model)))
        except Exception as error:  # whatever the user's forward does not allow
            raise ValueError(
                f"{type(model).__name__} does not take {other.batch} samples in place of {call.batch}: pass "
                f"`dynamic_batch=False` for a program of that many samples alone. It says: {error}"
            ) from error
    return references


def _scale(outputs: Sequence[Tensor]) -> float:
    """Size of the largest finite output, at least 1."""
    sizes = [t.double().nan_to_num(0, 0, 0).abs().max() for t in outputs if t.is_floating_point() and t.numel()]
    return max([1.0, *map(float, sizes)])


def _tolerance(outputs: Sequence[Tensor], tolerance: float | None) -> float:
    """The tolerance asked for, else that of the coarsest output; nothing for integers."""
    if tolerance is not None:
        return tolerance
    return max((TOLERANCES.get(t.dtype, 1e-5) for t in outputs if t.is_floating_point()), default=0.0)


def _origin(host: nn.Module, plain: nn.Module, source: str) -> Origin:
    before, after = (sum(p.numel() for p in m.parameters()) for m in (host, plain))
    versions = {name: importlib.metadata.version(name) for name in ("lightning-morpho", "torch")}
    return Origin(model=type(host).__name__, source=source, versions=versions, before=before, after=after)


def _write(work: Work, name: str, stem: Path, references: Sequence[tuple[Example, list[Tensor]]]) -> float:
    """Write one format, load it again, and say how far it is from what is expected."""
    loaded = FORMATS[name].write(work, stem.with_name(f"{stem.name}.{name}"))
    return max(largest_difference(outputs, case.run(loaded)) for case, outputs in references)


def _file_rows(
    work: Work, stem: str, differences: Mapping[str, float], scale: float, limit: float
) -> list[tuple[str, str, str]]:
    """Name of each file, how far it is off, and the code that loads it."""
    return [
        (f"{stem}.{name}", _judged(d, scale, limit), FORMATS[name].loading(work, stem))
        for name, d in differences.items()
    ]


def _check_differences(differences: Mapping[str, float], limit: float) -> None:
    apart = [f"{name}: {d:.1e}" for name, d in differences.items() if not d <= limit]
    if apart:
        raise ValueError(
            f"The exported model differs from the grown one by more than {limit:.1e} ({', '.join(apart)}); nothing was "
            "written. A higher `tolerance` accepts it, if you know why."
        )


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A folder beside the target, from which finished files are moved there."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as folder:
        yield Path(folder)
