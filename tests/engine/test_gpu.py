"""The engine on a GPU: fused kernels, CUDA graphs, no synchronisation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_morpho import (
    BlueprintConfig,
    ChunkManager,
    ChunkStatistics,
    HybridKasminaLayer,
    LayersConfig,
    MorphoConfig,
)
from lightning_morpho.kernels import Backend, triton_problem
from tests.engine.test_chunk_mlps import check, problems

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@st.composite
def few_shapes(draw):
    """Problems of few shapes: each new one costs the time of a compilation."""
    features, seeds, hidden = draw(st.sampled_from([(48, 48, 2), (48, 7, 14), (64, 1, 128), (40, 2, 40), (96, 24, 8)]))
    problem = draw(problems(least_features=16))
    activation = "relu" if features != 48 else problem["activation"]
    return problem | {"features": features, "seeds": seeds, "hidden": hidden, "activation": activation}


def layer_of(features=256, seeds=32, dtype=torch.bfloat16, kind="mlp", live=None, activation="relu"):
    """A layer with the given seeds live, their outgoing weights not zero."""
    torch.manual_seed(0)
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=seeds), blueprint=BlueprintConfig(kind=kind, activation=activation)
    )
    layer = HybridKasminaLayer(nn.Linear(features, features), config).to("cuda", dtype)
    layer.request_germination(live)
    for bed in layer.morpho.beds:
        nn.init.normal_(bed.w_out, std=0.3)
    return layer


def test_triton_works_here():
    assert triton_problem() is None


@settings(max_examples=16, deadline=None, derandomize=True)
@given(few_shapes())
def test_fused_bfloat16_agrees_with_one_seed_at_a_time(problem):
    check(problem, torch.bfloat16, Backend.FUSED, device="cuda")


@settings(max_examples=16, deadline=None, derandomize=True)
@given(few_shapes().filter(lambda problem: problem["hidden"] <= 64))  # more is left to the batched products
def test_fused_float32_agrees_with_one_seed_at_a_time(problem):
    check(problem, torch.float32, Backend.FUSED, device="cuda")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(few_shapes())
def test_fused_float16_agrees_with_one_seed_at_a_time(problem):
    check(problem, torch.float16, Backend.FUSED, device="cuda")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(few_shapes())
def test_fused_bfloat16_with_float32_weights_as_under_autocast(problem):
    check(problem, torch.bfloat16, Backend.FUSED, device="cuda", weight_dtype=torch.float32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems())
def test_batched_float32_agrees_with_one_seed_at_a_time(problem):
    check(problem, torch.float32, Backend.BATCHED, device="cuda")


@pytest.mark.parametrize("features, seeds", [(2048, 1000), (512, 8), (1024, 16), (4096, 1024), (640, 9)])
@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dispatched_path_agrees_at_sizes_that_are_used(features, seeds, share, dtype):
    problem = {
        "features": features, "seeds": seeds, "lead": (700,), "hidden": 2 * -(-features // seeds), "beds": 1,
        "share": share, "activation": "gelu", "spatial": 0, "strided": False, "turned": False, "random": 1,
    }  # fmt: skip
    check(problem, dtype, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3000, 512), (7, 10, 33), (1, 8)])
def test_statistics_agree_with_float64(dtype, shape):
    sample = (torch.randn(shape, device="cuda") * 0.1 + 100).to(dtype)
    statistics = ChunkStatistics(ChunkManager(shape[-1], 3)).cuda()
    for part in (sample, sample[:1], sample[:0]):
        statistics.update(part)
    seen = torch.cat([sample, sample[:1]]).double().reshape(-1, shape[-1])
    moments = statistics.moments()
    assert moments.seen == len(seen)
    torch.testing.assert_close(moments.mean.double(), seen.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.m2.double(), seen.var(0, correction=0) * len(seen), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments.largest.double(), seen.amax(0), rtol=0, atol=0)


def test_a_dormant_layer_never_waits_for_the_device():
    config = MorphoConfig(blueprint=BlueprintConfig(kind="mlp"))
    layer = HybridKasminaLayer(nn.Linear(64, 64), config).cuda()
    x = torch.randn(8, 64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("live", [None, [0, 5, 9]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_growing_layer_never_waits_for_the_device(live, dtype):
    layer = layer_of(dtype=dtype)
    x = torch.randn(64, 256, device="cuda", dtype=dtype)
    layer(x).sum().backward()
    layer.morpho.mute([] if live is None else [c for c in range(32) if c not in live])
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
        layer.morpho.refresh()
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [None, [3]])
def test_a_captured_graph_survives_a_change_of_the_active_set(dtype, first):
    layer = layer_of(dtype=dtype)
    muted = [] if first is None else [c for c in range(32) if c not in first]
    layer.morpho.mute(muted)
    x = torch.randn(64, 256, device="cuda", dtype=dtype)
    grad = torch.randn(64, 256, device="cuda", dtype=dtype)

    def step():
        for p in layer.parameters():
            p.grad = None
        out = layer(x)
        out.backward(grad)
        return out, layer.morpho.beds[0].w_in.grad

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for muted in ([], [0, 1, 30], list(range(31)), list(range(32))):
        layer.morpho.mute(muted)
        graph.replay()
        torch.cuda.synchronize()
        got = [t.clone() for t in captured]
        want = step()
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
        alpha = layer.morpho.row_alpha(0).copy()
        alpha[muted] = 0
        assert not got[1][torch.from_numpy(np.flatnonzero(alpha == 0)).cuda()].any()


def test_compiled_layers_take_the_registered_operator():
    layer = layer_of()
    x = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    got.sum().backward()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("live", [None, [0, 3, 9]])
def test_a_diverged_seed_reaches_neither_the_host_nor_its_neighbours(bad, live):
    layer = layer_of(dtype=torch.float32, live=live)
    with torch.no_grad():
        layer.morpho.beds[0].w_out[3] = bad
        layer.morpho.beds[0].w_in[9] = bad
    x = torch.randn(64, 256, device="cuda", requires_grad=True)
    results = []
    for fused in (True, False):
        layer.set_features({"fused_kernels": fused})
        x.grad = None
        out = layer(x)
        out.sum().backward()
        results.append((out.detach(), x.grad.clone()))
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
