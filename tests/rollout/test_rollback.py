"""A rollback that leaves damage behind is none: the result must be that of a run without growth."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from hosts import Host, linear_net, loaders, make_trainer, quick
from lightning_morpho import RampConfig, RolloutConfig, hybrid_layers
from lightning_morpho.ab import compare_pairs
from lightning_morpho.telemetry import EVENTS_FILE, read_events

PAIRS = 8


class Sicken(L.Callback):
    """Makes the seeds harmful before the third validation, so that the guard must fail at tick 3."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            with torch.no_grad():
                for layer in hybrid_layers(pl_module).values():
                    layer.morpho.beds[0].w_out.normal_(std=5)


def final_loss(root: Path, seed: int, *callbacks: L.Callback) -> float:
    L.seed_everything(seed, verbose=False)
    trainer = make_trainer(root, *callbacks, max_epochs=15)
    trainer.fit(Host(linear_net()), **loaders(shuffle=True))
    return float(trainer.callback_metrics["val_loss"])


@pytest.mark.slow
def test_run_that_was_rolled_back_is_within_noise_of_one_without_growth(tmp_path: Path) -> None:
    bare, rolled_back = [], []
    for seed in range(PAIRS):
        root = tmp_path / str(seed)
        callback = quick(rollout=RolloutConfig(ramp=RampConfig(schedule={0: 100})), seed=seed)
        bare.append(final_loss(root / "bare", seed))
        rolled_back.append(final_loss(root / "grown", seed, Sicken(), callback))
        events = list(read_events(root / "grown" / EVENTS_FILE))
        (start, back) = [e for e in events if e["event"] == "rollout"]
        assert (start["layers_on"], back["layers_on"]) == (2, 0)
        assert back["step"] == 30, "rolled back at the tick of that validation"
        assert [e for e in events if e["event"] == "transition" and e["step"] < 30], "growth had begun"
    comparison = compare_pairs(bare, rolled_back, metric="val_loss", higher_is_better=False)
    assert comparison.verdict == "no difference shown", str(comparison)
    # The interval is narrow enough to mean something: a tenth of the loss.
    assert comparison.high - comparison.low < 0.1 * comparison.mean_a, str(comparison)
