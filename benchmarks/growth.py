"""Does growing pay? Every arm through a Lightning Trainer, each at its best learning rate, paired random seeds.

python benchmarks/growth.py --suite quick
python benchmarks/growth.py --suite full --data DIR [--shard 0/4] [--workers 16] [--minutes 9]
python benchmarks/growth.py --suite full --data DIR --tasks fashion_resnet python_gpt --device cuda --workers 4
python benchmarks/growth.py --merge SHARD.jsonl ...
python benchmarks/growth.py --report [FOLDER]

`growth_plan.json` says which arm runs on which task, with which widths, rates and seeds; `growth_arms.py` what an
arm is. Each run is one line of `--json`; a line that is there is not run again, so a suite that was stopped goes on.
The quick suite takes minutes, begins with a file of its own and ends with its page: tables and pictures.
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

from growth_arms import Job
from growth_plan import PLAN, at_best_rate, current, host_job, jobs, key
from growth_results import SWEPT, Results, Run
from growth_run import host_path, run
from growth_tasks import TASKS, Task

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "growth.jsonl"
PAGE = HERE.parent / "docs" / "evidence"
GROMO = HERE / "results" / "gromo.json"
FINDINGS = HERE / "growth_findings.md"
QUICK = HERE / "results" / "local" / "quick.jsonl"
HOSTS = QUICK.parent / "hosts"

_TASKS: dict[str, Task] = {}


def _start(tasks: dict[str, Task]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_morpho"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _TASKS.update(tasks)


def _work(job: Job, device: str) -> Run:
    return run(job, _TASKS[job["task"]], PLAN, HOSTS, device)


def read(path: Path) -> list[Run]:
    """The runs that are done, and count."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [run for run in map(json.loads, lines) if current(run)]


def line(run: Run) -> str:
    """A run as a line of the results file."""
    return json.dumps(run, separators=(",", ":")) + "\n"


def load(names: Iterable[str], data: Path) -> dict[str, Task]:
    """The tasks whose data are there; what is missing is said."""
    tasks = {}
    for name in names:
        try:
            tasks[name] = TASKS[name](data)
        except (FileNotFoundError, ImportError) as error:
            print(f"{name}: not run, its data are missing ({error}); growth_tasks.py says where they are had")
    return tasks


class Queue:
    """What is still to run, in the order of the plan; a host that jobs start from comes before the first of them.

    Args:
        wanted: The jobs; one whose rate is yet to be found waits for its sweep, one that goes on for its host.
        done: What has run before.
    """

    def __init__(self, wanted: Iterable[Job], done: Sequence[Run]) -> None:
        self.results, self.known = Results(done), set(map(key, done))
        self.waiting = list(self._with_hosts(job for job in wanted if not self._has_run(job)))

    def _with_hosts(self, waiting: Iterable[Job]) -> Iterator[Job]:
        asked = set()
        for job in waiting:
            host = host_job(job)
            if host and not host_path(job, HOSTS).exists() and key(host) not in asked:
                asked.add(key(host))
                self.known.discard(key(host))
                yield host
            yield job

    def _has_run(self, job: Job) -> bool:
        settled = at_best_rate(job, self.results)
        return settled is not None and key(settled) in self.known

    def next(self) -> Job | None:
        """The first job that can run now; None if there is none."""
        for job in list(self.waiting):
            settled = at_best_rate(job, self.results)
            goes_on = "host_task" in job and "keep" not in job
            if settled is None or (goes_on and not host_path(job, HOSTS).exists()):
                continue
            self.waiting.remove(job)
            if key(settled) not in self.known:
                self.known.add(key(settled))
                return settled
        return None

    def add(self, run: Run) -> None:
        """A job has run."""
        self.results.add(run)


def work(queue: Queue, options: argparse.Namespace) -> None:
    """Run jobs in several processes, and write each as it ends."""
    end = time.monotonic() + 60 * options.minutes
    tasks = load(dict.fromkeys(job["task"] for job in queue.waiting), options.data)
    queue.waiting = [job for job in queue.waiting if job["task"] in tasks]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    with options.json.open("a") as file, context.Pool(options.workers, _start, (tasks,)) as pool:
        busy: list[Any] = []
        while True:
            busy = [handle for handle in busy if not _settle(handle, queue, file)]
            while len(busy) < options.workers and time.monotonic() < end and (job := queue.next()) is not None:
                busy.append(pool.apply_async(_work, (job, options.device)))
            if not busy:
                break
            time.sleep(0.01)


def _settle(handle: Any, queue: Queue, file: Any) -> bool:
    if not handle.ready():
        return False
    try:
        result = handle.get()
    except Exception as error:  # one run's failure is said; the next start tries it again
        print(f"failed: {error!r}", flush=True)
        return True
    queue.add(result)
    file.write(line(result))
    file.flush()
    said = f"val {result['val']:.2f} test {result['test']:.2f} {result['parameters']} parameters"
    print(key(result), said, f"{result['seconds']:.1f} s", flush=True)
    return True


def chosen(options: argparse.Namespace) -> list[Job]:
    """The runs of a suite that are this shard's: a shard has all rates and seeds of an arm, for its sweep to end."""
    shard, of = map(int, options.shard.split("/"))
    arms: dict[tuple[str, str], int] = {}
    found = []
    for job in jobs(options.suite):
        place = arms.setdefault((job["task"], job["arm"]), len(arms))
        named = not options.tasks or job["task"] in options.tasks
        meant = not options.arms or any(fnmatch(job["arm"], pattern) for pattern in options.arms)
        if place % of == shard and named and meant:
            found.append(job)
    return found


def merge(paths: Sequence[Path]) -> None:
    """Put runs of several files into the first; where a run is in several, the last file counts."""
    found = {key(run): run for path in paths for run in read(path)}
    paths[0].write_text("".join(line(run) for run in found.values()))


def report(runs: Path, folder: Path) -> None:
    """Write the page of the runs of a file: for the documentation with what was found, else with the tables alone."""
    from growth_report import write_report

    if folder.resolve() == PAGE.resolve():
        write_report(Results(read(runs), SWEPT), json.loads(GROMO.read_text()), folder, FINDINGS.read_text())
    else:
        write_report(Results(read(runs), 2), None, folder)
    print(f"written: {folder / 'README.md'}")


def main() -> None:
    """Run what is missing of a suite, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*PLAN["suites"]], default="quick")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], help="these tasks alone")
    parser.add_argument("--arms", nargs="+", help="arms that match one of these patterns alone, such as 'onward*'")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th arm, from the i-th on")
    parser.add_argument("--json", type=Path, help="where runs are written and looked for")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after that")
    parser.add_argument("--merge", type=Path, nargs="+", help="put these files' runs into `--json`")
    parser.add_argument("--report", type=Path, nargs="?", const=PAGE, help="write a page from the runs that are there")
    options = parser.parse_args()
    quick = options.suite == "quick" and not options.report and not options.merge
    options.json = options.json or (QUICK if quick else RESULTS)
    if options.merge:
        merge([options.json, *options.merge])
    elif options.report:
        report(options.json, options.report)
    else:
        work(Queue(chosen(options), read(options.json)), options)
    if quick:
        report(options.json, options.json.with_suffix(""))


if __name__ == "__main__":
    main()
