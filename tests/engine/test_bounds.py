"""The fused kernels on a CPU, in Triton's interpreter: right results, and no access to memory that is not theirs.

``TRITON_INTERPRET=1 python -m pytest tests/engine/test_bounds.py``, where ``triton`` is installed (seen with 3.9).
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_morpho.kernels import Backend
from lightning_morpho.kernels.geometry import layout_of
from lightning_morpho.telemetry.functional import Moments
from tests.engine.bounds import checked
from tests.engine.test_chunk_mlps import check, problems

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

tl = triton.language


@pytest.fixture(autouse=True)
def careful():
    """Each access is checked, and memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with checked():
        yield
    torch.use_deterministic_algorithms(False)


@triton.jit
def _shift(source, out, size, by, WIDTH: tl.constexpr, MASKED: tl.constexpr, PROMISED: tl.constexpr):
    k = tl.arange(0, WIDTH)
    at = tl.multiple_of(k + by, PROMISED)
    mask = (k < size) & (k + by < size) if MASKED else k < size
    tl.store(out + k, tl.load(source + at, mask=mask, other=0.0), mask=k < size)


@pytest.mark.parametrize("masked, by, promised, problem", [
    (True, 1, 1, None), (False, 0, 8, None), (False, 1, 1, "byte 24 of pointer argument 1, which has 24"),
    (False, -1, 1, "byte -4 of"), (True, 1, 8, "divisibility of 8 promised of"),
])  # fmt: skip
def test_the_check_tells_what_reaches_a_neighbour(masked, by, promised, problem):
    source, out = torch.arange(18.0).split([6, 12])  # neighbours in memory
    if problem is None:
        _shift[(1,)](source, out, 6, by, 8, masked, promised)
        assert out[:5].tolist() == source[by : by + 5].tolist()
    else:
        with pytest.raises(Exception, match=problem):
            _shift[(1,)](source, out, 6, by, 8, masked, promised)


TYPICAL = {
    "features": 40, "seeds": 7, "lead": (7,), "hidden": 5, "beds": 1, "share": 0.5, "activation": "relu", "spatial": 0,
    "strided": False, "turned": False, "random": 1,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"share": 1.0},
        {"lead": (200,), "share": 1.0, "seeds": 40, "hidden": 2},
        {"spatial": 2, "seeds": 20, "hidden": 4},
        {"spatial": 2, "seeds": 13, "share": 1.0, "strided": True},
        {"spatial": 2, "turned": True},
        {"spatial": 3, "turned": True, "seeds": 20, "hidden": 4},
        {"beds": 3},
        {"features": 300, "seeds": 75, "hidden": 8, "share": 0.1, "lead": (130,)},
    ],
)
def test_kernels_touch_what_is_theirs_alone(change, dtype):
    check(TYPICAL | change, dtype, Backend.FUSED)


@st.composite
def larger(draw):
    """Also more rows than a step takes, more tiles than one, and the widest chunks."""
    problem = draw(problems(least_features=16))
    if draw(st.booleans()):
        problem["lead"] = draw(st.sampled_from([(64,), (65,), (200,), (3, 70)]))
    if draw(st.booleans()):
        features = draw(st.integers(33, 200))
        problem |= {"features": features, "seeds": draw(st.integers(-(-features // 64), features))}
        problem["hidden"] = draw(st.sampled_from([1, 3, 2 * -(-features // problem["seeds"])]))
    return problem


@pytest.mark.exhaustive
@settings(max_examples=int(os.environ.get("EXAMPLES", 150)), deadline=None)
@given(larger(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.booleans(), st.booleans())
def test_kernels_touch_what_is_theirs_alone_whatever_the_shape(problem, dtype, owned, autocast):
    weight_dtype = torch.float32 if autocast else dtype
    check(problem, dtype, Backend.FUSED, weight_dtype=weight_dtype, owned=owned)


@pytest.mark.parametrize("shape", [(1, 8), (7, 10, 33), (40, 1200), (300, 700)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
def test_statistics_touch_what_is_theirs_alone(shape, dtype, last):
    from lightning_morpho.kernels.triton_moments import accumulate_

    sample = (torch.randn(shape) + 3).to(dtype)
    if not last:
        sample = sample.movedim(-1, 0).contiguous().movedim(0, -1)
    moments = Moments.none(shape[-1])
    for _ in range(2):
        moments = moments._replace(seen=accumulate_(sample, layout_of(sample), *moments))
    rows = sample.double().reshape(-1, shape[-1])
    assert moments.seen == 2 * len(rows)
    torch.testing.assert_close(moments.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.m2.double(), 2 * len(rows) * rows.var(0, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.largest.double(), rows.amax(0), rtol=0, atol=0)
