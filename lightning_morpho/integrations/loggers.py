"""Histograms, pictures, tables and layouts for whatever logger can take them, found by what it offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

LAYOUT: Mapping[str, Mapping[str, list[Any]]] = {
    "growth": {
        "seeds": ["Multiline", ["morpho/run/seeds_.*"]],
        "parameters": ["Multiline", ["morpho/run/parameters", "morpho/run/added_parameters"]],
        "credit": ["Multiline", ["morpho/.*/credit"]],
        "alpha": ["Multiline", ["morpho/.*/alpha"]],
    },
    "health": {
        "silent units": ["Multiline", ["morpho/.*/silent"]],
        "gradients of seeds / host": ["Multiline", ["morpho/.*/gradient_ratio"]],
        "seconds a tick": ["Multiline", ["morpho/run/tick_seconds"]],
    },
}
"""Charts of a custom layout: tags as regular expressions, as TensorBoard takes them."""

Adapter = tuple[Callable[[Logger, Any], bool], Callable[..., object]]


def _offers(method: str, *, run: bool = False) -> Callable[[Logger, Any], bool]:
    """Whether an experiment has a method; ``run``: as MLflow's client has it, which wants the run's id first."""
    return lambda logger, experiment: (
        callable(getattr(experiment, method, None)) and _needs_run(logger, experiment) == run
    )


def _needs_run(logger: Logger, experiment: Any) -> bool:
    return hasattr(logger, "run_id") and hasattr(experiment, "log_batch")


def _is_wandb(logger: Logger, experiment: Any) -> bool:
    return type(experiment).__module__.split(".")[0] == "wandb"


def _wandb_histogram(logger: Any, experiment: Any, name: str, values: np.ndarray, step: int) -> None:
    import wandb

    logger.log_metrics({name: wandb.Histogram(values.tolist())}, step)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# What a logger can take, and how it is given there; the first that fits is used.
ADAPTERS: Mapping[str, tuple[Adapter, ...]] = {
    "histogram": (
        (_offers("add_histogram"), lambda lg, ex, name, values, step: ex.add_histogram(name, values, step)),
        (_is_wandb, _wandb_histogram),
        (_offers("log_histogram_3d"), lambda lg, ex, name, values, step: ex.log_histogram_3d(values, name, step)),
    ),
    "image": (
        (
            lambda lg, ex: callable(getattr(lg, "log_image", None)),
            lambda lg, ex, name, image, step: lg.log_image(name, [image], step),
        ),
        (_offers("add_image"), lambda lg, ex, name, image, step: ex.add_image(name, image, step, dataformats="HWC")),
        (
            _offers("log_image", run=True),
            lambda lg, ex, name, image, step: ex.log_image(lg.run_id, image, key=name.replace("/", "_"), step=step),
        ),
        (_offers("log_image"), lambda lg, ex, name, image, step: ex.log_image(image, name=name, step=step)),
    ),
    "text": (
        (_offers("add_text"), lambda lg, ex, name, text, step: ex.add_text(name, text, step)),
        (_offers("log_text", run=True), lambda lg, ex, name, text, step: ex.log_text(lg.run_id, text, f"{name}.md")),
    ),
    "table": (
        (
            lambda lg, ex: callable(getattr(lg, "log_table", None)),
            lambda lg, ex, name, columns, rows, step: lg.log_table(name, columns=columns, data=rows, step=step),
        ),
        (
            _offers("add_text"),
            lambda lg, ex, name, columns, rows, step: ex.add_text(name, _markdown(columns, rows), step),
        ),
        (
            _offers("log_text", run=True),
            lambda lg, ex, name, columns, rows, step: ex.log_text(lg.run_id, _markdown(columns, rows), f"{name}.md"),
        ),
    ),
    "layout": ((_offers("add_custom_scalars"), lambda lg, ex, layout: ex.add_custom_scalars(layout)),),
}


class RichLoggers:
    """What goes to a Trainer's loggers beside scalars. A logger that can't take something is not given it.

    Args:
        loggers: The Trainer's loggers; for rank 0 alone.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._takers: dict[str, list[tuple[Logger, Callable[..., object]]]] = {}
        for logger in loggers:
            experiment = getattr(logger, "experiment", None)
            for kind, adapters in ADAPTERS.items():
                fitting = next((give for fits, give in adapters if fits(logger, experiment)), None)
                if fitting is not None:
                    self._takers.setdefault(kind, []).append((logger, fitting))

    def takes(self, kind: str) -> bool:
        """Whether any logger takes this kind."""
        return bool(self._takers.get(kind))

    def give(self, kind: str, *content: Any) -> None:
        """Give something to each logger that can take it. One that fails is told so once, and left out."""
        for taker in list(self._takers.get(kind, ())):
            logger, give = taker
            try:
                give(logger, getattr(logger, "experiment", None), *content)
            except Exception as error:  # whatever it is: telemetry must not end a training
                self._takers[kind].remove(taker)
                rank_zero_warn(f"{type(logger).__name__} took no {kind}, it gets no more: {error!r}.")
