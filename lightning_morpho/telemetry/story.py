"""The story of a run in a few sentences, made from its event log."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_morpho.lifecycle import Stage
from lightning_morpho.telemetry.metric_files import Curve
from lightning_morpho.telemetry.saved_run import Entry, SavedRun, SeedLife
from lightning_morpho.wording import duration, enumerate_words, plural, short_reason

_LOWER_IS_BETTER = re.compile(r"loss|err|perplexity|ppl|mse|mae|rmse|wer|cer|bits|bpc|bpb|nll|cost", re.IGNORECASE)
_ENDS = (
    (Stage.CULLED, "culled"),
    (Stage.CANCELLED, "cancelled"),
    (Stage.ROLLED_BACK, "rolled back"),
    (Stage.ERROR_RECOVERY, "ended by an error"),
)
SENTENCES: Mapping[str, str] = {
    "assessed": "Whether growth pays was asked at step {when}: {found}.",
    "tried": "Trials were made at step {when}: {found}.",
    "resized": "What had grown was made as small as validation allows at step {when}: {found}.",
    "cut": "What did not fit into `budget.tick_share` was put off or left out {times}, at step {when}: {found}.",
    "deferred": "A decision was put off {times} ({why}).",
    "starved": "Seeds that could not learn were found {times}, at step {when} ({why}).",
    "refused": "Growth that was asked for was refused {times} ({why}).",
    "restored": "Training diverged and was taken back {times}, at step {when} ({why}).",
    "rollout": "The rollout switched layers {times}, at step {when} ({why}).",
}
"""Sentences of the story by kind of event; transitions and starts of a fit are told at length."""

_MOST_NAMED = 3
_MOST_ROUNDS = 2


def lower_is_better(metric: str) -> bool:
    """Whether a metric's name says that its fall is good.

    Example:
        >>> lower_is_better("val_loss"), lower_is_better("val_acc")
        (True, False)
    """
    return bool(_LOWER_IS_BETTER.search(metric))


def main_metric(metrics: Mapping[str, Curve]) -> str | None:
    """The metric that a person would look at first: a validation score, else a validation loss, else any loss.

    Example:
        >>> curve = Curve((1, 2), (0.1, 0.2), (None, None))
        >>> main_metric({"train_loss": curve, "val_loss": curve, "val_acc": curve, "morpho/net.0/alpha": curve})
        'val_acc'
    """
    own = [name for name in metrics if not name.startswith(("morpho/", "test")) and len(metrics[name].steps) > 1]
    held_out = [name for name in own if "val" in name.lower()]
    scores = [name for name in held_out if not lower_is_better(name)]
    losses = [name for name in own if lower_is_better(name)]
    return next(iter([*scores, *held_out, *losses, *own]), None)


@dataclass(frozen=True)
class Best:
    """The best value of a metric.

    Attributes:
        metric: Its name.
        value: The value.
        step: Optimizer steps done then.
        before: The last value before the first germination; None if there is none.
    """

    metric: str
    value: float
    step: int
    before: float | None


def best_of(log: SavedRun, metric: str | None) -> Best | None:
    """The best value of a metric, and what it was before anything grew."""
    if metric is None:
        return None
    curve = log.metrics[metric]
    pick = min if lower_is_better(metric) else max
    value, step = pick(zip(curve.values, curve.steps, strict=True), key=lambda point: point[0])
    born = min((life.spells[0].start for life in log.lives), default=None)
    earlier = [v for v, s in zip(curve.values, curve.steps, strict=True) if born is not None and s <= born]
    return Best(metric, value, step, earlier[-1] if earlier else None)


def tell(log: SavedRun) -> list[str]:
    """The story, sentence by sentence."""
    return [
        sentence
        for sentence in (
            *(_host(log), _ground(log), *_births(log), _endings(log), _proof(log)),
            *(tell_of(log, kind) for kind in SENTENCES),
            *(_size(log), _result(log)),
        )
        if sentence
    ]


def parameters_of(log: SavedRun) -> tuple[int | None, int | None]:
    """Parameters before growth and at the end; None where nobody wrote them."""
    before = next((start["model"]["parameters"] for start in log.of_kind("start")), None)
    added = log.metrics.get("morpho/run/added_parameters")
    return before, None if before is None or added is None else before + round(added.values[-1])


def _host(log: SavedRun) -> str:
    start = next(iter(log.of_kind("start")), None)
    name = "The model" if start is None else start["model"]["class"]
    size = "" if start is None else f" ({start['model']['parameters']:,} parameters)"
    device = "" if start is None else f" on {start['trainer']['device']}"
    took = "" if log.seconds is None else f" in {duration(log.seconds)}"
    logged = [curve.epochs[-1] for curve in log.metrics.values() if len(curve.epochs) > 1]
    epochs = [done for done in logged if done is not None]
    length = plural(log.last_step, "step") + (f" ({plural(max(epochs), 'epoch')})" if epochs else "")
    segments = len(log.of_kind("fit_start"))
    again = f", resumed {plural(segments - 1, 'time')}" if segments > 1 else ""
    return f"{name}{size} trained for {length}{took}{device}{again}."


def _ground(log: SavedRun) -> str:
    taken = [module for module in log.modules if module["taken"]]
    if not log.modules:
        return ""
    seeds = sum(module["seeds"] for module in taken)
    return f"{len(taken)} of its {plural(len(log.modules), 'module')} could grow, with {plural(seeds, 'seed')} in them."


def _births(log: SavedRun) -> list[str]:
    """One sentence for each round if they are few, else one for all."""
    born = [e for e in log.of_kind("transition") if e["from"] == Stage.DORMANT.name]
    if not born:
        refused = log.of_kind("refused")
        return [f"Nothing grew: {refused[-1]['reason']}." if refused else "Nothing grew: no seed left dormancy."]
    rounds: dict[int, list[Entry]] = {}
    for entry in born:
        rounds.setdefault(entry["step"], []).append(entry)
    if len(rounds) <= _MOST_ROUNDS:
        return [f"At step {step:,}, {_germinated(entries)}." for step, entries in rounds.items()]
    steps = list(rounds)
    return [f"From step {steps[0]:,} to {steps[-1]:,}, in {plural(len(rounds), 'round')}, {_germinated(born)}."]


def _germinated(born: Sequence[Entry]) -> str:
    layers = enumerate_words(dict.fromkeys(f"`{entry['layer']}`" for entry in born), most=_MOST_NAMED, noun="layer")
    kinds = enumerate_words(dict.fromkeys(entry["blueprint"] for entry in born))
    reasons = enumerate_words(dict.fromkeys(entry["reason"] for entry in born), most=_MOST_NAMED, noun="reason")
    return f"{plural(len(born), 'seed')} germinated in {layers} as {kinds} ({reasons})"


def _endings(log: SavedRun) -> str:
    if not log.lives:
        return ""
    stages = Counter(life.stage for life in log.lives)
    living = sum(life.living for life in log.lives)
    told = [_were(stages[Stage.FOSSILIZED.name]) + " kept" + _why(log, Stage.FOSSILIZED)]
    told += [f"{stages[stage.name]:,} {word}" + _why(log, stage) for stage, word in _ENDS if stages[stage.name]]
    told += [f"{living:,} still growing"] if living else []
    return f"Of these seeds, {enumerate_words(told)}."


def _why(log: SavedRun, stage: Stage) -> str:
    reasons = dict.fromkeys(short_reason(life.reason) for life in log.lives if life.stage == stage.name)
    return f" ({enumerate_words(reasons, most=2, noun='reason')})" if reasons else ""


def tell_of(log: SavedRun, kind: str) -> str:
    """The sentence about all events of a kind that has one of its own; empty if there was none.

    Args:
        log: The run.
        kind: One of :data:`SENTENCES`.
    """
    entries = log.of_kind(kind)
    if not entries or (kind == "refused" and not log.lives):  # then that nothing grew says why
        return ""
    times = plural(len(entries), "time")
    found = enumerate_words(dict.fromkeys(map(_found, entries)), most=_MOST_NAMED, noun="finding")
    why = enumerate_words(dict.fromkeys(_reason(entry) for entry in entries), most=_MOST_ROUNDS, noun="reason")
    when = " and ".join(dict.fromkeys(f"{entry['step']:,}" for entry in (entries[0], entries[-1])))
    return SENTENCES[kind].format(times=times, found=found, why=why, when=when)


def _found(entry: Entry) -> str:
    return f"`{entry.get('layer', '')}`: {entry.get('text', '')}"


def _reason(entry: Entry) -> str:
    return entry.get("reason") or entry.get("cause") or "no reason given"


def _proof(log: SavedRun) -> str:
    kept = [life for life in log.lives if life.stage == Stage.FOSSILIZED.name and rise_of(life) is not None]
    if not kept:
        return ""
    top = max(kept, key=lambda life: rise_of(life) or 0.0)
    lower = top.figures.get("lower")
    confidence = top.figures.get("confidence") or 0.95
    bound = "" if lower is None else f" ({confidence:.0%} sure: by more than {lower:.3g})"
    return f"The most valuable is `{top.name}`: without it the held-out loss would rise by {rise_of(top):.3g}{bound}."


def rise_of(life: SeedLife) -> float | None:
    """Rise of the held-out loss without this seed; None if it was not measured."""
    return life.figures.get("rise")


def _size(log: SavedRun) -> str:
    before, after = parameters_of(log)
    if before is None or after is None or before == after:
        return ""
    return f"The model went from {before:,} to {after:,} parameters ({after / before:.3g} times)."


def _result(log: SavedRun) -> str:
    best = best_of(log, main_metric(log.metrics))
    if best is None:
        return ""
    before = "" if best.before is None else f"; before anything grew it was {best.before:.4g}"
    return f"The best `{best.metric}` was {best.value:.4g}, at step {best.step:,}{before}."


def _were(count: int) -> str:
    return f"{count:,} was" if count == 1 else f"{count:,} were" if count else "none was"
