"""The model card of a grown architecture, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_morpho.export.source import changed_modules
from lightning_morpho.layers import HybridKasminaLayer
from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.events import SeedRecord


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an exported model comes from.

    Attributes:
        model: Name of its class.
        source: What it was trained from, in the words of who exports it, such as the name of a checkpoint.
        versions: Version of each package that made it.
        before: Parameters before growth.
        after: Parameters now.
    """

    model: str
    source: str
    versions: Mapping[str, str]
    before: int
    after: int

    def metadata(self) -> dict[str, str]:
        """Plain strings, as they stand in the files."""
        return {
            "model": self.model,
            "source": self.source,
            "parameters_before": str(self.before),
            "parameters": str(self.after),
            **{f"{name}_version": version for name, version in self.versions.items()},
        }


def layer_rows(host: nn.Module, plain: nn.Module) -> list[tuple[str, str, str]]:
    """Name of each layer that changed, what it was and what it is."""
    return [
        (name or "(the model)", _shape(host.get_submodule(name)), _shape(module))
        for name, module in changed_modules(host, plain).items()
    ]


def _shape(module: nn.Module) -> str:
    sides = [child for key, child in module.named_children() if key.startswith("side")]
    if sides:
        grown = " + ".join(_chain(side) for side in sides)
        return f"{_shape(module.get_submodule('base'))} + {grown}"
    sizes = [getattr(module, key, None) for key in ("in_features", "out_features", "in_channels", "out_channels")]
    known = [str(size) for size in sizes if size is not None] or [str(getattr(module, "num_features", ""))]
    return f"{type(module).__name__}({' → '.join(known)})"


def _chain(module: nn.Module) -> str:
    if not isinstance(module, nn.Sequential):
        return type(module).__name__
    return ", ".join(_shape(child) if list(child.parameters()) else type(child).__name__ for child in module)


def seed_rows(layers: Mapping[str, HybridKasminaLayer], records: Sequence[SeedRecord]) -> list[tuple[str, ...]]:
    """Every seed that is part of the model: name, kind, step of birth, stage, and what it is worth."""
    known = {record.key: record for record in records}
    rows = []
    for layer in layers.values():
        seeds = layer.morpho
        for index in range(0 if seeds.off else len(seeds.beds)):
            bed = seeds.bed_at(index)
            for chunk in bed.occupied.nonzero()[0].tolist():
                stage = Stage.FOSSILIZED.name if bed.kept[chunk] else seeds.seed_at(chunk).stage.name
                record = known.get((seeds.name, chunk, int(bed.generation[chunk])))
                rows.append(
                    (_seed_name(seeds.name, chunk, int(bed.generation[chunk])), seeds.kind, *_evidence(record, stage))
                )
    return rows


def _seed_name(layer: str, chunk: int, generation: int) -> str:
    return f"{layer}[{chunk}]" + (f" #{generation}" if generation else "")


def _evidence(record: SeedRecord | None, stage: str) -> tuple[str, ...]:
    if record is None:
        return "", stage, "no record at hand", ""
    rise, lower = record.figures.get("rise"), record.figures.get("lower")
    worth = "not measured"
    if rise is not None and math.isfinite(rise):
        worth = f"{rise:+.4f}" + (f" (> {lower:+.4f})" if lower is not None and math.isfinite(lower) else "")
    return str(record.born_step), stage, worth, record.reason


def model_card(
    origin: Origin,
    layers: Sequence[tuple[str, str, str]],
    seeds: Sequence[tuple[str, ...]],
    files: Sequence[tuple[str, str, str]],
) -> str:
    """The card.

    Args:
        origin: Where the model comes from.
        layers: Rows of :func:`layer_rows`.
        seeds: Rows of :func:`seed_rows`.
        files: Name of each file, how far it is from the grown model, and the code that loads it.
    """
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    parts = [
        f"# {origin.model}, grown",
        f"A network that grew while it trained, as plain PyTorch. It has {origin.after:,} parameters; before it grew "
        f"it had {origin.before:,}.",
        f"Origin: {origin.source}. Written with {versions}." if origin.source else f"Written with {versions}.",
        "## Layers that changed",
        _table(("layer", "before growth", "now"), layers) if layers else "None.",
        "## Seeds that are part of it",
        'The column "loss without it" is the mean rise of the held-out loss without the seed, with its lower '
        "confidence bound.",
        _table(("seed", "grew", "born at step", "stage", "loss without it", "reason"), seeds) if seeds else "None.",
        "## Files",
        _table(("file", "largest difference from the grown model"), [row[:2] for row in files]),
        *(f"`{name}`:\n\n```python\n{code}\n```" for name, _, code in files),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
