"""Tables and pictures of the growth experiment, from its runs alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_morpho.ab import Comparison, compare_pairs

Run = dict[str, Any]
MARGIN = 0.5  # points
NEW = ("satellite", "shuttle", "vowel", "teacher")  # not used to choose the rule's constants
TEXT = """# Does growing pay?

Written by `python benchmarks/growth.py --report` from `benchmarks/results/growth.jsonl`, {count:,} runs, {seconds:.1f}
core hours. `python benchmarks/growth.py --suite full --data DIR` makes them; which arm runs on which task stands in
`benchmarks/growth_plan.json`, committed before the runs (more seeds and the lower tolerances were added after a first
look). Every run goes through a Lightning Trainer on one CPU core: 1 000 steps of 128 samples, Adam, a constant rate
that falls in the last 30 %. Every arm takes the rate of the same sweep that is best on validation; figures are means
over random seeds of test points (accuracy in percent, or 100 R²). Intervals are paired 95 % ones, {comparisons} of them
on this page, none corrected for their number; a tie is an interval that holds 0. *Best* is the static width with the
best mean, *reference* the narrowest within 0.5 points of it; both are chosen on the test means, in favour of the static
nets.

"""


VERDICT = """
## What follows

- `AutoSize` finds a sensible size from either side, and exactly where the size is known. Where it loses to the best
  width of the sweep it loses tenths of a point to a point, with fewer parameters than the reference; MNIST-1D misses on
  size alone. That is short of *as good as the best width everywhere*, so the default of `MorphoCallback` stays one
  round (`Uniform`), and `AutoSize` is for those who can't or won't choose.
- It is no way to save training: until the cull, the net trains at the budget's width.
- The control, a static net of the budget's size with the same penalty and cull, ties: the rule finds the size, growth
  supplies a cheap first tenth.
- `AutoSize` beats growth at random places and growth in four rounds on `letter`, `letter2` and `teacher`, and loses to
  both, and to `Uniform`, on `satellite`. `Uniform` beats both on the two Letter tasks, ties on `satellite`, and loses
  by hundredths on `teacher`, where the full budget is more than is needed.
- Asking whether rests on the learning rate: at a low rate the host is further from what it could learn, and more of
  what is left looks like a lack of units. On the linear task it is right in 11 of 12 runs at 0.03, wrong in 11 of 12 at
  0.01 (by validation the better rate, by 0.01 points); there the cull takes most of the units back.

Tried for *whether*, on the tasks above, before the runs: 32 random units beyond the pair's own units, one ridge (the
linear task looks like Letter: 2 to 5 % of the residual each); cross-validated ridges (the same); beyond the units' own
first-order changes too (linear 0 or below at 0.01 and 0.03, Letter 2 to 4 %): the last is what `AutoSize` does.

Not run: residual nets, transformers, deep nets with one narrow layer, MNIST-1D with 38 000 samples, adapters (LoRA,
AdaLoRA), gromo, placement by trial. The trained host that goes on: `benchmarks/growth_letter.py`.
"""


class Results:
    """Runs by task and arm, each arm at its best rate.

    Args:
        runs: The lines of the results file.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.tasks = list(dict.fromkeys(run["task"] for run in runs))
        self.comparisons = 0
        self._runs: dict[tuple[str, str], dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
        for run in runs:
            self._runs[run["task"], run["arm"]][run["rate"]][run["seed"]] = run

    def arm(self, task: str, arm: str) -> list[Run]:
        """The runs of an arm at its best rate, by random seed; empty if it did not run."""
        rates = self._runs.get((task, arm), {})
        made = [[found[seed] for seed in sorted(found)] for found in rates.values()]
        return max(made, key=lambda found: mean(found, "val"), default=[])

    def widths(self, task: str) -> dict[int, list[Run]]:
        """Static nets by width."""
        arms = sorted(int(arm) for t, arm in self._runs if t == task and arm.isdigit())
        return {width: self.arm(task, str(width)) for width in arms}

    def reference(self, task: str) -> tuple[int, int]:
        """Best and reference width of the static sweep."""
        widths = self.widths(task)
        best = max(widths, key=lambda w: mean(widths[w], "test"))
        top = mean(widths[best], "test")
        return best, min(w for w in widths if mean(widths[w], "test") >= top - MARGIN)

    def compare(self, base: Sequence[Run], other: Sequence[Run]) -> Comparison:
        """Test points of one arm against another, by the seeds that both have."""
        pairs = [(a["test"], b["test"]) for a in base for b in other if a["seed"] == b["seed"]]
        self.comparisons += 1
        return compare_pairs([a for a, _ in pairs], [b for _, b in pairs], metric="test points")


def mean(runs: Sequence[Run], name: str) -> float:
    """Mean of one figure."""
    return statistics.fmean(run[name] for run in runs)


def shown(comparison: Comparison) -> str:
    """A difference with its interval."""
    half = comparison.high - comparison.difference
    return f"{comparison.difference:+.2f} ± {half:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def passes(comparison: Comparison, parameters: float, reference: float) -> bool:
    """At least as good as the best static width, with at most twice the parameters of the reference."""
    return comparison.low > -MARGIN and parameters <= 2 * reference


def without_choosing(results: Results, tasks: Sequence[str], arm: str) -> tuple[list[list[str]], int]:
    """Rows of the headline table for one arm, and how many of them pass."""
    rows, passed = [], 0
    for task in tasks:
        found = results.arm(task, arm)
        if not found:
            continue
        best, reference = results.reference(task)
        widths = results.widths(task)
        against_best = results.compare(widths[best], found)
        against_reference = results.compare(widths[reference], found)
        parameters, small = mean(found, "parameters"), mean(widths[reference], "parameters")
        good = passes(against_best, parameters, small)
        passed += good
        rows.append(
            [
                f"{task}{' *' if task in NEW else ''}",
                f"{best}: {mean(widths[best], 'test'):.2f}",
                str(reference),
                f"{mean(found, 'test'):.2f}",
                shown(against_best),
                shown(against_reference),
                f"{parameters / small:.2f} ×",
                f"{mean(found, 'trained') / mean(widths[reference], 'parameters'):.1f} ×",
                "yes" if good else "**no**",
            ]
        )
    return rows, passed


HEADLINE = (
    "task",
    "best width: points",
    "reference width",
    "points",
    "minus best",
    "minus reference",
    "parameters / reference",
    "parameters trained / reference",
    "holds",
)


def headline(results: Results, tasks: Sequence[str]) -> str:
    """The table of `auto`, and that of the static control."""
    grown, passed = without_choosing(results, tasks, "auto")
    shrunk, held = without_choosing(results, tasks, "shrink")
    control = [
        [task, shown(results.compare(results.arm(task, "shrink"), results.arm(task, "auto")))]
        for task in tasks
        if results.arm(task, "shrink")
    ]
    return (
        "## Without choosing\n\nStarted at 4 units a layer (MNIST-1D: 3 channels, linear: 8 units), `AutoSize()`, "
        "the budget that of the widest static net, no size given. *Holds*: at least as good as the best width (the "
        "interval lies above "
        f"-0.5), with at most twice the parameters of the reference. It holds on **{passed} of {len(grown)}** tasks. "
        "On `letter3`, `shuttle` and `linear` that is half the reference or all of it, elsewhere a quarter or less. "
        "A star: not used to choose the rule's constants, the threshold of *whether* apart.\n\n"
        + table(HEADLINE, grown)
        + f"\n**The control**: a static net of the budget's size, `AutoSize(sizing='shrink')`; holds on {held} of "
        f"{len(shrunk)}.\n\n"
        + table(HEADLINE, shrunk)
        + "\nGrown minus shrunk:\n\n"
        + table(("task", "points"), control)
        + "\n![Test points against parameters](growth.png)\n\n"
    )


def whether(results: Results) -> str:
    """The linear task."""
    rates = results._runs.get(("linear", "auto"), {})
    rows = []
    for rate, found in sorted(rates.items()):
        runs = list(found.values())
        counts = [run["germinations"] for run in runs]
        points = f"{mean(runs, 'test'):.2f}"
        rows.append([f"{rate:g}", str(len(runs)), f"{statistics.median(counts):g}", str(sum(counts)), points])
    static = results.widths("linear")
    line = ", ".join(f"{width}: {mean(runs, 'test'):.2f}" for width, runs in static.items())
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
        widths = [run["shapes"][0][0] for run in runs]
        pairs += [(rank, width) for width in widths]
        rows.append([str(rank), ", ".join(map(str, widths)), f"{mean(runs, 'test'):.2f}"])
    correlation = rank_correlation(pairs) if pairs else float("nan")
    return (
        "## How much: teachers of known width\n\n32 inputs, 32 outputs, a host of 1 unit, budget 128 units. Rank "
        f"correlation of final width and teacher's width: **{correlation:.3f}**.\n\n"
        + table(("teacher's units", "final units, by seed", "points"), rows)
        + "\n"
    )


def placement(results: Results, tasks: Sequence[str]) -> str:
    """The policies that fill the same budget."""
    rows = []
    for task in tasks:
        auto, arms = results.arm(task, "auto"), {a: results.arm(task, a) for a in ("uniform", "random", "periodic")}
        if not arms["uniform"]:
            continue
        cells = [f"{mean(auto, 'test'):.2f} ({mean(auto, 'parameters'):,.0f})"]
        cells += [f"{mean(runs, 'test'):.2f} ({mean(runs, 'parameters'):,.0f})" for runs in arms.values()]
        cells += [shown(results.compare(arms[a], arms["uniform"])) for a in ("random", "periodic")]
        cells += [shown(results.compare(arms[a], auto)) for a in ("uniform", "random", "periodic")]
        rows.append([task, *cells])
    head = ("task", "auto", "uniform", "random", "periodic")
    more = ("uniform − random", "uniform − periodic", "auto − uniform", "auto − random", "auto − periodic")
    return (
        "## One early round, against chance and against four rounds\n\n`uniform`: one round at 15 %, filled to the "
        "budget; `random`: four parts at random ticks and layers; `periodic`: four parts in turn. All may spend the "
        "same budget; in brackets the parameters at the end. Their seeds are judged as always.\n\n"
        + table((*head, *more), rows)
        + "\n"
    )


def cost(results: Results) -> str:
    """Seconds in ticks."""
    rows = []
    for task in results.tasks:
        runs = results.arm(task, "auto")
        if runs and not task.startswith("rank"):
            share = 100 * mean(runs, "tick_seconds") / mean(runs, "seconds")
            rows.append([task, f"{mean(runs, 'seconds'):.1f}", f"{mean(runs, 'tick_seconds'):.2f}", f"{share:.0f} %"])
    return (
        "## What deciding costs\n\nSeconds of a run of `auto`, and those in its 20 ticks: asking whether, the cull. "
        "The steps of these nets take a millisecond, mostly Lightning's own.\n\n"
        + table(("task", "seconds", "in ticks", "share"), rows)
    )


def tolerances(results: Results, tasks: Sequence[str]) -> str:
    """`auto` with less tolerance."""
    rows = []
    for task in tasks:
        best, reference = results.reference(task)
        widths = results.widths(task)
        cells = []
        for arm in ("auto", "tolerance0.25", "tolerance0.1"):
            runs = results.arm(task, arm)
            if runs:
                ratio = mean(runs, "parameters") / mean(widths[reference], "parameters")
                cells.append(f"{shown(results.compare(widths[best], runs))}, {ratio:.2f} ×")
            else:
                cells.append("not run")
        rows.append([task, *cells])
    return (
        "## Less tolerance\n\nPoints minus the best static width, and parameters over the reference's, if the cull may "
        "cost 0.5 (`auto`), 0.25 or 0.1 points. It gains up to 0.2 points for up to twice the units: 0.5 stays.\n\n"
        + table(("task", "0.5", "0.25", "0.1"), rows)
        + "\n"
    )


def picture(results: Results, tasks: Sequence[str], path: Path) -> None:
    """Test points against parameters: static widths as a line, grown and shrunk nets as marks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    figure, axes = pyplot.subplots(-(-len(tasks) // columns), columns, figsize=(10, 2.6 * -(-len(tasks) // columns)))
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    for axis, task in zip(axes.flat, tasks, strict=False):
        static = results.widths(task).values()
        points = [mean(runs, "test") for runs in static]
        axis.plot([mean(runs, "parameters") for runs in static], points, ".-", color="0.5", label="static")
        for arm, mark in (("auto", "*"), ("shrink", "v")):
            runs = results.arm(task, arm)
            if runs:
                axis.plot(mean(runs, "parameters"), mean(runs, "test"), mark, markersize=9, label=arm)
        axis.set(xscale="log", title=task, ylim=(max(points) - 8, max(points) + 1))
    axes.flat[1].legend(fontsize=8)
    figure.supxlabel("parameters")
    figure.supylabel("test points")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def write_report(runs: Sequence[Run], folder: Path) -> None:
    """Write ``README.md`` and ``growth.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(runs)
    sized = [task for task in results.tasks if len(results.widths(task)) > 2]
    parts = (headline(results, sized), placement(results, sized), tolerances(results, sized))
    body = [parts[0], whether(results), ranks(results), *parts[1:], cost(results), VERDICT]
    hours = sum(run["seconds"] for run in runs) / 3600
    head = TEXT.format(count=len(runs), seconds=hours, comparisons=results.comparisons)
    (folder / "README.md").write_text(head + "".join(body), encoding="utf-8")
    picture(results, sized, folder / "growth.png")
