"""Statistics of gradients and of pairs of units against numpy, over ranks, and in real fits."""

import io
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from hosts import Host, linear_net, loaders, make_data, make_trainer, quick
from lightning_morpho import ChunkManager, HybridKasminaLayer, LayersConfig, MorphoConfig, TelemetryConfig, morph_
from lightning_morpho.surgery import hybrid_layers
from lightning_morpho.telemetry import ChunkCorrelation, ChunkGradients, ChunkStatistics, ForwardTime, Sampler
from lightning_morpho.telemetry.functional import merge_products, pair_products
from lightning_morpho.telemetry.sampling import LayerSampler

DETAILS = {"correlation", "effective_rank"}
GRADIENT_FIGURES = {"host_gradient", "seed_gradient", "gradient_ratio"}


def parts_of(features: int, chunks: int) -> list[np.ndarray]:
    return np.array_split(np.arange(features), chunks)


def mean_correlation_of(sample: np.ndarray, chunks: int, units: int) -> np.ndarray:
    """By numpy's correlation coefficients, a chunk at a time."""
    width = min(sample.shape[1] // chunks, units)
    found = []
    for part in parts_of(sample.shape[1], chunks):
        some = sample[:, part[np.arange(width) * len(part) // width]]
        some = some[:, some.std(0) > 0]
        r = np.abs(np.corrcoef(some, rowvar=False)) if some.shape[1] > 1 else np.empty((0, 0))
        found.append(r[~np.eye(len(r), dtype=bool)].mean() if len(r) > 1 else np.nan)
    return np.array(found)


# ---------------------------------------------------------------- correlation
@given(st.integers(2, 9), st.data())
def test_correlation_equals_numpys_whatever_the_chunks_and_the_batches(features, data):
    chunks = data.draw(st.integers(1, features // 2))
    sizes = data.draw(st.lists(st.integers(3, 9), min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    mixing = rng.normal(size=(features, features))
    samples = [(rng.normal(size=(size, features)) @ mixing + 3).astype(np.float32) for size in sizes]
    metric = ChunkCorrelation(ChunkManager(features, chunks), units=4)
    for sample in samples:
        metric.update(torch.from_numpy(sample))
    expected = mean_correlation_of(np.concatenate(samples).astype(np.float64), chunks, 4)
    # float32 products of at most 36 values of order 10.
    np.testing.assert_allclose(metric.compute()["correlation"].reshape(-1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("used", [1, 2, 4])
def test_effective_rank_is_the_participation_ratio_of_the_covariances_eigenvalues(used):
    """Else units that all say the same would look like units that are all needed."""
    rng = np.random.default_rng(used)
    samples = rng.normal(size=(500, used)) @ rng.normal(size=(used, 4)) + 7
    metric = ChunkCorrelation(ChunkManager(8, 2), positions=500)
    metric.update(torch.from_numpy(np.concatenate([samples, np.full((500, 4), 3.0)], 1).astype(np.float32)))
    eigenvalues = np.linalg.eigvalsh(np.cov(samples.T))
    first, constant = metric.compute()["effective_rank"].tolist()
    assert first == pytest.approx(eigenvalues.sum() ** 2 / (4 * (eigenvalues**2).sum()), rel=1e-3)  # float32 products
    assert first <= used / 4 + 1e-6 and np.isnan(constant)


@given(st.integers(1, 6), st.integers(1, 6))
def test_merged_products_are_those_of_both_samples(m, n):
    rng = np.random.default_rng(7 * m + n)
    a, b = (torch.from_numpy(rng.normal(shift, 1, (size, 2, 3))) for size, shift in ((m, 5), (n, -5)))
    merged, both = merge_products(pair_products(a), pair_products(b)), pair_products(torch.cat([a, b]))
    # The weight of the second sample is a float32 quotient: good to 6e-8, times squared shifts of 100.
    torch.testing.assert_close(merged, both, rtol=1e-5, atol=1e-4)


def test_units_that_do_not_vary_have_no_correlation():
    metric = ChunkCorrelation(ChunkManager(6, 3))
    metric.update(torch.tensor([[0.0, 1.0, 2.0, 2.0, 5.0, 0.0], [1.0, 2.0, 2.0, 2.0, 5.0, 1.0]]))
    values = metric.compute()["correlation"]
    assert values[0] == pytest.approx(1) and values[1:].isnan().all()


@pytest.mark.filterwarnings("ignore:.*compute.*before the.*update:UserWarning")
def test_a_chunk_of_one_unit_has_no_correlation():
    metric = ChunkCorrelation(ChunkManager(3, 3))
    metric.update(torch.randn(5, 3))
    assert metric.compute()["correlation"].isnan().all()


def test_memory_of_correlations_is_bounded():
    metric = ChunkCorrelation(ChunkManager(4096, 1))
    metric.update(torch.randn(1000, 4096))
    assert metric.products.shape == (1, 32, 32) and metric.seen == 250


# ---------------------------------------------------------------- gradients
@given(st.integers(1, 9), st.integers(1, 3), st.data())
def test_gradient_lengths_equal_numpys(features, beds, data):
    chunks = data.draw(st.integers(1, features))
    per_chunk = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    metric = ChunkGradients(ChunkManager(features, chunks), beds, per_chunk)
    hosts = rng.normal(size=(3, features, 2, 3)).astype(np.float32)
    rows = rng.normal(size=(3, beds, chunks, 4)).astype(np.float32)
    for host, row in zip(hosts, rows, strict=True):
        grads = {i: [torch.from_numpy(row[i][:, :3]), torch.from_numpy(row[i][:, 3])] for i in range(beds)}
        metric.update(torch.from_numpy(host), grads)
    found = metric.compute()
    expected = [np.sqrt((hosts[:, p] ** 2).sum((1, 2, 3)).mean()) for p in parts_of(features, chunks)]
    np.testing.assert_allclose(found["host_gradient"].reshape(-1), expected, rtol=1e-5)
    squares = (rows**2).sum(-1) if per_chunk else (rows**2).sum((-1, -2))[..., None].repeat(chunks, -1)
    np.testing.assert_allclose(found["bed_gradient"].reshape(beds, chunks), np.sqrt(squares.mean(0)), rtol=1e-5)


def test_gradients_that_overflowed_are_left_out_and_never_count_as_zero():
    metric = ChunkGradients(ChunkManager(2, 2), beds=1)
    metric.update(torch.tensor([[3.0], [torch.inf]]), {0: [torch.tensor([torch.nan])]})
    metric.update(torch.tensor([[4.0], [torch.nan]]), {})
    assert metric.compute()["host_gradient"][0] == pytest.approx(12.5**0.5)
    assert metric.compute()["host_gradient"][1].isnan() and metric.compute()["bed_gradient"].isnan().all()


@pytest.mark.parametrize("metric", [ChunkStatistics, ChunkCorrelation])
def test_metrics_draw_themselves(metric):
    pytest.importorskip("matplotlib").use("Agg")
    chart = metric(ChunkManager(8, 4))
    chart.update(torch.randn(10, 8))
    _, axes = chart.plot()
    assert axes.lines


# ---------------------------------------------------------------- a layer's samples
def sampler_of(features: int = 6) -> LayerSampler:
    layer = HybridKasminaLayer(nn.Linear(4, features), MorphoConfig(layers=LayersConfig(num_seeds=2)))
    return LayerSampler(layer, torch.device("cpu"), activations=True, gradients=False, detailed=True)


def watch(sampler: LayerSampler, batches: list[torch.Tensor]) -> None:
    """Forward passes whose outputs the model overwrites, as an in-place ReLU does."""
    for batch in batches:
        sampler.open()
        sampler.layer(batch).detach().fill_(torch.nan)
        sampler.close()


@pytest.mark.parametrize(
    "shapes", [[(3,), (5,), (1,)], [(), (2, 3)], [(3,), (7000,), (4,)], [(1200,)] * 12, [(0,), (2,)]]
)
def test_small_samples_count_as_what_the_layer_gave_at_the_time(shapes):
    torch.manual_seed(0)
    sampler = sampler_of()
    batches = [torch.randn(*shape, 4) for shape in shapes]
    watch(sampler, batches)
    assert sampler.touched == (True, False)
    found = sampler.collect(True, False)
    seen = np.concatenate([sampler.layer(batch).detach().double().numpy().reshape(-1, 6) for batch in batches])
    np.testing.assert_allclose(found["mean"], seen.mean(0).reshape(2, 3).mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["variance"], seen.var(0).reshape(2, 3).mean(1), rtol=1e-4)
    assert sampler.touched == (False, False)


@pytest.mark.parametrize("size", [3, 1500])
@pytest.mark.parametrize("before", range(13))
def test_samples_go_on_bit_for_bit_from_a_checkpoint_between_two_ticks(before, size):
    torch.manual_seed(0)
    whole, batches = sampler_of(), [torch.randn(size, 4) for _ in range(12)]
    watch(whole, batches[:before])
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    buffer.seek(0)
    watch(whole, batches[before:])
    resumed = sampler_of()
    resumed.layer.load_state_dict(whole.layer.state_dict())
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.touched[0] == (before > 0)
    watch(resumed, batches[before:])
    wanted = whole.collect(True, False)
    for name, values in resumed.collect(True, False).items():
        torch.testing.assert_close(values, wanted[name], rtol=0, atol=0, equal_nan=True)


# ---------------------------------------------------------------- two processes
@pytest.mark.slow
def test_two_processes_find_what_one_does_in_all_samples(tmp_path: Path):
    """Samples of unequal size, one rank without any of the second layer's: still one answer, on both."""
    script = Path(__file__).with_name("sampling_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, script, str(tmp_path), str(rank)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-3000:]
    found = [torch.load(tmp_path / f"{name}.pt") for name in ("0", "1", "alone")]
    for name, values in found[2].items():
        torch.testing.assert_close(found[0][name], values, equal_nan=True, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1][name], found[0][name], equal_nan=True, rtol=0, atol=0)


# ---------------------------------------------------------------- real fits
class Watched(L.Callback):
    """Computes each layer's gradient lengths its own way, at every optimizer step."""

    def __init__(self) -> None:
        self.lengths: dict[str, list[tuple[float, float]]] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for name, layer in hybrid_layers(pl_module).items():
            bed = [p.grad for p in layer.morpho.beds.parameters() if p.grad is not None]
            seed = torch.cat([g.flatten() for g in bed]).norm().item() if bed else float("nan")
            self.lengths.setdefault(name, []).append((layer.weight.grad.norm().item(), seed))


def fit(tmp_path, *, level="full", accumulate=1, every=4, host=Host, **options):
    watched = Watched()
    callback = quick(telemetry=TelemetryConfig(table=False, level=level, every_n_steps=every), **options)
    module = host(linear_net())
    trainer = make_trainer(tmp_path, callback, watched, max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(module, **loaders())
    return module, watched


@pytest.mark.parametrize(
    ("accumulate", "sampled"),
    [
        (1, [12, 16]),  # batches 12 and 16 of 10 to 19
        (2, [6, 8]),  # the first optimizer step at or after them
    ],
)
def test_gradients_are_those_of_the_sampled_steps(tmp_path, accumulate, sampled):
    module, watched = fit(tmp_path, accumulate=accumulate)
    for name, layer in hybrid_layers(module).items():
        steps = np.array([watched.lengths[name][step] for step in sampled])
        host, seed = np.sqrt((steps**2).mean(0))
        health = {key: values.item() for key, values in layer.morpho.health.items()}
        assert health["host_gradient"] == pytest.approx(host, rel=1e-5)
        assert health["seed_gradient"] == pytest.approx(seed, rel=1e-5)
        assert health["gradient_ratio"] == pytest.approx(seed / host, rel=1e-5)


@pytest.mark.parametrize(
    ("level", "missing"), [("minimal", GRADIENT_FIGURES | DETAILS), ("standard", DETAILS), ("full", ())]
)
def test_level_says_what_is_measured(tmp_path, level, missing):
    module, _ = fit(tmp_path, level=level)
    everything = {"mean", "variance", "silent", "activation_norm"} | DETAILS | GRADIENT_FIGURES
    for layer in hybrid_layers(module).values():
        assert layer.morpho.health.keys() == everything - set(missing)


class TwoOptimizers(Host):
    """Trains its two layers in turn, by hand: each optimizer's step must be sampled for its own layer alone."""

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in (self.net[0], self.net[2])]

    def training_step(self, batch, batch_idx):
        for factor, optimizer in zip((1.0, 100.0), self.optimizers(), strict=True):
            loss = factor * self.loss(batch)
            self.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def test_each_optimizers_step_shows_its_own_layers(tmp_path):
    module, watched = fit(tmp_path, host=TwoOptimizers, level="standard")
    for place, (name, layer) in enumerate(hybrid_layers(module).items()):
        lengths = watched.lengths[name][place::2]
        expected = np.sqrt(np.mean([lengths[step][0] ** 2 for step in (12, 16)]))
        assert layer.morpho.health["host_gradient"].item() == pytest.approx(expected, rel=1e-5)


def test_sampling_changes_nothing_of_a_training(tmp_path):
    weights = []
    for every in (0, 1):
        torch.manual_seed(0)
        module, _ = fit(tmp_path, every=every)
        weights.append(module.state_dict())
    for name, value in weights[0].items():
        if torch.is_tensor(value):
            assert torch.equal(value, weights[1][name]), name


def test_hooks_are_on_a_layer_only_while_it_is_sampled():
    module = Host(linear_net())
    morph_(module, MorphoConfig(layers=LayersConfig(num_seeds=1)))
    layers = hybrid_layers(module)
    sampler = Sampler(layers, 2, torch.device("cpu"), detailed=True)
    layer = layers["net.0"]
    sampler.open(1)
    assert not layer._forward_hooks and layer.morpho.observer is None
    sampler.open(2)
    assert layer._forward_hooks and layer.morpho.observer is not None
    module.net(torch.randn(4, 8))
    sampler.close()
    assert not layer._forward_hooks and layer.morpho.observer is None
    sampler.collect()
    assert sampler.forward_ms["net.0"] > 0


def test_forward_time_is_the_mean_of_all_calls():
    metric = ForwardTime()
    for milliseconds, calls in ((3.0, 1), (5.0, 3)):
        metric.update(milliseconds, calls)
    assert metric.compute() == pytest.approx(2.0)


def test_a_convolutions_output_is_sampled_by_channel(tmp_path):
    data = DataLoader(make_data(64, 0), batch_size=32)
    net = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    module = Host(net)
    telemetry = TelemetryConfig(table=False, level="full", every_n_steps=1)
    callback = quick(telemetry=telemetry, layers=LayersConfig(num_seeds=3))
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, data, data)
    health = hybrid_layers(module)["net.1"].morpho.health
    assert all(values.shape == (3,) for values in health.values())
    assert not health["correlation"].isnan().any() and not health["host_gradient"].isnan().any()
