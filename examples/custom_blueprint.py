"""Grow modules of your own: here a residual branch of a wide depthwise and a pointwise convolution.

pip install "lightning-morpho[mnist1d]"
python examples/custom_blueprint.py

Printed, among other lines, in half a minute on one core:

MorphoCallback: 3 of 10 modules grow: 3 seeds; their beds hold 192 parameters (budget 100,000), 768 bytes.
morpho: step 240: net.0: 1 seed DORMANT -> LOADING (one round at 15% of training)
morpho: step 440: net.0: 1 seed ACTIVE -> FOSSILIZED (proven gain of the group, judged with ...)
test accuracy: 0.645
"""

import argparse

import lightning as L
from torch import nn

from lightning_morpho import BlueprintConfig, LayersConfig, MorphoCallback, register_module_blueprint
from lightning_morpho.tasks import MNIST1D, ConvClassifier


def wide_branch(in_features: int, out_features: int) -> nn.Module:
    """Keeps channels and length, as ``source="output"`` asks; it comes with a gain of each channel, zero at first."""
    return nn.Sequential(
        nn.Conv1d(in_features, in_features, kernel_size=9, padding=4, groups=in_features),
        nn.GELU(),
        nn.Conv1d(in_features, out_features, kernel_size=1),
    )


register_module_blueprint("wide_branch", wide_branch, source="output")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args(argv)
    L.seed_everything(0)
    data, model = MNIST1D(batch_size=100), ConvClassifier(channels=4)
    callback = MorphoCallback(
        layers=LayersConfig(exclude=["net.7"]),  # the output layer, which is no convolution
        blueprint=BlueprintConfig(kind="wide_branch"),
    )
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    print(f"test accuracy: {trainer.callback_metrics['test_acc']:.3f}")


if __name__ == "__main__":
    main()
