"""Compiled models: watched eagerly for one step, then compiled as before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import Host  # noqa: E402
from lightning_morpho import TelemetryConfig, Uniform, hybrid_layers  # noqa: E402
from runs import callback, chain  # noqa: E402
from test_runs import fit  # noqa: E402


@pytest.mark.slow
def test_compiled_model_is_confirmed_and_grows_without_a_graph_too_many(tmp_path):
    import torch._dynamo.testing

    torch._dynamo.reset()
    module = Host(chain())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    module.net = torch.compile(module.net, backend=counter, fullgraph=True)
    quiet = TelemetryConfig(every_n_steps=0, table=False)
    fit(tmp_path, module, callback(tamiyo=Uniform(at=0.5), telemetry=quiet), max_epochs=4)
    assert [layer.morpho.events for layer in hybrid_layers(module).values()] == [0, 1, 1]
    # Training and evaluation, each before and after the germination; none for warm-up, alpha or the probe.
    assert counter.frame_count <= 4
    x = torch.randn(5, 8)
    assert torch.allclose(module.net(x), module.net._orig_mod(x), atol=1e-6)
