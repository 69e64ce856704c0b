"""Every path of the engine against one seed at a time in float64: output and all gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_morpho.chunks import ChunkManager
from lightning_morpho.kernels import ActiveSet, Backend, ChunkMLPs, add_chunk_mlps, choose_backend, shared_memory
from tests.engine.reference import per_seed, relative_error

ACTIVATIONS = ("relu", "gelu", "selu", "silu", "tanh")
# Rounding of one float32 or bf16 operand, with room for sums over a few hundred terms.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 3e-3}
# These have another slope on the other side of 0, where rounding may put a hidden unit.
KINKED = ("relu", "selu")


@st.composite
def problems(draw, max_width=20, least_features=1):
    """A layer's output and its beds: N = 1, N = D, uneven chunks, any share of live ones."""
    features = draw(st.integers(least_features, 40))
    least = max(1, -(-features // max_width))
    seeds = draw(st.one_of(st.just(least), st.just(features), st.integers(least, features)))
    beds = draw(st.integers(1, 3))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return {
        "features": features,
        "seeds": seeds,
        "lead": draw(st.sampled_from([(7,), (1,), (0,), (33,), (3, 5), (2, 3, 4)])),
        "hidden": draw(st.sampled_from([1, 2 * (-(-features // seeds)), 5])),
        "beds": beds,
        "share": share,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "spatial": draw(st.integers(0, 3)),
        "strided": draw(st.booleans()),
        "turned": draw(st.booleans()),
        "random": draw(st.integers(0, 2**20)),
    }


def build(problem, dtype, device="cpu", weight_dtype=None):
    generator = torch.Generator().manual_seed(problem["random"])
    chunks = ChunkManager(problem["features"], problem["seeds"])
    n, h, w = chunks.num_chunks, problem["hidden"], chunks.max_width
    networks = ChunkMLPs(chunks, problem["spatial"], h, problem["activation"])
    shape = problem["lead"][0], *[2, 3, 2][: problem["spatial"]], problem["features"]
    if not problem["spatial"]:
        shape = *problem["lead"], problem["features"]

    def draw(*size):
        return torch.randn(size, generator=generator)

    columns = draw(*shape).to(device, dtype)
    y = columns.movedim(-1, -1 - problem["spatial"])
    if not problem["strided"]:
        y = y.contiguous()
    beds, alphas = [], []
    for _ in range(problem["beds"]):
        bed = [draw(n, h, w) / w**0.5, draw(n, h), draw(n, w, h) / h**0.5]
        beds.append([p.to(device, weight_dtype or dtype).requires_grad_() for p in bed])
        live = torch.rand(n, generator=generator) < problem["share"]
        alphas.append((live * torch.rand(n, generator=generator).clamp(min=0.1)).numpy().astype(np.float32))
    grad = draw(*shape).to(device, dtype)
    if problem["turned"] and grad.ndim > 2:  # as after the transpose of an image
        grad = grad.transpose(0, -2).contiguous().transpose(0, -2)
    return networks, y, beds, alphas, grad


def _grad(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def check(problem, dtype, backend=None, device="cpu", weight_dtype=None, owned=True):
    networks, y, beds, alphas, grad = build(problem, dtype, device, weight_dtype)
    base = y.clone().requires_grad_()
    wanted_y = networks.columns(y).detach().double().cpu().requires_grad_()
    wanted_beds = [[p.detach().double().cpu().requires_grad_() for p in bed] for bed in beds]
    wanted = per_seed(
        wanted_y, networks.chunks, wanted_beds, [torch.from_numpy(a).double() for a in alphas], networks.activation
    )
    wanted.backward(grad.double().cpu())

    active = [ActiveSet.upload(networks.chunks, a, torch.device(device)) for a in alphas]
    disjoint = not (np.count_nonzero(np.stack(alphas), axis=0) > 1).any()
    weights = [p for bed in beds for p in bed]
    # The base layer's output: a tensor that autograd made and that is nobody else's.
    own = base * 1 if owned else (base * 1).view_as(base)
    backend = backend or choose_backend(own, networks, memory=shared_memory())
    out = add_chunk_mlps(own, networks, weights, active, backend, disjoint=disjoint)
    assert out.dtype == dtype
    networks.columns(out).backward(grad)
    tolerance = TOLERANCE[dtype]
    assert relative_error(networks.columns(out), wanted) < tolerance
    if dtype is not torch.float32 and networks.activation in KINKED:
        tolerance *= 5
    assert relative_error(networks.columns(base.grad), wanted_y.grad) < tolerance
    # All weights together: one seed's sum, or one kind's, may cancel to nearly nothing.
    got = torch.cat([p.grad.flatten() for p in weights])
    want = torch.cat([_grad(p).flatten() for bed in wanted_beds for p in bed])
    assert relative_error(got, want) < tolerance
    with torch.no_grad():
        again = add_chunk_mlps(base * 1, networks, weights, active, backend, disjoint=disjoint)
        assert relative_error(networks.columns(again), wanted) < TOLERANCE[dtype]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems())
def test_batched_float32_agrees_with_one_seed_at_a_time(problem):
    check(problem, torch.float32, Backend.BATCHED)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(least_features=16))
def test_batched_bfloat16_with_float32_weights_as_under_autocast(problem):
    check(problem, torch.bfloat16, Backend.BATCHED, weight_dtype=torch.float32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(problems())
def test_an_output_that_is_a_view_is_not_written_into(problem):
    check(problem, torch.float32, Backend.BATCHED, owned=False)


@pytest.mark.parametrize(
    "gpu, memory, dtype, width, backend",
    [
        ("H200", 232_448, torch.bfloat16, 64, Backend.FUSED),
        ("H200", 232_448, torch.float32, 32, Backend.FUSED),
        ("RTX 4090", 101_376, torch.bfloat16, 32, Backend.FUSED),
        ("RTX 4090", 101_376, torch.bfloat16, 64, Backend.BATCHED),
        ("RTX 4090", 101_376, torch.float32, 32, Backend.BATCHED),
        ("none", 0, torch.bfloat16, 32, Backend.BATCHED),
    ],
)
def test_a_kernel_that_a_small_gpu_cannot_hold_is_not_started(gpu, memory, dtype, width, backend):
    networks = ChunkMLPs(ChunkManager(2 * width, 2), 0, 2 * width, "relu")
    with FakeTensorMode():
        y = torch.empty(4, 2 * width, dtype=dtype, device="cuda")
    assert choose_backend(y, networks, memory=memory) is backend, gpu
