"""``morpho export``: from the checkpoint of a run to files, in one command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from lightning_morpho import load_grown_
from lightning_morpho.cli import main
from lightning_morpho.tasks import MNIST1D, ConvClassifier
from lightning_morpho.train import train

FAST = [
    *("trainer.max_epochs=5", "data.num_train=500", "logger=none", "test=false", "morpho.lifecycle.active_ticks=1"),
    *("morpho.warmup.steps=4", "morpho.warmup.min_steps=2"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run whose seeds were judged and kept."""
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_module("lightning_morpho.configs", version_base="1.3"):
        train(compose("train", ["experiment=mnist1d", f"output_dir={folder}", *FAST]))
    return next(folder.rglob("*.ckpt"))


def command(checkpoint: Path, out: Path, *options: str) -> int:
    return main(["export", "train", "experiment=mnist1d", "--ckpt", str(checkpoint), "--out", str(out), *options])


@pytest.mark.slow
def test_checkpoint_of_a_run_becomes_files_with_the_evidence_of_its_seeds(checkpoint, tmp_path, capsys):
    assert command(checkpoint, tmp_path / "net", "--to", "pt", "pt2") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt", "net.pt2", "net.md"}
    assert "pt2: largest difference" in capsys.readouterr().out
    card = (tmp_path / "net.md").read_text()
    assert card.count("| FOSSILIZED | +") + card.count("| FOSSILIZED | -") >= 1, "no evidence from the checkpoint"
    assert f"checkpoint `{checkpoint.name}`" in card
    grown = ConvClassifier(channels=4)
    load_grown_(grown, checkpoint)
    data = MNIST1D()
    data.setup("fit")
    x = next(iter(data.val_dataloader()))[0]
    program = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        assert (program(x) - grown.eval()(x)).abs().max() < 1e-5 * grown(x).abs().max()


@pytest.mark.slow
def test_a_part_of_the_model_needs_none_of_its_classes(checkpoint, tmp_path):
    batch = tmp_path / "batch.pt"
    torch.save(torch.randn(4, 1, 40), batch)
    assert command(checkpoint, tmp_path / "out" / "net", "--module", "net", "--example", str(batch), "--to", "pt") == 0
    plain = torch.load(tmp_path / "out" / "net.pt", weights_only=False)
    assert type(plain) is nn.Sequential
    assert plain[0].out_channels > 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--module", "nett"], "nett"),
        (["--tolerance", "0", "--to", "pt"], "nothing was written"),
        (["model.channels=3"], "`net.0.weight` is (4, 1, 5) there and (3, 1, 5) here"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(options, message, checkpoint, tmp_path, capsys):
    overrides = [option for option in options if "=" in option]
    flags = [option for option in options if option not in overrides]
    arguments = ["export", "train", "experiment=mnist1d", *overrides, "--ckpt", str(checkpoint)]
    assert main([*arguments, "--out", str(tmp_path / "net"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_named(content, tmp_path, capsys):
    (tmp_path / "last.ckpt").write_bytes(content)
    assert command(tmp_path / "last.ckpt", tmp_path / "net") == 2
    assert "last.ckpt` can't be read as a checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="can't be read as a checkpoint with `weights_only=True`"):
        load_grown_(ConvClassifier(channels=4), tmp_path / "last.ckpt")


def test_a_file_that_holds_no_mapping_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="must hold a checkpoint or a `state_dict`, got a list"):
        load_grown_(ConvClassifier(channels=4), tmp_path / "last.ckpt")
