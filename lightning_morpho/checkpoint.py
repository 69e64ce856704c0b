"""Loading a grown model without the callback that grew it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho.config import BlueprintConfig, GraftingConfig, LayersConfig, MorphoConfig
from lightning_morpho.layers import HybridKasminaLayer, attach_
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.pairs import Pair, find_pairs
from lightning_morpho.surgery import connect_pairs_, hybrid_layers, plan_layer

_SUFFIX = ".morpho._extra_state"


def load_grown_(
    model: nn.Module,
    checkpoint: str | PathLike[str] | Mapping[str, Any],
    *,
    pairs: Sequence[Sequence[str]] = (),
    example: Any = None,
) -> list[str]:
    """Make a plain model the grown one of a checkpoint, in place: swap its layers, load everything strictly.

    Args:
        model: A model as it was before it grew.
        checkpoint: Path of a checkpoint (read with ``weights_only=True``), its content, or a ``state_dict``.
        pairs: Pairs of layers that the finder misses, as in ``LayersConfig.pairs``.
        example: A batch, as for :func:`~lightning_morpho.find_pairs`: finds pairs that only running the model shows.

    Returns:
        Names of the layers that hold seeds.

    Raises:
        LifecycleError: If the model holds hybrid layers already.
        OSError: If there is no such file.
        ValueError: If it can't be read, or has seeds in a layer, or spans in a pair, that the model lacks.
        RuntimeError: If a key or a shape does not fit; then nothing is changed.

    Example:
        >>> from lightning_morpho import morph_
        >>> grown, plain = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
        >>> report = morph_(grown)
        >>> chunks = grown[0].request_germination()
        >>> load_grown_(plain, grown.state_dict())
        ['0']
        >>> plain[0].seed(0).stage.name
        'LOADING'
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    state = content.get("state_dict", content)
    if hybrid_layers(model):
        raise LifecycleError("The model holds hybrid layers already: load the checkpoint with `load_state_dict`.")
    extras = _saved_layers(model, state)
    _check_host(model, state)
    _swap_as_saved_(model, extras, pairs, example)
    model.load_state_dict(dict(state))
    return list(extras)


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; no code in it is run (``weights_only=True``).

    Raises:
        OSError: If there is no such file.
        ValueError: If torch can't read it, or it holds no mapping.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's unpickler raises whatever the bytes lead it to
        raise ValueError(
            f"`{path}` can't be read as a checkpoint with `weights_only=True`: {type(error).__name__}: {error}. "
            "If it is one, and you trust who made it, give its content: `torch.load(path, weights_only=False)`."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a checkpoint or a `state_dict`, got a {type(content).__name__}.")
    return content


class LoadsGrown:
    """Lets a LightningModule load its grown checkpoints by Lightning's own calls, where no callback does it.

    With it as the first base class, ``Net.load_from_checkpoint(path)`` and ``trainer.test(net, ckpt_path=path)`` give
    the grown model; without it torch refuses the keys of its seeds. Pairs that only running the model shows are found
    on ``example_input_array``.

    Example:
        >>> import lightning as L
        >>> class Net(LoadsGrown, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 3)
        >>> [kind.__name__ for kind in Net.__mro__[1:3]]
        ['LoadsGrown', 'LightningModule']
    """

    grown_pairs: Sequence[Sequence[str]] = ()
    """Pairs of layers that the finder misses, as in ``LayersConfig.pairs``."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Swap the layers that hold seeds in the checkpoint, unless a callback has swapped them."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        assert isinstance(self, nn.Module)
        extras = _saved_layers(self, checkpoint.get("state_dict", {}))
        if extras and not hybrid_layers(self):
            _swap_as_saved_(self, extras, self.grown_pairs, getattr(self, "example_input_array", None))


def _saved_layers(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of each layer that holds seeds."""
    extras = {key.removesuffix(_SUFFIX): json.loads(extra) for key, extra in state.items() if key.endswith(_SUFFIX)}
    unknown = sorted(extras.keys() - dict(model.named_modules()).keys())
    if unknown:
        raise ValueError(f"The checkpoint holds seeds in {unknown}, but the model has no such layers.")
    return extras


def _swap_as_saved_(model: nn.Module, extras: Mapping[str, Any], pairs: Sequence[Sequence[str]], example: Any) -> None:
    modules = dict(model.named_modules())
    found = _saved_pairs(model, extras, pairs, example)
    configs = {name: _config(extra) for name, extra in extras.items()}
    plans = {name: plan_layer(name, modules[name], configs[name], found.get(name), modules) for name in extras}
    for name, extra in extras.items():
        attach_(HybridKasminaLayer, modules[name], plans[name], len(extra["beds"]), configs[name], name)
    connect_pairs_(modules, found)


def _check_host(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another host before anything is changed."""
    own = model.state_dict()
    saved = {key: value for key, value in state.items() if ".morpho." not in f".{key}"}
    wrong = [f"`{key}` is missing" for key in own if key not in saved]
    wrong += [f"`{key}` is not part of the model" for key in saved if key not in own]
    wrong += [
        f"`{key}` is {tuple(saved[key].shape)} there and {tuple(value.shape)} here"
        for key, value in own.items()
        if isinstance(value, Tensor) and isinstance(saved.get(key), Tensor) and saved[key].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RuntimeError(
            f"The checkpoint does not fit the model: {'; '.join(wrong[:5])}{more}. Build the model as it was before it "
            "grew, with the class and the sizes of the run."
        )


def _config(extra: Mapping[str, Any]) -> MorphoConfig:
    return MorphoConfig(
        layers=LayersConfig(num_seeds=extra["num_seeds"]),
        blueprint=BlueprintConfig(**extra["blueprint"]),
        grafting=GraftingConfig(blend=extra["blend"]),
    )


def _saved_pairs(
    model: nn.Module, extras: Mapping[str, Any], explicit: Sequence[Sequence[str]], example: Any
) -> dict[str, Pair]:
    """The pairs that the checkpoint's spans grew in, found again in the model."""
    wanted = {name: extra["producers"] for name, extra in extras.items() if extra["producers"]}
    if not wanted:
        return {}
    found = find_pairs(model, example, explicit=explicit).pairs
    lost = {n: p for n, p in wanted.items() if n not in found or list(found[n].producers) != p}
    if lost:
        raise ValueError(
            f"The checkpoint has spans between {lost} (consumer: producers), but these pairs are not found in the "
            "model's code. Give an `example=` batch to run it on, or name them with `pairs=`, as in `layers.pairs`."
        )
    return {name: found[name] for name in wanted}
