"""`morpho_metrics.jsonl`: all that a report needs, without any logger."""

import json
import math
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest

from hosts import Host, conv_net, events, linear_net, loaders, make_trainer, quick
from lightning_morpho import LayersConfig, Stage
from lightning_morpho.surgery import hybrid_layers
from lightning_morpho.telemetry import EVENTS_FILE, SeedRecord
from lightning_morpho.telemetry.field_reports import FIELD_REPORTS_FILE
from lightning_morpho.telemetry.figures import LAYER_FIGURES, RUN_FIGURES, SEED_FIGURES
from lightning_morpho.telemetry.run_log import METRICS_FILE, RunLog, pack, plain, read_lines, unpack


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, callback, module and lines of one run that grew."""
    folder = tmp_path_factory.mktemp("run")
    L.seed_everything(0)
    module, callback = Host(linear_net(), lr=3e-2), quick(layers=LayersConfig(num_seeds=2))
    make_trainer(folder, callback, max_epochs=6).fit(module, **loaders())
    return folder, callback, module, list(read_lines(folder / METRICS_FILE))


def of(lines, kind):
    return [line for line in lines if line["kind"] == kind]


def test_every_line_says_when_it_was(run):
    *_, lines = run
    assert all({"kind", "time", "tick", "step", "epoch"} <= line.keys() for line in lines)
    assert [line["step"] for line in of(lines, "tick")] == [10, 20, 30, 40, 50, 60]
    assert [line["tick"] for line in of(lines, "tick")] == [1, 2, 3, 4, 5, 6]
    assert lines == sorted(lines, key=lambda line: line["time"])


def test_start_says_what_the_run_began_with(run):
    _, callback, module, lines = run
    assert [line["kind"] for line in lines].index("start") == 0
    (start,) = of(lines, "start")
    assert start["format"] == 1 and not start["resumed"]
    assert start["model"] == {"class": "Host", "parameters": 75, "trainable": 75, "modules": 6}
    assert start["trainer"]["total_steps"] == 60
    assert start["config"]["tamiyo"] == {"type": "OneRound"} | start["config"]["tamiyo"]
    assert start["config"]["layers"]["num_seeds"] == 2
    assert {"python", "torch", "lightning"} <= start["versions"].keys()
    modules = start["eligibility"]["modules"]
    assert [m["name"] for m in modules] == [m.name for m in callback.report.modules]
    assert any("no seeds grow" in m["reason"] for m in modules)
    assert start["layers"]["net.0"]["type"] == "Linear" and start["layers"]["net.0"]["seeds"] == 2


def test_ticks_hold_the_figures_that_are_documented(run):
    *_, lines = run
    for line in of(lines, "tick"):
        assert line["run"].keys() == RUN_FIGURES.keys()
        for layer in line["layers"].values():
            assert layer["values"].keys() <= LAYER_FIGURES.keys()
            assert sum(layer["stages"].values()) == 2
        for seed in line["live"]:
            assert seed.keys() - {"layer", "chunk"} <= SEED_FIGURES.keys()


def test_figures_of_the_run_are_those_of_the_model(run):
    _, callback, module, lines = run
    last = of(lines, "tick")[-1]["run"]
    added = sum(layer.morpho.live_parameters for layer in hybrid_layers(module).values())
    assert last["added_parameters"] == added > 0
    assert last["parameters"] == 75 + added
    assert last["growth_ratio"] == pytest.approx((75 + added) / 75)
    assert last["seeds_live"] + last["seeds_fossilized"] + last["seeds_dormant"] + last["seeds_recovering"] == 4


def test_credit_is_that_of_the_seeds_in_place_and_null_before_it_was_measured(run):
    _, callback, _, lines = run
    ticks = of(lines, "tick")
    assert ticks[0]["run"]["return_per_parameter"] is None
    kept = [record["figures"] for record in of(lines, "end")[0]["seeds"] if record["stage"] == "FOSSILIZED"]
    assert kept
    assert all(f["judged_with"] == 0 or "joint" in f for f in kept)
    credit = sum(f.get("joint", f["rise"]) / (1 + f["judged_with"]) for f in kept)
    assert sum(layer["values"]["credit"] or 0 for layer in ticks[-1]["layers"].values()) == pytest.approx(credit)


def test_metrics_of_the_run_stand_at_their_epoch(run):
    *_, lines = run
    seen = [line["values"]["val_loss"] for line in of(lines, "metrics") if "val_loss" in line["values"]]
    losses = [line["loss"] for line in of(lines, "tick")]
    assert seen == pytest.approx(losses)
    assert not any(name.startswith("morpho/") for line in of(lines, "metrics") for name in line["values"])


def test_seed_maps_follow_the_events(run):
    folder, *_, lines = run
    stages = {layer: np.zeros(2, dtype=np.uint8) for layer in ("net.0", "net.2")}
    log = events(folder)
    for tick in of(lines, "tick"):
        for event in [e for e in log if e["tick"] == tick["tick"]]:
            stages[event["layer"]][event["chunk"]] = Stage[event["to"]]
        for layer, maps in tick["seeds"].items():
            renewed = maps["generation"] > 0
            np.testing.assert_array_equal(maps["stage"][~renewed], stages[layer][~renewed])


def test_end_holds_the_records_of_all_seeds(run):
    _, callback, _, lines = run
    (end,) = of(lines, "end")
    assert end["outcome"] == "finished"
    assert [SeedRecord(**record) for record in end["seeds"]] == [
        SeedRecord(**record) for record in callback.state_dict()["engine"]["records"]
    ]


def test_lines_are_json_for_every_reader(run):
    folder, *_ = run

    def refuse(constant):
        raise ValueError(constant)

    for line in (folder / METRICS_FILE).read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_training_metrics_of_an_epoch_stand_at_that_epoch(tmp_path):
    """Lightning reduces them after all hooks of the epoch: written at the tick they would be one epoch late."""

    class Logging(Host):
        def training_step(self, batch, batch_idx):
            self.log("epoch_index", float(self.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    make_trainer(tmp_path, quick(), max_epochs=3).fit(Logging(linear_net()), **loaders())
    lines = of(read_lines(tmp_path / METRICS_FILE), "metrics")
    values = [(line["step"], line["values"]["epoch_index"]) for line in lines if "epoch_index" in line["values"]]
    assert values == [(10, 0.0), (20, 1.0), (30, 2.0)]


def test_a_fit_that_breaks_off_says_why(tmp_path):
    class Breaks(Host):
        def training_step(self, batch, batch_idx):
            if self.global_step == 15:
                raise RuntimeError("no luck")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="no luck"):
        make_trainer(tmp_path, quick()).fit(Breaks(conv_net()), **loaders())
    *_, end = read_lines(tmp_path / METRICS_FILE)
    assert (end["kind"], end["outcome"], end["step"]) == ("end", "RuntimeError: no luck", 15)


class LosesItsLogs(L.Callback):
    """From the second epoch to the fourth no log can be written: folders lie where the files were."""

    def on_train_epoch_start(self, trainer, pl_module):
        root = Path(trainer.default_root_dir)
        for name in (EVENTS_FILE, METRICS_FILE):
            if trainer.current_epoch == 1:
                (root / name).rename(root / f"{name}.before")
                (root / name).mkdir()
            if trainer.current_epoch == 4:
                (root / name).rmdir()


def test_a_full_disk_does_not_end_the_training_and_is_told_once(tmp_path):
    (tmp_path / FIELD_REPORTS_FILE).mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = Host(conv_net())
        trainer = make_trainer(tmp_path, LosesItsLogs(), quick(), max_epochs=6)
        trainer.fit(module, **loaders())
    assert trainer.current_epoch == 6
    told = [str(w.message) for w in caught if "can't be written" in str(w.message)]
    for name in (EVENTS_FILE, METRICS_FILE, FIELD_REPORTS_FILE):
        assert sum(f"{name}` can't be written, lines are missing there" in message for message in told) == 1, told
    assert next(reversed(list(read_lines(tmp_path / METRICS_FILE))))["kind"] == "end", "written again, once it can be"


def test_unchanged_maps_and_values_are_not_written_again():
    log, stage = RunLog(None), np.arange(5, dtype=np.uint8)
    assert unpack(log.changed_maps({"a": {"stage": stage}})["a"]["stage"]).tolist() == stage.tolist()
    assert log.changed_maps({"a": {"stage": stage.copy()}}) == {}
    assert log.changed_maps({"a": {"stage": stage + 1}}).keys() == {"a"}
    assert log.changed_values({"x": 1.0, "y": math.nan}).keys() == {"x", "y"}
    assert log.changed_values({"x": 1.0, "y": math.nan}) == {}
    assert log.changed_values({"x": 2.0}) == {"x": 2.0}


def test_a_map_of_thousands_of_dormant_seeds_is_short():
    assert len(pack(np.zeros(10_000, dtype=np.uint8))) < 100


def test_plain_takes_what_configurations_hold():
    value = plain({"a": (1, 2.5), "b": {3, 1}, "c": Stage.ACTIVE, "d": float("inf"), "e": LayersConfig(num_seeds=2)})
    assert value["a"] == [1, 2.5] and value["b"] == [1, 3] and value["c"] == "ACTIVE" and value["d"] is None
    assert value["e"]["num_seeds"] == 2
    json.dumps(value, allow_nan=False)
