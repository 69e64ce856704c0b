"""A byte-level GPT on Python's own standard library (no download): narrow feed-forward layers that grow.

python examples/byte_gpt.py

Printed, among other lines, in about two minutes on one core (the text is that of Python 3.11):

MorphoCallback: 4 of 27 modules grow: 2 seeds; their beds hold 4,128 parameters (budget 100,000), 16.1 KiB.
morpho: step 450: blocks.0.mlp.2: 1 seed DORMANT -> LOADING (one round at 15% of training)
morpho: step 1050: blocks.0.mlp.2: 1 seed ACTIVE -> FOSSILIZED (proven gain)
4,698,388 bytes; validation loss 2.055 nats a byte
"""

import argparse
import sysconfig
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader, Dataset

from lightning_morpho import LayersConfig, MorphoCallback

CONTEXT, WIDTH, HEADS = 64, 64, 4


class Bytes(Dataset):
    """Windows of a text, half overlapping; the last byte of each is a target alone."""

    def __init__(self, text: Tensor) -> None:
        self.windows = text.unfold(0, CONTEXT + 1, CONTEXT // 2)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.windows[index].long()


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class GPT(L.LightningModule):
    def __init__(self, blocks: int = 2, hidden: int = 16) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(hidden) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def training_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        x = self.embed(windows[:, :-1]) + self.place.weight
        return cross_entropy(self.head(self.blocks(x)).flatten(0, 1), windows[:, 1:].flatten())

    def validation_step(self, windows: Tensor, batch_idx: int) -> Tensor:
        loss = self.training_step(windows, batch_idx)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--data", type=Path, default=sysconfig.get_paths()["stdlib"], help="folder of *.py files")
    arguments = parser.parse_args(argv)
    L.seed_everything(0)
    files = sorted(Path(arguments.data).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    cut = int(0.95 * len(text))
    trainer = L.Trainer(
        max_steps=arguments.steps,
        val_check_interval=max(1, arguments.steps // 20),
        limit_val_batches=10,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger("runs/byte_gpt"),
        # The feed-forward layers alone; a decision twenty times in the run, as an epoch would be too long.
        callbacks=[MorphoCallback(layers=LayersConfig(include=["*.mlp.*"]), every_n_steps=0.05)],
    )
    train, val = DataLoader(Bytes(text[:cut]), 32, shuffle=True), DataLoader(Bytes(text[cut:]), 32)
    model = GPT()
    trainer.fit(model, train, val)
    loss = trainer.validate(model, val, verbose=False)[0]["val_loss"]
    print(f"{len(text):,} bytes; validation loss {loss:.3f} nats a byte")


if __name__ == "__main__":
    main()
