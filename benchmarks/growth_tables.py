"""Tables of the growth experiments: the right size without choosing it, whether, how much, and where."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from growth_results import MARGIN, Results, Run, mean, shown, table
from lightning_morpho.ab import Comparison

# Not used to choose the rule's constants.
NEW = ("satellite", "shuttle", "vowel", "teacher", "letter_deep", "mnist1d38k", "fashion_resnet", "python_gpt")


def passes(comparison: Comparison, parameters: float, reference: float) -> bool:
    """At least as good as the best static width, with at most twice the parameters of the reference."""
    return comparison.low > -MARGIN and parameters <= 2 * reference


@dataclass(frozen=True)
class Verdict:
    """What one arm that chooses its size did on one task.

    Attributes:
        task: Its name.
        row: The cells of the table.
        holds: Whether it is as good as the best width, with at most twice the parameters of the reference.
        small: Whether it started at a quarter of the reference width or less.
    """

    task: str
    row: list[str]
    holds: bool
    small: bool


def without_choosing(results: Results, tasks: Sequence[str], arm: str) -> list[Verdict]:
    """One arm against the static sweep of each task that it ran on."""
    return [_verdict(results, task, runs) for task in tasks if (runs := results.arm(task, arm))]


def _verdict(results: Results, task: str, runs: Sequence[Run]) -> Verdict:
    best, reference = results.reference(task)
    widths = results.widths(task)
    against_best = results.compare(widths[best], runs)
    parameters, needed = mean(runs, "parameters"), mean(widths[reference], "parameters")
    holds = passes(against_best, parameters, needed)
    row = [
        f"{task}{' *' if task in NEW else ''}",
        f"{best}: {mean(widths[best], 'test'):.2f}",
        str(reference),
        str(runs[0]["host"]),
        str(against_best.pairs),
        f"{mean(runs, 'test'):.2f}",
        shown(against_best),
        shown(results.compare(widths[reference], runs)),
        f"{parameters / needed:.2f} ×",
        f"{mean(runs, 'trained') / needed:.1f} ×",
        f"{sum(run['germinations'] > 0 for run in runs)} of {len(runs)}",
        "yes" if holds else "**no**",
    ]
    return Verdict(task, row, holds, 4 * runs[0]["host"] <= reference)


WITHOUT_CHOOSING = """## Without choosing

`AutoSize()`, no size given; the budget is the parameter count of the widest static net. *Holds*: at least as good as
the best width (the interval lies above -0.5), with at most twice the parameters of the reference. It holds on
**{every}** tasks; of those where it starts at a quarter of the reference width or less, on {small}; of these, on
{fresh} that were not used to choose the constants of the rule (a star). *Parameters trained*: their mean over a run's
steps.

"""
HEADLINE = (
    "task",
    "best width: points",
    "reference width",
    "started at",
    "pairs",
    "points",
    "minus best",
    "minus reference",
    "parameters / reference",
    "parameters trained / reference",
    "grew",
    "holds",
)


def headline(results: Results, tasks: Sequence[str]) -> str:
    """The table of `auto`, and that of the static control."""
    if not tasks:
        return ""
    grown, shrunk = (without_choosing(results, tasks, arm) for arm in ("auto", "shrink"))
    small = [verdict for verdict in grown if verdict.small]
    fresh = [verdict for verdict in small if verdict.task in NEW]
    control = [
        [task, shown(results.compare(results.arm(task, "shrink"), results.arm(task, "auto")))]
        for task in tasks
        if results.arm(task, "shrink") and results.arm(task, "auto")
    ]
    text = WITHOUT_CHOOSING.format(every=count(grown), small=count(small), fresh=count(fresh))
    text += table(HEADLINE, [verdict.row for verdict in grown])
    if shrunk:
        head = [name for name in HEADLINE if name not in ("started at", "grew")]
        text += (
            "\n**The control**: a static net of the budget's size, `AutoSize(sizing='shrink')`; holds on "
            f"{count(shrunk)}.\n\n"
            + table(head, [v.row[:3] + v.row[4:-2] + v.row[-1:] for v in shrunk])
            + "\nGrown minus shrunk:\n\n"
            + table(("task", "points"), control)
        )
    return text + "\n![Test points against parameters](growth.png)\n\n"


def count(verdicts: Sequence[Verdict]) -> str:
    """On how many of them it holds."""
    return f"{sum(verdict.holds for verdict in verdicts)} of {len(verdicts)}"


def whether(results: Results) -> str:
    """The linear task."""
    rows = []
    for rate, made in results.rates("linear", "auto").items():
        runs = list(made.values())
        counts = [run["germinations"] for run in runs]
        points = f"{mean(runs, 'test'):.2f}"
        rows.append([f"{rate:g}", str(len(runs)), f"{statistics.median(counts):g}", str(sum(counts)), points])
    if not rows:
        return ""
    static = results.widths("linear")
    line = ", ".join(f"{width}: {mean(runs, 'test'):.2f}" for width, runs in static.items()) or "not run"
    return (
        "## Whether: a linear task\n\nA linear map to 4 outputs with noise; 8 rectified units can say it, and the host "
        f"has 8. Static widths: {line}.\n\n"
        + table(("rate", "seeds", "median germinations", "germinations in all", "points"), rows)
        + "\n"
    )


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's, equal values sharing their mean rank."""

    def ranked(values: Sequence[float]) -> list[float]:
        return [sum(v < value for v in values) + sum(v == value for v in values) / 2 for value in values]

    return statistics.correlation(*(ranked(column) for column in zip(*pairs, strict=True)))


def ranks(results: Results) -> str:
    """Final width against the width of the teacher."""
    known = sorted(int(task[4:]) for task in results.tasks if task.startswith("rank"))
    rows, pairs = [], []
    for rank in known:
        runs = results.arm(f"rank{rank}", "auto")
        widths = [run["widths"][0] for run in runs]
        pairs += [(rank, width) for width in widths]
        rows.append([str(rank), ", ".join(map(str, widths)), f"{mean(runs, 'test'):.2f}"])
    if len(known) < 2:
        return ""
    correlation = rank_correlation(pairs)
    return (
        "## How much: teachers of known width\n\n32 inputs, 32 outputs, a host of 1 unit, budget 128 units. Rank "
        f"correlation of final width and teacher's width: **{correlation:.3f}**.\n\n"
        + table(("teacher's units", "final units, by seed", "points"), rows)
        + "\n"
    )


PLACES = ("auto", "uniform", "random", "periodic")
ONE = r"(uniform|narrowest|earliest|lot|trial)\d"  # arms of one round that place so many units


def placement(results: Results, tasks: Sequence[str]) -> str:
    """The policies that may spend the same budget, and each that looks against those that don't."""
    rows, pairs = (
        [],
        [(a, b) for a in ("uniform", "auto") for b in ("uniform", "random", "periodic") if a != b],
    )
    pairs = [(a, b) for a, b in pairs if any(results.arm(task, a) and results.arm(task, b) for task in tasks)]
    ran = [arm for arm in PLACES if any(results.arm(task, arm) for task in tasks)]
    found: dict[tuple[str, str], list[Comparison]] = {pair: [] for pair in pairs}
    for task in tasks:
        arms = {arm: results.arm(task, arm) for arm in ran}
        if not arms.get("uniform"):
            continue
        row = [f"{mean(r, 'test'):.2f} ({mean(r, 'parameters'):,.0f})" if r else "not run" for r in arms.values()]
        for a, b in pairs:
            compared = [results.compare(arms[b], arms[a])] if arms[a] and arms[b] else []
            found[a, b] += compared
            row.append("".join(f"{shown(one)}, {one.pairs}" for one in compared))
        rows.append([task, *row])
    if not rows:
        return ""
    rows.append(["**above 0, below 0**", *[""] * len(ran), *map(tally, found.values())])
    return (
        "## One early round, against chance and against four rounds\n\n`uniform`: one round at 15 %, filled to the "
        "budget; `random`: four parts at random ticks and layers; `periodic`: four parts in turn. All may spend the "
        "same budget; in brackets the parameters at the end. Their seeds are judged as always. Differences with their "
        "pairs; last row: tasks whose interval lies above and below 0.\n\n"
        + table(("task", *ran, *(f"{a} − {b}" for a, b in pairs)), rows)
        + "\n"
    )


def tally(compared: Sequence[Comparison]) -> str:
    """How many intervals lie above 0, how many below."""
    return f"{sum(one.low > 0 for one in compared)}, {sum(one.high < 0 for one in compared)} of {len(compared)}"


ONE_LAYER = """## Where: one layer of several

`letter_deep`: six hidden layers of 48 units, but the third of 2; `mnist1d_plain`: three convolutions of 4 channels. One
round at 15 %: so many new units in one layer (or shared by all: *uniform*), chosen as the narrowest, the earliest, by
lot, or by trial (each layer grown for 2 % of the steps, then taken back). The last row trains for as many steps more as
the trials take.

"""


def one_layer(results: Results) -> str:
    """The places of one round, against chance and against the trial."""
    rows = []
    for task in results.tasks:
        arms = {arm: results.arm(task, arm) for arm in results.arms(task) if re.match(ONE, arm)}
        bases = [next((runs for arm, runs in arms.items() if arm.startswith(name)), []) for name in ("lot", "trial")]
        for arm, runs in arms.items():
            if runs:
                differences = [shown(results.compare(base, runs)) if base and base != runs else "" for base in bases]
                figures = [str(len(runs)), f"{mean(runs, 'test'):.2f}", f"{mean(runs, 'seconds'):.1f}"]
                rows.append([task, arm, *figures, *differences])
    head = ("task", "arm", "seeds", "points", "seconds", "minus by lot", "minus by trial")
    return ONE_LAYER + table(head, rows) + "\n" if rows else ""
