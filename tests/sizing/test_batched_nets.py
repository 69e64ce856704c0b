"""The batched nets behind `docs/evidence/sizing.md` against torch and against the package's own cull."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_morpho.sizing.selection import fold, greedy_order, stand_in


@pytest.fixture
def batched(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    return pytest.importorskip("growth_batched")


def small_lab(batched, task):
    return batched.Lab(task, rates=(0.01, 0.03), seeds=2, device="cpu")


@pytest.fixture
def task(batched):
    import growth_tasks

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=draw)
    y = (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 0).long()
    return growth_tasks.Task(growth_tasks.split(x, y, 150, 75), lambda width: nn.Linear(6, width))


def test_steps_are_those_of_adam_and_of_the_penalty(batched, task):
    """Old units take Adam's steps, new ones start afresh, gently, and pay the penalty."""
    lab, start, steps, penalty = small_lab(batched, task), 10, 6, 0.05
    nets = lab.nets(3)
    lab.train(nets, 0, start)
    nets.widen(lab.nets(4, offset=50), start)
    kept = nets.clone()
    lab.train(nets, start, start + steps, penalty)
    for net in range(4):
        values = {k: nn.Parameter(v[net].clone()) for k, v in kept.values.items()}
        moments = [{k: v[net].clone() for k, v in table.items()} for table in (kept.first, kept.second)]
        new = kept.born[net, 0] > 0
        for step in range(start, start + steps):
            chosen = lab.batches[step, net]
            x, y = task.splits[0][0][chosen], task.splits[0][1][chosen]
            out = (x @ values["w1"] + values["b1"]).relu() @ values["w2"] + values["b2"]
            gradients = torch.autograd.grad(nn.functional.cross_entropy(out, y), [*values.values()])
            rate = (0.01 if net < 2 else 0.03) * min(1.0, (1000 - step) / 300)
            with torch.no_grad():
                for (name, value), gradient in zip(values.items(), gradients, strict=True):
                    age = torch.where(new, step + 1 - start, step + 1).float()
                    gentle = torch.where(new, (age / batched.WARMUP).clamp(max=1), torch.ones_like(age))
                    if name == "w2":
                        age, gentle = age[:, None], gentle[:, None]
                    if name == "b2":
                        age, gentle = torch.tensor(step + 1.0), torch.tensor(1.0)
                    first, second = (table[name] for table in moments)
                    first.copy_(0.9 * first + 0.1 * gradient)
                    second.copy_(0.999 * second + 0.001 * gradient**2)
                    step_size = rate * gentle / (1 - 0.9**age)
                    value -= step_size * first / ((second / (1 - 0.999**age)).sqrt() + 1e-8)
                norms = values["w2"].norm(dim=1, keepdim=True)
                factor = (1 - penalty * rate * math.sqrt(3) / norms).clamp(min=0)
                values["w2"].mul_(torch.where(new[:, None], factor, torch.ones_like(factor)))
        for name, value in values.items():
            torch.testing.assert_close(nets.values[name][net], value.detach(), rtol=1e-3, atol=1e-5)


def test_order_and_fold_are_those_of_the_package(batched, task):
    lab = small_lab(batched, task)
    nets = lab.nets(9)
    _, mean, covariance = lab.moments(nets)
    orders = batched.greedy_orders(covariance, nets.values["w2"], fixed=2)
    narrow = batched.folded(nets, orders, 4, mean, covariance)
    for net in range(4):
        order = greedy_order(covariance[net], nets.values["w2"][net], fixed=2)
        assert orders[net].tolist() == order
        keep, drop = order[:4], order[4:]
        table, shift = stand_in(mean[net], covariance[net], keep, drop, batched.RIDGE)
        weights = nets.values["w2"][net].T[:, :, None].double()
        torch.testing.assert_close(
            narrow.values["w2"][net].T.double(), fold(weights, table, keep, drop)[:, keep, 0], rtol=1e-5, atol=1e-6
        )
        bias = nets.values["b2"][net, 0].double() + weights[:, drop, 0] @ shift
        torch.testing.assert_close(narrow.values["b2"][net, 0].double(), bias, rtol=1e-5, atol=1e-6)
