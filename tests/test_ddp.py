"""Growth over two real processes: the replicas must never differ, or the run is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts import assert_equal, run_script

pytestmark = pytest.mark.slow

DDP = ["plain", "static_graph", "accumulation", "random_events", "rolled_back", "uneven", "between", "scaled"]


def launch(out: Path, variants: list[str], ranks: int = 2, script: str = "ddp_run.py") -> dict[str, Any]:
    run_script(Path(__file__).with_name(script), str(out), *variants, MORPHO_TEST_RANKS=str(ranks))
    return {path.stem: torch.load(path, weights_only=False) for path in out.glob("*.pt")}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    two, sharded = (tmp_path_factory.mktemp(name) for name in ("full", "full_sharded"))
    return launch(two, ["full", "full_idle", "starved"]) | launch(sharded, ["fsdp2_full", "fsdp2_starved"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    one, two, sharded, ramped = (tmp_path_factory.mktemp(name) for name in ("one", "two", "sharded", "ramped"))
    launch(two, [*DDP, "between_resumed"])
    saved = torch.load(two / "later.ckpt", weights_only=True)["callbacks"]["MorphoCallback"]
    return (
        {"saved": saved}
        | launch(one, ["one_process"])
        | launch(two, ["between_alone"])
        | launch(sharded, ["fsdp2", "fsdp2_newborn", "fsdp2_resumed"])
        | launch(ramped, ["fsdp2_ramp", "fsdp2_ramp_resumed"])
    )


def agreed(result: dict[str, Any]) -> str:
    """What the ranks must agree on."""
    return json.dumps(result["callback"]["engine"], sort_keys=True)  # in which NaN equals NaN


@pytest.mark.parametrize("variant", DDP)
def test_replicas_are_bit_equal_after_every_tick(variant: str, results: dict[str, Any]) -> None:
    first, second = results[f"{variant}-0"], results[f"{variant}-1"]
    assert first["losses"] != second["losses"], "the ranks must have seen different data"
    assert len(first["states"]) >= 6
    assert_equal(first["states"], second["states"])
    assert agreed(first) == agreed(second)
    stages = {record["stage"] for record in first["callback"]["engine"]["records"]}
    assert stages & {"FOSSILIZED", "CULLED"}


def test_a_seed_that_breaks_on_one_rank_takes_all_of_them_back(results: dict[str, Any]) -> None:
    for rank in (0, 1):
        engine = results[f"rolled_back-{rank}"]["callback"]["engine"]
        assert engine["governor"]["rollbacks"] == 1
        assert {record["reason"] for record in engine["records"]} == {"rollback"}
        assert all(bool(value.isfinite().all()) for value in results[f"rolled_back-{rank}"]["states"][-1].values())


@pytest.mark.exhaustive
def test_four_replicas_are_bit_equal_over_fifty_random_events(tmp_path: Path) -> None:
    results = launch(tmp_path, ["random_events"], ranks=4)
    for rank in range(1, 4):
        assert_equal(results["random_events-0"]["states"], results[f"random_events-{rank}"]["states"])
    assert len(results["random_events-0"]["callback"]["engine"]["records"]) >= 50


def test_fifty_random_events_happened(results: dict[str, Any]) -> None:
    assert len(results["random_events-0"]["callback"]["engine"]["records"]) >= 50


def test_two_processes_learn_what_one_does_on_the_joint_batch(results: dict[str, Any]) -> None:
    """Fails if the gradients of beds are summed, or averaged twice, or not at all."""
    one, two = results["one_process-0"]["states"][1], results["plain-0"]["states"][1]
    moved = 0.0
    for name in one:
        if "accuracy" in name:
            continue
        # float32 sums in another order over 20 SGD steps
        assert torch.allclose(one[name], two[name], atol=1e-5), name
        moved += float(one[name].abs().sum()) if name.endswith("w_out") else 0.0
    assert moved > 0


def test_sharded_training_learns_what_replicated_training_does(results: dict[str, Any]) -> None:
    """Seeds germinate into shards of their parameters; written elsewhere, they would never be trained."""
    sharded, replicated = results["fsdp2-0"], results["plain-0"]
    for ours, theirs in zip(sharded["states"], replicated["states"], strict=True):
        for name, values in theirs.items():
            # float32: the two strategies reduce gradients in another order
            assert torch.allclose(ours[name], values, atol=1e-5), name
    stages = [[r["stage"] for r in run["callback"]["engine"]["records"]] for run in (sharded, replicated)]
    assert stages[0] == stages[1]
    assert_equal(sharded["states"], results["fsdp2-1"]["states"])


@pytest.mark.parametrize(("variant", "after"), [("fsdp2_newborn", 1), ("fsdp2_resumed", 2)])
def test_sharded_training_resumes_bit_equal_in_the_middle_of_growth(
    variant: str, after: int, results: dict[str, Any]
) -> None:
    """Newborns have no optimizer state yet: a checkpoint of that moment could not be loaded once."""
    assert_equal(results["fsdp2-0"]["states"][after:], results[f"{variant}-0"]["states"])
    for rank in (0, 1):
        assert_equal(results[f"fsdp2-{rank}"]["callback"]["engine"], results[f"{variant}-{rank}"]["callback"]["engine"])


def test_a_sharded_run_resumes_at_the_stage_of_its_ramp(results: dict[str, Any]) -> None:
    """Its state is restored after the fit has started: the ramp began again at 1 %, and growth stood still."""
    whole, resumed = results["fsdp2_ramp-0"], results["fsdp2_ramp_resumed-0"]
    assert whole["germinations"]
    assert_equal(whole["states"][2:], resumed["states"])
    ramps = [run["callback"]["rollout"]["ramp"] for run in (whole, resumed)]
    assert [(ramp["stage"], ramp["held"]) for ramp in ramps] == [(1, 5)] * 2


def test_a_run_resumed_between_two_ticks_goes_on_with_what_every_rank_had_seen(results: dict[str, Any]) -> None:
    """With one rank's losses and samples alone, the governor's limit and what policies read would be others."""
    first, second = results["saved"]["unread"]
    assert first["training_loss"]["count"] == second["training_loss"]["count"] > 0
    assert first["training_loss"] != second["training_loss"], "each rank had seen something of its own"
    for rank in (0, 1):
        whole, resumed = results[f"between-{rank}"], results[f"between_resumed-{rank}"]
        assert whole["losses"][20:] == resumed["losses"]
        for key in ("states", "statistics"):
            assert_equal(whole[key][2:], resumed[key])
        assert_equal(whole["callback"], resumed["callback"])
    assert_equal(results["between-0"]["statistics"], results["between-1"]["statistics"])


def test_a_run_of_two_processes_goes_on_in_one(results: dict[str, Any]) -> None:
    two, one = results["between-0"]["states"][2:], results["between_alone-0"]["states"]
    for ours, theirs in zip(one, two, strict=True):
        for name, values in theirs.items():
            # float32 sums in another order
            assert torch.allclose(ours[name], values, atol=1e-5), name


def test_what_grew_in_processes_that_the_trainer_started_comes_back(tmp_path: Path) -> None:
    came_back = launch(tmp_path, [], script="forked_run.py")["forked"]
    assert came_back["kept"] > 0
    assert_equal(came_back["here"], came_back["there"])


# ---------------------------------------------------------------- lifecycle `full`, incubation, seeds that starve
@pytest.mark.parametrize("variant", ["full", "starved", "fsdp2_full", "fsdp2_starved"])
def test_incubation_and_new_starts_leave_replicas_bit_equal(variant: str, full: dict[str, Any]) -> None:
    first, second = full[f"{variant}-0"], full[f"{variant}-1"]
    assert first["losses"] != second["losses"], "the ranks must have seen different data"
    assert_equal(first["states"], second["states"])
    assert agreed(first) == agreed(second)


@pytest.mark.parametrize("variant", ["full", "fsdp2_full"])
def test_seeds_pass_the_whole_path_over_two_processes(variant: str, full: dict[str, Any]) -> None:
    stages = {record["stage"] for record in full[f"{variant}-0"]["callback"]["engine"]["records"]}
    assert "FOSSILIZED" in stages


def test_the_host_is_bit_equal_while_seeds_incubate_and_they_learn(full: dict[str, Any]) -> None:
    """Until alpha rises, after the second epoch: incubating seeds add nothing to DDP's reduction of its gradients."""
    for grown, idle in zip(full["full-0"]["states"][:2], full["full_idle-0"]["states"][:2], strict=True):
        assert_equal(*({k: v for k, v in state.items() if ".morpho." not in k} for state in (grown, idle)))
    learnt = full["full-0"]["states"][1]
    assert all(bool(v.any()) for name, v in learnt.items() if name.endswith("w_out"))


def test_sharded_incubation_learns_what_replicated_incubation_does(full: dict[str, Any]) -> None:
    for ours, theirs in zip(full["fsdp2_full-0"]["states"], full["full-0"]["states"], strict=True):
        for name, values in theirs.items():
            # float32: the two strategies reduce gradients in another order
            assert torch.allclose(ours[name], values, atol=1e-5), name


@pytest.mark.parametrize("variant", ["starved", "fsdp2_starved"])
def test_a_dead_newborn_starts_anew_on_all_ranks(variant: str, full: dict[str, Any]) -> None:
    for rank in (0, 1):
        result = full[f"{variant}-{rank}"]
        assert result["revivals"] == {"net.0": 1, "net.2": 0}
        assert result["states"][-1]["net.0.morpho.beds.0.w_out"].abs().sum() > 0.01
