"""Reports of runs that were really trained: with each logger, without one, and killed in the middle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from hosts import Host, linear_net, loaders, make_trainer, quick
from lightning_morpho import LayersConfig
from lightning_morpho.telemetry import EVENTS_FILE, read_run, write_report


def grow(folder: Path, **options) -> None:
    module, callback = Host(linear_net(), lr=3e-2), quick(layers=LayersConfig(num_seeds=2))
    make_trainer(folder, callback, max_epochs=6, **options).fit(module, **loaders())


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["none", "csv", "tensorboard"])
def test_report_of_a_run_tells_what_it_did_whatever_its_logger(logger, tmp_path):
    loggers = {
        "none": lambda: False,
        "csv": lambda: CSVLogger(tmp_path, name="csv", version=""),
        "tensorboard": lambda: TensorBoardLogger(tmp_path, name="tb", version=""),
    }
    grow(tmp_path, logger=loggers[logger]())
    run = read_run(tmp_path)
    assert run.outcome == "finished" and run.last_step == 60
    assert run.lives and all(life.spells[0].start > 0 for life in run.lives)
    assert run.metrics["val_loss"].steps[-1] == 60 and run.metrics["val_loss"].epochs[-1] in (6, None)
    assert [module["name"] for module in run.modules if module["seeds"]]
    page = write_report(tmp_path).read_text()
    assert "Host (75 parameters) trained for 60 steps" in page and "<code>net.0</code>" in page


KILLED = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[2])
import lightning as L
from hosts import Host, linear_net, loaders, make_trainer, quick

class Kill(L.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 45:
            os.kill(os.getpid(), 9)

make_trainer(pathlib.Path(sys.argv[1]), quick(), Kill(), max_epochs=6).fit(Host(linear_net()), **loaders())
"""


@pytest.mark.slow
def test_report_of_a_killed_run_shows_all_that_was_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parents[1])])
    assert done.returncode == -9
    (log,) = tmp_path.rglob(EVENTS_FILE)
    log.write_bytes(log.read_bytes()[:-20])  # the last line only half on the disk
    run = read_run(tmp_path)
    assert run.outcome is None and run.last_step == 40 and run.lives
    assert "no end recorded" in write_report(tmp_path).read_text()
