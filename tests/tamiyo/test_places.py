"""Policies that choose a place: by score, by need, by what has paid."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_morpho import Bandit, Observation, Placed, Plateau
from lightning_morpho.tamiyo import LayerView, Outcome
from lightning_morpho.tamiyo.bandit import FIRST_SPREAD, posterior
from lightning_morpho.telemetry.field_reports import FIELD_REPORTS_FILE


def layer(name: str, position: int, **values: Any) -> LayerView:
    plain: dict[str, Any] = {"features": 8, "width": 8, "bed_parameters": 10, "free_beds": 1, "germinations": 0}
    return LayerView(**({"name": name, "position": position, "dormant": (0, 1), "seeds": ()} | plain | values))


def seen(*layers: LayerView, **values: Any) -> Observation:
    plain: dict[str, Any] = {"tick": 1, "step": 50, "total_steps": 100, "losses": (1.0,)}
    return Observation(layers=layers, **(plain | values))


def places(policy: Any, observation: Observation) -> list[tuple[str, Any]]:
    return [(d.layer, d.chunks) for d in policy.grow(observation)]


NET = (
    layer("a", 0, width=16, statistics={"host_gradient": (1.0, 1.0), "silent": (0.0, 0.9), "variance": (1.0, 1.0)}),
    layer("b", 1, width=4, statistics={"host_gradient": (3.0, math.nan), "silent": (0.5, 0.5), "variance": (9.0, 9.0)}),
    layer("c", 2, width=4, statistics={"host_gradient": (0.1, 0.1), "silent": (math.nan,) * 2, "variance": (0.1, 3.0)}),
)


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("narrowest", ["b", "c", "a"]),  # a tie goes to the earlier one
        ("earliest", ["a", "b", "c"]),
        ("gradient", ["b", "a", "c"]),
        ("silent", ["b", "a"]),  # not measured in c: no zero, and no candidate
        ("variance", ["a", "c", "b"]),
        ("correlation", ["b", "c", "a"]),  # measured nowhere: the narrowest
    ],
)
def test_score_chooses_the_layers(by: Any, order: list[str]) -> None:
    assert places(Placed(by=by, layers=3), seen(*NET)) == [(name, None) for name in order]
    assert places(Placed(by=by), seen(*NET)) == [(order[0], None)]


def test_score_that_was_not_measured_is_named_in_the_reason() -> None:
    assert "as correlation was not measured" in Placed(by="correlation").grow(seen(*NET))[0].reason


def test_placed_waits_for_its_moment_and_comes_once() -> None:
    assert not Placed().grow(seen(*NET, step=14))
    assert not Placed().grow(seen(layer("a", 0), layer("b", 1, germinations=1), last_round=1))


@pytest.mark.parametrize(
    ("losses", "last", "count"),
    [
        ((1.0, 0.9, 0.8, 0.7), None, 0),
        ((1.0, 1.0, 1.0, 1.0), None, 1),  # the first three stabilise
        ((1.0,) * 6, None, 3),
        ((1.0,) * 6 + (0.5,), None, 0),  # progress sets it back
        ((1.0,) * 6 + (0.995,), None, 4),  # less than min_delta is none
        ((1.0,) * 5 + (None,), None, 2),  # not measured counts neither way
        ((1.0,) * 8, 4, 1),  # embargo of three ticks after the germination at tick 4
    ],
)
def test_plateau_counts_ticks_without_progress(losses: Any, last: Any, count: int) -> None:
    observation = seen(*NET, tick=len(losses), losses=losses, last_round=last)
    assert Plateau().counter(observation) == count
    assert bool(Plateau().grow(observation)) == (count >= 3)


def test_plateau_takes_the_neediest_seed() -> None:
    flat = {"tick": 6, "losses": (1.0,) * 6}
    assert places(Plateau(), seen(*NET, **flat)) == [("c", (0,))]  # 1 / (1 + .1) is the only figure there
    assert places(Plateau(), seen(*NET[:2], **flat)) == [("a", (1,))]
    assert places(Plateau(), seen(layer("x", 0), layer("y", 1, width=2), **flat)) == [("y", (0,))]


def shares(policies: list[Bandit], observation: Observation) -> dict[str, int]:
    counts: dict[str, int] = {}
    for policy in policies:
        name = policy.grow(observation)[0].layer
        counts[name] = counts.get(name, 0) + 1
    return counts


def test_bandit_prefers_the_blueprint_that_paid_and_still_tries_the_other() -> None:
    layers = (layer("x", 0, kind="span"), layer("y", 1, kind="neurons"))
    known = (Outcome.of("span", "other", [(0.15, 10.0)] * 3), Outcome.of("neurons", "third", [(0.1, 10.0)] * 3))
    counts = shares([Bandit(seed=seed) for seed in range(200)], seen(*layers, outcomes=known))
    assert 120 < counts["x"] < 200
    many = tuple(Outcome.of(o.kind, o.layer, [(o.gain, 10.0)] * 500) for o in known)
    assert shares([Bandit(seed=seed) for seed in range(50)], seen(*layers, outcomes=many)) == {"x": 50}


def test_bandit_weighs_the_gain_by_its_cost() -> None:
    layers = (layer("x", 0, kind="span", bed_parameters=100), layer("y", 1, kind="neurons", bed_parameters=10))
    known = (Outcome.of("span", "x", [(0.3, 100.0)] * 99), Outcome.of("neurons", "y", [(0.2, 10.0)] * 99))
    assert shares([Bandit(seed=seed) for seed in range(50)], seen(*layers, outcomes=known)) == {"y": 50}


REPORT: dict[str, Any] = {
    **{"layer": "a", "chunk": 0, "generation": 0, "kind": "span", "position": 0, "layers": 2, "end": "FOSSILIZED"},
    **{"reason": "", "before": 1.0, "after": 0.5, "rise": 0.1, "lower": 0.05, "upper": 0.15, "confidence": 0.95},
    **{"parameters": 10.0, "ticks": 3, "steps": 30, "seconds": None},
}


def report(**values: Any) -> dict[str, Any]:
    return REPORT | {"layer": "old", "before": 2.0, "rise": 0.6} | values


def test_bandit_learns_from_the_field_reports_of_earlier_runs(tmp_path: Path) -> None:
    lines = [report(kind="span")] * 400 + [report(kind="neurons", rise=0.1)] * 400 + [report(kind="span", rise=None)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FIELD_REPORTS_FILE).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    layers = (layer("x", 0, kind="neurons"), layer("y", 1, kind="span"))
    untaught = shares([Bandit(seed=seed) for seed in range(50)], seen(*layers))
    taught = shares([Bandit(seed=seed, prior=str(tmp_path)) for seed in range(50)], seen(*layers))
    assert min(untaught.values()) > 10 and taught == {"y": 50}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it holds no report"),
        (b"no json\n", "it holds no report"),
        (b"\xff\xfe\x00", "it holds no text"),
        (b"3\n", "no field report: it has 3"),
        (b"null\n", "no field report: it has None"),
        (json.dumps(REPORT | {"colour": "red"}).encode(), "no field report.*colour"),
        (json.dumps({k: v for k, v in REPORT.items() if k != "rise"}).encode(), "no field report"),
        (json.dumps(REPORT | {"rise": math.nan}).encode(), "`rise` of a field report is float | None, got nan"),
        (json.dumps(REPORT | {"before": math.inf}).encode(), "`before` of a field report"),
        (json.dumps(REPORT | {"rise": "a lot"}).encode(), "`rise` of a field report"),
        (json.dumps(REPORT | {"parameters": None}).encode(), "`parameters` of a field report is float, got None"),
        (json.dumps(REPORT | {"kind": 3}).encode(), "`kind` of a field report is str, got 3"),
    ],
    ids=str,
)
def test_reports_that_are_corrupt_or_of_another_version_are_refused(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    """A rise of NaN used to count as the highest gain there is."""
    (tmp_path / FIELD_REPORTS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{FIELD_REPORTS_FILE}.*{problem}" if b"{" in content else problem):
        Bandit(prior=str(tmp_path))


def test_a_line_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    whole = json.dumps(REPORT)
    (tmp_path / FIELD_REPORTS_FILE).write_text(f"{whole}\n{whole[:40]}", encoding="utf-8")
    assert [one.count for one in Bandit(prior=str(tmp_path)).experience] == [1]


def test_prior_without_reports_is_refused_when_the_policy_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a file of field reports or a folder"):
        Bandit(prior=str(tmp_path))


@pytest.mark.parametrize(
    ("policy", "values", "named"),
    [
        (Placed, {"by": "widest"}, "`tamiyo.by`.*narrowest.*got 'widest'"),
        (Placed, {"layers": 0}, "`tamiyo.layers`.*got 0"),
        (Placed, {"at": 2}, "`tamiyo.at`.*got 2"),
        (Plateau, {"patience": 0}, "`tamiyo.patience`.*got 0"),
        (Plateau, {"embargo": -1}, "`tamiyo.embargo`.*got -1"),
        (Plateau, {"min_delta": math.nan}, "`tamiyo.min_delta`.*got nan"),
        (Bandit, {"every": 0}, "`tamiyo.every`.*got 0"),
        (Bandit, {"seed": -1}, "`tamiyo.seed`.*got -1"),
    ],
)
def test_bad_value_is_refused_by_name(policy: Any, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        policy(**values)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_gains_say_nothing_of_their_spread(count: int) -> None:
    """Two that agree by chance would end the search."""
    known = Outcome.of("span", "a", [(0.3, 10.0)] * count)
    assert posterior([], [known])[1] == pytest.approx(FIRST_SPREAD / math.sqrt(1 + count))
