"""What the plan of the growth experiments asks for, and which runs stand for it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growth_arms import Arm, Job
from growth_results import Results, Run, best_rate

PLAN: dict[str, Any] = json.loads((Path(__file__).parent / "growth_plan.json").read_text())
SIZED = ("auto", "shrink")


def jobs(suite: str) -> list[Job]:
    """All runs of a suite; within an entry all arms of one random seed come before the next.

    A job without ``rate`` takes that of ``rates`` which is best on validation when the first ``sweep`` seeds have run
    at all of them, see :func:`at_best_rate`.
    """
    found: dict[str, Job] = {}
    for entry in PLAN["suites"][suite]:
        for job in _entry_jobs(entry):
            found.setdefault(key(job), job)
    return list(found.values())


def _entry_jobs(entry: Mapping[str, Any]) -> Iterator[Job]:
    widths = entry.get("widths", [512])
    arms = [*entry["arms"], *([str(w) for w in widths] if len(widths) > 1 else [])]
    before = dict(entry.get("before", {}))
    learnt = before.pop("task", None)
    sweep = entry.get("sweep", entry["seeds"])
    for seed in range(entry["seeds"]):
        for task in entry["tasks"]:
            rates = entry.get("rates") or PLAN["rates"][task]
            past = {"host_task": learnt or task, **before} if before else {}
            for rate in rates if seed < sweep else [None]:
                for arm in arms:
                    job = {"task": task, "arm": arm, "seed": seed, "host": entry["host"], "widest": widths[-1]}
                    job |= past if Arm.parse(arm).kind == "onward" else {}
                    yield job | ({"rates": rates, "sweep": sweep} if rate is None else {"rate": rate}) | rule(arm)


def rule(arm: str) -> dict[str, int]:
    """For arms that choose their size: which rule of `AutoSize` they run."""
    return {"rule": PLAN["rule"]} if arm in SIZED else {}


def key(job: Job) -> str:
    """What makes a run the same."""
    return " ".join(str(job.get(name)) for name in ("task", "arm", "rate", "seed"))


def current(run: Run) -> bool:
    """Whether a run counts: a run by a rule of `AutoSize` that is no longer, does not."""
    return run.get("rule") == rule(run["arm"]).get("rule")


def at_best_rate(job: Job, results: Results) -> Job | None:
    """The job at its rate; None where the sweep has not come to its end."""
    if "rate" in job:
        return job
    made = results.rates(job["task"], job["arm"])
    swept = {rate: runs for rate, runs in made.items() if set(range(job["sweep"])) <= set(runs)}
    return {**without_sweep(job), "rate": best_rate(swept)} if set(job["rates"]) <= set(swept) else None


def unfinished(suite: str, results: Results) -> dict[str, dict[str, int]]:
    """Runs of a suite that are missing: by task and arm, how many."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for job in jobs(suite):
        settled = at_best_rate(job, results)
        if settled is None or not results.has(settled):
            found[job["task"]][job["arm"]] += 1
    return {task: dict(arms) for task, arms in found.items()}


def without_sweep(job: Job) -> Job:
    """The job without what says how its rate is found."""
    return {name: value for name, value in job.items() if name not in ("rates", "sweep")}


def host_job(job: Job) -> Job | None:
    """What trains the host that a job starts from; None if it starts from a new net."""
    if "host_task" not in job:
        return None
    arm = f"{job['host']}@{job['host_steps']}"
    return {**without_sweep(job), "task": job["host_task"], "arm": arm, "rate": job["host_rate"], "keep": True}
