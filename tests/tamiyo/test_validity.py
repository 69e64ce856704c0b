"""Policies of users' own that give nonsense: refused by name, before anything of it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts import Host, linear_net, loaders, make_trainer, moves, quick
from lightning_morpho import BlueprintConfig, Tamiyo
from lightning_morpho.lifecycle import Stage
from lightning_morpho.tamiyo import (
    Cull,
    Decision,
    Defer,
    Germinate,
    Keep,
    LayerView,
    Measure,
    Observation,
    Penalize,
    Resize,
    SeedView,
    Try,
)
from lightning_morpho.tamiyo.validity import checked

LIVE = SeedView(chunk=2, generation=0, stage=Stage.ACTIVE, age=1, alpha=1.0, bed=0, fading=False, due=True)
SEEN = Observation(
    tick=3,
    step=30,
    total_steps=100,
    losses=(1.0, 0.9, 0.8),
    layers=(
        LayerView(name="a", features=9, bed_parameters=9, free_beds=1, germinations=1, dormant=(0, 1), seeds=(LIVE,)),
        LayerView(name="full", features=9, bed_parameters=9, free_beds=0, germinations=0, dormant=(0,), seeds=()),
    ),
)


class Says(Tamiyo):
    """Gives what it is told to."""

    def __init__(self, say: Callable[[Observation], Any]) -> None:
        self.say = say

    def grow(self, observation: Observation) -> Sequence[Decision]:
        return self.say(observation)


NONSENSE: dict[str, tuple[Any, str]] = {
    "nothing": (None, "an empty one for none, got None"),
    "text": ("grow", "an empty one for none"),
    "words": (["grow"], "must be one of Germinate, Measure"),
    "class": ([Germinate], "must be one of Germinate"),
    "layer": ([Germinate(layer="b", reason="")], r"one of those in the observation \(\['a', 'full'\]\), got 'b'"),
    "view": ([Germinate(layer=SEEN.layers[0], reason="")], "one of those in the observation"),  # type: ignore[arg-type]
    "chunk": ([Germinate(layer="a", chunks=(3,), reason="")], "each once, from 0 to 2; None for all"),
    "below": ([Germinate(layer="a", chunks=(-1,), reason="")], "from 0 to 2"),
    "half": ([Germinate(layer="a", chunks=(0.5,), reason="")], "from 0 to 2"),  # type: ignore[arg-type]
    "true": ([Germinate(layer="a", chunks=(True,), reason="")], "from 0 to 2"),
    "number": ([Germinate(layer="a", chunks=1, reason="")], "from 0 to 2"),  # type: ignore[arg-type]
    "none": ([Germinate(layer="a", chunks=(), reason="")], "each once"),
    "same": ([Germinate(layer="a", chunks=(0, 0), reason="")], "each once"),
    "twice": ([Germinate(layer="a", reason="")] * 2, "at most one germination of `a` at a tick"),
    "again": ([Germinate(layer="a", chunks=(1,), reason="")] * 2, r"at most one germination of `a`\[1\]"),
    "both": ([Keep(seed=("a", 2), reason=""), Cull(seed=("a", 2), reason="")], r"at most one decision on `a`\[2\]"),
    "no seed": ([Cull(seed="a", reason="")], "by its layer and its chunk, got 'a'"),  # type: ignore[arg-type]
    "far seed": ([Defer(seed=("a", 3), reason="")], "chunks of `a` go from 0 to 2, got 3"),
    "no layer": ([Keep(seed=("b", 0), reason="")], "got 'b'"),
    "measured": ([Measure(seeds=(("b", 0),))], "got 'b'"),
    "together": ([Measure(together=((("a", 0), ("a", 9)),))], "got 9"),
    "nan": ([Penalize(strength=math.nan, host=True, grown=True)], "`strength` must be a number of at least 0"),
    "negative": ([Penalize(strength=-1.0, host=True, grown=True)], "`strength`"),
    "tolerance": ([Resize(host=True, grown=True, tolerance=math.inf)], "`tolerance`"),
    "point": ([Resize(host=True, grown=True, tolerance=1.0, point=math.nan)], "`point`"),
    "steps": ([Try(places=(("a",),), steps=0)], "`steps` must be at least 1"),
    "some steps": ([Try(places=(("a",),), steps=2.5)], "`steps`"),  # type: ignore[arg-type]
    "no place": ([Try(places=(), steps=1)], r"layers that can grow \(\['a'\]\), at least one"),
    "nowhere": ([Try(places=((),), steps=1)], "layers that can grow"),
    "bed": ([Try(places=(("a",), ("full",)), steps=1)], "layers that can grow"),
    "letters": ([Try(places=("a",), steps=1)], "layers that can grow"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_by_the_policy_s_name(name: str) -> None:
    decisions, problem = NONSENSE[name]
    with pytest.raises(ValueError, match=rf"(?s)^`Says` .*{problem}"):
        checked(decisions, SEEN, Says(lambda _: ()))


def test_all_that_makes_sense_passes_in_its_order() -> None:
    given = [
        Germinate(layer="a", chunks=(0,), reason=""),
        Germinate(layer="a", reason=""),  # the others
        Germinate(layer="full", reason=""),  # the engine knows whether a bed will be free
        Keep(seed=("a", 2), reason="", figures={"rise": math.nan}),
        Measure(seeds=(("a", 2),), together=((), (("a", 2), ("a", 0)))),
        Penalize(strength=0, host=True, grown=False),
        Resize(host=True, grown=True, tolerance=0),
        Try(places=(("a",), ("a",)), steps=1),
    ]
    assert checked((decision for decision in given), SEEN, Says(lambda _: ())) == tuple(given)


def fit(root: Path, say: Callable[[Observation], Any]) -> Host:
    torch.manual_seed(0)
    host = Host(linear_net())
    callback = quick(tamiyo=Says(say), blueprint=BlueprintConfig(kind="auto"))
    make_trainer(root, callback, max_epochs=2).fit(host, **loaders())
    return host


def test_a_run_whose_policy_errs_ends_before_anything_of_it_is_done(tmp_path: Path) -> None:
    """A penalty of NaN used to spoil every weight without a word."""
    good, bad = Germinate(layer="net.2", reason=""), Penalize(strength=math.nan, host=True, grown=True)
    with pytest.raises(ValueError, match="`Says` gave Penalize"):
        fit(tmp_path, lambda _: [good, bad])
    assert not moves(tmp_path)


def test_a_policy_may_give_a_generator(tmp_path: Path) -> None:
    """It used to be read while looking for questions, so that nothing was left of it."""
    fit(tmp_path, lambda seen: (Germinate(layer="net.2", reason="") for _ in range(seen.tick == 1)))
    assert [move[:3] for move in moves(tmp_path)][:1] == [(1, "net.2", "DORMANT")]
