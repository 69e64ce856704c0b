"""The judgement of grown seeds, shared by all policies."""

from __future__ import annotations

import math

from lightning_morpho.tamiyo.observation import Cull, Decision, Keep, Measure, Observation


def judge(observation: Observation) -> list[Decision]:
    """Decide on the seeds that are due, by their contribution to the held-out loss.

    A seed is kept if the lower confidence bound of the rise in loss without it is above 0, else culled.
    Where nothing can be measured it is kept, with the reason ``unjudged``.
    """
    due = [(layer.name, seed.chunk) for layer in observation.layers for seed in layer.seeds if seed.due]
    if not observation.can_measure:
        return [Keep(seed=key, reason="unjudged: no held-out loss") for key in due]
    results = {key: m for m in observation.measurements for key in m.seeds}
    unmeasured = tuple(key for key in due if key not in results)
    if unmeasured:
        return [Measure(seeds=unmeasured)]
    decisions: list[Decision] = []
    for key in due:
        result = results[key]
        figures = {
            "rise": result.rise,
            "lower": result.lower,
            "batches": result.batches,
            "judged_with": len(result.seeds) - 1,
        }
        if math.isnan(result.lower) and result.batches < 2:
            decisions.append(Keep(seed=key, reason="unjudged: fewer than two validation batches", figures=figures))
        elif result.lower > 0:
            decisions.append(Keep(seed=key, reason="proven gain", figures=figures))
        else:
            decisions.append(Cull(seed=key, reason="no proven gain", figures=figures))
    return decisions
