"""Does growing pay? Every arm through a Lightning Trainer, each at its best learning rate, paired random seeds.

python benchmarks/growth.py --suite quick
python benchmarks/growth.py --suite full --data DIR [--shard 0/4] [--workers 16] [--minutes 9]
python benchmarks/growth.py --suite full --data DIR --tasks fashion_resnet python_gpt --device cuda --workers 4
python benchmarks/growth.py --merge SHARD.jsonl ...
python benchmarks/growth.py --report [FOLDER]

`growth_plan.json` says which arm runs on which task, with which widths, rates and seeds; `growth_arms.py` what an
arm is. Each run is one line of `--json`; a line that is there is not run again, so a suite that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from growth_arms import Arm, Job
from growth_run import host_path, run
from growth_tasks import TASKS, Task

HERE = Path(__file__).parent
PLAN: dict[str, Any] = json.loads((HERE / "growth_plan.json").read_text())
RESULTS = HERE / "results" / "growth.jsonl"
PAGE = HERE.parent / "docs" / "evidence"
GROMO = HERE / "results" / "gromo.json"
HOSTS = HERE / "results" / "local" / "hosts"


def jobs(suite: str) -> list[Job]:
    """All runs of a suite; within an entry all arms of one random seed come before the next."""
    found: dict[str, Job] = {}
    for entry in PLAN["suites"][suite]:
        widths = entry.get("widths", [512])
        arms = [*entry["arms"], *([str(w) for w in widths] if len(widths) > 1 else [])]
        common = {"host": entry["host"], "widest": widths[-1]}
        for seed in range(entry["seeds"]):
            for task in entry["tasks"]:
                before = (
                    {"host_task": entry["before"].get("task", task), **entry["before"]} if "before" in entry else {}
                )
                before = {name: value for name, value in before.items() if name != "task"}
                for rate in entry["rates"]:
                    for arm in arms:
                        past = before if Arm.parse(arm).kind == "onward" else {}
                        job = {"task": task, "arm": arm, "rate": rate, "seed": seed, **common, **past}
                        found.setdefault(key(job), job)
    return list(found.values())


def key(job: Job) -> str:
    """What makes a run the same."""
    return " ".join(str(job[name]) for name in ("task", "arm", "rate", "seed"))


def host_jobs(wanted: Iterable[Job]) -> list[Job]:
    """The trained hosts that jobs start from, as far as their weights are missing."""
    found = {}
    for job in wanted:
        if "host_task" in job and not host_path(job, HOSTS).exists():
            arm = f"{job['host']}@{job['host_steps']}"
            host = {**job, "task": job["host_task"], "arm": arm, "rate": job["host_rate"], "keep": True}
            found[key(host)] = host
    return list(found.values())


_TASKS: dict[str, Task] = {}


def _start(tasks: dict[str, Task]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_morpho"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _TASKS.update(tasks)


def _work(job: Job, device: str) -> Job:
    return run(job, _TASKS[job["task"]], PLAN, HOSTS, device)


def read(path: Path) -> list[Job]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def load(names: Iterable[str], data: Path) -> dict[str, Task]:
    """The tasks whose data are there; what is missing is said."""
    tasks = {}
    for name in names:
        try:
            tasks[name] = TASKS[name](data)
        except (FileNotFoundError, ImportError) as error:
            print(f"{name}: not run, its data are missing ({error})")
    return tasks


def work(waiting: Sequence[Job], options: argparse.Namespace, end: float) -> None:
    """Run jobs in several processes, and write each as it ends; none starts after ``end``."""
    tasks = load(dict.fromkeys(job["task"] for job in waiting), options.data)
    source = (job for job in waiting if job["task"] in tasks and time.monotonic() < end)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    with options.json.open("a") as file, context.Pool(options.workers, _start, (tasks,)) as pool:
        busy: list[Any] = []
        while True:
            busy = [handle for handle in busy if not _settle(handle, file)]
            while len(busy) < options.workers and (job := next(source, None)) is not None:
                busy.append(pool.apply_async(_work, (job, options.device)))
            if not busy:
                break
            time.sleep(0.01)


def _settle(handle: Any, file: Any) -> bool:
    if not handle.ready():
        return False
    try:
        result = handle.get()
    except Exception as error:  # one run's failure is said; the next start tries it again
        print(f"failed: {error!r}", flush=True)
        return True
    file.write(json.dumps(result) + "\n")
    file.flush()
    said = f"val {result['val']:.2f} test {result['test']:.2f} {result['parameters']} parameters"
    print(key(result), said, f"{result['seconds']:.1f} s", flush=True)
    return True


def chosen(options: argparse.Namespace) -> Iterator[Job]:
    """The runs of a suite that are this shard's, and not done."""
    shard, of = map(int, options.shard.split("/"))
    done = {key(entry) for entry in read(options.json)}
    for i, job in enumerate(jobs(options.suite)):
        named = not options.tasks or job["task"] in options.tasks
        meant = not options.arms or any(fnmatch(job["arm"], pattern) for pattern in options.arms)
        if i % of == shard and key(job) not in done and named and meant:
            yield job


def merge(paths: Sequence[Path]) -> None:
    """Put runs of several files into the first; where a run is in several, the last file counts."""
    found = {key(run): run for path in paths for run in read(path)}
    paths[0].write_text("".join(json.dumps(run) + "\n" for run in found.values()))


def main() -> None:
    """Run what is missing of a suite, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*PLAN["suites"]], default="quick")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], help="these tasks alone")
    parser.add_argument("--arms", nargs="+", help="arms that match one of these patterns alone, such as 'onward*'")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th run, from the i-th on")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where runs are written and looked for")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after that")
    parser.add_argument("--merge", type=Path, nargs="+", help="put these files' runs into `--json`")
    parser.add_argument("--report", type=Path, nargs="?", const=PAGE, help="write a page from the runs that are there")
    options = parser.parse_args()
    if options.report:
        from growth_report import write_report

        gromo = json.loads(GROMO.read_text()) if GROMO.exists() else None
        verdict = (HERE / "growth_verdict.md").read_text() if options.report == PAGE else ""
        write_report(read(options.json), gromo, options.report, verdict)
        return
    if options.merge:
        merge([options.json, *options.merge])
        return
    end = time.monotonic() + 60 * options.minutes
    missing = list(chosen(options))
    hosts = host_jobs(missing)
    if hosts:
        work(hosts, options, end)
    work([job for job in missing if "host_task" not in job or host_path(job, HOSTS).exists()], options, end)


if __name__ == "__main__":
    main()
