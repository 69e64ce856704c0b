"""Held-out credit: bounds against scipy, leave-one-out by hand, and a measurement that leaves no trace."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    WarmupConfig,
    hybrid_layers,
    morph_,
)
from lightning_morpho.credit import group_seeds, measure
from lightning_morpho.evidence import paired_bounds, student_t_quantile
from lightning_morpho.isolation import isolated


# ---------------------------------------------------------------- statistics
@pytest.mark.parametrize("degrees", [1, 2])
@pytest.mark.parametrize("p", [0.51, 0.75, 0.95, 0.99, 0.9999])
def test_quantile_is_exact_for_one_and_two_degrees_of_freedom(p, degrees):
    # Closed forms; tan near its pole loses about four digits.
    assert student_t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-10)


@pytest.mark.parametrize("degrees", [3, 4, 5, 7, 15, 31, 1000])
@pytest.mark.parametrize("p", [0.51, 0.75, 0.9, 0.95, 0.975, 0.99])
def test_quantile_is_within_half_a_percent(p, degrees):
    assert student_t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=5e-3)


def test_quantile_of_no_degrees_of_freedom_is_refused():
    with pytest.raises(ValueError, match="`degrees` must be at least 1, got 0"):
        student_t_quantile(0.95, 0)


@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 3, 4, 16, 200])
def test_bounds_are_those_of_one_sided_t_tests(count, confidence):
    values = np.random.default_rng(count).normal(0.3, 1.0, count)
    bounds = paired_bounds(values.tolist(), confidence)
    low = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(confidence).low
    high = stats.ttest_1samp(values, 0, alternative="less").confidence_interval(confidence).high
    assert bounds.mean == pytest.approx(values.mean(), abs=1e-14)
    # The quantile is good to 0.5 %, and so is the distance of the bounds from the mean.
    assert bounds.mean - bounds.lower == pytest.approx(values.mean() - low, rel=5e-3)
    assert bounds.upper - bounds.mean == pytest.approx(high - values.mean(), rel=5e-3)


def test_bound_of_too_few_pairs_is_missing():
    assert all(map(math.isnan, vars(paired_bounds([], 0.95)).values()))
    bounds = paired_bounds([2.0], 0.95)
    assert bounds.mean == 2.0 and math.isnan(bounds.lower) and math.isnan(bounds.upper)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_proves_nothing(bad):
    assert all(map(math.isnan, vars(paired_bounds([1.0, bad, 1.0], 0.95)).values()))


# ---------------------------------------------------------------- leave one out
def grown() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    morph_(
        model,
        MorphoConfig(
            layers=LayersConfig(num_seeds=2, beds=2),
            blueprint=BlueprintConfig(kind="neurons", hidden=3),
            warmup=WarmupConfig(steps=0),
            lifecycle=LifecycleConfig(active_ticks=0, embargo_ticks=0),
        ),
    )
    model[0].request_germination([0])
    model[0].request_germination([1])
    model[2].request_germination()
    with torch.no_grad():
        for layer in hybrid_layers(model).values():
            for parameter in layer.morpho.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
    return model


def batches(count):
    return [(torch.randn(5, 4).double(), torch.randn(5, 2).double()) for _ in range(count)]


def without(model, seeds):
    """A copy in which the outgoing weights of these seeds are zero: every chunk here has half the features."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, chunk in seeds:
            layer = twin.get_submodule(name)
            half = layer.out_features // 2
            for bed in layer.morpho.beds:
                bed.w_out[chunk * half : (chunk + 1) * half] = 0
    return twin


@pytest.mark.parametrize(
    "groups",
    [
        [(("0", 0),), (("0", 1),), (("2", 0),), (("2", 1),)],
        [(("0", 0), ("0", 1)), (("0", 1), ("2", 0))],
    ],
    ids=["one by one", "together"],
)
def test_credit_is_the_mean_paired_rise_without_the_seeds(groups):
    model, data = grown(), batches(6)
    results = measure(
        model,
        hybrid_layers(model),
        groups,
        data,
        lambda batch: F.mse_loss(model(batch[0]), batch[1]),
        confidence=0.9,
    )
    assert [r.seeds for r in results] == groups
    for result in results:
        twin = without(model, result.seeds)
        rises = [(F.mse_loss(twin(x), y) - F.mse_loss(model(x), y)).item() for x, y in data]
        # Differences of double-precision losses of order 10.
        assert result.rise == pytest.approx(np.mean(rises), abs=1e-12)
        low = stats.ttest_1samp(rises, 0, alternative="greater").confidence_interval(0.9).low
        # The quantile's own tolerance.
        assert result.rise - result.lower == pytest.approx(np.mean(rises) - low, rel=5e-3)
        assert result.batches == 6
    assert len({round(r.rise, 9) for r in results}) == len(groups)


def test_differences_of_other_ranks_count_where_they_are_gathered():
    model, data = grown(), batches(2)
    (result,) = measure(
        model,
        hybrid_layers(model),
        [(("0", 0),)],
        data,
        lambda batch: F.mse_loss(model(batch[0]), batch[1]),
        confidence=0.9,
        gather=lambda own: [own, ([[(1.0, 1.0), (1.0, 6.0)]] * 3, {"0": ["2"]})],
    )
    assert result.batches == 5
    assert result.differences[2:] == (5.0,) * 3
    assert result.losses[2:] == (1.0,) * 3
    assert result.reaches == {"2"}


def test_no_batches_give_a_missing_credit():
    model = grown()
    (result,) = measure(model, hybrid_layers(model), [(("0", 0),)], [], lambda batch: None, confidence=0.9)
    assert result.batches == 0 and math.isnan(result.rise) and math.isnan(result.lower)


def test_measurement_leaves_seeds_parameters_and_output_as_they_were_even_if_the_loss_fails():
    model = grown()
    x = batches(1)[0][0]
    before, output = copy.deepcopy(model.state_dict()), model(x)
    calls = []

    def failing(batch):
        calls.append(model.training or torch.is_grad_enabled())
        if len(calls) == 2:
            raise RuntimeError("out of data")
        return model(batch[0]).sum()

    with pytest.raises(RuntimeError, match="out of data"):
        measure(model, hybrid_layers(model), [(("0", 0),)], batches(1), failing, confidence=0.9)
    assert calls == [False, False]
    assert model.training
    assert torch.equal(model(x), output)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) if torch.is_tensor(value) else value == before[key]


def test_measurement_is_not_seen_by_the_statistics():
    model = grown()
    seen = []
    model[0].morpho.observe(seen.append)
    measure(model, hybrid_layers(model), [(("0", 0),)], batches(1), lambda b: model(b[0]).sum(), confidence=0.9)
    assert seen == []
    model(batches(1)[0][0])
    assert len(seen) == 1


# ---------------------------------------------------------------- isolation
class Messy(nn.Module):
    """Does in a forward pass all that a validation step may do."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.accuracy = MulticlassAccuracy(3)
        self.collection = MetricCollection({"mean": MeanMetric(), "accuracy": MulticlassAccuracy(3)})
        self.nested = nn.ModuleDict({"metrics": nn.ModuleList([MeanMetric()])})
        self.register_buffer("calls", torch.zeros(()))
        self.outputs, self.by_name, self.seen = [1], {"a": 1}, {1}
        self.accuracy.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
        self.collection["mean"].update(3.0)

    def forward(self, x):
        target = torch.randint(3, (len(x),))
        self.accuracy.update(x, target)
        self.collection["mean"].update(x.mean())
        self.collection["accuracy"].update(x, target)
        self.nested["metrics"][0].update(random.random() + np.random.rand())
        self.calls += 1
        self.norm.running_mean += 1
        self.outputs.append(x)
        self.by_name["b"] = x
        self.seen.add(2)
        return self.norm(x).sum()


def traces(model):
    metrics = {
        name: ({k: v.clone() for k, v in m.metric_state.items()}, m.update_count)
        for name, m in [
            ("accuracy", model.accuracy),
            ("mean", model.collection["mean"]),
            ("collected", model.collection["accuracy"]),
            ("nested", model.nested["metrics"][0]),
        ]
    }
    return {
        "metrics": metrics,
        "objects": [id(m) for m in model.modules()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "buffers": {k: (id(b), b.clone()) for k, b in model.named_buffers()},
        "containers": (list(model.outputs), dict(model.by_name), sorted(model.seen)),
        "modes": [m.training for m in model.modules()],
        "rng": (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state()),
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_isolated_evaluation_puts_everything_back(fails):
    model = Messy()
    model(torch.randn(4, 3))
    before = traces(model)
    containers = model.outputs, model.by_name, model.seen
    try:
        with isolated(model):
            assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
            model(torch.randn(4, 3))
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    after = traces(model)
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, equal_nan=True, msg=key)
    assert (model.outputs, model.by_name, model.seen) == containers
    assert model.outputs is containers[0]


def test_the_messy_module_does_leave_traces_when_it_is_not_isolated():
    model = Messy()
    before = traces(model)
    model(torch.randn(4, 3))
    after = traces(model)
    for key in ("metrics", "state", "buffers", "containers", "rng"):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, equal_nan=True)


def test_isolated_evaluation_leaves_gradients_alone():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    with isolated(model):
        assert not model(torch.ones(1, 2)).requires_grad
    assert torch.equal(model.weight.grad, before)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = MeanMetric()
        self.again = self.first
        self.outputs = []
        self.by_loader = {"val": []}


def test_isolated_evaluation_puts_back_a_metric_that_has_two_names():
    model = Holder()
    with isolated(model):
        model.again.update(1.0)
    assert model.first.update_count == 0


def test_isolated_evaluation_puts_back_a_list_that_was_replaced():
    model = Holder()
    with isolated(model):
        model.outputs = [*model.outputs, 1]
    assert model.outputs == []


def test_isolated_evaluation_puts_back_lists_inside_a_dict():
    model = Holder()
    with isolated(model):
        model.by_loader["val"].append(1)
    assert model.by_loader == {"val": []}


# ---------------------------------------------------------------- groups
KEYS = [("0", 0), ("0", 1), ("2", 0), ("2", 1)]


def test_seeds_are_measured_one_by_one_while_they_are_few():
    assert group_seeds(KEYS, hybrid_layers(grown()), 4) == [(key,) for key in KEYS]


def test_seeds_that_share_a_bed_are_measured_together_when_they_are_many():
    # Layer 0 had two events of one seed each, layer 2 one event of two.
    expected = [(("0", 0),), (("0", 1),), (("2", 0), ("2", 1))]
    assert group_seeds(KEYS, hybrid_layers(grown()), 3) == expected


def test_beds_of_different_layers_are_never_mixed():
    model = grown()
    groups = group_seeds([("0", 0), ("2", 0), ("2", 1)], hybrid_layers(model), 1)
    assert groups == [(("0", 0),), (("2", 0), ("2", 1))]
