"""Your own Hydra application: the groups under ``morpho/`` are known once the package is installed.

pip install "lightning-morpho[mnist1d]"
python examples/hydra_sweep.py                                                   # one run
python examples/hydra_sweep.py -m morpho/tamiyo=never,uniform model.channels=4,8  # a sweep of four

The sweep prints, among other lines, in two minutes on one core:

morpho/tamiyo=never model.channels=4: validation accuracy 0.563
morpho/tamiyo=never model.channels=8: validation accuracy 0.746
morpho/tamiyo=uniform model.channels=4: validation accuracy 0.853
morpho/tamiyo=uniform model.channels=8: validation accuracy 0.896

The number that is returned is what sweepers such as Optuna's take for their objective.
"""

import hydra
import lightning as L
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_morpho.tasks import MNIST1D

ConfigStore.instance().store(
    "app",
    {
        "defaults": ["_self_", {"morpho": "full"}],
        "epochs": 40,
        "model": {"_target_": "lightning_morpho.tasks.ConvClassifier", "channels": 4},
    },
)


@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg: DictConfig) -> float:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=cfg.epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=HydraConfig.get().runtime.output_dir,
        callbacks=[instantiate(cfg.morpho)],
    )
    trainer.fit(instantiate(cfg.model), datamodule=MNIST1D(batch_size=100))
    accuracy = trainer.callback_metrics["val_acc"].item()
    print(f"{' '.join(HydraConfig.get().overrides.task) or 'defaults'}: validation accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
