"""What all benchmarks share: interleaved timing, results with their machine, and the command line."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_morpho import BlueprintConfig, HybridKasminaLayer, LayersConfig, MorphoConfig

Run = Callable[[], Any]


@dataclass
class Bench:
    """Collects the figures of one command.

    Attributes:
        device: Where it runs.
        rounds: Interleaved rounds; each measures every variant once.
        quick: Whether to use small sizes and few rounds.
        rows: Measurements so far.
    """

    device: torch.device
    rounds: int
    quick: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self, name: str, variants: dict[str, Run], *, bare: str | None = "bare", graph: bool = False, **facts: Any
    ) -> dict[str, float]:
        """Time variants in turn, round after round, and print each one's median and its ratio to ``bare``.

        ``bare`` is measured twice a round: the second against the first is the noise that the ratios have.

        Args:
            name: Title of the comparison.
            variants: What to run, by name.
            bare: Variant that the others are divided by; None for no ratios.
            graph: Whether to capture each as a CUDA graph first: device time, without launch overhead.
            **facts: Sizes and whatever explains the figures.

        Returns:
            Median microseconds by variant.
        """
        runs = dict(variants)
        if bare is not None:
            runs[f"{bare} again"] = variants[bare]
        if graph:
            runs = {key: captured(run) for key, run in runs.items()}
        repeats = {key: self._calibrate(run) for key, run in runs.items()}
        times: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(self.rounds):
            for key, run in runs.items():
                times[key].append(self.time(run, repeats[key]))
        for key, values in times.items():
            row: dict[str, Any] = {"name": name, "variant": key, "us": statistics.median(values)}
            row["spread"] = (max(values) - min(values)) / row["us"]
            if bare is not None:
                ratios = [mine / theirs for mine, theirs in zip(values, times[bare], strict=True)]
                row["ratio"] = statistics.median(ratios)
            self.add(row | facts | ({"graph": True} if graph else {}))
        return {key: statistics.median(values) for key, values in times.items()}

    def add(self, row: dict[str, Any]) -> None:
        """Note and print one row."""
        self.rows.append(row)
        ratio = f"{row['ratio']:8.3f} x" if "ratio" in row else " " * 10
        facts = {k: v for k, v in row.items() if k not in ("name", "variant", "us", "spread", "ratio")}
        text = " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in facts.items())
        print(f"{row['name']:<28} {row['variant']:<24} {row['us']:12.2f} us {ratio}  {text}", flush=True)

    def time(self, run: Run, repeats: int) -> float:
        """Microseconds of one call, mean over ``repeats``; on a CPU of processor time: others may run beside it."""
        if self.device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                run()
            stop.record()
            torch.cuda.synchronize()
            return start.elapsed_time(stop) / repeats * 1e3
        began = time.process_time()
        for _ in range(repeats):
            run()
        return (time.process_time() - began) / repeats * 1e6

    def _calibrate(self, run: Run) -> int:
        """Calls that take about 20 ms (5 when quick)."""
        for _ in range(2):
            run()
        once = self.time(run, 2)
        return max(1, min(2000, int((5e3 if self.quick else 20e3) / max(once, 0.1))))


def captured(run: Run) -> Run:
    """The replay of a CUDA graph of ``run``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def growing(
    base: nn.Module, seeds: int, live: list[int] | None = None, kind: str = "mlp", germinate: bool = True
) -> HybridKasminaLayer:
    """A hybrid layer over ``base`` whose seeds give something else than zero."""
    config = MorphoConfig(layers=LayersConfig(num_seeds=seeds), blueprint=BlueprintConfig(kind=kind))
    device, dtype = next(base.parameters()).device, next(base.parameters()).dtype
    layer = HybridKasminaLayer(base, config).to(device, dtype)
    if germinate:
        layer.request_germination(live)
        nn.init.normal_(layer.morpho.beds[0].w_out, std=0.1)
    return layer


def training_pass(layer: nn.Module, x: Tensor) -> Run:
    """Forward and backward, with new gradients each time."""
    x = x.detach().requires_grad_()
    grad = torch.randn_like(layer(x))
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer(x).backward(grad)

    return run


def inference(layer: nn.Module, x: Tensor) -> Run:
    """Forward without a graph."""

    def run() -> Tensor:
        with torch.no_grad():
            return layer(x)

    return run


def kept_for_backward(layer: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, besides parameters and input."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters(), *layer.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # it holds its memory, so that no other tensor takes the same place

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


def machine(device: torch.device) -> dict[str, Any]:
    """Where figures come from."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        with contextlib.suppress(ImportError):
            facts["triton"] = importlib.metadata.version("triton")
    return facts


def main(run: Callable[[Bench], None]) -> None:
    """Command line of a benchmark: ``--device``, ``--json PATH``, ``--quick``."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file that takes the figures")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    bench = Bench(device, 3 if arguments.quick else 11, arguments.quick)
    torch.manual_seed(0)
    run(bench)
    if arguments.json is not None:
        command = f"python -m benchmarks.{name} --device {device.type}" + (" --quick" if arguments.quick else "")
        content = {"command": command, "rounds": bench.rounds, "machine": machine(device), "rows": bench.rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
