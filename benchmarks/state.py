"""State of up to a million seeds: queries, updates, memory."""

import numpy as np
from torch import nn

from benchmarks.harness import Bench, growing, main
from lightning_morpho import Stage, StateTensor


def run(bench: Bench) -> None:
    for seeds in (10_000, 100_000, 1_000_000):
        state = StateTensor(seeds)
        chosen = np.arange(0, seeds, seeds // 100)
        state.update(chosen, stage=Stage.ACTIVE, alpha=1.0)
        size = {"N": seeds, "bytes": state.nbytes}
        bench.compare("state query", {"one stage": lambda s=state: s.where(Stage.ACTIVE)}, bare=None, **size)
        bench.compare(
            "state query", {"two stages": lambda s=state: s.where(Stage.LOADING, Stage.ACTIVE)}, bare=None, **size
        )
        update = {"100 seeds": lambda s=state, c=chosen: s.update(c, stage=Stage.ACTIVE, alpha=0.5)}
        bench.compare("state update", update, bare=None, **size)
    layer = growing(nn.Linear(64, 10_000, device=bench.device), 10_000)
    chosen = np.arange(0, 10_000, 100)

    def rebuild() -> None:
        layer.morpho.state.update(chosen, alpha=0.5)
        layer.morpho.refresh()

    bench.compare("update, plan and upload", {"100 of 10000 seeds": rebuild}, bare=None, N=10_000)


if __name__ == "__main__":
    main(run)
