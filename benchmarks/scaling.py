"""All seeds live: time and memory against the number of seeds, and the share of what the hardware allows."""

import torch
from torch import nn

from benchmarks.harness import Bench, growing, inference, main, training_pass


def bandwidth(bench: Bench) -> float:
    """Bytes a microsecond of a large copy."""
    source = torch.empty(1 << 29 if bench.device.type == "cuda" else 1 << 25, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copy = {"copy": lambda: target.copy_(source)}
    return 2 * source.numel() / bench.compare("ceiling", copy, bare=None, bytes=2 * source.numel())["copy"]


def one_width(bench: Bench, features: int, rows: int, counts: list[int], rate: float, dtype: torch.dtype) -> None:
    x = torch.randn(rows, features, device=bench.device, dtype=dtype)
    bare = nn.Linear(features, features, device=bench.device, dtype=dtype)
    element = x.element_size()
    for seeds in counts:
        layer = growing(nn.Linear(features, features, device=bench.device, dtype=dtype), seeds)
        width, size = features / seeds, {"D": features, "M": rows, "N": seeds}
        # Bytes that must move: read and write forward; read both, write one backward.
        for name, make, passes in (("forward", inference, 2), ("forward+backward", training_pass, 5)):
            times = bench.compare(f"all live, {name}", {"bare": make(bare, x), "all live": make(layer, x)}, **size)
            floor = passes * rows * features * element / rate
            seeds_us = times["all live"] - times["bare"]
            facts = {"roofline_us": floor, "achieved": floor / seeds_us, "width": width}
            bench.add({"name": f"seeds alone, {name}", "variant": "all live", "us": seeds_us} | size | facts)
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            training_pass(layer, x)()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            print(f"{'':28} {'peak of a training pass':<24} {peak:12.1f} MiB")
            bench.rows[-1]["peak_mib"] = peak
        del layer


def run(bench: Bench) -> None:
    rate = bandwidth(bench)
    if bench.device.type == "cpu":
        one_width(
            bench, 2048, 256, [32, 256, 1000] if bench.quick else [8, 32, 128, 512, 1000, 2048], rate, torch.float32
        )
        return
    one_width(bench, 4096, 8192, [128, 1024] if bench.quick else [32, 64, 128, 256, 1024, 4096], rate, torch.bfloat16)
    if not bench.quick:
        one_width(bench, 16384, 8192, [512, 2048, 10_000], rate, torch.bfloat16)


if __name__ == "__main__":
    main(run)
