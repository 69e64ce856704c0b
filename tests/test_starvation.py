"""Seeds that can't learn: reported, given a new start once, culled if that does not help; nobody else is touched."""

import copy
import json

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from hosts import Host, assert_equal, conv_net, events, linear_net, loaders, make_data, make_trainer, quick
from lightning_morpho import (
    Blueprint,
    BlueprintConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoConfig,
    OptimizerLink,
    Scripted,
    StarvationConfig,
    WarmupConfig,
    confirm_pairs_,
    hybrid_layers,
    morph_,
    register_blueprint,
)
from lightning_morpho.layers.starvation import StarvationWatch, looks_of
from lightning_morpho.newborns import relieve_starved
from lightning_morpho.telemetry import EVENTS_FILE, read_events


def starved(root):
    return [entry for entry in read_events(root / EVENTS_FILE) if entry["event"] == "starved"]


class Kill(L.Callback):
    """Puts all hidden units of each newborn bed out of reach before its first step, unless it starts anew."""

    def __init__(self, layer="net.2"):
        self.layer = layer

    def on_train_batch_start(self, trainer, pl_module, *_):
        for bed in hybrid_layers(pl_module)[self.layer].morpho.live_beds().values():
            if bed.steps == 0 and not bed.revivals:
                with torch.no_grad():
                    for name, value in bed.named_parameters():
                        if name.startswith("b_in"):
                            value.fill_(-1e4)


class Stillborn(Blueprint):
    """Hidden units that never fire, however they are drawn."""

    source = "input"

    def shapes(self):
        return {"w_in": (4, self.site.in_features), "w_out": (self.site.out_features, 4)}

    def reset_(self, parameters, generator):
        parameters["w_in"].copy_(torch.rand(parameters["w_in"].shape, generator=generator))
        parameters["w_out"].zero_()

    def grow(self, parameters, source):
        return F.linear(F.relu(F.linear(source, parameters["w_in"]) - 1e6), parameters["w_out"])


class Shift(Blueprint):
    """Learns, but gives the same for every sample."""

    source = "output"

    def shapes(self):
        return {"w_out": (self.site.out_features,)}

    def reset_(self, parameters, generator):
        parameters["w_out"].zero_()

    def grow(self, parameters, source):
        return torch.zeros_like(source) + self.site.per_feature(parameters["w_out"])


register_blueprint("test_stillborn", probe=False)(Stillborn)
register_blueprint("test_shift")(Shift)


def germinate(layer="net.2", tick=1):
    return Scripted(events=[{"tick": tick, "layer": layer}])


# ---------------------------------------------------------------- in a Trainer
@pytest.mark.parametrize("table", ["phase1", "full"])
@pytest.mark.parametrize("kind", ["neurons", "mlp", "auto"])
def test_a_dead_newborn_is_reported_starts_anew_and_learns(tmp_path, kind, table):
    callback = quick(
        blueprint=BlueprintConfig(kind=kind, hidden=4),
        tamiyo=germinate(),
        lifecycle=LifecycleConfig(kind=table, active_ticks=9, alpha_step=1.0),
        starvation=StarvationConfig(every_n_steps=4),
    )
    module = Host(linear_net())
    make_trainer(tmp_path, callback, Kill(), max_epochs=9).fit(module, **loaders())
    told = starved(tmp_path)
    seeds = hybrid_layers(module)["net.2"].morpho
    assert [(e["chunk"], e["reason"], e["figures"]["gradient"]) for e in told] == [
        (0, "no gradient: new parameters", 0.0)
    ]
    assert seeds.state.stage[0] in (seeds.lifecycle_table.judged, *seeds.lifecycle_table.path[2:])
    assert seeds.bed_at(0).w_out.abs().sum() > 0.01
    assert not [e for e in events(tmp_path) if e["reason"] == "starved"]


def test_a_blueprint_that_can_never_learn_is_culled_and_the_reason_said(tmp_path):
    callback = quick(
        blueprint=BlueprintConfig(kind="test_stillborn"),
        tamiyo=germinate(),
        lifecycle=LifecycleConfig(active_ticks=9, embargo_ticks=99, alpha_step=1.0),
        starvation=StarvationConfig(every_n_steps=4),
    )
    module = Host(linear_net())
    make_trainer(tmp_path, callback, max_epochs=8).fit(module, **loaders())
    assert [e["reason"] for e in starved(tmp_path)] == ["no gradient: new parameters", "no gradient: fades out"]
    (end,) = [e for e in events(tmp_path) if e["to"] == "CULLED"]
    assert end["reason"] == "starved" and end["figures"]["gradient"] == 0
    assert hybrid_layers(module)["net.2"].morpho.dormant


def test_an_output_that_never_varies_is_culled_once_the_warm_up_is_over(tmp_path):
    callback = quick(
        blueprint=BlueprintConfig(kind="test_shift"),
        tamiyo=germinate(),
        lifecycle=LifecycleConfig(active_ticks=99, embargo_ticks=99, alpha_step=1.0),
        starvation=StarvationConfig(looks=2),
    )
    make_trainer(tmp_path, callback, max_epochs=8).fit(Host(linear_net()), **loaders())
    assert [e["reason"] for e in starved(tmp_path)] == ["its output does not vary: fades out"]
    assert [e["reason"] for e in events(tmp_path) if e["to"] == "CULLED"] == ["starved"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("net", "kind"),
    [(linear_net, k) for k in ("auto", "neurons", "mlp", "glu", "block", "lowrank", "affine")] + [(conv_net, "auto")],
)
def test_healthy_seeds_are_left_alone_however_closely_they_are_watched(tmp_path, net, kind, frozen):
    """And the run is bit for bit the one without the watch: looking must change nothing."""

    def fit(folder, **options):
        L.seed_everything(0)
        module = Host(net())
        if frozen:  # all but the head: the host's own gradient is no measure then
            module.net[0].requires_grad_(False)
        callback = quick(blueprint=BlueprintConfig(kind=kind), starvation=StarvationConfig(**options))
        make_trainer(folder, callback, max_epochs=4).fit(module, **loaders())
        return module

    watched = fit(tmp_path / "a", every_n_steps=1, looks=2)
    assert [e for e in events(tmp_path / "a") if e["from"] == "DORMANT"] and not starved(tmp_path / "a")
    plain = fit(tmp_path / "b", enabled=False)
    assert_equal(watched.losses, plain.losses)


class SaveAt(L.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [17, 33])
def test_a_run_resumed_between_two_looks_takes_the_same_decisions(tmp_path, step):
    """One checkpoint in mid-starvation, one after the new start."""

    def fit(folder, *callbacks, ckpt=None):
        L.seed_everything(0)
        module = Host(linear_net())
        callback = quick(
            tamiyo=germinate(),
            lifecycle=LifecycleConfig(active_ticks=9),
            starvation=StarvationConfig(every_n_steps=4),
            every_n_steps=10,
        )
        trainer = make_trainer(folder, callback, Kill(), *callbacks, max_epochs=50, check_val_every_n_epoch=10)
        one_batch = DataLoader(make_data(320, 0), batch_size=320)  # so that a loader resumed has nothing to skip
        trainer.fit(module, one_batch, loaders()["val_dataloaders"], ckpt_path=ckpt)
        return {n: p.detach().clone() for n, p in module.named_parameters()}, starved(folder)

    whole, told = fit(tmp_path / "whole", SaveAt(step, tmp_path / "saved.ckpt"))
    resumed, told_again = fit(tmp_path / "resumed", ckpt=tmp_path / "saved.ckpt")
    assert_equal(whole, resumed)
    assert told and [e for e in told if e["step"] > step] == told_again


# ---------------------------------------------------------------- layers
def grown(net, kind, seeds=2, **starvation):
    morph_(
        net,
        MorphoConfig(
            layers=LayersConfig(num_seeds=seeds),
            blueprint=BlueprintConfig(kind=kind, hidden=4),
            warmup=WarmupConfig(steps=20, min_steps=20),
            starvation=StarvationConfig(**{"every_n_steps": 1, "looks": 2} | starvation),
        ),
    )
    layers = hybrid_layers(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    return layers, optimizer, OptimizerLink(layers, [optimizer])


def steps(net, optimizer, link, count=2, features=8):
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(16, features)).square().mean().backward()
        link.settle_gradients(optimizer)
        optimizer.step()


def test_one_dead_chunk_is_culled_and_its_neighbours_in_the_bed_train_on_untouched():
    """They have moments, and a warm-up of their own, that a new start of the bed would throw away."""
    net = nn.Sequential(nn.Linear(8, 9))
    layers, optimizer, link = grown(net, "mlp", seeds=3)
    net[0].request_germination()
    bed = net[0].morpho.bed_at(0)
    with torch.no_grad():
        bed.b_in[1] = -1e4
    steps(net, optimizer, link)
    before = copy.deepcopy([optimizer.state[p] for p in bed.parameters()]), bed.steps
    (found,) = relieve_starved(layers)
    assert (found.chunks, found.reason) == ((1,), "no gradient: fades out")
    assert found.figures["neighbours"] > 0
    assert net[0].morpho.state.fading.tolist() == [False, True, False]
    link.drop_stale_state()
    assert_equal(before, ([optimizer.state[p] for p in bed.parameters()], bed.steps))


def test_a_seed_is_judged_by_the_looks_since_its_last_judgement():
    """Else one that recovers would be judged by what it was long ago."""
    net = nn.Sequential(nn.Linear(8, 9))
    _, optimizer, link = grown(net, "mlp", seeds=1, looks=2)
    net[0].request_germination()
    known = []
    for _ in range(4):
        steps(net, optimizer, link, count=1)
        (look,) = looks_of(net[0].morpho)
        known.append(look.gradient is not None)
    assert known == [False, True, False, True]


@pytest.mark.parametrize("kind", ["neurons", "span"])
def test_a_new_start_changes_no_output_and_forgets_the_old_moments(kind):
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    layers, optimizer, link = grown(net, kind)
    confirm_pairs_(net, torch.randn(3, 8))
    first, behind = net[2], net[4]
    first.request_germination()
    bed = first.morpho.bed_at(0)
    with torch.no_grad():
        next(p for n, p in bed.named_parameters() if n.startswith("b_in")).fill_(-1e4)
    behind.request_germination()  # a span reads the dead units, by links that are not zero
    steps(net, optimizer, link, 3)
    x = torch.randn(64, 8)
    old, before = {n: p.detach().clone() for n, p in bed.named_parameters()}, net(x)
    (found,) = relieve_starved(layers)
    link.drop_stale_state()
    assert found.layer == "2" and found.reason == "no gradient: new parameters"
    assert torch.equal(net(x), before)
    assert bed.newborn and bed.steps == 0 and bed.revivals == 1
    assert all(p not in optimizer.state for p in bed.parameters())
    assert not any(torch.equal(p, old[n]) for n, p in bed.named_parameters() if n != "w_out")
    steps(net, optimizer, link, 3)
    assert bed.w_out.any()
    if kind == "span":
        assert all(link.weight.any() for _, link in behind.morpho.links.live(0))


def test_a_seed_that_hardly_learns_is_told_from_its_neighbours_and_not_from_nothing():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 9))
    layers, optimizer, link = grown(net, "mlp", seeds=3, ratio=1e-3)
    net[0].request_germination([0])
    bed = net[0].morpho.bed_at(0)
    with torch.no_grad():
        bed.w_in.mul_(1e-6)
        bed.b_in.mul_(1e-6)
    steps(net, optimizer, link)
    assert relieve_starved(layers) == []  # alone, with some gradient: there is nobody to compare it with
    net[0].morpho.roll_back()
    for _ in range(6):
        net[0].advance()
    net[0].request_germination()
    with torch.no_grad():
        bed.w_in[2].mul_(1e-6)
        bed.b_in[2].mul_(1e-6)
    steps(net, optimizer, link)
    (found,) = relieve_starved(layers)
    assert (found.chunks, found.reason) == ((2,), "hardly any gradient: fades out")
    assert 0 < found.figures["gradient"] < 1e-3 * found.figures["neighbours"]


def test_a_layer_that_nothing_flows_through_starves_no_seed():
    """Its host gets no gradient either: that is the model's doing."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.used(x) + 0 * self.unused(x)

    net = Gated()
    layers, optimizer, link = grown(net, "neurons")
    for layer in layers.values():
        layer.request_germination()
    steps(net, optimizer, link, 4)
    assert relieve_starved(layers) == []


def test_an_error_is_no_starvation():
    """What is contained leaves no gradient; the errors are counted, and end the seed."""
    net = nn.Sequential(nn.Linear(8, 6))
    layers, optimizer, link = grown(net, "neurons")
    net[0].request_germination()
    with torch.no_grad():
        net[0].morpho.bed_at(0).w_out.fill_(torch.nan)
    steps(net, optimizer, link, 4)
    net[0].advance()
    assert relieve_starved(layers) == [] and net[0].seed(0).errors == 1


@pytest.mark.parametrize(
    ("base", "shape"), [(lambda: nn.Linear(8, 6), (16, 8)), (lambda: nn.Conv1d(2, 6, 3), (16, 2, 8))]
)
def test_what_was_seen_is_saved_and_costs_nothing_without_live_seeds(make_layer, base, shape):
    made = make_layer(base(), kind="mlp", seeds=2)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    link = OptimizerLink({"0": made}, [optimizer])

    def step():
        made(torch.randn(shape)).square().mean().backward()
        optimizer.step()

    step()
    assert made.morpho.starvation.state_dict() == {} and looks_of(made.morpho) == []
    made.request_germination([1])
    step()
    saved = json.loads(json.dumps(made.morpho.starvation.state_dict()))
    assert saved["0"][3] == [1.0, 1.0] and saved["0"][0][1] > 0
    other = StarvationWatch(made.morpho.blueprint, StarvationConfig())
    other.load_state_dict(saved)
    assert_equal(other.state_dict(), saved)
    made.morpho.roll_back()
    assert looks_of(made.morpho) == [] and made.morpho.starvation.state_dict() == {}
    link.close()
