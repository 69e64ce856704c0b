"""Growth in compiled models: few recompilations, no graph breaks in our code, the same results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hosts import Host, events, loaders, make_trainer, quick
from lightning_morpho import (
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    OptimizerLink,
    Periodic,
    WarmupConfig,
    confirm_pairs_,
    hybrid_layers,
    morph_,
)
from lightning_morpho.integrations.compilation import allow_recompilations


class Net(nn.Module):
    """One frame for dynamo, so that each compilation is counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counter() -> CompileCounterWithBackend:
    return CompileCounterWithBackend("aot_eager")


@pytest.mark.parametrize("kind", ["neurons", "mlp"])
def test_alpha_changes_and_culls_recompile_nothing(kind: str) -> None:
    torch.manual_seed(0)
    net, count = Net(), counter()
    config = MorphoConfig(
        layers=LayersConfig(num_seeds=3),
        blueprint=BlueprintConfig(kind=kind),
        lifecycle=LifecycleConfig(alpha_step=0.1),
    )
    morph_(net, config)
    compiled = torch.compile(net, backend=count, fullgraph=True)
    x = torch.randn(4, 8)
    compiled(x).sum().backward()
    assert count.frame_count == 1
    net.a.request_germination()
    compiled(x).sum().backward()
    assert count.frame_count == 2
    with torch.no_grad():
        for p in net.a.morpho.beds[0].parameters():
            p.normal_()
    net.a.cancel_germination(1)
    for _ in range(9):
        net.a.morpho.advance()
        out = compiled(x)
        out.sum().backward()
        assert torch.allclose(out, net(x), atol=1e-6)
    assert net.a.seed(1).alpha < 0.2
    assert count.frame_count == 2


@pytest.mark.parametrize(("kind", "name"), [("neurons", "a"), ("mlp", "a"), ("span", "b")])
def test_recompilations_grow_with_the_logarithm_of_the_germinations(kind: str, name: str) -> None:
    torch.manual_seed(0)
    net, count = Net(), counter()
    net.b = nn.Linear(6, 6)
    x = torch.randn(4, 8)
    layers = LayersConfig(num_seeds=6, beds=6)
    morph_(net, MorphoConfig(layers=layers, blueprint=BlueprintConfig(kind=kind)))
    if kind == "span":
        confirm_pairs_(net, x)
    layer = hybrid_layers(net)[name]
    layer.morpho.bucketed = True
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    link = OptimizerLink(hybrid_layers(net), [optimizer])
    compiled = torch.compile(net, backend=count, fullgraph=True)
    frames = []
    for chunk in range(6):
        layer.request_germination(chunk)
        for _ in range(3):
            optimizer.zero_grad()
            out = compiled(x)
            out.square().sum().backward()
            link.settle_gradients(optimizer)
            optimizer.step()
        assert torch.allclose(compiled(x), net(x), atol=1e-5)
        frames.append(count.frame_count)
        for bed in layer.morpho.beds[chunk + 1 :]:
            assert not any(p.any() or p in optimizer.state for p in bed.parameters())
    assert frames[-1] <= 4, frames  # 1, 2, 4 and 6 beds


@pytest.mark.parametrize(("kind", "name"), [("neurons", "a"), ("mlp", "a"), ("span", "b")])
def test_incubating_seeds_compile_whole_and_give_the_gradients_of_eager_ones(kind: str, name: str) -> None:
    """Through the whole path of lifecycle `full`, four seeds one after another, within the allowed recompilations."""
    torch.manual_seed(0)
    net, count = Net(), counter()
    net.b = nn.Linear(6, 6)
    x = torch.randn(4, 8)
    lifecycle = LifecycleConfig(kind="full", incubation="boosting", active_ticks=1, alpha_step=0.5)
    morph_(
        net,
        MorphoConfig(
            layers=LayersConfig(num_seeds=4, beds=4),
            blueprint=BlueprintConfig(kind=kind),
            lifecycle=lifecycle,
            warmup=WarmupConfig(steps=0, min_steps=0),
        ),
    )
    if kind == "span":
        confirm_pairs_(net, x)
    layer = hybrid_layers(net)[name]
    layer.morpho.bucketed = True
    allow_recompilations(layer.morpho.topologies)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    link = OptimizerLink(hybrid_layers(net), [optimizer])
    compiled = torch.compile(net, backend=count, fullgraph=True)
    stages = set()
    for tick in range(16):
        if tick in (1, 3, 5, 7):
            layer.request_germination(tick // 2)
        gradients = []
        for run in (net, compiled):
            optimizer.zero_grad()
            run(x).square().sum().backward()
            gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()})
        eager, ours = gradients
        for n, gradient in eager.items():
            # of a lent bed, which eager code does not run, they are dropped before the step
            assert gradient is None or torch.allclose(ours[n], gradient, atol=1e-5), n
        link.settle_gradients(optimizer)
        optimizer.step()
        layer.morpho.keep([c for c in range(4) if layer.morpho.stages.due(c)], reason="test")
        stages |= {layer.seed(c).stage.name for c in range(4)}
        layer.advance()
    stages |= {layer.seed(c).stage.name for c in range(4)}
    assert stages >= {"TRAINING", "GRAFTING", "EVALUATING", "FINE_TUNING", "FOSSILIZED"}
    assert count.frame_count <= layer.morpho.topologies + 1


def by_module(host: Host, backend: Any) -> Any:
    host.net.compile(backend=backend, fullgraph=True)
    return host


def by_lightning(host: Host, backend: Any) -> Any:
    return torch.compile(host, backend=backend)


@pytest.mark.parametrize("compile_host", [by_module, by_lightning])
def test_a_compiled_host_grows_as_an_eager_one(compile_host: Callable[..., Any], tmp_path: Path) -> None:
    def run(compiled: bool) -> tuple[Host, list[Any], int]:
        count = counter()
        L.seed_everything(0)
        host = Host(Net())
        root = tmp_path / str(compiled)
        callback = quick(tamiyo=Periodic(every=1), layers=LayersConfig(beds=3))
        model = compile_host(host, count) if compiled else host
        make_trainer(root, callback, max_epochs=8).fit(model, **loaders())
        moves = [(e["tick"], e["layer"].replace("_orig_mod.", ""), e["to"]) for e in events(root)]
        return host, moves, count.frame_count

    eager, expected, _ = run(False)
    grown, moves, frames = run(True)
    assert moves == expected and frames > 0
    assert any(not layer.morpho.dormant for layer in hybrid_layers(grown).values())
    ours = {n.replace("_orig_mod.", ""): p for n, p in grown.named_parameters()}
    for name, parameter in eager.named_parameters():
        # float32: the compiled graph may round in another order, over 80 Adam steps
        assert torch.allclose(ours[name], parameter, atol=1e-3), name


@pytest.mark.parametrize("captured", [False, True])
def test_captured_graphs_are_made_anew_when_seeds_come_or_go_and_only_then(
    captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of some layers that went on beside a newly compiled one gave wrong gradients, without any message."""
    resets: list[int] = []
    trees = SimpleNamespace(get_manager=lambda index, create_if_none_exists: object() if captured else None)
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    net = Net()
    blueprint, lifecycle = BlueprintConfig(kind="mlp"), LifecycleConfig(alpha_step=0.5)
    morph_(net, MorphoConfig(layers=LayersConfig(num_seeds=3), blueprint=blueprint, lifecycle=lifecycle))
    for step, expected in ((net.a.request_germination, 1), (net.a.morpho.advance, 1), (net.a.morpho.refresh, 1)):
        step()
        assert len(resets) == expected * captured
    net.a.cancel_germination(1)
    for _ in range(4):
        net.a.morpho.advance()
    assert net.a.seed(1).stage.name == "CULLED"
    assert len(resets) == captured


class FixedMemory:
    """A backend that looks where those inputs lie of which compiled code believes that they never move."""

    def __init__(self) -> None:
        self.places: dict[str, set[int]] = {}

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        number = len(self.places)
        nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
        fixed = [bool(n.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")) for n in nodes]
        names = [f"{number} {node.name}" if still else None for node, still in zip(nodes, fixed, strict=True)]
        places = [None if name is None else self.places.setdefault(name, set()) for name in names]

        def run(*given: Any) -> Any:
            for place, value in zip(places, given, strict=True):
                if place is not None:
                    place.add(value.data_ptr())
            return graph.forward(*given)

        return run


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kind", ["neurons", "mlp", "span"])
def test_what_compiled_code_takes_for_fixed_memory_never_moves(kind: str, apart: bool) -> None:
    """A CUDA graph would read where it lay before: wrong gradients, without any message."""
    net, memory = Net(), FixedMemory()
    blueprint = BlueprintConfig(kind=kind)
    lifecycle = LifecycleConfig(kind="full", alpha_step=0.25, incubation="boosting")
    morph_(net, MorphoConfig(layers=LayersConfig(num_seeds=3, beds=2), blueprint=blueprint, lifecycle=lifecycle))
    inputs = [torch.randn(5, 8) for _ in range(24)]  # all alive, so that each lies elsewhere
    confirm_pairs_(net, inputs[0])
    for part in (net.a, net.b) if apart else (net,):
        part.compile(backend=memory, fullgraph=True)
    layer = net.b if kind == "span" else net.a
    for step, x in enumerate(inputs):
        if step == 2:
            layer.request_germination(None if kind == "span" else [0])
        if step == 8 and kind != "span":
            layer.request_germination([2])
        if step % 2:
            for hybrid in hybrid_layers(net).values():
                hybrid.advance()
        net(x).square().sum().backward()
        layer.morpho.keep([c for c in range(layer.num_seeds) if layer.morpho.stages.due(c)], reason="test")
    assert {state.stage.name for state in map(layer.seed, range(layer.num_seeds))} - {"DORMANT"}
    assert memory.places
    assert {name: len(places) for name, places in memory.places.items() if len(places) > 1} == {}
