"""Metrics of growth for loops without the callback: what they say of seeds, layers and the run, against references."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchmetrics import MetricCollection

from lightning_morpho import BlueprintConfig, HybridKasminaLayer, LayersConfig, MorphoConfig, Stage, morph_
from lightning_morpho.surgery import hybrid_layers
from lightning_morpho.telemetry import LayerGrowth, RunGrowth, SeedCredit, SeedRecord, SeedStates
from lightning_morpho.telemetry.figures import RUN_FIGURES, contribution_of, credit_of

CONFIG = MorphoConfig(layers=LayersConfig(num_seeds=3), blueprint=BlueprintConfig(kind="mlp", hidden=2))


def grown_layer() -> HybridKasminaLayer:
    layer = HybridKasminaLayer(nn.Linear(4, 6), CONFIG, "net.0")
    layer.request_germination([0, 2])
    return layer


def record(**figures: float) -> SeedRecord:
    told = {"generation": 0, "blueprint": "mlp", "born_tick": 1, "born_step": 10, "stage": "ACTIVE", "tick": 2}
    return SeedRecord(layer="net.0", chunk=2, reason="judged", figures=figures, **told)


def test_seeds_are_told_one_by_one_and_what_was_not_measured_is_missing():
    layer, states = grown_layer(), SeedStates(3)
    states.update(layer, {(2, 0): record(rise=0.5, lower=0.4, upper=0.6, judged_with=0)})
    found = states.compute()
    assert found["stage"].tolist() == [Stage.LOADING, Stage.DORMANT, Stage.LOADING]
    assert found["alpha"].tolist() == [1, 0, 1]
    # c -> 2 -> c on a chunk of 2 features: 2 x 2 + 2 + 2 x 2, each bed shared by its two seeds.
    assert found["parameters"].sum() == layer.morpho.live_parameters and found["parameters"][1] == 0
    assert found["credit"][2] == 0.5 and found["credit_lower"][2] == 0.4 and found["credit_upper"][2] == 0.6
    assert found["credit"][:2].isnan().all()


def test_a_layers_histogram_counts_each_seed_once():
    layer, metric = grown_layer(), LayerGrowth()
    metric.update(layer)
    found = metric.compute()
    assert found["stages"].sum() == 3 and found["stages"][Stage.LOADING] == 2
    assert found["active_share"] == pytest.approx(2 / 3)
    assert found["added_parameters"] == layer.morpho.live_parameters


def test_a_run_counts_parameters_as_torch_does():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    host = sum(p.numel() for p in net.parameters())
    morph_(net, CONFIG)
    layers = hybrid_layers(net)
    metric = RunGrowth(host)
    metric.update(layers)
    assert set(metric.compute()) == set(RUN_FIGURES)
    assert metric.compute()["growth_ratio"] == 1 and metric.compute()["return_per_parameter"].isnan()
    layers["0"].request_germination([1])
    metric.update(layers, rollbacks=2, tick_seconds=0.1)
    found = metric.compute()
    assert found["parameters"] == host + sum(p.numel() for p in net.parameters() if p.requires_grad) - host
    assert found["rollbacks"] == 2 and found["cohort_share"] == 1


def test_credit_equals_students_t_over_all_batches():
    rng = np.random.default_rng(0)
    without, complete = rng.normal(1, 0.2, 12), rng.normal(0.9, 0.2, 12)
    metric = SeedCredit(confidence=0.9)
    for part in np.array_split(np.arange(12), 5):
        metric.update(torch.from_numpy(without[part]), torch.from_numpy(complete[part]))
    difference = without - complete
    margin = stats.t.ppf(0.9, 11) * stats.sem(difference)
    found = metric.compute()
    assert found["rise"] == pytest.approx(difference.mean())
    # The quantile is a series, within 0.5 % (see `student_t_quantile`).
    assert found["lower"] == pytest.approx(difference.mean() - margin, abs=0.005 * margin)
    assert found["upper"] == pytest.approx(difference.mean() + margin, abs=0.005 * margin)


def test_credit_of_one_batch_has_no_bounds_and_of_none_is_missing():
    metric = SeedCredit()
    assert metric.compute()["rise"].isnan()
    metric.reset()
    metric.update(torch.tensor(1.0), torch.tensor(0.5))
    assert metric.compute()["rise"] == 0.5 and metric.compute()["lower"].isnan()


def test_seeds_judged_as_a_group_keep_their_own_credit_and_share_what_they_give_together():
    """Three in a row may each be worth nearly all that they give together: their sum is three times too much."""
    one = record(rise=0.9, lower=0.8, upper=1.0, joint=1.2, judged_with=2)
    assert credit_of(one) == (0.9, 0.8, 1.0) and contribution_of(one) == pytest.approx(0.4)
    inseparable = record(rise=0.9, lower=0.8, judged_with=2)
    assert credit_of(inseparable)[:2] == pytest.approx((0.3, 0.8 / 3)) and math.isnan(credit_of(inseparable).upper)


@pytest.mark.parametrize("make", [lambda: SeedStates(3), LayerGrowth, SeedCredit])
def test_metrics_are_torchmetrics_pickled_reset_and_drawn(make):
    pytest.importorskip("matplotlib").use("Agg")
    metric = make()
    arguments = (torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])) if isinstance(metric, SeedCredit) else ()
    metric.update(*(arguments or (grown_layer(),)))
    again = pickle.loads(pickle.dumps(metric))
    for name, value in metric.compute().items():
        torch.testing.assert_close(again.compute()[name], value, equal_nan=True)
    figure, _ = metric.plot()
    assert figure.axes
    again.reset()
    first = next(iter(again.compute().values()))
    assert first.isnan().all() or not first.any()


def test_metrics_join_a_collection():
    found = MetricCollection({"seeds": SeedStates(3), "layer": LayerGrowth()})
    found.update(grown_layer())
    assert {"seeds_stage", "layer_stages"} <= set(found.compute()) or {"stage", "stages"} <= set(found.compute())


def test_wrong_use_says_what_was_expected():
    with pytest.raises(ValueError, match="must have 2 seeds, got 3"):
        SeedStates(2).update(grown_layer())
    with pytest.raises(ValueError, match="`confidence` must be in"):
        SeedCredit(confidence=95)
    with pytest.raises(ValueError, match="losses of the same batches"):
        SeedCredit().update(torch.zeros(2), torch.zeros(3))
