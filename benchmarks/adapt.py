"""A trained, frozen host adapted to shifted data: the preset against uniform LoRA, AdaLoRA and the output layer alone.

MNIST-1D (generated, nothing is downloaded). A net of six linear layers is trained for 1500 steps; then the data shift:
other classes, inverted, reversed in time. Each arm adapts the same host with the same batches through a Trainer for
500 steps of Adam (rate constant, then falling linearly in the last 30 %), and takes the learning rate that is best
on validation, the mean over all seeds deciding. The sweep of an arm goes on while its best rate lies at an end of it.

* preset: ``MorphoCallback(preset="adapt_pretrained")``: low rank in all layers, probation, half moved to the best
* uniform: the same without probation: LoRA of one rank in all layers, as many parameters added
* head: the output layer alone
* adalora: PEFT's AdaLoRA of the same mean rank, started at twice that rank (``--arms adalora``, needs ``peft``)

python benchmarks/adapt.py --json docs/evidence/adapt.json
python benchmarks/adapt.py --table docs/evidence/adapt.json
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from growth_lab import Split, accuracy, context, interval, train, wsd
from lightning_morpho import BlueprintConfig, MorphoCallback, Probation, TelemetryConfig, hybrid_layers

SEEDS = 8
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
SWEEP = LADDER[3:6]  # where every arm begins
SHIFTS = ("classes", "inverted", "reversed")
SIZES = (400, 3000)
RANKS = (1, 2, 4)
STEPS, BATCH = 500, 64
HOST_STEPS, HOST_RATE = 1500, 3e-3


@cache
def samples() -> Split:
    """10,000 signals ``(N, 40)`` and their labels."""
    arguments = get_dataset_args()
    arguments.num_samples, arguments.train_split = 10_000, 1.0
    state = np.random.get_state()
    made = make_dataset(arguments)
    np.random.set_state(state)
    return torch.tensor(made["x"], dtype=torch.float32), torch.tensor(made["y"])


def parts(shift: str | None) -> dict[str, Split]:
    """The host's data (``None``) or the shifted ones: other samples, and the shift."""
    x, y = samples()
    bounds = (
        {"train": (0, 4000)} if shift is None else {"train": (4000, 7000), "val": (7000, 8000), "test": (8000, 10_000)}
    )
    made = {name: (x[a:b], y[a:b]) for name, (a, b) in bounds.items()}
    if shift == "inverted":
        return {name: (-x, y) for name, (x, y) in made.items()}
    if shift == "reversed":
        return {name: (x.flip(1), y) for name, (x, y) in made.items()}
    if shift == "classes":
        return {name: (x[y >= 5], y[y >= 5]) for name, (x, y) in made.items()}
    return made


def trained_host(shift: str, seed: int) -> nn.Sequential:
    """Six linear layers, trained on the data before the shift; for other classes, on the first five."""
    torch.manual_seed(seed)
    widths = (40, 64, 64, 64, 64, 64, 10)
    layers = [m for i, o in zip(widths, widths[1:], strict=False) for m in (nn.Linear(i, o), nn.ReLU())]
    host = nn.Sequential(*layers[:-1])
    x, y = parts(None)["train"]
    data = (x[y < 5], y[y < 5]) if shift == "classes" else (x, y)
    train(host, data, HOST_STEPS, HOST_RATE, seed, BATCH)
    return host


class Adaptation(L.LightningModule):
    """A host on its way."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def training_step(self, batch: Split, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Split, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: wsd(min(step, STEPS - 1), STEPS))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class AdaLoRAAdaptation(Adaptation):
    """... by PEFT: its regularisation and its moves of rank are the training loop's duty."""

    def training_step(self, batch: Split, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not self.training:
            return loss
        factors = [
            p if "lora_A" in n else p.T for n, p in self.net.named_parameters() if "lora_A" in n or "lora_B" in n
        ]
        return loss + 0.5 * sum(torch.norm(f @ f.T - torch.eye(len(f))) for f in factors) / len(factors)

    def on_train_batch_end(self, *_: Any) -> None:
        self.net.base_model.update_and_allocate(self.global_step)


def fit(module: Adaptation, data: dict[str, Split], size: int, seed: int, *callbacks: L.Callback) -> None:
    """500 steps on batches drawn from the first ``size`` samples."""
    draw = torch.Generator().manual_seed(1000 + seed)
    x, y = (part[:size] for part in data["train"])
    batches = [torch.randint(len(x), (BATCH,), generator=draw) for _ in range(STEPS)]
    held_out = [(data["val"][0][i::16], data["val"][1][i::16]) for i in range(16)]
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=16,
        num_sanity_val_steps=1,
    )
    train_loader = DataLoader([(x[i], y[i]) for i in batches], batch_size=None)
    trainer.fit(module, train_loader, DataLoader(held_out, batch_size=None))


def grown(share: float) -> Callable[..., Adaptation]:
    """The preset, with another share of moved seeds."""

    def run(host: nn.Module, rank: int, rate: float, data: dict[str, Split], size: int, seed: int) -> Adaptation:
        module = Adaptation(host, rate)
        callback = MorphoCallback(
            preset="adapt_pretrained",
            blueprint=BlueprintConfig(kind="lowrank", hidden=rank),
            tamiyo=Probation(share=share),
            telemetry=TelemetryConfig(every_n_steps=0, log=False, events=False, table=False),
            seed=seed,
        )
        fit(module, data, size, seed, callback)
        module.added = sum(layer.morpho.live_parameters for layer in hybrid_layers(module).values())
        return module

    return run


def head(host: nn.Module, rank: int, rate: float, data: dict[str, Split], size: int, seed: int) -> Adaptation:
    """The output layer alone."""
    host.requires_grad_(False)
    host[-1].requires_grad_(True)
    module = Adaptation(host, rate)
    fit(module, data, size, seed)
    module.added = sum(p.numel() for p in host[-1].parameters())
    return module


def adalora(host: nn.Module, rank: int, rate: float, data: dict[str, Split], size: int, seed: int) -> Adaptation:
    """PEFT's AdaLoRA."""
    from peft import AdaLoraConfig, get_peft_model

    torch.manual_seed(seed)
    names = [name for name, m in host.named_modules() if isinstance(m, nn.Linear)]
    config = AdaLoraConfig(
        target_modules=names,
        init_r=2 * rank,
        target_r=rank,
        lora_alpha=2 * rank,  # PEFT divides by the rank at the start: a factor of 1
        tinit=STEPS // 10,
        tfinal=STEPS // 2,
        deltaT=10,
        total_step=STEPS,
    )
    module = AdaLoRAAdaptation(get_peft_model(host, config), rate)
    fit(module, data, size, seed)
    factors = {n: p for n, p in module.net.named_parameters() if "lora_" in n}
    kept = {n.replace("lora_E", ""): int(p.ne(0).sum()) for n, p in factors.items() if "lora_E" in n}
    shapes = {n.replace("lora_A", ""): p.shape[1] for n, p in factors.items() if "lora_A" in n}
    outs = {n.replace("lora_B", ""): p.shape[0] for n, p in factors.items() if "lora_B" in n}
    module.added = sum(k * (shapes[n] + outs[n] + 1) for n, k in kept.items())
    return module


COLUMNS = (("preset", "uniform"), ("adalora", "uniform"), ("head", "uniform"), ("preset", "adalora"))
ARMS: dict[str, Callable[..., Adaptation]] = {
    "preset": grown(0.5),
    "uniform": grown(0.0),
    "head": head,
    "adalora": adalora,
}


Runs = dict[str, list[dict[str, float]]]


def settings(shifts: tuple[str, ...], arms: list[str]) -> Iterator[str]:
    """Shift, size, rank and arm; the output layer has no rank, so it runs once."""
    for shift, size, rank in itertools.product(shifts, SIZES, RANKS):
        yield from (f"{shift} {size} rank{rank} {arm}" for arm in arms if arm != "head" or rank == RANKS[0])


def swept(runs: Runs, setting: str, seeds: int) -> dict[float, list[dict[str, float]]]:
    """The runs of a setting at the rates that have run with so many seeds."""
    found = {rate: runs.get(f"{setting} {rate:g}", []) for rate in LADDER}
    return {rate: rows for rate, rows in found.items() if len(rows) >= seeds}


def best_rate(done: dict[float, list[dict[str, float]]]) -> float:
    """The rate that is best on validation."""
    return max(done, key=lambda rate: statistics.fmean(row["val"] for row in done[rate]))


def missing_rates(done: dict[float, list[dict[str, float]]]) -> list[float]:
    """What a sweep still asks for: its beginning, then the next rate while the best lies at an end."""
    begun = [rate for rate in SWEEP if rate not in done]
    if begun:
        return begun
    place = LADDER.index(best_rate(done))
    return [rate for rate in LADDER[max(0, place - 1) : place + 2] if rate not in done]


def adapt(job: tuple[str, int]) -> tuple[str, list[dict[str, Any]]]:
    """One arm in one setting at one rate, all seeds."""
    key, seeds = job
    shift, size, rank, arm, rate = key.split()
    data, rows = parts(shift), []
    for seed in range(seeds):
        host = copy.deepcopy(_HOSTS[origin(shift), seed])
        module = ARMS[arm](host, int(rank.removeprefix("rank")), float(rate), data, int(size), seed)
        rows.append({name: accuracy(module.net, data[name]) for name in ("val", "test")} | {"added": module.added})
    return key, rows


def run(path: Path, arms: list[str], seeds: int, shifts: tuple[str, ...], workers: int) -> None:
    """All runs that the file does not hold yet; it is written after each rate of an arm."""
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}, "hosts": {}}
    start = time.perf_counter()
    fork = multiprocessing.get_context("fork")
    wanted = sorted({(origin(shift), seed) for shift in shifts for seed in range(seeds)})
    samples()  # once, before the processes part
    with fork.Pool(workers, quiet) as pool:
        _HOSTS.update(zip(wanted, pool.map(train_host, wanted), strict=True))
    for shift, seed in itertools.product(shifts, range(seeds)):
        results["hosts"][f"{shift} {seed}"] = accuracy(_HOSTS[origin(shift), seed], parts(shift)["test"])
    with fork.Pool(workers, quiet) as pool:
        while missing := [
            (f"{setting} {rate:g}", seeds)
            for setting in settings(shifts, arms)
            for rate in missing_rates(swept(results["runs"], setting, seeds))
        ]:
            for key, rows in pool.imap_unordered(adapt, missing):
                results["runs"][key] = rows
                write(path, results | context(start))
                print(f"{key}: {time.perf_counter() - start:.0f} s", flush=True)


_HOSTS: dict[tuple[str, int], nn.Module] = {}


def origin(shift: str) -> str:
    """What the host has learnt: the first five classes, or all."""
    return "classes" if shift == "classes" else "all"


def train_host(job: tuple[str, int]) -> nn.Module:
    """The host before it is adapted."""
    return trained_host(*job)


def quiet() -> None:
    """In each process: one thread, and nothing that Lightning says at each start."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_morpho"):
        logging.getLogger(name).setLevel(logging.ERROR)


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # a run that is stopped while it writes must not lose the file
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def best(runs: Runs, shift: str, size: int, rank: int, arm: str) -> tuple[str, Any] | None:
    """The rate that is best on validation, `?` beside it where the sweep ends there, and its runs."""
    done = swept(runs, f"{shift} {size} rank{RANKS[0] if arm == 'head' else rank} {arm}", SEEDS)
    if not set(SWEEP) <= set(done):
        return None
    rate = best_rate(done)
    return f"{rate:g}{'?' if missing_rates(done) else ''}", done[rate]


def table(path: Path) -> str:
    """Test accuracy of each arm, and points against uniform LoRA, paired, with 95 % intervals."""
    results = json.loads(path.read_text())
    runs, hosts = results["runs"], results["hosts"]
    lines = [
        "| " + " | ".join(["shift", "samples", "rank", "host", "uniform", *(f"{a} − {b}" for a, b in COLUMNS)]) + " |",
        "|---" * 9 + "|",
    ]
    differences: dict[str, list[float]] = {}
    for shift in SHIFTS:
        for size in SIZES:
            for rank in RANKS:
                uniform = best(runs, shift, size, rank, "uniform")
                if uniform is None:
                    continue
                host = statistics.fmean(value for key, value in hosts.items() if key.startswith(f"{shift} "))
                row = [shift, f"{size}", f"{rank}", f"{host:.1f}"]
                row.append(f"{statistics.fmean(r['test'] for r in uniform[1]):.1f} ({uniform[0]})")
                made = {"uniform": uniform}
                made |= {arm: best(runs, shift, size, rank, arm) for arm in ("preset", "adalora", "head")}
                for arm, base in COLUMNS:
                    found, other = made[arm], made[base]
                    if found is None or other is None:
                        row.append("not run")
                        continue
                    bounds = interval([b["test"] - a["test"] for a, b in zip(other[1], found[1], strict=True)])
                    differences.setdefault(f"{arm} − {base}", []).append(bounds["mean"])
                    rate = f" ({found[0]})" if base == "uniform" else ""
                    row.append(f"{bounds['mean']:+.1f} ± {bounds['half_width']:.1f}{rate}")
                lines.append("| " + " | ".join(row) + " |")
    means = [f"{pair} {statistics.fmean(d):+.2f} over {len(d)} settings" for pair, d in differences.items()]
    count = sum(map(len, differences.values()))
    return "\n".join([*lines, "", "Means: " + "; ".join(means) + f". {count} intervals in all."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("docs/evidence/adapt.json"))
    parser.add_argument("--table", type=Path, help="print the table of a finished file")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["preset", "uniform", "head"])
    parser.add_argument("--shifts", nargs="+", choices=SHIFTS, default=list(SHIFTS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    run(arguments.json, arguments.arms, arguments.seeds, tuple(arguments.shifts), arguments.workers)
    print(table(arguments.json))


if __name__ == "__main__":
    main()
