"""The page of the growth experiments, from their runs alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth_arms import Arm
from growth_costs import costs, static_names
from growth_gromo import table as gromo_table
from growth_hosts import going_on, size_given
from growth_pictures import draw
from growth_plan import unfinished
from growth_results import Results, best_rate, table
from growth_tables import headline, one_layer, placement, ranks, whether

TITLE = "# Does growing pay?\n\n"
MADE = """## How it was measured

Written by `python benchmarks/growth.py --report` from {count:,} runs, {hours:.1f} hours (in the documentation those of
`benchmarks/results/growth.jsonl`). `python benchmarks/growth.py --suite full --data DIR` makes them, `--suite quick`
a few of them in minutes; which arm runs on which task,
at which rates and random seeds, stands in `benchmarks/growth_plan.json`, committed before the runs (what was added
after a first look: more seeds, and rates beyond the ends of sweeps that had their best there). Every run goes through a
Lightning Trainer, on one CPU core (ResNet and GPT: on an H200): 1 000 steps of 128 samples unless said, Adam, a
constant rate that falls in the last 30 %. Every arm takes the rate of its task's sweep that is best on validation, by
the seeds that ran at every rate (four to twelve; the others ran at the best rate alone). Widths that can't be the best
nor the reference have fewer seeds than the others. `AutoSize` validates and decides 50 times a run, the others 20
times. Figures are means over random seeds of test points: accuracy in percent, 100 R², or minus hundredths of a bit per
byte. Intervals are paired 95 % ones, {comparisons} of them on this page, none corrected for their number; a tie is an
interval that holds 0. *Best* is the static width with the best mean, *reference* the narrowest within 0.5 points of
it; both are chosen on the test means, in favour of the static nets.

Tasks, nets of one hidden layer unless said: `letter`: Letter Recognition, `letter8` and `letter3` its first eight
and three letters, `letter2` in two hidden layers; `satellite`, `shuttle`, `vowel`: other tables; `teacher`: a net
of 10 rectified units; `linear`: a linear map; `mnist1d`: MNIST-1D, 4 000 samples, three convolutions with batch
norms (`mnist1d38k`: 38 000 samples; `mnist1d_plain`: no norms); `fashion`: Fashion-MNIST; `fashion_resnet`: the
same in two residual blocks; `python_gpt`: the bytes of Python's standard library in a transformer of two blocks.
Where data are had, and the splits: `benchmarks/growth_tasks.py`.

"""
ENDS = """## Sweeps whose best rate lies at an end

A further rate might be better there. (Static nets: the reference, the best and the widest width.)

"""


GROMO = """## Beside gromo

`benchmarks/growth_gromo.py` (which says how to install gromo beside this library): nets of 8 hidden units (GELU) that
get 8 more at steps 150, 300 and 500 of 1 000, all by the same batches in one plain loop, each arm at its best rate of
three, 12 random seeds.

"""


def not_run(results: Results) -> str:
    """What of the plan is missing."""
    rows = []
    for task, arms in unfinished("full", results).items():
        none = Counter[str]()
        fewer = Counter[str]()
        for arm, runs in arms.items():
            (fewer if results.arm(task, arm) else none)[Arm.parse(arm).kind] += runs
        rows.append([f"`{task}`", *(", ".join(f"{kind} ({n})" for kind, n in part.items()) for part in (none, fewer))])
    head = ("task", "arms without a result (runs)", "further seeds (runs)")
    return "## In the plan, but not run\n\n" + table(head, rows) if rows else ""


def at_an_end(results: Results) -> str:
    """Arms of the page's comparisons whose best rate is the lowest or the highest that they ran at."""
    found: dict[str, list[str]] = defaultdict(list)
    for task in results.tasks:
        for arm in results.arms(task):
            made = {rate: runs for rate, runs in results.rates(task, arm).items() if len(runs) >= results.swept}
            rate = best_rate(made) if made else 0.0
            compared = not arm.isdigit() or arm in static_names(results, task)
            if compared and len(made) > 1 and rate in (min(made), max(made)):
                found[re.sub(r"rank\d+", "rank…", task)].append(f"{arm} ({rate:g})")
    rows = [[f"`{task}`", ", ".join(dict.fromkeys(arms))] for task, arms in found.items()]
    return ENDS + table(("task", "arms (rate)"), rows) + "\n" if rows else ""


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of a text.

    Example:
        >>> sections("## A\\n\\nYes.\\n\\n## B\\n\\nNo.\\n")
        {'A': 'Yes.', 'B': 'No.'}
    """
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    return {heading: below.strip() for heading, below in zip(parts[::2], parts[1::2], strict=True)}


def with_findings(page: str, findings: Mapping[str, str]) -> str:
    """The page, with what was found put first in each section.

    Raises:
        ValueError: If a finding has no section.
    """
    for heading, finding in findings.items():
        head = f"## {heading}\n\n"
        if head not in page:
            raise ValueError(f"`findings` must have headings of the page, got {heading!r}.")
        page = page.replace(head, f"{head}{finding}\n\n", 1)
    return page


def write_report(results: Results, gromo: Mapping[str, Any] | None, folder: Path, findings: str = "") -> None:
    """Write ``README.md`` and its pictures.

    Args:
        results: All runs.
        gromo: What `growth_gromo.py` wrote.
        folder: Where to.
        findings: What follows from it all, in Markdown: for each section, under its heading, what stands in it first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sized = [task for task in results.tasks if len(results.widths(task)) > 2]
    body = [
        headline(results, sized),
        whether(results),
        ranks(results),
        placement(results, sized),
        one_layer(results),
        going_on(results),
        size_given(results),
        costs(results),
        GROMO + gromo_table(gromo["runs"]) + "\n" if gromo else "",
        at_an_end(results),
        not_run(results) if findings else "",
    ]
    hours = sum(run["seconds"] for run in results.runs) / 3600
    made = MADE.format(count=len(results.runs), hours=hours, comparisons=results.comparisons)
    page = TITLE + ("## In short\n\n" if findings else "") + made + "".join(body)
    (folder / "README.md").write_text(with_findings(page, sections(findings)), encoding="utf-8")
    draw(results, sized, folder)
