"""Growth over several processes: replicas and shards after random events, resuming, throughput, time of a tick.

``python -m benchmarks.several_gpus --ranks 1 2 4`` starts torchrun for each number of processes; on a machine
without GPUs they are CPU processes over gloo. Each process checks itself and fails the command if it must.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.architectures import Residual, Task, _block
from benchmarks.harness import machine
from benchmarks.random_events import RandomEvents
from benchmarks.several_gpus_watch import Clock, CountedReduce, Equal
from lightning_morpho import (
    BlueprintConfig,
    BudgetConfig,
    LayersConfig,
    LifecycleConfig,
    MorphoCallback,
    Never,
    Observation,
    Tamiyo,
    TelemetryConfig,
    WarmupConfig,
    hybrid_layers,
)
from lightning_morpho.tamiyo import Germinate

STRATEGIES = ("ddp", "ddp_static_graph", "ddp_bf16", "ddp_compiled", "fsdp2")
EVENTS = 50
"""Random germinations, culls and fossilizations of each run."""
ROWS = "rows.jsonl"
PATIENCE = timedelta(minutes=3)
"""A rank that waits longer for the others ends the run: they have stopped, or compute something else."""


class AllAtOnce(Tamiyo):
    """Every seed of every layer at the first tick."""

    def grow(self, observation: Observation) -> list[Germinate]:
        return [
            Germinate(layer=layer.name, reason="all at once", force=True)
            for layer in observation.layers
            if layer.free_beds and layer.dormant
        ]


# ---------------------------------------------------------------- hosts and data
def gpt(width: int, depth: int) -> nn.Module:
    blocks = [module for _ in range(depth) for module in _block(width, causal=True)]
    return nn.Sequential(nn.Embedding(256, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 256))


def resnet(width: int, depth: int) -> nn.Module:
    def conv() -> nn.Conv2d:
        return nn.Conv2d(width, width, 3, padding=1)

    blocks = [Residual(conv(), nn.BatchNorm2d(width), nn.ReLU(), conv(), nn.BatchNorm2d(width)) for _ in range(depth)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, nn.ReLU(), *head)


def next_byte_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Host(Task):
    """A host that shards itself where the strategy asks for it."""

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is not None and not isinstance(self.net, FSDPModule):
            for block in self.net:
                if isinstance(block, Residual):
                    fully_shard(block, mesh=mesh["data_parallel"])
            fully_shard(self.net, mesh=mesh["data_parallel"])


def host_and_data(name: str, quick: bool, rank: int, shallow: bool) -> tuple[Host, TensorDataset, int]:
    """A host, this rank's data, and its batch size."""
    g = torch.Generator().manual_seed(rank)
    if name == "gpt":
        net = gpt(32, 1) if quick else gpt(512, 2 if shallow else 6)
        tokens = torch.randint(256, (64, 16) if quick else (512, 256), generator=g)
        return Host(net, next_byte_loss), TensorDataset(tokens, tokens), 4 if quick else 16
    net = resnet(8, 1) if quick else resnet(128, 2 if shallow else 4)
    images = torch.randn((64, 3, 8, 8) if quick else (1024, 3, 32, 32), generator=g)
    return Host(net, F.cross_entropy), TensorDataset(images, images[:, 0, 0, :10].argmax(1)), 4 if quick else 64


def strategy_of(name: str, ranks: int) -> tuple[Strategy, dict[str, Any]]:
    if name == "fsdp2":
        return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, timeout=PATIENCE), {}
    options = {"precision": "bf16-mixed"} if name == "ddp_bf16" else {}
    return DDPStrategy(static_graph=name == "ddp_static_graph", timeout=PATIENCE), options


# ---------------------------------------------------------------- one process
def fit(
    name: str, strategy: str, callbacks: list[L.Callback], steps: int, quick: bool, root: Path, ckpt: Path | None = None
) -> tuple[L.Trainer, Host]:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    L.seed_everything(0, verbose=False)
    module, data, batch = host_and_data(name, quick, rank, shallow=strategy == "ddp_compiled")
    plan, options = strategy_of(strategy, ranks)
    if strategy == "ddp_compiled":
        torch._dynamo.reset()  # what the fit before compiled counts towards dynamo's limits
        module.net.compile(dynamic=False)  # what changes shape decides otherwise, in another way after a resume
    trainer = L.Trainer(
        accelerator="auto", devices=ranks, strategy=plan, max_steps=steps, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, limit_val_batches=0, default_root_dir=root, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=batch), ckpt_path=ckpt)
    return trainer, module


def callback(policy: Tamiyo, seeds: int, beds: int, every: int = 2, block: bool = False) -> MorphoCallback:
    """Growth with short lives, in all layers or in the first block alone."""
    return MorphoCallback(
        layers=LayersConfig(num_seeds=seeds, beds=beds, include=["net.1.*"] if block else ["*"]),
        blueprint=BlueprintConfig(kind="mlp", hidden=4),
        budget=BudgetConfig(parameters=10_000_000),
        lifecycle=LifecycleConfig(active_ticks=1, embargo_ticks=1, alpha_step=0.5),
        warmup=WarmupConfig(steps=2, min_steps=2),
        telemetry=TelemetryConfig(table=False, events=False, log=False),
        tamiyo=policy,
        every_n_steps=every,
    )


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """A resumed run can be bit-equal to the one that went on only where no kernel adds in the order of the day."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def random_events(name: str, strategy: str, quick: bool, root: Path, resume: Path | None) -> Iterator[dict[str, Any]]:
    """Fifty random events; the weights after each tick; a checkpoint in the middle, or a start from one."""
    # Each combination of topologies is compiled anew, so the compiled host grows in two layers alone.
    growth = callback(RandomEvents(), seeds=4, beds=4, block=strategy == "ddp_compiled" and not quick)
    path = root / f"{name}-{strategy}.ckpt"
    # At an epoch's end of every host: a plain loader starts anew after a resume.
    equal = Equal(growth, save_at=None if resume else (8 if quick else 16), path=path)
    with deterministic():
        _, module = fit(name, strategy, [growth, equal], 40 if quick else 60, quick, root, resume)
    layers = hybrid_layers(module)
    events = sum(len(layer.morpho.state) and layer.morpho.events for layer in layers.values())
    records = growth.state_dict()["engine"]["records"]
    row = {"what": "resumed" if resume else "random events", "host": name, "strategy": strategy}
    yield row | {"germinations": events, "seeds_grown": len(records), "digests": equal.digests}


def throughput(name: str, strategy: str, quick: bool, root: Path) -> Iterator[dict[str, Any]]:
    """Step time without the callback, with all seeds dormant and with 64 live seeds a layer, in turn."""
    rounds, steps, skip = (1, 8, 4) if quick else (1 if strategy == "ddp_compiled" else 3, 40, 20)
    seeds, every = (8 if quick else 64), skip - 2
    times: dict[str, list[float]] = {"bare": [], "dormant": [], "live": []}
    first_ticks, ticks = [], []
    reduced, live_bytes = 0, 0
    for _ in range(rounds):
        for variant, policy in (("bare", None), ("dormant", Never()), ("live", AllAtOnce())):
            clock = Clock(skip)
            growth = [] if policy is None else [callback(policy, seeds=seeds, beds=1, every=every)]
            with CountedReduce() as counted:
                _, module = fit(name, strategy, [clock.start, *growth, clock], steps, quick, root)
            times[variant].append(clock.median)
            if variant == "live":
                live = [p for n, p in module.named_parameters() if ".morpho." in n and p.requires_grad]
                live_bytes = sum(p.numel() * p.element_size() for p in live)
                reduced = counted.bytes // (steps - every)
                first_ticks.append(clock.above_median(every))
                ticks.append(clock.above_median(2 * every))
            elif counted.bytes:
                raise RuntimeError(f"{counted.bytes} bytes of beds were reduced in the variant {variant!r}.")
    row = {"what": "throughput", "host": name, "strategy": strategy, "seeds_a_layer": seeds}
    bare = times["bare"]
    for variant, values in times.items():
        ratios = [mine / theirs for mine, theirs in zip(values, bare, strict=True)]
        row |= {f"{variant}_ms": 1e3 * statistics.median(values), f"{variant}_ratio": statistics.median(ratios)}
    yield row | {
        "germinating_tick_ms": 1e3 * statistics.median(first_ticks), "tick_ms": 1e3 * statistics.median(ticks),
        "live_bytes": live_bytes, "reduced_bytes_a_step": reduced,
    }  # fmt: skip


def process(arguments: argparse.Namespace) -> None:
    """What each process that torchrun starts does."""
    torch.set_num_threads(1)
    for host in arguments.hosts:
        for strategy in arguments.strategies:
            resume = arguments.resume and arguments.resume / f"{host}-{strategy}.ckpt"
            if arguments.resume and not resume.exists():
                continue  # the run that was to leave it failed
            write_rows(arguments.out, random_events(host, strategy, arguments.quick, arguments.out, resume))
            if not arguments.resume and not arguments.no_speed:
                write_rows(arguments.out, throughput(host, strategy, arguments.quick, arguments.out))
    if dist.is_initialized():  # torch's threads may abort at a normal exit, with or without their group
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)


def write_rows(out: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Add rows to the file of the run as they come: what fails later takes nothing away."""
    for row in rows:
        if int(os.environ["RANK"]) == 0:
            with (out / ROWS).open("a") as file:
                file.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------- the command
def torchrun(ranks: int, out: Path, arguments: argparse.Namespace, *more: str) -> list[dict[str, Any]]:
    """Run this file in ``ranks`` processes; the rows that the first of them left, one of a failure last."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        "-m", "benchmarks.several_gpus", "--process", "--out", str(out),
        "--hosts", *arguments.hosts, "--strategies", *arguments.strategies, *more,
    ]  # fmt: skip
    settings = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # the second: for the same sums again
    status = subprocess.run(command + _flags(arguments), env=os.environ | settings).returncode
    path = out / ROWS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return rows + ([{"what": "failed", "status": status}] if status else [])


def _flags(arguments: argparse.Namespace) -> list[str]:
    return [flag for flag, on in (("--quick", arguments.quick), ("--no-speed", arguments.no_speed)) if on]


def check_resumed(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The digests of a resumed run against those of the run that went on."""
    rows = []
    for ours in second:
        if ours["what"] == "failed":
            rows.append(ours)
            continue
        key = (ours["host"], ours["strategy"])
        (before,) = (r for r in first if r["what"] == "random events" and (r["host"], r["strategy"]) == key)
        common = before["digests"].keys() & ours["digests"].keys()
        equal = bool(common) and all(before["digests"][tick] == ours["digests"][tick] for tick in common)
        rows.append({k: v for k, v in ours.items() if k != "digests"} | {"ticks": len(common), "bit_equal": equal})
    return rows


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """What went wrong: runs that ended early, and runs that differ from what they were resumed from."""
    return [
        json.dumps(row)
        for row in rows
        if row["what"] == "failed" or (row.get("resumed_on") == row["ranks"] and not row["bit_equal"])
    ]


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, each resumed on its own number of processes and on the others."""
    rows: list[dict[str, Any]] = []
    for ranks in arguments.ranks:
        out = arguments.out / str(ranks)
        first = torchrun(ranks, out, arguments)
        rows += [{k: v for k, v in row.items() if k != "digests"} | {"ranks": ranks} for row in first]
        for other in [ranks, *(other for other in arguments.ranks if other != ranks)]:
            resumed = torchrun(other, out / f"resumed_on_{other}", arguments, "--resume", str(out))
            rows += [row | {"ranks": ranks, "resumed_on": other} for row in check_resumed(first, resumed)]
    return rows


def save(path: Path, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows with the command that gives them."""
    chosen = [f" --{name} {' '.join(map(str, getattr(arguments, name)))}" for name in ("ranks", "hosts", "strategies")]
    command = "python -m benchmarks.several_gpus" + "".join(chosen + [f" {flag}" for flag in _flags(arguments)])
    content = {"command": command, "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[max(1, torch.cuda.device_count())])
    parser.add_argument("--hosts", nargs="+", default=["gpt", "resnet"], choices=["gpt", "resnet"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--out", type=Path, default=Path("runs/several_gpus"), help="folder for checkpoints")
    parser.add_argument("--json", type=Path, help="file that takes the figures")
    parser.add_argument("--quick", action="store_true", help="small hosts, few steps")
    parser.add_argument("--no-speed", action="store_true", help="leave the timings out")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        process(arguments)
        return
    rows = run_all(arguments)
    for row in rows:
        print(json.dumps(row))
    if arguments.json:
        save(arguments.json, arguments, rows)
    wrong = problems(rows)
    if wrong:
        raise SystemExit("\n".join(["These runs failed, or differ from what they were resumed from:", *wrong]))


if __name__ == "__main__":
    main()
