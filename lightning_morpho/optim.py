"""What optimizers must know about beds: group membership, fresh state, newborn warm-up, equal gradients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_morpho.layers import GrownParameters, HybridKasminaLayer, clear_taps, hidden_layers
from lightning_morpho.layers.beds import local_part
from lightning_morpho.layers.faults import contain_gradients_
from lightning_morpho.lifecycle import LifecycleError
from lightning_morpho.sizing import Penalty

log = logging.getLogger(__name__)


def beds_of(layers: Mapping[str, HybridKasminaLayer]) -> Iterator[tuple[str, GrownParameters]]:
    """All beds and links, with the name of their layer."""
    for name, layer in layers.items():
        for bed in layer.morpho.grown():
            yield name, bed


class OptimizerLink:
    """Connects the beds of a model with its optimizers for the length of a run.

    It puts beds that no optimizer holds into the parameter group of their layer's weight, drops what an
    optimizer remembers of a bed's earlier use, counts optimizer steps, and shortens the updates of
    newborns: after a step, ``p <- p_old + s * (p - p_old)``, with ``s`` rising linearly to 1 over the
    warm-up. That works with any optimizer and adds no parameter group. After each step it applies the group penalty,
    if there is one, and keeps the weights of dead hidden units exactly zero.

    Args:
        layers: The hybrid layers by name.
        optimizers: All optimizers of the run, before their first step.

    Attributes:
        added: One line for each layer whose beds had to be added to an optimizer.
        peak_rates: Highest learning rate so far of each parameter group of each optimizer.
        penalty: The group penalty on hidden units; off at first.

    Raises:
        ValueError: If beds of a layer are in no optimizer and it is not clear which one to take.
    """

    def __init__(self, layers: Mapping[str, HybridKasminaLayer], optimizers: Sequence[Optimizer]) -> None:
        self.layers = layers
        self.optimizers = tuple(optimizers)
        self.added = self._add_missing()
        members = [{id(p) for p in _parameters(optimizer)} for optimizer in self.optimizers]
        self._beds: dict[int, list[GrownParameters]] = {
            i: [bed for _, bed in beds_of(layers) if any(id(p) in held for p in bed.parameters())]
            for i, held in enumerate(members)
        }
        # Of optimizers that share a bed, or a layer, the last one counts its steps.
        last = {id(bed): i for i, beds in self._beds.items() for bed in beds}
        self._counted = {i: [bed for bed in beds if last[id(bed)] == i] for i, beds in self._beds.items()}
        self._layers: dict[int, list[HybridKasminaLayer]] = {i: [] for i in self._beds}
        for layer in layers.values():
            if layer.morpho.grown():
                self._layers[max(last[id(bed)] for bed in layer.morpho.grown())].append(layer)
        self.peak_rates = [[0.0] * len(optimizer.param_groups) for optimizer in self.optimizers]
        self.penalty = Penalty()
        self._dead: list[tuple[Tensor, Tensor]] = []
        self.note_dead_units()
        self._before: dict[int, list[tuple[Tensor, Tensor, float]]] = {}
        self._handles = []
        for i, optimizer in enumerate(self.optimizers):
            self._handles += [
                optimizer.register_step_pre_hook(lambda *_, i=i: self._before_step(i)),
                optimizer.register_step_post_hook(lambda *_, i=i: self._after_step(i)),
            ]

    def close(self) -> None:
        """Leave the optimizers alone again."""
        for handle in self._handles:
            handle.remove()

    def _add_missing(self) -> list[str]:
        held = {id(p) for optimizer in self.optimizers for p in _parameters(optimizer)}
        missing = {
            name: parameters
            for name, layer in self.layers.items()
            if (parameters := [p for p in layer.morpho.parameters() if id(p) not in held])
        }
        added = []
        for name, group in self._find_groups(list(missing)).items():
            group["params"].extend(missing[name])
            if "param_names" in group:
                names = {id(p): n for n, p in self.layers[name].named_parameters(prefix=name)}
                group["param_names"].extend(names[id(p)] for p in missing[name])
            added.append(f"`{name}`: {len(missing[name])} parameters of its beds were in no optimizer, added")
        return added

    def _find_groups(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The parameter group of each layer's weight; beside torch's Muon, which fails on anything but a matrix."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        homes = {id(p): group for group in groups for p in group["params"]}
        weights = {name: id(_weight(self.layers[name])) for name in names}
        homeless = [name for name, weight in weights.items() if weight not in homes]
        if homeless and len(self.optimizers) != 1:
            raise ValueError(
                f"The weights of {homeless} are in none of the {len(self.optimizers)} optimizers, so it is not "
                "clear which one should train their seeds. Give their parameters to one in `configure_optimizers`, "
                "or leave these layers out with `layers.exclude`."
            )
        matrices = {id(g) for o in self.optimizers if isinstance(o, torch.optim.Muon) for g in o.param_groups}
        others = [group for group in groups if id(group) not in matrices]
        found = {name: homes.get(weight, groups[0]) for name, weight in weights.items()}
        for name, group in found.items():
            if id(group) in matrices:
                if not others:
                    raise ValueError(
                        f"`Muon` trains matrices alone, the beds of `{name}` are stacks of them. Return a second "
                        "optimizer from `configure_optimizers`, such as AdamW, for all other parameters."
                    )
                found[name] = others[0]
        return found

    def note_dead_units(self) -> None:
        """Look again which hidden units are dead, and forget the moments of their weights."""
        layers = hidden_layers(self.layers.values())
        self._dead = [(local_part(p), mask) for layer in layers for p, mask in layer.masks()]
        for optimizer in self.optimizers:
            for layer in layers:
                for parameter, mask in layer.masks():
                    for value in optimizer.state.get(parameter, {}).values():
                        if isinstance(value, Tensor) and value.shape == parameter.shape:
                            value.mul_(mask)

    def drop_stale_state(self) -> None:
        """Forget the moments and step counters of beds that were freed or taken again."""
        stale = [bed for _, bed in beds_of(self.layers) if bed.stale]
        if stale and self._dead:
            self.note_dead_units()
        for bed in stale:
            for optimizer in self.optimizers:
                for parameter in bed.parameters():
                    optimizer.state.pop(parameter, None)
            bed.stale = False

    def rate_share(self, layer: str) -> float:
        """Learning rate of a layer's beds as a share of the highest it has had; the lowest of its groups."""
        own = {id(p) for p in self.layers[layer].morpho.parameters()}
        self._note_rates()
        return min(
            (
                float(group["lr"]) / peak
                for optimizer, peaks in zip(self.optimizers, self.peak_rates, strict=True)
                for group, peak in zip(optimizer.param_groups, peaks, strict=False)
                if peak > 0 and any(id(p) in own for p in group["params"])
            ),
            default=1.0,
        )

    def _note_rates(self) -> None:
        for optimizer, peaks in zip(self.optimizers, self.peak_rates, strict=True):
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            peaks[:] = [max(pair) for pair in zip_longest(peaks, rates, fillvalue=0.0)]

    def _before_step(self, index: int) -> None:
        self._note_rates()
        self.drop_stale_state()
        clear_taps(self.layers.values())
        for bed in self._beds[index]:
            if bed.moving:
                contain_gradients_(bed)
        for layer in self._layers[index]:
            layer.morpho.note_gradients(layer._parameters.get("weight"))
        self._before[index] = [
            (local_part(p.detach()), local_part(p.detach()).clone(), bed.share)
            for bed in self._beds[index]
            if bed.moving and bed.share < 1
            for p in bed.parameters()
        ]

    def _after_step(self, index: int) -> None:
        if self.penalty.strength:
            rates = {id(p): group["lr"] for group in self.optimizers[index].param_groups for p in group["params"]}
            self.penalty.step_([*self.layers.values()], lambda p: rates.get(id(p)))
        with torch.no_grad():
            for parameter, before, share in self._before.pop(index, ()):
                if share < 1:
                    parameter.lerp_(before, 1 - share)
            for parameter, mask in self._dead:
                parameter.mul_(mask)
        if not any(float(group["lr"]) for group in self.optimizers[index].param_groups):
            return  # moves nothing: torch makes such a step to create state that a sharded checkpoint needs
        for bed in self._counted[index]:
            if bed.moving:
                bed.count_step()
        for layer in self._layers[index]:
            layer.morpho.steps += 1

    def settle_gradients(self, optimizer: Optimizer) -> None:
        """Drop the gradients of lent beds; make those of live ones finite, and the mean over all ranks.

        Beds are kept out of DDP's reducer, which fails on parameters that are not used in a step.

        Raises:
            LifecycleError: If the link does not know the optimizer.
        """
        if optimizer not in self.optimizers:
            raise LifecycleError(
                f"{type(optimizer).__name__} came in the middle of the run, in place of one that trains seeds: "
                "their warm-up and fresh state hang on that one. Change its parameter groups, or begin another fit."
            )
        beds = self._beds[self.optimizers.index(optimizer)]
        for bed in beds:
            if bed.lent:
                for parameter in bed.parameters():
                    parameter.grad = None
            elif bed.moving:
                contain_gradients_(bed)
        if dist.is_available() and dist.is_initialized():
            # FSDP2 averages its own gradients; those of a layer that is off must stay None.
            average_over_ranks(
                p
                for bed in beds
                if not (bed.free or bed.paused)
                for p in bed.parameters()
                if p.requires_grad and not isinstance(p, DTensor)
            )


def average_over_ranks(parameters: Iterable[Tensor]) -> None:
    """Make each gradient its mean over all ranks: one transfer for all of a dtype, however many there are."""
    together: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        together.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in together.values():
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for parameter, mean in zip(group, flat.split([p.numel() for p in group]), strict=True):
            parameter.grad = mean.view_as(parameter)


def adopt_plain_state(saved: dict[str, Any], optimizer: Optimizer, layers: Mapping[str, HybridKasminaLayer]) -> None:
    """Make the state of an optimizer that knew no beds loadable into one that does, in place.

    Such a state numbers its parameters by their place in the groups; beds shift the places.

    Args:
        saved: ``optimizer.state_dict()`` of a run without growth.
        optimizer: The same optimizer in this run, beds in its groups.
        layers: The hybrid layers by name.

    Raises:
        ValueError: If, beds apart, a group holds another number of parameters than the saved one.
    """
    own = {id(p) for _, bed in beds_of(layers) for p in bed.parameters()}
    places: dict[int, int] = {}
    first = 0
    for number, (old, new) in enumerate(zip(saved["param_groups"], optimizer.param_groups, strict=True)):
        kept = [first + i for i, p in enumerate(new["params"]) if id(p) not in own]
        if len(kept) != len(old["params"]):
            raise ValueError(
                f"The checkpoint's optimizer holds {len(old['params'])} parameters in group {number}, this run's "
                f"{len(kept)} (beds of seeds apart). Resume with the optimizer that the checkpoint was made with."
            )
        places |= dict(zip(old["params"], kept, strict=True))
        old["params"] = list(range(first, first + len(new["params"])))
        first += len(new["params"])
    saved["state"] = {places[place]: state for place, state in saved["state"].items()}


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
