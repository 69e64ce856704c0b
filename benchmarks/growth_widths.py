"""How should the cull choose a width, and when? Every width on its path is trained to the end: any rule can be judged.

python benchmarks/growth_widths.py --data DIR [--tasks letter,vowel] [--seeds 24] [--device cuda]
python benchmarks/growth_widths.py --report

About six minutes on an H200; what stands in the results already is not run again. Results:
`results/growth_widths.json`; the table is `docs/evidence/sizing.md`. The tables `digits.csv` (scikit-learn's
`load_digits`, its label in the column `label`), `dna.csv` (mlbench) and `spam.csv` (kernlab) join those of
`growth_tasks.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import growth_whether
from growth_batched import STEPS, Lab, Nets, folded, greedy_orders
from growth_lab import interval, tasks_in, write_tasks
from growth_tasks import TASKS, Task, from_table
from lightning_morpho.sizing.selection import candidate_widths

HOST, WIDEST = 4, 512
STATIC = (8, 16, 32, 64, 128, 256, 512)
PATH = [HOST + more for more in candidate_widths(WIDEST - HOST) if more not in (0, 1, 3, 6)]
EXTRA: dict[str, Callable[[Path], Task]] = {
    "digits": lambda data: from_table(data, "digits", "label", 1100, 300),
    "dna": lambda data: from_table(data, "dna", "Class", 1900, 600),
    "spam": lambda data: from_table(data, "spam", "type", 2900, 850),
}
CHOSEN_ON = ("letter", "letter8", "letter3", "fashion")
OTHERS = ("satellite", "shuttle", "vowel", "teacher", *EXTRA)
RESULTS = Path(__file__).parent / "results" / "growth_widths.json"
PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "sizing.md"


@dataclass(frozen=True)
class Course:
    """What happens when, in steps of a thousand; ``fresh``: optimizer state is made anew at the cull, and warmed up."""

    grow: int = 100
    penalty: float = 0.03
    until: int = 500
    cull: int = 500
    fresh: bool = False


@dataclass
class Found:
    """One width of the path, each entry by net: what validation says at the cull, and points at the end."""

    rise: Tensor
    error: Tensor
    later: dict[int, Tensor]
    validation: Tensor
    test: Tensor


Rule = Callable[[Found], Tensor]
"""Whether a width is allowed, for each net. ``rise``: points lost, loss gained, points by probability lost, and the
loss over what it was, less 1; ``error``: standard errors of the first two."""


def within(points: float = float("inf"), loss: float = float("inf"), *, by: str = "") -> Rule:
    """No more points lost, no more loss gained; ``by`` another measure instead: of the points, or of the loss."""
    rows = {"": (0, 1), "probability": (2, 1), "relative": (0, 3)}[by]
    return lambda found: (found.rise[rows[0]] <= points + 1e-9) & (found.rise[rows[1]] <= loss + 1e-12)


def noise(row: int) -> Rule:
    """Lost less than one standard error of the paired difference."""
    return lambda found: found.rise[row] <= found.error[row]


def refitted(steps: int, points: float) -> Rule:
    """As ``within``, but judged after some more steps, against the widest after as many."""
    return lambda found: found.later[steps] <= points


TODAY, WEAK, EARLY = Course(), Course(penalty=0.01), Course(grow=40, penalty=0.01)
BOTH = within(0.5, 0.01)
IDEAS: dict[str, tuple[Course, Rule]] = {
    "penalty 0.03, accuracy alone: the rule before": (TODAY, within(0.5)),
    "half the tolerance": (TODAY, within(0.25)),
    "no tolerance": (TODAY, within(0.0)),
    "loss alone, 0.01 nats": (TODAY, within(loss=0.01)),
    "loss alone, 0.0025 nats": (TODAY, within(loss=0.0025)),
    "loss alone, 2 % of it": (TODAY, within(loss=0.02, by="relative")),
    "loss within its standard error": (TODAY, noise(1)),
    "accuracy within its standard error": (TODAY, noise(0)),
    "probability of the right class, 0.5 points": (TODAY, within(0.5, by="probability")),
    "accuracy and loss": (TODAY, BOTH),
    "half of both tolerances": (TODAY, within(0.25, 0.005)),
    "accuracy after 50 steps of training, 0.25 points": (TODAY, refitted(50, 0.25)),
    "accuracy after 200 steps of training, 0.25 points": (TODAY, refitted(200, 0.25)),
    "penalty 0.01, accuracy alone": (WEAK, within(0.5)),
    "no penalty, accuracy alone": (Course(penalty=0.0), within(0.5)),
    "penalty 0.01, accuracy and loss": (WEAK, BOTH),
    "no penalty, accuracy and loss": (Course(penalty=0.0), BOTH),
    "cull at 30 %, accuracy and loss": (Course(until=300, cull=300), BOTH),
    "grown at 5 %, accuracy and loss": (Course(grow=50), BOTH),
    "... and fresh optimizer state after the cull": (Course(grow=50, fresh=True), BOTH),
    "... and penalty and cull until 70 %": (Course(grow=50, until=700, cull=700), BOTH),
    "... and cull at 85 %": (Course(grow=50, cull=850), BOTH),
    "grown at 2 %, accuracy alone": (Course(grow=20), within(0.5)),
    "grown at 2 %, accuracy and loss": (Course(grow=20), BOTH),
    "grown at 2 %, penalty 0.01, accuracy and loss": (Course(grow=20, penalty=0.01), BOTH),
    "grown at 4 %, penalty 0.01, accuracy alone": (EARLY, within(0.5)),
    "**grown at 4 %, penalty 0.01, accuracy and loss: the rule**": (EARLY, BOTH),
    "... and half of both tolerances": (EARLY, within(0.25, 0.005)),
    "... and no tolerance": (EARLY, within(0.0)),
    "... and loss within its standard error too": (EARLY, lambda found: BOTH(found) & noise(1)(found)),
    "... and not cut at all": (EARLY, lambda found: found.rise[0] < -float("inf")),
    "grown at 4 %, penalty 0.003, accuracy and loss": (Course(grow=40, penalty=0.003), BOTH),
    "grown at 6 %, penalty 0.01, accuracy and loss": (Course(grow=60, penalty=0.01), BOTH),
}


def walk(lab: Lab, course: Course) -> dict[int, Found]:
    """Grow, and train every width of the cull's path to the end."""
    nets = lab.nets(HOST)
    lab.train(nets, 0, course.grow)
    nets.widen(lab.nets(WIDEST - HOST, offset=7000), course.grow)
    lab.train(nets, course.grow, course.until, course.penalty)
    lab.train(nets, course.until, course.cull)
    before, mean, covariance = lab.moments(nets)
    order = greedy_orders(covariance, nets.values["w2"], HOST)
    found = {width: follow(lab, course, folded(nets, order, width, mean, covariance), before) for width in PATH}
    widest = {steps: points.clone() for steps, points in found[WIDEST].later.items()}
    for one in found.values():
        one.later = {steps: widest[steps] - points for steps, points in one.later.items()}
    return found


def follow(lab: Lab, course: Course, nets: Nets, before: Tensor) -> Found:
    """Train one width to the end."""
    after = lab.moments(nets)[0]
    gain = after - before
    error = (gain.std(2) / gain.shape[2] ** 0.5).cpu()
    loss = gain[1].mean(1)
    rise = torch.stack([-gain[0].mean(1), loss, -gain[2].mean(1), loss / before[1].mean(1)]).cpu()
    if course.fresh:
        nets.renew(course.cull)
    later, now = {}, course.cull
    for steps in (50, 200):
        if course.cull + steps <= STEPS and course == TODAY:
            lab.train(nets, now, course.cull + steps)
            now = course.cull + steps
            later[steps] = lab.points(nets, 1)
    lab.train(nets, now, STEPS)
    return Found(rise, error, later, lab.points(nets, 1), lab.points(nets, 2))


def smallest(found: dict[int, Found], rule: Rule) -> list[int]:
    """The width that bisection comes to, of each net."""
    return bisected({width: rule(one) for width, one in found.items()})


def bisected(allowed: Mapping[int, Tensor]) -> list[int]:
    """The width that bisection comes to, of each net, by what is allowed."""
    answers = {width: nets.tolist() for width, nets in allowed.items()}
    chosen = []
    for net in range(len(answers[WIDEST])):
        low, high = 0, len(PATH) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if answers[PATH[middle]][net] else (middle + 1, high)
        chosen.append(PATH[high])
    return chosen


def best_rate(lab: Lab, validation: Tensor) -> slice:
    """The nets of the learning rate that is best on validation."""
    rate = int(validation.view(len(lab.rates), lab.seeds).mean(1).argmax())
    return slice(rate * lab.seeds, (rate + 1) * lab.seeds)


def examine(lab: Lab, known: Mapping[str, Any]) -> dict[str, Any]:
    """All ideas on one task: points minus those of the best static width, parameters over the reference's.

    Args:
        lab: The task.
        known: What an earlier run found out. Ideas are not run again; the reference stays: a width that is half a point
            short of the best is on either side of it from run to run.
    """
    static = {}
    for width in STATIC:
        nets = lab.nets(width)
        lab.train(nets, 0, STEPS)
        static[width] = lab.points(nets, 2)[best_rate(lab, lab.points(nets, 1))]
    best = max(static.values(), key=lambda points: float(points.mean()))
    means = known.get("static") or {width: float(points.mean()) for width, points in static.items()}
    reference = min(int(width) for width, mean in means.items() if mean >= max(means.values()) - 0.5)
    walks: dict[Course, dict[int, Found]] = {}
    ideas = {name: figures for name, figures in known.get("ideas", {}).items() if name in IDEAS}
    for name, (course, rule) in IDEAS.items():
        if name in ideas:
            continue
        if course not in walks:
            walks[course] = walk(lab, course)
        found = walks[course]
        chosen = smallest(found, rule)
        ends = [(found[w].validation[net], found[w].test[net]) for net, w in enumerate(chosen)]
        mine = best_rate(lab, torch.stack([end[0] for end in ends]))
        points = torch.stack([end[1] for end in ends])[mine] - best
        size = sum(parameters(lab, w) for w in chosen[mine]) / lab.seeds / parameters(lab, reference)
        ideas[name] = interval(points.tolist()) | {"size": size}
    return {"reference": reference, "static": means, "ideas": ideas}


def parameters(lab: Lab, width: int) -> int:
    """Of a net of one hidden layer."""
    return width * (lab.inputs + 1) + (width + 1) * lab.outputs


def holds(cell: dict[str, float]) -> bool:
    """At least as good as the best static width, with at most twice the reference's parameters."""
    return cell["mean"] - cell["half_width"] > -0.5 and cell["size"] <= 2


def page(results: dict[str, Any]) -> str:
    """The table of ideas, in Markdown."""
    tasks = results["tasks"]
    chosen, others = ([t for t in part if t in tasks] for part in (CHOSEN_ON, OTHERS))
    lines = [f"| idea | {' | '.join(chosen)} | holds | elsewhere |", "| --- " * (len(chosen) + 3) + "|"]
    for name in IDEAS:
        cells = {task: tasks[task]["ideas"][name] for task in tasks if name in tasks[task]["ideas"]}
        shown = [f"{c['mean']:+.2f} ± {c['half_width']:.2f}, {c['size']:.1f} ×" for c in map(cells.get, chosen) if c]
        counts = [[holds(cells[task]) for task in part if task in cells] for part in (chosen, others)]
        lines.append(f"| {' | '.join([name, *shown, *(f'{sum(part)} of {len(part)}' for part in counts)])} |")
    head = HEAD.format(count=len(IDEAS), others=", ".join(f"`{t}`" for t in others))
    answers = json.loads(growth_whether.RESULTS.read_text(encoding="utf-8"))["tasks"]
    import growth_sure  # which imports this module

    sure = growth_sure.section(json.loads(growth_sure.RESULTS.read_text(encoding="utf-8")))
    trainer = growth_sure.through_a_trainer()
    return head + "\n".join(lines) + TAIL.format(sure=sure, trainer=trainer, whether=growth_whether.section(answers))


HEAD = """# How to choose a size: what was tried

Written by `python benchmarks/growth_widths.py --report`. Nets of one hidden layer, 24 random seeds (Fashion 12), three
learning rates (Fashion two), 1 000 steps, as [elsewhere](README.md), but computed as one batch on an H200: 4 units are
widened to 512, and at the cull *every* width on its path is trained to the end. So a rule can be judged by what became
of the width that it would have chosen. Points minus those of the best static width, paired 95 % intervals ({count}
rules on eleven tasks, not corrected), parameters over those of the reference, the narrowest static width within 0.5
points of the best. *Holds*: the interval lies above -0.5, and at most twice the reference's parameters. The rule was
chosen on the four tasks that are shown; *elsewhere* counts those that were not used:
{others}.

"""
TAIL = """

- More units are needed where accuracy at half-time does not show it yet. The loss does: it has finer steps. Where
  accuracy is near 100 % the loss alone keeps too many.
- A standard error says how well validation resolves, not what matters: much validation data keeps everything, little
  keeps too few. Judging after some steps of training measures the noise of a rate that has not fallen yet.
- The penalty orders the units well enough at a third of its strength, and takes less from those that stay.
- Whether the host grows at 2, 4, 6 or 10 % makes no difference that 24 seeds could show: the best of them changes from
  task to task and from one penalty to another, and two runs of the same static nets differ by 0.1 points. So the moment
  is free to be that at which the answer is sure (below).
- Elsewhere no rule holds more than three: `vowel`, `dna` and `satellite` (594, 1 900 and 4 400 samples) go on gaining
  from width that changes nothing in the validation samples at half-time, and on `spam` 8 units are within 0.5 points of
  any other number, which a fold without training can't show.
- The uncut net, grown from 4 to 512 units at 10 %, is itself 0.1 to 0.4 points short of the best static width on
  `letter` and `fashion`, and 0.8 on `vowel`, which has 594 samples: no rule for the cull gets that back.
- The last nine ideas come from a second run, which ended before `spam`.

## Should the cull be surer?

`python benchmarks/growth_sure.py` asks what a width costs as surely as the held-out data say it: with standard errors
of the paired rise over eight held-out batches, by its median, or by a fold that has not seen the samples which judge it
(the rule's own has: on 198 samples of `vowel` 100 units say for all 512 what costs 0.005 nats there, and 0.05 on
samples new to the fold). As above, but on a CPU, at the rate that is best for `AutoSize`, 12 random seeds of their own
(Fashion 6). *Holds*: of the eight tasks; 15 of 53 variants are shown, all were looked at with all tasks in view.
A second run on `vowel` differs by up to 0.17 points and 0.14 of the reference's size, from rounding alone.

{sure}
- A fold judged by new samples keeps enough on `vowel`, but validation there sees no gain, and on `shuttle` a few
  outlying samples weigh so much that it keeps up to ten times too much; a median over the batches does not mind them.
- Two standard errors of the loss are the simplest that help `satellite`. So this rule was run through a Trainer, by the
  plan's seeds and rates, in place of the means alone (beside the runs of [the page on growth](README.md); in brackets
  the pairs, at the rate that is best on validation; other machine, so that runs of equal decisions differ by chance):

{trainer}
- It is a tie: `satellite` is won, by less than either interval, and `letter2` is lost by size; nets become 0 to 43 %
  larger, points differ by at most 0.2. Of the control, `letter` is won by the interval, `letter3` and `shuttle` are
  lost by size. On the 72 runs on teachers of known width both rules decide alike. So the rule remains that of the
  means, the simplest that ties.
- On `letter2` all but two of 16 nets end at 388 units a layer, the next width that is tried above 260, the reference
  being 256: what a surer rule costs is a whole step of a half. To ask for sureness of the whole tolerance, not of each
  layer's share, changed none of the first six of these nets. Not tried: finer steps between the widths.

## Whether and when to grow

`python benchmarks/growth_whether.py` trains the hosts without growth and asks them after every 2 % of training, as
`AutoSize` does, what 32 new random units would explain of the held-out residual (*new*), and what the units there are
could still explain by learning (*own*): medians of the last pair, in percent of the residual, over 4 random seeds (the
linear task 12). *Grown at*: all moments at which the policy at its defaults would grow. The linear task asks for
nothing: 8 units can say it, and the host has 8. The rule was made with most of these tasks in view, `python_gpt` too:
after one of its ten hosts was never grown (rate 0.01, seed 4), a sure answer was made to hold until training has
doubled; that host now grows at 12 %. The runs of [the page on growth](README.md) were made before that.

{whether}

- The rule before asked once, at 10 %: new units had to explain 0.2 % of the residual. Nearly all of a language model's
  residual is noise; there they explain a few hundredths of a percent, and it never grew. On the linear task, at a rate
  of 0.01, they explain 1 % at that moment, and it grew in most runs.
- What new units explain means something beside what the host can still explain itself. Where they are a fifth of both
  together, it grows at once. A tenth is too low: hosts of few inputs that would have learnt it themselves grow then.
  On linear maps of 3 to 5 inputs even a fifth is: there new units come to half of both, and such a host grows in vain.
- Else the host's own promise decides: it falls to 0.15 to 0.45 of itself while training doubles where learning does it
  alone, and to 0.5 to 1 where it doesn't.
- New units in the directions in which the inputs vary most, units between pairs of samples, 128 of them instead of 32,
  or as many as the host has separate the tasks no better.
- On `shuttle` and `letter3` some hosts say no at all moments: 4 units are nearly enough there.
"""


def main() -> None:
    """Run the tasks, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--tasks", default=",".join((*CHOSEN_ON, *OTHERS)))
    parser.add_argument("--seeds", type=int, default=24, help="of Fashion-MNIST half as many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write docs/evidence/sizing.md from the results")
    options = parser.parse_args()
    if options.report:
        PAGE.write_text(page(json.loads(options.json.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    start = time.perf_counter()
    done = tasks_in(options.json)
    for name in options.tasks.split(","):
        fashion = name == "fashion"
        rates = (0.003, 0.01) if fashion else (0.003, 0.01, 0.03)
        task = {**TASKS, **EXTRA}[name](options.data)
        with torch.no_grad():
            lab = Lab(task, rates, options.seeds // 2 if fashion else options.seeds, options.device)
            done[name] = examine(lab, done.get(name, {}))
        write_tasks(options.json, done, start)
        print(name, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
