"""Nets of one hidden layer, all random seeds and learning rates of a task as one batch of matrices.

What `growth.py` does in thousands of runs takes minutes on a GPU. Nets, batch size, Adam, schedule, warm-up, penalty,
order of the units and fold are those of `AutoSize` in `growth.py` (tests/sizing/test_batched_nets.py compares them);
the random numbers are others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growth_tasks import Split, Task

STEPS, BATCH, WARMUP = 1000, 128, 50
NAMES = ("w1", "b1", "w2", "b2")
RIDGE = 1e-3


def rate_share(step: Tensor | int) -> Tensor:
    """Share of the peak learning rate at a step."""
    return ((STEPS - torch.as_tensor(step)) / (0.3 * STEPS)).clamp(max=1)


@dataclass
class Nets:
    """Many nets of one hidden layer: weights ``(nets, in, units)`` and ``(nets, units, out)``, biases, Adam's moments.

    Attributes:
        values: The parameters.
        first: Adam's first moments.
        second: ... and second.
        born: Step at which each unit was born, ``(nets, 1, units)``.
        warmup: Its warm-up in steps, likewise.
    """

    values: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    born: Tensor
    warmup: Tensor

    @classmethod
    def new(cls, values: dict[str, Tensor]) -> Nets:
        """At step 0."""
        none = values["b1"] * 0
        first, second = ({k: torch.zeros_like(v) for k, v in values.items()} for _ in range(2))
        return cls(values, first, second, none, none.clone())

    def tables(self) -> tuple[dict[str, Tensor], ...]:
        """Everything that has an entry for each parameter."""
        return self.values, self.first, self.second

    def clone(self) -> Nets:
        """An independent copy."""
        copies = [{k: v.clone() for k, v in table.items()} for table in self.tables()]
        return Nets(*copies, self.born.clone(), self.warmup.clone())

    def take(self, units: Tensor) -> Nets:
        """With these units alone, ``(nets, kept)``."""
        across = units[:, None]

        def pick(table: dict[str, Tensor]) -> dict[str, Tensor]:
            w1, w2 = table["w1"], table["w2"]
            return {
                "w1": w1.gather(2, across.expand(-1, w1.shape[1], -1)),
                "b1": table["b1"].gather(2, across),
                "w2": w2.gather(1, units[:, :, None].expand(-1, -1, w2.shape[2])),
                "b2": table["b2"].clone(),
            }

        return Nets(*map(pick, self.tables()), self.born.gather(2, across), self.warmup.gather(2, across))

    def widen(self, new: Nets, step: int) -> None:
        """Add the units of others, with zero outgoing weights."""
        new.values["w2"].zero_()
        for mine, theirs in zip(self.tables(), new.tables(), strict=True):
            for name, axis in (("w1", 2), ("b1", 2), ("w2", 1)):
                mine[name] = torch.cat([mine[name], theirs[name]], axis)
        self.born = torch.cat([self.born, torch.full_like(new.born, step)], 2)
        self.warmup = torch.cat([self.warmup, torch.full_like(new.warmup, WARMUP)], 2)

    def renew(self, step: int) -> None:
        """Fresh optimizer state and a warm-up for every unit."""
        for table in (self.first, self.second):
            for value in table.values():
                value.zero_()
        self.born.fill_(step)
        self.warmup.fill_(WARMUP)


def random_nets(seeds: Sequence[int], repeats: int, shape: tuple[int, int, int], device: str) -> Nets:
    """Torch's default initialisation, each net by its own seed; the whole list several times over."""
    inputs, units, outputs = shape

    def one(seed: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(seed)
        sizes = ((inputs, units), (1, units), (units, outputs), (1, outputs))
        fans = (inputs, inputs, units, units)
        return [(2 * torch.rand(s, generator=draw) - 1) * f**-0.5 for s, f in zip(sizes, fans, strict=True)]

    columns = zip(*map(one, seeds), strict=True)
    stacked = [torch.stack(column).repeat(repeats, 1, 1).to(device) for column in columns]
    return Nets.new(dict(zip(NAMES, stacked, strict=True)))


class Lab:
    """One task, and the training of many nets on it at once; nets are ordered by rate, then by seed.

    Args:
        task: The task.
        rates: Learning rates.
        seeds: Number of random seeds.
        device: Where to compute.
    """

    def __init__(self, task: Task, rates: Sequence[float], seeds: int, device: str) -> None:
        self.splits = [(x.to(device), y.to(device)) for x, y in task.splits]
        self.classes, self.rates, self.seeds, self.device = task.measure.share is not None, rates, seeds, device
        y = self.splits[0][1]
        self.inputs = self.splits[0][0].shape[1]
        self.outputs = int(y.max()) + 1 if self.classes else y.shape[1]
        self.rate = torch.tensor(rates, device=device).repeat_interleave(seeds).view(-1, 1, 1)
        draw = torch.Generator().manual_seed(5)
        drawn = torch.randint(len(y), (STEPS, seeds, BATCH), generator=draw)
        self.batches = drawn.repeat(1, len(rates), 1).to(device)
        self.share = rate_share(torch.arange(STEPS)).to(device)

    def nets(self, units: int, offset: int = 0) -> Nets:
        """New nets."""
        shape = (self.inputs, units, self.outputs)
        return random_nets(range(offset, offset + self.seeds), len(self.rates), shape, self.device)

    def step_(self, nets: Nets, step: Tensor, penalty: float) -> None:
        """One step of Adam, then the penalty on units that were born later; ``step`` ``(1,)`` counts on."""
        chosen = self.batches.index_select(0, step)[0]
        x, y = (part[chosen] for part in self.splits[0])
        gradients = self._gradients(nets.values, x, y)
        rate = self.rate * self.share.index_select(0, step)
        age = step + 1 - nets.born
        gentle = torch.where(nets.warmup > 0, (age / nets.warmup.clamp(min=1)).clamp(max=1), 1.0)
        ages = {"w1": age, "b1": age, "w2": age.mT, "b2": (step + 1.0).view(1, 1, 1)}
        gentles = {"w1": gentle, "b1": gentle, "w2": gentle.mT, "b2": 1.0}
        for name, gradient in gradients.items():
            first, second = nets.first[name], nets.second[name]
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            spread = (second / (1 - 0.999 ** ages[name])).sqrt() + 1e-8
            nets.values[name] -= rate * gentles[name] * first / (1 - 0.9 ** ages[name]) / spread
        if penalty:
            w2 = nets.values["w2"]
            left = 1 - penalty * rate * math.sqrt(self.outputs) / w2.norm(dim=2, keepdim=True).clamp(min=1e-30)
            w2 *= torch.where(nets.born.mT > 0, left.clamp(min=0), 1.0)
        step += 1

    def _gradients(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        before = torch.baddbmm(values["b1"], x, values["w1"])
        units = before.relu()
        out = torch.baddbmm(values["b2"], units, values["w2"])
        if self.classes:
            d_out = out.softmax(2).scatter_add(2, y[..., None], -torch.ones_like(out[..., :1])) / BATCH
        else:
            d_out = 2 * (out - y) / (BATCH * self.outputs)
        d_units = torch.bmm(d_out, values["w2"].mT) * (before > 0)
        return {
            "w1": torch.bmm(x.mT, d_units),
            "b1": d_units.sum(1, keepdim=True),
            "w2": torch.bmm(units.mT, d_out),
            "b2": d_out.sum(1, keepdim=True),
        }

    def train(self, nets: Nets, start: int, end: int, penalty: float = 0.0) -> None:
        """From one step to another, on a GPU by replaying one captured step."""
        step = torch.tensor([start], device=self.device)
        again = lambda: self.step_(nets, step, penalty)  # noqa: E731
        if self.device != "cpu":
            again = self._captured(nets, step, penalty).replay
            step.fill_(start)
        for _ in range(start, end):
            again()

    def _captured(self, nets: Nets, step: Tensor, penalty: float) -> torch.cuda.CUDAGraph:
        kept, stream, graph = nets.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step_(nets, step, penalty)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            self.step_(nets, step, penalty)
        for mine, before in zip(nets.tables(), kept.tables(), strict=True):
            for name, value in mine.items():
                value.copy_(before[name])
        return graph

    def look(self, nets: Nets, split: Split) -> tuple[Tensor, Tensor]:
        """Of each sample points, loss and points by probability ``(3, nets, samples)``; the units' values."""
        x, y = split
        units = torch.baddbmm(nets.values["b1"], x.expand(len(nets.born), *x.shape), nets.values["w1"]).relu_()
        out = torch.baddbmm(nets.values["b2"], units, nets.values["w2"])
        if self.classes:
            truth = y.view(1, -1, 1).expand(len(out), -1, 1)
            likely = out.log_softmax(2).gather(2, truth)[..., 0].double()
            seen = torch.stack([100 * (out.argmax(2) == y).double(), -likely, 100 * likely.exp()])
        else:
            loss = ((out - y).square().mean(2) / y.var(0, correction=0).mean()).double()
            seen = torch.stack([100 * (1 - loss), loss, 100 * (1 - loss)])
        return seen, units

    def points(self, nets: Nets, split: int) -> Tensor:
        """Points of each net on validation (1) or test (2) samples."""
        parts = [self.look(nets, pair)[0][0] for pair in self._parts(split)]
        return torch.cat(parts, 1).mean(1).cpu()

    def _parts(self, split: int) -> list[Split]:
        x, y = self.splits[split]
        return list(zip(x.split(1000), y.split(1000), strict=True))

    def moments(self, nets: Nets) -> tuple[Tensor, Tensor, Tensor]:
        """On validation: what :meth:`look` gives of each sample, mean and covariance of the units."""
        seen: list[Tensor] = []
        total: Tensor | float = 0.0
        products: Tensor | float = 0.0
        for pair in self._parts(1):
            figures, units = self.look(nets, pair)
            seen.append(figures)
            total = total + units.double().sum(1)
            products = products + torch.bmm(units.mT, units).double()
        assert isinstance(total, Tensor)
        mean = total / len(self.splits[1][0])
        return torch.cat(seen, 2), mean, products / len(self.splits[1][0]) - mean[:, :, None] * mean[:, None]


def greedy_orders(covariance: Tensor, weights: Tensor, fixed: int) -> Tensor:
    """As ``greedy_order`` of `lightning_morpho.sizing.selection`, for many nets at once, ``(nets, units)``."""
    rest, explained = covariance.clone(), torch.bmm(covariance, weights.double())
    floor = 1e-9 * rest.diagonal(dim1=1, dim2=2).clamp(min=0).mean(1)
    taken = torch.zeros(rest.shape[:2], dtype=torch.bool, device=rest.device)
    nets, order = torch.arange(len(rest), device=rest.device), []
    for place in range(rest.shape[1]):
        variance = rest.diagonal(dim1=1, dim2=2)
        gain = explained.square().sum(2) / variance.clamp(min=floor[:, None])
        gain = torch.where(variance <= floor[:, None], 0.0, gain).masked_fill(taken, -1.0)
        unit = torch.full_like(nets, place) if place < fixed else gain.argmax(1)
        order.append(unit)
        taken[nets, unit] = True
        own = variance[nets, unit]
        column = rest[nets, :, unit] * torch.where(own > floor, 1 / own.clamp(min=1e-300), 0.0)[:, None]
        explained -= column[:, :, None] * explained[nets, unit][:, None]
        rest -= column[:, :, None] * rest[nets, unit][:, None]
    return torch.stack(order, 1)


def folded(nets: Nets, order: Tensor, kept: int, mean: Tensor, covariance: Tensor) -> Nets:
    """With the first units of the order alone, the others folded into them."""
    new, lost = nets.take(order[:, :kept]), nets.take(order[:, kept:]).values["w2"].double()
    if not lost.shape[1]:
        return new
    count = order.shape[1]
    inside = covariance.gather(1, order[:, :, None].expand(-1, -1, count)).gather(
        2, order[:, None].expand(-1, count, -1)
    )
    gram, level = inside[:, :kept, :kept].clone(), mean.gather(1, order)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal.mul_(1 + RIDGE).add_(2.2e-16 * diagonal.amax(1, keepdim=True).clamp(min=1e-30))
    table = torch.linalg.solve(gram, inside[:, :kept, kept:])
    shift = level[:, kept:] - torch.bmm(table.mT, level[:, :kept, None])[..., 0]
    new.values["w2"] = (new.values["w2"].double() + torch.bmm(table, lost)).float()
    new.values["b2"] = (new.values["b2"].double() + torch.bmm(shift[:, None], lost)).float()
    return new
