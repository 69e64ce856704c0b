"""A recorded run, decided again offline."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
from hydra.utils import instantiate
from observations import shipped_policies

from hosts import Host, linear_net, loaders, make_trainer, quick
from lightning_morpho import LayersConfig, Periodic, TelemetryConfig, Uniform
from lightning_morpho.cli.main import main
from lightning_morpho.tamiyo import Assessment, Germinate, Observation
from lightning_morpho.tamiyo.plain import observation_from_plain, observation_to_plain
from lightning_morpho.tamiyo.replay import describe_policy, read_ticks, redecide, tick_entry
from lightning_morpho.telemetry import EVENTS_FILE, read_events
from lightning_morpho.telemetry.field_reports import FIELD_REPORTS_FILE, read_field_reports
from lightning_morpho.views import rounded


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded")
    L.seed_everything(0)
    callback = quick(layers=LayersConfig(num_seeds=2, beds=2))
    make_trainer(root, callback, max_epochs=8).fit(Host(linear_net()), **loaders())
    return root


def test_log_holds_each_tick_with_what_was_seen_and_decided(recorded: Path) -> None:
    ticks = list(read_ticks(recorded))
    assert [tick.observation.tick for tick in ticks] == list(range(1, 9))
    last = ticks[-1].observation
    assert len(last.losses) == len(last.training_losses) == 8 and None not in last.losses
    assert last.losses[:3] == ticks[2].observation.losses
    assert [d.layer for d in ticks[0].decisions if isinstance(d, Germinate)] == ["net.0", "net.2"]
    assert any(tick.observation.measurements for tick in ticks)


def test_run_s_own_policy_decides_as_it_did(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recorded)]) == 0
    assert "8 ticks, 0 decided otherwise by Uniform(at=0.0" in capsys.readouterr().out


def test_folder_above_the_run_will_do(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As with ``morpho report`` and ``morpho watch``: the log lies in a folder of the logger."""
    shutil.copytree(recorded, tmp_path / "run" / "csv")
    assert main(["replay", str(tmp_path)]) == main(["replay", str(recorded / EVENTS_FILE)]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1


def test_other_setting_shows_where_it_differs_and_exits_with_1(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recorded), "--set", "at=0.5"]) == 1
    out = capsys.readouterr().out
    assert "Uniform(at=0.5" in out and "From tick 1 on" in out and "germinate net.0" in out
    assert main(["replay", str(recorded / EVENTS_FILE), "--tamiyo=never"]) == 1


@pytest.mark.parametrize("name", shipped_policies())
def test_a_recorded_policy_is_built_again_as_it_was(name: str) -> None:
    policy = shipped_policies()[name]
    assert instantiate(describe_policy(policy)) == policy, "without it a run can't be replayed"


@pytest.mark.parametrize("name", shipped_policies())
def test_every_policy_can_be_asked_what_it_would_have_done(name: str, recorded: Path) -> None:
    assert main(["replay", str(recorded), f"--tamiyo={name}"]) in (0, 1)


def test_policy_of_ones_own_is_found_by_its_dotted_name(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(recorded))
    (recorded / "own_policies.py").write_text(
        "from lightning_morpho import Uniform\nclass Same(Uniform):\n    pass\n", encoding="utf-8"
    )
    assert main(["replay", str(recorded), "--tamiyo=own_policies.Same", "--set", "at=0.0"]) == 0
    sys.modules.pop("own_policies")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tamiyo=perodic"], "must be one of all_at_start, .*got 'perodic'"),
        (["--tamiyo=collections.Counter"], "must name a Tamiyo policy"),
        (["--set", "att=0.5"], "no key `att`"),
        (["--set", "at=2"], "`tamiyo.at`"),
    ],
)
def test_what_can_t_be_replayed_is_refused_with_exit_code_2(
    arguments: list[str], message: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recorded), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_run_without_a_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / EVENTS_FILE).write_text(json.dumps({"event": "fit_start"}) + "\n", encoding="utf-8")
    assert main(["replay", str(tmp_path), "--tamiyo=never"]) == 2


def test_losses_are_whole_again_after_a_resumed_run_repeated_ticks(recorded: Path, tmp_path: Path) -> None:
    entries = [e for e in read_events(recorded / EVENTS_FILE) if e["event"] == "decided"]
    lines = [*entries[:4], *entries[2:]]  # a run that was killed after tick 4 and resumed from tick 2
    (tmp_path / EVENTS_FILE).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    ticks = list(read_ticks(tmp_path))
    assert [len(t.observation.losses) for t in ticks] == [1, 2, 3, 4, 3, 4, 5, 6, 7, 8]
    assert all(tick.same for tick in redecide(iter(ticks), Uniform(at=0.0)))


def test_each_answer_on_growth_is_logged_once_and_seen_at_all_later_ticks(recorded: Path, tmp_path: Path) -> None:
    """A host that is asked at each tick of a long training must not write all answers again and again."""
    first = next(read_ticks(recorded)).observation
    answers = [Assessment(layer="net.2", share=0.1, step=step) for step in (10, 20)]
    known = [None, tuple(answers[:1]), tuple(answers), tuple(answers)]
    ticks = [
        replace(first, tick=tick, step=10 * (tick - 1), assessments=found, losses=(0.5,) * tick, training_losses=())
        for tick, found in enumerate(known, 1)
    ]
    lines = [tick_entry(seen, [], whole=seen.tick == 1) for seen in [*ticks, *ticks[2:]]]  # resumed after tick 2
    (tmp_path / EVENTS_FILE).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    logged = [len(line["observation"].get("assessments") or ()) for line in lines]
    assert logged == [0, 1, 1, 0, 1, 0]
    assert [tick.observation.assessments for tick in read_ticks(tmp_path)] == [*known, *known[2:]]


def test_thousands_of_seeds_take_little_of_the_log(recorded: Path) -> None:
    """4,096 seeds with their statistics: an hour of ticks must not fill a disk."""
    observation = next(read_ticks(recorded)).observation
    values = rounded(float(i * 7919 % 1009) / 1009 for i in range(1024))
    statistics = dict.fromkeys(("mean", "variance", "silent"), values)
    layer = replace(observation.layers[0], dormant=tuple(range(1024)), statistics=statistics)
    large: Observation = replace(observation, layers=tuple(replace(layer, name=f"net.{i}") for i in range(4)))
    packed = observation_to_plain(large)
    assert len(json.dumps(packed)) < 16 * 4096
    assert observation_from_plain(packed) == large


def test_seed_leaves_a_field_report_when_it_ends(recorded: Path) -> None:
    reports = read_field_reports(recorded)
    transitions = [e for e in read_events(recorded / EVENTS_FILE) if e["event"] == "transition"]
    ended = {
        (e["layer"], e["chunk"], e["generation"], e["to"]) for e in transitions if e["to"] in ("FOSSILIZED", "CULLED")
    }
    assert {(r.layer, r.chunk, r.generation, r.end) for r in reports} == ended and ended
    losses = list(read_ticks(recorded))[-1].observation.losses
    for report in reports:
        assert report.before == losses[0] and report.after in losses
        assert report.steps == 10 * report.ticks and report.seconds is not None and report.seconds > 0
        assert report.rise is not None and report.lower is not None and report.upper is not None
        assert report.lower <= report.rise <= report.upper
        assert (report.lower > 0) == (report.end == "FOSSILIZED")
    # two chunks share a bed of `neurons`
    assert {r.layer: r.parameters for r in reports} == {"net.0": 60.0, "net.2": 40.0}


def test_nothing_is_written_where_events_are_off(tmp_path: Path) -> None:
    callback = quick(telemetry=TelemetryConfig(events=False, table=False), tamiyo=Periodic())
    make_trainer(tmp_path, callback, max_epochs=4).fit(Host(linear_net()), **loaders())
    assert not (tmp_path / EVENTS_FILE).exists() and not (tmp_path / FIELD_REPORTS_FILE).exists()
