"""A policy of your own: whenever the validation loss stands still, grow the layer that is cheapest to grow.

pip install "lightning-morpho[mnist1d]"
python examples/custom_policy.py

Printed, among other lines, in half a minute on one core:

morpho: step 360: net.2: 1 seed DORMANT -> LOADING (stuck at 1.413, 144 parameters)
morpho: step 560: net.2: 1 seed ACTIVE -> FOSSILIZED (proven gain)
morpho: step 1200: net.4: 1 seed DORMANT -> LOADING (stuck at 0.870, 200 parameters)
morpho: step 1440: net.2: 1 seed ACTIVE -> CULLED (no proven gain)
test accuracy: 0.897
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L

from lightning_morpho import LayersConfig, MorphoCallback, Observation, Tamiyo
from lightning_morpho.tamiyo import Germinate
from lightning_morpho.tasks import MNIST1D, ConvClassifier


@dataclass(frozen=True, kw_only=True)
class CheapestWhenStuck(Tamiyo):
    """Pure: what it answers depends on the observation and its settings alone. So all ranks of DDP agree, a resumed run
    goes on as it would have, and ``morpho replay`` can ask it again offline.
    """

    patience: int = 3
    fall: float = 0.05

    def grow(self, observation: Observation) -> Sequence[Germinate]:
        losses = observation.losses[-1 - self.patience :]
        waited = observation.tick - (observation.last_round or 0) > self.patience
        if len(losses) <= self.patience or None in losses or not waited:
            return []
        possible = [layer for layer in observation.layers if layer.growable]
        if losses[-1] < (1 - self.fall) * losses[0] or not possible:
            return []
        chosen = min(possible, key=lambda layer: (layer.bed_parameters, layer.position))
        return [Germinate(layer=chosen.name, reason=f"stuck at {losses[-1]:.3f}, {chosen.bed_parameters} parameters")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args(argv)
    L.seed_everything(0)
    data, model = MNIST1D(batch_size=100), ConvClassifier(channels=4)
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MorphoCallback(tamiyo=CheapestWhenStuck(), layers=LayersConfig(beds=3))],
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    print(f"test accuracy: {trainer.callback_metrics['test_acc']:.3f}")


if __name__ == "__main__":
    main()
