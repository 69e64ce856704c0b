"""The MNIST-1D task: what a user would lose is comparable, repeatable, honest figures."""

import builtins
import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_morpho.tasks import MNIST1D, ConvClassifier, mnist1d


def _batches(data: MNIST1D, epochs: int = 1) -> list[Tensor]:
    data.setup()
    loader = data.train_dataloader()
    return [x for _ in range(epochs) for x, _ in loader]


def test_splits_have_the_standard_sizes_shapes_and_types():
    data = MNIST1D()
    data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [len(loader.dataset) for loader in loaders] == [4000, 1000, 1000]
    for loader in loaders:
        x, y = next(iter(loader))
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((100, 1, 40), torch.float32, (100,), torch.int64)


def test_train_and_test_samples_are_the_generators_standard_ones():
    from mnist1d.data import make_dataset

    with mnist1d._own_random_state():
        expected = make_dataset()
    train, _, test = mnist1d._generate()
    # The only change is the rounding to float32.
    np.testing.assert_array_equal(train[0][:, 0], expected["x"].astype(np.float32))
    np.testing.assert_array_equal(test[0][:, 0], expected["x_test"].astype(np.float32))
    np.testing.assert_array_equal(test[1], expected["y_test"])


def test_no_sample_is_in_two_splits():
    signals = np.concatenate([x for x, _ in mnist1d._generate()])[:, 0]
    assert len(np.unique(signals, axis=0)) == 6000


def test_generating_leaves_global_random_state_as_it_was():
    mnist1d._generate.cache_clear()
    np.random.seed(7)
    random.seed(7)
    torch.manual_seed(7)
    MNIST1D().setup()
    drawn = np.random.rand(), random.random(), torch.rand(()).item()
    np.random.seed(7)
    random.seed(7)
    torch.manual_seed(7)
    assert drawn == (np.random.rand(), random.random(), torch.rand(()).item())


def test_equal_seeds_give_equal_batches_whatever_else_draws_random_numbers():
    first = _batches(MNIST1D(seed=3), epochs=2)
    torch.rand(17)
    second = _batches(MNIST1D(seed=3), epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[40])  # each epoch has its own order
    assert not torch.equal(first[0], _batches(MNIST1D(seed=4))[0])


def test_drawing_training_batches_leaves_torch_global_random_state_as_it_was():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _batches(MNIST1D())
    assert torch.equal(before, torch.get_rng_state())


def test_num_train_takes_the_first_samples_and_keeps_the_held_out_ones():
    small, full = MNIST1D(num_train=100), MNIST1D()
    small.setup()
    full.setup()
    assert len(small.train) == 100
    assert torch.equal(small.train[99][0], full.train[99][0])
    assert torch.equal(small.test.tensors[0], full.test.tensors[0])


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: MNIST1D(num_train=4001), "`num_train`.*4001"),
        (lambda: MNIST1D(num_train=0), "`num_train`.*0"),
        (lambda: MNIST1D(batch_size=0), "`batch_size`.*0"),
        (lambda: ConvClassifier(channels=0), "`channels`.*0"),
        (lambda: ConvClassifier(lr=float("nan")), "`lr`.*nan"),
        (lambda: ConvClassifier(schedule="cosin"), "`schedule`.*'cosin'"),
    ],
)
def test_bad_arguments_are_named_with_their_value(build, named):
    with pytest.raises(ValueError, match=named):
        build()


def test_missing_generator_says_how_to_install_it(monkeypatch):
    importing = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("mnist1d"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    mnist1d._generate.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"lightning-morpho\[mnist1d\]"):
        MNIST1D().setup()


def _fit(tmp_path, model: ConvClassifier, **kwargs) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(model, datamodule=MNIST1D(num_train=1000))
    return trainer


def test_host_learns_and_logs_what_policies_and_pictures_read(tmp_path):
    torch.manual_seed(0)
    trainer = _fit(tmp_path, ConvClassifier(channels=8), max_epochs=5)
    metrics = trainer.callback_metrics
    assert set(metrics) == {"train_loss", "val_loss", "val_acc"}
    assert metrics["val_acc"] > 0.2  # chance is 0.1; seeds 0 to 4 gave 0.29 to 0.37


def test_wsd_schedule_is_constant_then_falls_linearly_to_its_last_step(tmp_path):
    rates = []

    class Recording(ConvClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])

    _fit(tmp_path, Recording(lr=1.0, schedule="wsd"), max_epochs=2, limit_val_batches=0)
    expected = np.minimum(1, (20 - np.arange(20)) / 6)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)  # float64 arithmetic on both sides


def test_wsd_schedule_without_an_end_of_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`schedule='wsd'`.*max_epochs"):
        _fit(tmp_path, ConvClassifier(schedule="wsd"), max_epochs=-1)
