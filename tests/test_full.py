"""Lifecycle `full`: every stage against a reference, nothing jumps, incubation leaves the host alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hosts import Host, conv_net, events, linear_net, loaders, make_trainer, optimizer_state
from lightning_morpho import (
    BlueprintConfig,
    GraftingConfig,
    LayersConfig,
    LifecycleConfig,
    LifecycleError,
    MorphoCallback,
    MorphoConfig,
    OptimizerLink,
    TelemetryConfig,
    Uniform,
    WarmupConfig,
    confirm_pairs_,
    export,
    hybrid_layers,
    merge_,
    morph_,
)
from lightning_morpho.layers.incubation import incubate

PATH = ["DORMANT", "GERMINATED", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING", "FOSSILIZED"]
LIVE = PATH[1:-1]


def names(layer):
    return [layer.seed(c).stage.name for c in range(layer.num_seeds)]


def advance_to(layer, stage, alpha=None):
    """Ticks until all seeds are in a stage (and at some alpha); EVALUATING is left by keeping them."""
    for _ in range(40):
        if set(names(layer)) == {stage} and alpha in (None, layer.seed(0).alpha):
            return
        if set(names(layer)) == {"EVALUATING"}:
            layer.morpho.keep(range(layer.num_seeds), reason="test")
            continue
        layer.advance()
    raise AssertionError((stage, names(layer)))


def wake(layer):
    """Random parameters in all live beds, as training would leave them."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for bed in layer.morpho.live_beds().values():
            for parameter in bed.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=g) / 2)


# ---------------------------------------------------------------- the path
def full(**options):
    settings = {
        "blueprint": BlueprintConfig(kind="neurons", hidden=4),
        "tamiyo": Uniform(at=0.0),
        "lifecycle": LifecycleConfig(kind="full", active_ticks=1, embargo_ticks=1, alpha_step=0.5),
        "grafting": GraftingConfig(ticks=2),
        "warmup": WarmupConfig(steps=5, min_steps=5),
        "telemetry": TelemetryConfig(table=False),
    }
    return MorphoCallback(**(settings | options))


@pytest.mark.parametrize("incubation", ["none", "boosting"])
@pytest.mark.parametrize(("net", "kind"), [(linear_net, "neurons"), (linear_net, "auto"), (conv_net, "auto")])
def test_the_callback_alone_takes_seeds_along_the_whole_path(tmp_path, incubation, net, kind):
    config = LifecycleConfig(kind="full", active_ticks=1, alpha_step=0.5, incubation=incubation)
    callback = full(lifecycle=config, blueprint=BlueprintConfig(kind=kind, hidden=4))
    module = Host(net(), lr=0.02)
    make_trainer(tmp_path, callback, max_epochs=12).fit(module, **loaders())
    log = events(tmp_path)
    lives = {}
    for e in log:
        lives.setdefault((e["layer"], e["chunk"]), [e["from"]]).append(e["to"])
    kept = [life for life in lives.values() if life[-1] == "FOSSILIZED"]
    assert kept and all(life == PATH for life in kept)
    assert all(life[:6] == PATH[:6] for life in lives.values())
    verdicts = [e for e in log if e["from"] == "EVALUATING"]
    assert verdicts and all({"rise", "lower", "batches"} <= e["figures"].keys() for e in verdicts)
    final = [e for e in log if e["to"] == "FOSSILIZED"]
    assert all(e["reason"] == "proven gain" and e["figures"]["lower"] > 0 for e in final)


def test_a_seed_that_waits_is_moved_by_no_optimizer_and_starts_its_warm_up_later(tmp_path):
    module = Host(linear_net())
    callback = full(lifecycle=LifecycleConfig(kind="full", germinated_ticks=2, training_ticks=2))
    trainer = make_trainer(tmp_path, callback, max_epochs=3)
    trainer.fit(module, **loaders())
    layers = hybrid_layers(module)
    assert {name for layer in layers.values() for name in names(layer)} <= {"GERMINATED", "TRAINING", "DORMANT"}
    beds = [bed for layer in layers.values() for bed in layer.morpho.live_beds().values()]
    assert beds and all(bed.steps == 0 and bed.newborn for bed in beds)
    assert all(p.grad is None and not p.requires_grad for bed in beds for p in bed.parameters())
    assert not any(".morpho." in name for name in optimizer_state(trainer, module))


def test_fine_tuning_makes_a_share_of_the_optimizers_update(make_layer):
    def moved(rate):
        torch.manual_seed(0)
        layer = make_layer(table="full", fine_tuning_rate=rate)
        link = OptimizerLink({"0": layer}, [torch.optim.SGD(layer.parameters(), lr=0.1)])
        layer.request_germination()
        advance_to(layer, "FINE_TUNING")
        before = layer.morpho.beds[0].w_out.detach().clone()
        layer(torch.ones(3, 4, dtype=torch.float64)).sum().backward()
        link.optimizers[0].step()
        return layer.morpho.beds[0].w_out.detach() - before

    torch.testing.assert_close(moved(0.25), moved(1.0) / 4)
    assert moved(1.0).any()


def test_cancelling_early_needs_no_fading_and_later_it_does(make_layer):
    for stage, end in [("GERMINATED", "CANCELLED"), ("TRAINING", "CANCELLED"), ("EVALUATING", "CULLED")]:
        layer = make_layer(table="full", germinated_ticks=2, training_ticks=2, alpha_step=0.5, embargo_ticks=9)
        layer.request_germination()
        advance_to(layer, stage)
        layer.cancel_germination(0)
        ticks = 0
        while layer.seed(0).stage.name == stage:
            layer.advance()
            ticks += 1
        assert layer.seed(0).stage.name == end
        assert ticks == (1 if end == "CANCELLED" else 2)


@pytest.mark.parametrize("table", ["phase1", "full"])
def test_a_seed_that_nobody_judges_is_decided_at_the_timeout(make_layer, table):
    """Kept unjudged without evidence, else by it: nothing waits for ever."""
    judged = "ACTIVE" if table == "phase1" else "EVALUATING"
    layer = make_layer(seeds=4, table=table, timeout_ticks=6, alpha_step=1.0)
    seen, waited = [], 0
    layer.morpho.on_transition = seen.append
    layer.request_germination()
    for _ in range(40):
        layer.advance()
        if names(layer)[0] == judged:
            waited += 1
            layer.morpho.stages.note_evidence(1, {"lower": 0.2})
            layer.morpho.stages.note_evidence(2, {"lower": -0.2})
            layer.morpho.stages.note_evidence(3, {"lower": 0.0})
    left = {t.chunk: (t.target.name, t.reason) for t in seen if t.source.name == judged and t.generation == 0}
    following = "FOSSILIZED" if table == "phase1" else "FINE_TUNING"
    assert left == {
        0: (following, "unjudged: timeout"),
        1: (following, "timeout: proven gain"),
        2: ("CULLED", "timeout: no proven gain"),
        3: ("CULLED", "timeout: no proven gain"),
    }
    assert waited == 7  # the tick of its last age is still the controller's


def test_a_shut_gate_is_opened_by_the_timeout_and_alpha_stays_where_it_is(make_layer):
    layer = make_layer(table="full", timeouts={"GRAFTING": 3}, grafting=GraftingConfig(gate="performance"))
    layer.request_germination()
    advance_to(layer, "STABILIZATION")  # no loss was ever given
    assert layer.seed(0).alpha == 0
    advance_to(layer, "EVALUATING")
    assert layer.morpho.stages.due(0), "a seed whose alpha rests can be judged"


def test_each_stage_lasts_as_many_ticks_as_configured(make_layer):
    ticks = {"germinated_ticks": 2, "training_ticks": 3, "stabilization_ticks": 4, "fine_tuning_ticks": 5}
    layer = make_layer(table="full", **ticks)
    lasted = {}
    layer.request_germination()
    for _ in range(40):
        stage = names(layer)[0]
        if stage == "EVALUATING":
            layer.morpho.keep([0], reason="test")
            continue
        lasted[stage] = lasted.get(stage, 0) + 1
        layer.advance()
    assert [lasted[name.removesuffix("_ticks").upper()] for name in ticks] == list(ticks.values())


# ---------------------------------------------------------------- every stage against a reference
BASES = {
    "linear": (lambda: nn.Linear(4, 7), (5, 4)),
    "conv": (lambda: nn.Conv2d(3, 7, 3, stride=2, padding=1), (2, 3, 6, 6)),
}
WIDTHS = [3, 2, 2]  # 7 features in 3 chunks


def reference(plain, x, beds, kind, blend, alphas):
    """One loop over beds, chunks and features, from the formulas of the design."""
    y = plain(x)
    convolve = isinstance(plain, nn.Conv2d)
    like = (-1, 1, 1) if convolve else (-1,)
    out = y
    for values, alpha in zip(beds, alphas, strict=True):
        changed, start = [], 0
        for chunk, width in enumerate(WIDTHS):
            features = slice(start, start + width)
            h = y[:, features]
            if kind == "neurons":
                w_in, b_in, w_out = values["w_in"], values["b_in"], values["w_out"][features]
                units = F.conv2d(x, w_in, b_in, plain.stride, plain.padding) if convolve else F.linear(x, w_in, b_in)
            else:
                w_in, b_in = values["w_in"][chunk][:, :width], values["b_in"][chunk]
                w_out = values["w_out"][chunk][:width]
                units = F.conv2d(h, w_in[:, :, None, None], b_in) if convolve else F.linear(h, w_in, b_in)
            units = F.relu(units)
            seed = torch.einsum("oh,nhij->noij" if convolve else "oh,nh->no", w_out, units)
            current, a = out[:, features], torch.full((width,), alpha[chunk], dtype=y.dtype).view(like)
            if blend == "add":
                changed.append(current + a * seed)
            elif blend == "lerp":
                changed.append((1 - a) * current + a * seed)
            else:
                changed.append(current * (1 + a * torch.tanh(seed)))
            start += width
        out = torch.cat(changed, 1)
    return out


@pytest.mark.parametrize("table", ["phase1", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("kind", "blend"), [("neurons", "add"), ("mlp", "add"), ("mlp", "lerp"), ("neurons", "multiply")]
)
def test_every_stage_gives_what_a_loop_over_seeds_gives(morpho_config, base, kind, blend, dtype, table):
    from lightning_morpho import HybridKasminaLayer

    make, shape = BASES[base]
    plain = make()
    layer = HybridKasminaLayer(
        copy.deepcopy(plain),
        morpho_config(
            kind, seeds=3, beds=2, table=table, germinated_ticks=2, training_ticks=2, fine_tuning_ticks=2,
            active_ticks=2, grafting=GraftingConfig(blend=blend, curve="cosine"),
        ),
    )  # fmt: skip
    plain, layer = plain.to(dtype), layer.to(dtype)
    rtol, atol = (1e-5, 1e-5) if dtype is torch.float32 else (0.05, 0.1)  # bf16 rounds at 2^-8, in another order
    seen = set()
    layer.request_germination([0, 2])
    for tick in range(30):
        if tick == 6:
            layer.request_germination([1])
        wake(layer)
        seen |= {n for n in names(layer)}
        x1 = torch.randn(shape).to(dtype).requires_grad_()
        x2 = x1.detach().clone().requires_grad_()
        beds = [bed.values() for bed in layer.morpho.live_beds().values()]
        copies = [{k: v.detach().clone().requires_grad_() for k, v in bed.items()} for bed in beds]
        alphas = [layer.morpho.row_alpha(i).tolist() for i in layer.morpho.live_beds()]
        got, wanted = layer(x1), reference(plain, x2, copies, kind, blend, alphas)
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
        upstream = torch.randn_like(got)
        got.backward(upstream)
        wanted.backward(upstream)
        scale = 1 if dtype is torch.float32 else 4
        torch.testing.assert_close(x1.grad, x2.grad, rtol=rtol, atol=atol * scale)
        torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=rtol, atol=atol * scale)
        for ours, theirs in zip(beds, copies, strict=True):
            for name, parameter in ours.items():
                if parameter.grad is not None:
                    wanted_grad = torch.zeros_like(parameter) if theirs[name].grad is None else theirs[name].grad
                    torch.testing.assert_close(parameter.grad, wanted_grad, rtol=rtol, atol=atol * scale)
                else:  # it rests: nothing would reach it
                    assert theirs[name].grad is None or not theirs[name].grad.any()
        layer.zero_grad()
        plain.zero_grad()
        due = [c for c in range(3) if layer.morpho.stages.due(c)]
        layer.morpho.keep(due, reason="test")
        layer.advance()
    live = LIVE if table == "full" else ["LOADING", "ACTIVE"]
    assert seen >= {*live, "DORMANT", "FOSSILIZED"}


# ---------------------------------------------------------------- nothing jumps
@pytest.mark.parametrize("table", ["phase1", "full"])
@pytest.mark.parametrize(
    ("kind", "blend"), [("neurons", "add"), ("mlp", "lerp"), ("mlp", "multiply"), ("block", "add")]
)
def test_no_change_of_stage_changes_the_function_and_a_culled_seed_leaves_no_trace(make_layer, table, kind, blend):
    layer = make_layer(nn.Linear(4, 6), kind=kind, table=table, grafting=GraftingConfig(blend=blend), embargo_ticks=3)
    x = torch.randn(64, 4)
    untouched = layer(x)
    seen = []

    def check(transition):
        seen.append((transition.source.name, transition.target.name))

    layer.morpho.on_transition = check
    layer.request_germination()
    torch.testing.assert_close(layer(x), untouched, rtol=0, atol=0)
    before_alpha = None
    for tick in range(40):
        with torch.no_grad():  # trained a little: at alpha 0 nothing shows, above it nothing may jump
            for bed in layer.morpho.live_beds().values():
                bed.w_out.fill_(0.01)
        layer.morpho.refresh()
        before, stages, alpha = layer(x), names(layer), layer.seed(0).alpha
        due = [c for c in range(2) if layer.morpho.stages.due(c)]
        if due and tick < 20:
            layer.morpho.keep(due[:1], reason="test")
            torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
            layer.morpho.cull(due[1:], reason="test")
            torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
        layer.advance()
        same = alpha == layer.seed(0).alpha and layer.seed(1).alpha == before_alpha
        if same and names(layer) != stages:
            torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
        before_alpha = layer.seed(1).alpha
    ends = {target for _, target in seen}
    assert {"FOSSILIZED", "CULLED"} <= ends
    gone = make_layer(nn.Linear(4, 6), kind=kind, table=table, grafting=GraftingConfig(blend=blend))
    clean = gone(x)
    gone.request_germination()
    advance_to(gone, "ACTIVE" if table == "phase1" else "EVALUATING", alpha=1.0)
    wake(gone)
    assert not torch.equal(gone(x), clean)
    gone.morpho.cull([0, 1], reason="test")
    for _ in range(6):
        gone.advance()
    assert torch.equal(gone(x), clean)  # bit for bit: the host was frozen meanwhile


@pytest.mark.parametrize(("kind", "blend"), [("neurons", "add"), ("mlp", "add"), ("mlp", "multiply"), ("mlp", "lerp")])
def test_at_alpha_one_all_of_the_host_upstream_still_receives_gradient(morpho_config, kind, blend):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6))
    config = morpho_config(kind, grafting=GraftingConfig(blend=blend), table="full")
    morph_(net, MorphoConfig(layers=LayersConfig(include=["2"], num_seeds=2), blueprint=config.blueprint,
                             lifecycle=config.lifecycle, grafting=config.grafting, warmup=config.warmup))  # fmt: skip
    net[2].request_germination()
    advance_to(net[2], "EVALUATING", alpha=1.0)
    wake(net[2])
    net(torch.randn(32, 4)).square().sum().backward()
    for name, parameter in net.named_parameters():
        if ".morpho." not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-3, name


@pytest.mark.parametrize(("blend", "kind"), [("lerp", "neurons"), ("lerp", "block"), ("multiply", "span")])
def test_a_blend_that_does_not_suit_the_blueprint_is_refused_before_anything_changes(blend, kind):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))
    with pytest.raises(ValueError, match=f"grafting.blend: {blend}.*{kind}.*blueprint.kind"):
        morph_(net, MorphoConfig(blueprint=BlueprintConfig(kind=kind), grafting=GraftingConfig(blend=blend)))
    assert not hybrid_layers(net)


# ---------------------------------------------------------------- incubation
def incubating(net, kind, **options):
    """A net whose seeds incubate."""
    lifecycle = LifecycleConfig(kind="full", incubation="boosting", training_ticks=9)
    config = MorphoConfig(
        blueprint=BlueprintConfig(kind=kind, hidden=4),
        lifecycle=lifecycle,
        warmup=WarmupConfig(steps=0, min_steps=0),
        **options,
    )
    morph_(net, config)
    confirm_pairs_(net, torch.randn(8, 8))
    for layer in hybrid_layers(net).values():
        if layer.morpho.free_beds:
            layer.request_germination()
            layer.advance()
    return net


@pytest.mark.parametrize(
    ("make", "kind"), [(linear_net, k) for k in ("neurons", "mlp", "block", "auto")] + [(conv_net, "auto")]
)
@pytest.mark.parametrize("broken", [False, True])
def test_incubating_seeds_leave_values_and_gradients_of_the_host_bit_equal(make, kind, broken):
    """Even a seed that has gone to infinity."""
    plain = make()
    young = incubating(copy.deepcopy(plain), kind)
    if broken:
        with torch.no_grad():
            for layer in hybrid_layers(young).values():
                for bed in layer.morpho.live_beds().values():
                    bed.w_out.fill_(torch.inf)
    else:
        [wake(layer) for layer in hybrid_layers(young).values()]
    results = []
    for net in (plain, young):
        torch.manual_seed(3)
        x = torch.randn(16, 8, requires_grad=True)
        out = net(x)
        out.square().mean().backward()
        own = {n: p.grad for n, p in net.named_parameters() if ".morpho." not in n}
        buffers = {n: b for n, b in net.named_buffers() if ".morpho." not in n}
        results.append((out, x.grad, own, buffers, torch.get_rng_state()))
    (out1, x1, own1, buffers1, random1), (out2, x2, own2, buffers2, random2) = results
    assert torch.equal(out1, out2) and torch.equal(x1, x2) and torch.equal(random1, random2)
    assert own1.keys() == own2.keys() and all(torch.equal(own1[n], own2[n]) for n in own1)
    assert all(torch.equal(buffers1[n], buffers2[n]) for n in buffers1)
    live = [b for layer in hybrid_layers(young).values() for b in layer.morpho.live_beds().values()]
    assert live and all(bed.w_out.grad is not None for bed in live)


def test_the_toy_that_drifts_under_a_straight_through_gradient_converges():
    """One weight, optimum 0.5: forward the host, backward as if the seed were there, never sees its own effect."""

    def train(attach):
        w = torch.zeros(1, requires_grad=True)
        for _ in range(100):
            host = torch.zeros(1, 1)
            loss = 0.5 * (attach(host, w) - 0.5).square().sum()
            (gradient,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                w -= 0.2 * gradient
        return w.item()

    drifted = train(lambda host, w: host + (w - w.detach()))
    assert drifted == pytest.approx(10, rel=1e-3)
    assert train(lambda host, w: incubate(host, w.view(1, 1), torch.ones(1))) == pytest.approx(0.5, abs=1e-6)


def test_incubation_fits_what_the_host_leaves(morpho_config):
    """The seed alone would have to fall by as much as the best correction of the host's output does."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    target = F.relu(x @ torch.randn(8, 3)) + x.sum(1, keepdim=True)
    net = incubating(nn.Sequential(nn.Linear(8, 3)), "neurons")
    net[0].requires_grad_(False)
    bed = net[0].morpho.beds[0]
    bed.requires_grad_(True)
    optimizer = torch.optim.Adam(bed.parameters(), lr=0.05)
    first = None
    for _ in range(300):
        loss = (net(x) - target).square().sum(1).mean() / 2
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == first  # the host never saw it
    while names(net[0]) != ["GRAFTING"] or net[0].seed(0).alpha < 1:
        net[0].advance()
        if net[0].seed(0).stage.name == "STABILIZATION":
            break
    assert (net(x) - target).square().sum(1).mean().item() / 2 < 0.3 * first


@pytest.mark.parametrize("batches", [1, 2])
def test_incubation_learns_the_same_under_accumulation_and_a_gradient_scaler(batches):
    """The loss is scaled before its backward pass, and unscaled after: the target must not be."""
    x = torch.randn(16, 8)
    grads = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        net = incubating(nn.Sequential(nn.Linear(8, 3)), "neurons")
        wake(net[0])
        net[0].morpho.loss_scale = scale / batches
        for part in x.chunk(batches):
            (net(part).square().mean() * scale / batches).backward()
        grads.append([p.grad / scale for p in net[0].morpho.beds[0].parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert grads[0][0].any()


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 6), lambda: nn.Conv1d(4, 6, 3)])
@pytest.mark.parametrize(("kind", "blend"), [("mlp", "lerp"), ("mlp", "multiply"), ("affine", "multiply")])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_every_blend_is_exported_as_it_is(morpho_config, make, kind, blend, alpha):
    net = nn.Sequential(make())
    x = torch.randn(2, 4) if isinstance(net[0], nn.Linear) else torch.randn(2, 4, 5)
    morph_(
        net, morpho_config(kind, beds=2, table="full", alpha_step=0.5, grafting=GraftingConfig(blend=blend, ticks=2))
    )
    for chunk in (0, 1):
        net[0].request_germination(chunk)
    for _ in range(9):
        net[0].advance()
        if net[0].seed(0).alpha == alpha:
            break
    assert [net[0].seed(c).alpha for c in (0, 1)] == [alpha, alpha]
    wake(net[0])
    plain = export(net)
    assert not hybrid_layers(plain)
    torch.testing.assert_close(plain(x), net(x))
    with pytest.raises(LifecycleError, match="fold"):
        merge_(net)


def test_evidence_of_a_seed_outlasts_a_checkpoint(make_layer):
    """Resumed, a seed that nobody judges is decided by what was known of it."""

    def waiting():
        layer = make_layer(seeds=1, timeout_ticks=3, alpha_step=1.0)
        layer.request_germination()
        advance_to(layer, "ACTIVE")
        return layer

    before, after = waiting(), make_layer(seeds=1, timeout_ticks=3, alpha_step=1.0)
    before.morpho.stages.note_evidence(0, {"lower": -0.1})
    after.load_state_dict(before.state_dict())
    ends = []
    for layer in (before, after):
        seen = []
        layer.morpho.on_transition = seen.append
        for _ in range(6):
            layer.advance()
        ends.append([(t.target.name, t.reason, t.figures) for t in seen])
    assert ends[0] == ends[1] and ends[0][0][:2] == ("CULLED", "timeout: no proven gain")


@pytest.mark.parametrize("stage", ["GERMINATED", "TRAINING"])
def test_an_error_in_a_silent_stage_lets_nothing_into_the_host(make_layer, stage):
    layer = make_layer(seeds=1, table="full", germinated_ticks=4, training_ticks=4, max_errors=3, alpha_step=0.5)
    layer.request_germination()
    advance_to(layer, stage)
    layer.morpho.record_errors([0], reason="not finite")
    for _ in range(3):
        layer.advance()
        assert layer.seed(0).stage.name in ("GERMINATED", "TRAINING") and layer.seed(0).alpha == 0
