"""What a tick costs: what need not be done twice is done once, and decides the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hosts import Host, linear_net, loaders, make_data, make_trainer, quick
from lightning_morpho.integrations import validation
from lightning_morpho.tamiyo.replay import read_ticks


class Counted(TensorDataset):
    """Counts how often a sample is read."""

    reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


class ReadsInTicks(L.Callback):
    """Counts the samples read between validation and the next epoch: in the tick."""

    def __init__(self, data: Counted) -> None:
        self.data, self.reads = data, list[int]()

    def on_validation_end(self, *_: Any) -> None:
        self.data.reads = 0

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch:
            self.reads.append(self.data.reads)


def run(root: Path) -> list[int]:
    torch.manual_seed(0)
    data = Counted(*make_data(128, 1).tensors)
    reads = ReadsInTicks(data)
    loaded = loaders() | {"val_dataloaders": DataLoader(data, batch_size=16, shuffle=True)}
    make_trainer(root, reads, quick(seed=1), max_epochs=6).fit(Host(linear_net()), **loaded)
    return reads.reads


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[int]]]:
    """The same run, its batches small enough to be kept, and too large."""
    runs = []
    for name, most in (("small", validation.MOST_KEPT), ("large", 100)):
        root = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "MOST_KEPT", most)
            runs.append((root, run(root)))
    return runs


def test_a_tick_reads_its_held_out_batches_once(small_and_large) -> None:
    (_, small), (_, large) = small_and_large
    assert max(small) == 128, "each reading starts the loader's workers anew, and decodes every image again"
    assert max(large) > 2 * 128, "the run measures more than once a tick, or this test shows nothing"


def test_what_is_kept_decides_like_what_is_read_anew(small_and_large) -> None:
    small, large = ([tick.decisions for tick in read_ticks(root)] for root, _ in small_and_large)
    assert small == large and any(small)
