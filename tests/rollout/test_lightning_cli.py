"""LightningCLI and jsonargparse: the same names as in Python and in Hydra."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from hosts import Host, linear_net, make_data

pytest.importorskip("jsonargparse")

from lightning.pytorch import LightningDataModule  # noqa: E402
from lightning.pytorch.cli import LightningCLI  # noqa: E402

from lightning_morpho import MorphoCallback, Periodic, Uniform  # noqa: E402


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(make_data(64, 0), batch_size=32)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(make_data(64, 1), batch_size=32)


class Model(Host):
    def __init__(self) -> None:
        super().__init__(linear_net())


TRAINER = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]


def callback_of(folder: Path, *arguments: str, run: bool = False) -> MorphoCallback:
    root = [f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    cli = LightningCLI(Model, Data, run=run, args=[*(["fit"] if run else []), *TRAINER, *root, *arguments])
    (found,) = [c for c in cli.trainer.callbacks if isinstance(c, MorphoCallback)]
    return found


def test_overrides_on_the_command_line(tmp_path: Path) -> None:
    callback = callback_of(
        tmp_path,
        "--trainer.callbacks+=lightning_morpho.MorphoCallback",
        "--trainer.callbacks.rollout.percentage=25",
        "--trainer.callbacks.rollout.unit=layer",
        "--trainer.callbacks.rollout.flag_file=flags.yaml",
        "--trainer.callbacks.layers.num_seeds=2",
        "--trainer.callbacks.tamiyo=lightning_morpho.Periodic",
        "--trainer.callbacks.tamiyo.every=7",
        "--trainer.callbacks.model_id=mine",
    )
    rollout = callback.config.rollout
    assert (rollout.percentage, rollout.unit, rollout.flag_file) == (25, "layer", "flags.yaml")
    assert callback.config.layers.num_seeds == 2 and callback.config.model_id == "mine"
    assert isinstance(callback.tamiyo, Periodic) and callback.tamiyo.every == 7


def test_preset_by_name(tmp_path: Path) -> None:
    callback = callback_of(
        tmp_path,
        "--trainer.callbacks+=lightning_morpho.MorphoCallback",
        "--trainer.callbacks.preset=adapt_pretrained",
        "--trainer.callbacks.rollout.percentage=25",
    )
    assert callback.freeze_host and callback.config.blueprint.kind == "lowrank"


CONFIG = """
trainer:
  callbacks:
    - class_path: lightning_morpho.MorphoCallback
      init_args:
        rollout:
          unit: layer
          flags: {fused_kernels: {enabled: true, percentage: 10}}
          ramp: {schedule: {0: 10, 5: 100}, guard: {val_loss: 0.1}}
        tamiyo:
          class_path: lightning_morpho.Uniform
          init_args: {at: 0.5}
"""


def test_configuration_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    callback = callback_of(tmp_path, f"--config={path}", run=True)
    rollout = callback.config.rollout
    assert rollout.ramp is not None
    assert rollout.ramp.schedule == {0: 10, 5: 100} and rollout.ramp.guard.val_loss == 0.1
    assert rollout.flags["fused_kernels"].percentage == 10
    assert callback.tamiyo == Uniform(at=0.5)


@pytest.mark.parametrize(
    ("argument", "named"),
    [("rollout.percentge=5", "percentge"), ("rollout.percentage=120", "[0, 100], got 120")],
)
def test_mistake_is_named(argument: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ValueError)) as caught:
        callback_of(tmp_path, "--trainer.callbacks+=lightning_morpho.MorphoCallback", f"--trainer.callbacks.{argument}")
    assert named in capsys.readouterr().err + str(caught.value)
