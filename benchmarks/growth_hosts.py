"""Tables of the growth experiments: trained hosts that go on, and growth to a size that is given."""

from __future__ import annotations

import re

from growth_results import Results, mean, shown, table
from lightning_morpho.ab import Comparison

GOING_ON = """## A trained host that no longer suffices

A net of 8 units (or channels), trained for 3 300 steps, goes on for so many more, and is grown in one round after 5 %
of them (`AllAtStart`: at the first tick); what shows no gain is culled as always. *Fresh*: a net of the final size
trained for these steps alone. *Training on*: the host, not grown. Both arms of a comparison take their rates from the
same sweep.
"""
BEFORE = {
    "letter_more": "`letter_more`: the host has learnt the first 13 letters, then all 26 come (the data shift).",
}


def cells(results: Results, task: str) -> list[tuple[int, int]]:
    """Width and steps of each comparison of a task."""
    found = (re.fullmatch(r"onward(\d+)@(\d+)", arm) for arm in results.arms(task))
    every = sorted({(int(m[1]), int(m[2])) for m in found if m})
    return [(width, steps) for width, steps in every if results.arm(task, f"{width}@{steps}")]


def against(results: Results, task: str, base: str) -> dict[tuple[int, int], Comparison]:
    """Each grown host against another arm; in its name `{width}` and `{steps}` stand for the cell's."""
    compared = {}
    for width, steps in cells(results, task):
        other = results.arm(task, base.format(width=width, steps=steps))
        if other:
            compared[width, steps] = results.compare(other, results.arm(task, f"onward{width}@{steps}"))
    return compared


def going_on(results: Results) -> str:
    """A trained host, grown, against a fresh net of the final size at equal additional steps."""
    text = GOING_ON
    for task in results.tasks:
        fresh, alone = against(results, task, "{width}@{steps}"), against(results, task, "onward8@{steps}")
        if not fresh:
            continue
        budgets = sorted({steps for _, steps in fresh})
        rows = []
        for width in sorted({width for width, _ in fresh}):
            row = [f"{width / 8:g} × ({width})", *(shown(fresh[width, steps]) for steps in budgets)]
            row += [shown(alone[width, steps]) if (width, steps) in alone else "not run" for steps in budgets]
            rows.append(row)
        head = ["width", *(f"− fresh, {n} steps" for n in budgets), *(f"− training on, {n}" for n in budgets)]
        above = sum(c.difference > 0 for c in fresh.values()), sum(c.low > 0 for c in fresh.values())
        below = sum(c.high < 0 for c in fresh.values())
        text += (
            f"\n**{task}**, {next(iter(fresh.values())).pairs} pairs: against fresh nets the mean is above 0 in "
            f"{above[0]} of {len(fresh)} cells, the interval above 0 in {above[1]}, below 0 in {below}. "
            f"{BEFORE.get(task, '')}\n\n" + table(head, rows)
        )
    return text + "\n" if text != GOING_ON else ""


def size_given(results: Results) -> str:
    """MNIST-1D, 4 to 25 channels, beside static nets of the final size."""
    task, grown = "mnist1d_plain", "round25"
    if not results.arm(task, grown):
        return ""
    rows = []
    for arm, name in (
        ("25", "25 channels from the start"),
        (grown, "4 channels, grown to 25 at 35 %"),
        ("25@664", "25 channels, as many FLOPs as the grown net: 664 steps"),
    ):
        runs = results.arm(task, arm)
        against = "" if arm == "25" else shown(results.compare(results.arm(task, "25"), runs))
        rows.append(
            [name, f"{mean(runs, 'test'):.2f}", against, f"{mean(runs, 'gflops'):.1f}", f"{mean(runs, 'seconds'):.1f}"]
        )
    compared = results.compare(results.arm(task, "25@664"), results.arm(task, grown))
    return (
        "## The size given\n\nMNIST-1D, three convolutions without norms (the net of `make demo`), one round at 35 % "
        f"of training; {compared.pairs} pairs.\n\n"
        + table(("net", "points", "minus 25 from the start", "training GFLOPs", "seconds"), rows)
        + f"\nGrown minus the static net at equal FLOPs: {shown(compared)}.\n\n"
    )
