"""Many seeds a pass: the same figures as one by one, and one by one where that can't be."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    WarmupConfig,
    confirm_pairs_,
    hybrid_layers,
    morph_,
)
from lightning_morpho.credit import measure


class Net(nn.Module):
    """Two convolutions with a norm between, a linear layer, dropout and a metric."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.conv2, self.linear = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(16, 6)
        self.drop, self.mean = nn.Dropout(0.3), MeanMetric()

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        return self.linear(self.drop(F.relu(self.conv2(x))).flatten(1))


def grown(kind, hidden=3, chunks=2):
    torch.manual_seed(0)
    model = Net()
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=chunks, beds=2),
        blueprint=BlueprintConfig(kind=kind, hidden=hidden),
        warmup=WarmupConfig(steps=0),
        lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0),
    )
    morph_(model, config)
    confirm_pairs_(model, torch.randn(2, 2, 4))
    for layer in hybrid_layers(model).values():
        if layer.morpho.free_beds:
            for chunk in reversed(range(chunks)):
                layer.request_germination([chunk])
        for parameter in layer.morpho.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
    return model


def batches(count=3):
    return [(torch.randn(5, 2, 4), torch.randint(6, (5,))) for _ in range(count)]


def singles(model):
    layers = hybrid_layers(model)
    return [((n, c),) for n, layer in layers.items() for c in range(layer.num_seeds) if layer.seed(c).bed is not None]


def both_ways(model, groups, data, loss, replicas=3):
    layers = hybrid_layers(model)
    ways = []
    for most in (1, replicas):
        calls = []

        def counted(batch, calls=calls):
            calls.append(1)
            return loss(batch)

        ways.append((measure(model, layers, groups, data, counted, confidence=0.95, replicas=most), len(calls)))
    return ways


@pytest.mark.parametrize(
    ("kind", "chunks"), [("neurons", 2), ("mlp", 2), ("block", 2), ("span", 2), ("span", 1)], ids=str
)
def test_many_seeds_a_pass_give_the_figures_of_one_by_one(kind, chunks):
    """A span of one chunk goes as a whole: what the layer behind reads of it goes with it."""
    model, data = grown(kind, chunks=chunks), batches()
    groups = [*singles(model), tuple(key for group in singles(model)[:3] for key in group)]

    def loss(batch):
        out = model(batch[0])
        model.mean.update(out.mean())  # a metric that vmap could not update
        return F.cross_entropy(out, batch[1])

    (one_by_one, plain_calls), (vectorised, calls) = both_ways(model, groups, data, loss)
    assert calls < plain_calls, "nothing was vectorised"
    assert [m.seeds for m in vectorised] == groups
    assert len({round(m.rise, 4) for m in vectorised}) > len(groups) / 2
    for one, other in zip(one_by_one, vectorised, strict=True):
        # Sums in another order, in float32, of losses around 2.
        assert other.differences == pytest.approx(one.differences, abs=3e-6)
        assert other.reaches == one.reaches
    assert model.mean.update_count == 0


@pytest.mark.parametrize("kind", ["neurons", "mlp", "span"])
def test_a_seed_that_has_broken_down_gives_nothing_in_either_way(kind):
    """Its infinite weights must not make the whole model a NaN in one of them: no seed could be judged."""
    model, data = grown(kind), batches()
    broken = [p for name, p in model.named_parameters() if ".morpho." in name and p.ndim > 1][-1]
    with torch.no_grad():
        broken.fill_(torch.inf)
    (one_by_one, plain_calls), (vectorised, calls) = both_ways(
        model, singles(model), data, lambda batch: F.cross_entropy(model(batch[0]), batch[1])
    )
    assert calls < plain_calls, "measured one by one for one seed that is broken"
    assert all(math.isfinite(m.rise) for m in vectorised)
    for one, other in zip(one_by_one, vectorised, strict=True):
        assert other.differences == pytest.approx(one.differences, abs=3e-6)


def test_a_random_loss_is_paired():
    """Without it the noise of the loss would hide every seed's effect."""
    model, data = grown("neurons"), batches()

    def loss(batch):
        return F.cross_entropy(model(batch[0]) + 10 * torch.randn(5, 6), batch[1])

    (one_by_one, _), (vectorised, _) = both_ways(model, [*singles(model), ()], data, loss)
    assert one_by_one[-1].rise == 0 and vectorised[-1].rise == 0
    for one, other in zip(one_by_one, vectorised, strict=True):
        # Logits of order 10.
        assert other.differences == pytest.approx(one.differences, abs=5e-5)


@pytest.mark.parametrize("what", ["reads a number", "branches on values", "depends on a metric"])
def test_a_step_that_vmap_cannot_run_is_measured_one_by_one(what):
    model, data = grown("neurons"), batches()
    metric = MeanMetric()
    model.metric = metric

    def loss(batch):
        value = F.cross_entropy(model(batch[0]), batch[1])
        if what == "reads a number":
            return torch.tensor(value.item())
        if what == "branches on values":
            return value if value > 0 else -value
        model.metric.reset()
        return model.metric(value)

    (one_by_one, _), (vectorised, _) = both_ways(model, singles(model), data, loss)
    assert [m.differences for m in vectorised] == [m.differences for m in one_by_one]
    assert any(abs(m.rise) > 1e-3 for m in vectorised)


def test_where_memory_runs_out_fewer_are_measured_at_once():
    model, data = grown("neurons"), batches(2)
    widths = []

    def loss(batch):
        out = model(batch[0])
        value = F.cross_entropy(out, batch[1])
        if torch._C._functorch.is_batchedtensor(value):
            width = torch._C._functorch.get_unwrapped(value).shape[0]
            widths.append(width)
            if width > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return value

    groups = singles(model)
    (one_by_one, _), (vectorised, _) = both_ways(model, groups, data, loss, replicas=4)
    assert len(groups) == 6
    assert widths == [5, 3, 3, 3, 3, 3, 3]  # each with the whole model beside the seeds
    for one, other in zip(one_by_one, vectorised, strict=True):
        assert other.differences == pytest.approx(one.differences, abs=3e-6)


def test_layers_that_a_seed_feeds_are_found():
    model = grown("neurons")
    found = measure(
        model,
        hybrid_layers(model),
        singles(model),
        batches(2),
        lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
        confidence=0.95,
    )
    by_layer = {m.seeds[0][0]: m.reaches for m in found}
    assert by_layer == {"conv1": {"conv2", "linear"}, "conv2": {"linear"}, "linear": frozenset()}
