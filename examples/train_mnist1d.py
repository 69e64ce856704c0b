"""Train a small convolutional net on MNIST-1D and let it grow.

pip install "lightning-morpho[mnist1d]"
python examples/train_mnist1d.py
"""

import lightning as L

from lightning_morpho import MorphoCallback
from lightning_morpho.tasks import MNIST1D, ConvClassifier


def main() -> None:
    L.seed_everything(0)
    data = MNIST1D(batch_size=100)
    model = ConvClassifier(channels=4)  # too narrow: without growth about 65 % of the digits
    trainer = L.Trainer(max_epochs=100, accelerator="cpu", callbacks=[MorphoCallback()])
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data)


if __name__ == "__main__":
    main()
