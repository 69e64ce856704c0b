"""A run killed at any moment and resumed must end bit for bit where the run that was left alone ended."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor

from hosts import Host, assert_equal, events, linear_net, loaders, make_data, make_trainer, quick
from lightning_morpho import (
    GraftingConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoCallback,
    Placed,
    Plateau,
    TelemetryConfig,
)
from lightning_morpho.integrations.unread import unread_parts

EPOCHS, BATCHES = 6, 8
FULL = 4
"""Steps between the ticks of the run with lifecycle `full`, whose path is longer than six epochs."""


class Resumable:
    """Eight batches an epoch in an order that depends on the epoch; can go on in the middle."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        if self.batch == BATCHES:
            self.epoch, self.batch = self.epoch + 1, 0
        order = torch.randperm(256, generator=torch.Generator().manual_seed(self.epoch)).view(BATCHES, -1)
        x, y = make_data(256, 0).tensors
        while self.batch < BATCHES:
            self.batch += 1
            yield x[order[self.batch - 1]], y[order[self.batch - 1]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class Kill(L.Callback):
    """SIGKILL at an optimizer step, or in the middle of a tick, when its n-th transition happens."""

    def __init__(self, morpho: MorphoCallback, *, step: int | None = None, transition: int | None = None) -> None:
        self.morpho, self.step, self.transition = morpho, step, transition

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        engine = self.morpho.engine
        assert engine is not None
        tell, seen = engine.on_event, iter(range(1000))

        def count(event: Any) -> None:
            if next(seen) == self.transition:
                os.kill(os.getpid(), signal.SIGKILL)
            tell(event)

        engine.on_event = count


def run(root: Path, every_n_steps: int | None, ckpt: Path | None, kill: dict[str, int], **options: Any) -> None:
    torch.set_num_threads(1)
    L.seed_everything(0)
    options = {"layers": LayersConfig(num_seeds=2)} | options
    if every_n_steps == FULL:
        options["lifecycle"] = LifecycleConfig(kind="full", incubation="boosting", active_ticks=1, embargo_ticks=1)
        options["grafting"] = GraftingConfig(curve="cosine", gate="drift", max_drift=0.5, ticks=4)
    morpho = quick(every_n_steps=every_n_steps, **options)
    saver = ModelCheckpoint(root, filename="saved", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)
    callbacks = [morpho, Kill(morpho, **kill), saver]
    trainer = make_trainer(root, *callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
    trainer.fit(Host(linear_net()), Resumable(), loaders()["val_dataloaders"], ckpt_path=ckpt)
    trainer.save_checkpoint(root / "end.ckpt")


# A fork of pytest's own process, in which earlier tests may have left threads, could wait for ever for their locks.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lightning_morpho", "pytest"])


def in_a_process(function: Callable[..., None], *arguments: Any) -> int | None:
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def end_of(root: Path) -> Any:
    saved = torch.load(root / "end.ckpt", weights_only=True)
    return [saved["state_dict"], saved["optimizer_states"], saved["callbacks"]["MorphoCallback"], saved["global_step"]]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, Any]:
    ends = {}
    for every in (None, 7, FULL):
        root = tmp_path_factory.mktemp("alone")
        assert in_a_process(run, root, every, None, {}) == 0
        ends[every] = end_of(root)
    return ends


STEPS = [2, 7, 8, 9, 12, 14, 15, 16, 17, 20, 21, 24, 25, 28, 32, 33, 40]
POINTS = [(None, {"step": s}) for s in STEPS] + [(7, {"step": s}) for s in (7, 8, 15, 22, 36)]
POINTS += [(None, {"transition": t}) for t in (0, 1, 4)] + [(7, {"transition": t}) for t in (1, 5)]
POINTS += [(FULL, {"step": s}) for s in (10, 22, 43, 46)]  # incubating, grafting, deferred, fine-tuning


@pytest.mark.parametrize(("every", "kill"), POINTS, ids=str)
def test_a_killed_run_resumes_bit_equal(
    every: int | None, kill: dict[str, int], left_alone: dict[int | None, Any], tmp_path: Path
) -> None:
    assert in_a_process(run, tmp_path, every, None, kill) == -signal.SIGKILL
    assert in_a_process(run, tmp_path, every, tmp_path / "saved.ckpt", {}) == 0
    expected, got = copy.deepcopy(left_alone[every]), end_of(tmp_path)
    if every is None:
        # Lightning drops the validation of an epoch whose last batch was the last thing saved: its loss is missing.
        for wanted, there in zip(expected[2]["engine"]["losses"], got[2]["engine"]["losses"], strict=True):
            assert there in (wanted, None)
        expected[2]["engine"]["losses"] = got[2]["engine"]["losses"]
    assert_equal(expected, got)


# Of the batches between two ticks at most one is sampled: the 9th, 17th, 25th, ...
WATCHED = {"telemetry": TelemetryConfig(every_n_steps=8, table=False, level="full")}
READERS = {
    "gradient": (13, Placed(by="gradient", at=0.25)),
    "need": (20, Plateau(patience=1, min_delta=0.9, stabilisation=0, embargo=1)),
}


def germinations(root: Path) -> list[Any]:
    return [(e["tick"], e["layer"], e["chunk"], e["reason"]) for e in events(root) if e["from"] == "DORMANT"]


@pytest.mark.parametrize("policy", READERS)
def test_a_policy_that_reads_statistics_decides_as_in_the_run_left_alone(policy: str, tmp_path: Path) -> None:
    """Samples that a tick would have read lie between it and the kill, and only before the kill."""
    step, reader = READERS[policy]
    options = {**WATCHED, "tamiyo": reader}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert in_a_process(partial(run, **options), alone, 7, None, {}) == 0
    assert in_a_process(partial(run, **options), killed, 7, None, {"step": step}) == -signal.SIGKILL
    assert in_a_process(partial(run, **options), killed, 7, killed / "saved.ckpt", {}) == 0
    expected, got = end_of(alone), end_of(killed)
    rounds = germinations(alone)
    assert any(known in reason for *_, reason in rounds for known in ("by gradient", "candidate score 0."))
    assert germinations(killed) == rounds
    assert_equal(expected, got)


class Fail(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 26:
            raise RuntimeError("the disk is full")


@pytest.mark.parametrize("morpho_first", [True, False])
def test_what_is_saved_on_an_exception_resumes_bit_equal(
    morpho_first: bool, left_alone: dict[int | None, Any], tmp_path: Path
) -> None:
    """The callback lets go of the model on an exception, before or after the checkpoint is written."""
    L.seed_everything(0)
    callbacks = [quick(every_n_steps=7, layers=LayersConfig(num_seeds=2)), OnExceptionCheckpoint(tmp_path, "saved")]
    callbacks = callbacks if morpho_first else callbacks[::-1]
    trainer = make_trainer(tmp_path, *callbacks, Fail(), max_epochs=EPOCHS, enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer.fit(Host(linear_net()), Resumable(), loaders()["val_dataloaders"])
    assert in_a_process(run, tmp_path, 7, tmp_path / "saved.ckpt", {}) == 0
    assert_equal(left_alone[7], end_of(tmp_path))


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    from lightning_morpho import load_grown_

    torch.save({"state_dict": {"net.0.morpho._extra_state": Malicious()}}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_grown_(Host(linear_net()), tmp_path / "bad.ckpt")
    trainer = make_trainer(tmp_path, quick())
    with pytest.raises(Exception, match="[Ww]eights.only"):
        trainer.fit(Host(linear_net()), **loaders(), ckpt_path=tmp_path / "bad.ckpt", weights_only=True)


def test_the_run_with_lifecycle_full_keeps_a_seed(left_alone: dict[int | None, Any]) -> None:
    state = json.loads(left_alone[FULL][0]["net.2.morpho._extra_state"])
    assert any(any(bed["kept"]) for bed in state["beds"]), "the points above would not lie where they say"


def test_a_checkpoint_of_the_older_form_gives_each_rank_its_part(left_alone: dict[int | None, Any]) -> None:
    """Rank 0's part lay beside the rest once, and those of several ranks a second time."""
    state = copy.deepcopy(left_alone[7][2])
    (own,) = unread_parts(state)
    older = {key: value for key, value in state.items() if key != "unread"} | {
        "training_loss": own["training_loss"],
        "reporter": state["reporter"] | {"sampler": own["samples"]},
        "engine": state["engine"] | {"faults": own["faults"], "starvation": own["starvation"]},
        "ranks": [],
    }
    older["engine"]["governor"]["waiting"] = own["losses"]
    assert own["losses"] and own["samples"]["layers"]
    assert_equal(unread_parts(older), [own])
    other = {key: value for key, value in own.items() if key != "starvation"} | {"losses": [0.25]}
    assert_equal(unread_parts(older | {"ranks": [other, other]}), [own | {"losses": [0.25]}] * 2)


def test_callback_state_is_made_of_plain_values_and_tensors(left_alone: dict[int | None, Any]) -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        if isinstance(value, (list, tuple)):
            return all(plain(v) for v in value)
        return value is None or isinstance(value, (bool, int, float, str, Tensor))

    assert plain(left_alone[None][2])
