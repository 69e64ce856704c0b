"""Which kind of model works with which feature: run, not promised.

python benchmarks/compatibility.py                          # prints the matrix
python benchmarks/compatibility.py --write docs/compatibility.md
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from architectures import ARCHITECTURES, Task, data
from lightning_morpho import (
    BlueprintConfig,
    LifecycleConfig,
    MorphoCallback,
    Never,
    TelemetryConfig,
    Uniform,
    WarmupConfig,
    export,
    hybrid_layers,
    load_grown_,
    morph_,
)

Check = Callable[[Callable[[], Task], Path], None]


def growing(**options: Any) -> MorphoCallback:
    """A callback that germinates everywhere at the first tick."""
    return MorphoCallback(
        tamiyo=Uniform(at=0.0),
        lifecycle=LifecycleConfig(active_ticks=1, alpha_step=0.5),
        warmup=WarmupConfig(steps=2, min_steps=2),
        telemetry=TelemetryConfig(table=False, events=False),
        **options,
    )


def fit(make: Callable[[], Task], root: Path, *callbacks: L.Callback, ckpt: Path | None = None, **options: Any) -> Task:
    """Train a fresh model for a few steps and save ``last.ckpt``."""
    L.seed_everything(0, verbose=False)
    module = make()
    settings: dict[str, Any] = {"max_epochs": 4, "accelerator": "cpu", "logger": False} | options
    trainer = L.Trainer(
        callbacks=list(callbacks),
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, **data(), ckpt_path=ckpt)
    trainer.save_checkpoint(root / "last.ckpt")
    return module


def equal(a: Task, b: Task) -> bool:
    """Whether two models hold the same weights and buffers, bit for bit, seeds apart."""
    states = (
        {k: v for k, v in m.state_dict().items() if isinstance(v, Tensor) and ".morpho." not in k} for m in (a, b)
    )
    first, second = states
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def check_grows(make: Callable[[], Task], root: Path) -> None:
    """Every hybrid layer germinates and its newborns move."""
    module = fit(make, root, growing(), max_epochs=2)
    layers = hybrid_layers(module)
    assert layers, "no layer was eligible"
    for name, layer in layers.items():
        outgoing = [p for n, p in layer.morpho.named_parameters() if n.endswith("w_out")]
        assert not outgoing or any(p.any() for p in outgoing), f"{name} did not learn"


def check_neurons(make: Callable[[], Task], root: Path) -> None:
    """New hidden units from each layer's own input grow as well."""
    fit(make, root, growing(blueprint=BlueprintConfig(kind="neurons")), max_epochs=2)


def check_mlp(make: Callable[[], Task], root: Path) -> None:
    """The chunk-local blueprint grows as well."""
    fit(make, root, growing(blueprint=BlueprintConfig(kind="mlp")), max_epochs=2)


def check_adapted(make: Callable[[], Task], root: Path) -> None:
    """A frozen host is adapted, stands still, and leaves as a plain model with equal outputs."""
    silent = TelemetryConfig(table=False, events=False)
    callback = MorphoCallback(preset="adapt_pretrained", warmup=WarmupConfig(steps=1, min_steps=1), telemetry=silent)
    module = fit(make, root, callback).eval()
    L.seed_everything(0, verbose=False)
    host = make().state_dict()
    state = module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in host.items()), "the host moved"
    batch = next(iter(data()["val_dataloaders"]))
    with torch.no_grad():
        expected = module.step_loss(batch)
        module.net = export(module.net)
        assert torch.allclose(module.step_loss(batch), expected, atol=1e-5), "outputs differ"


def check_dormant(make: Callable[[], Task], root: Path) -> None:
    """With all seeds dormant, training is bit-equal to training without the callback."""
    silent = TelemetryConfig(table=False, events=False)
    assert equal(fit(make, root), fit(make, root, MorphoCallback(tamiyo=Never(), telemetry=silent))), "weights differ"


def check_resume(make: Callable[[], Task], root: Path) -> None:
    """A run stopped in the middle of growth and resumed ends where the whole run ends."""
    whole = fit(make, root, growing())
    fit(make, root, growing(), max_epochs=2)
    resumed = fit(make, root, growing(), ckpt=root / "last.ckpt")
    assert equal(whole, resumed), "weights differ"


def check_bf16(make: Callable[[], Task], root: Path) -> None:
    """Growth under bf16-mixed precision."""
    fit(make, root, growing(), precision="bf16-mixed")


def check_ema(make: Callable[[], Task], root: Path) -> None:
    """Growth beside an averaging callback."""
    module = fit(make, root, EMAWeightAveraging(decay=0.9), growing())
    assert all(p.isfinite().all() for p in module.parameters())


def check_copy(make: Callable[[], Task], root: Path) -> None:
    """A grown network is copied, pickled, and loaded without the callback, with equal outputs."""
    module = fit(make, root, growing(), max_epochs=2).eval()
    batch = next(iter(data()["val_dataloaders"]))
    buffer = io.BytesIO()
    pickle.dump(module.net, buffer)
    loaded = make()
    load_grown_(loaded, root / "last.ckpt")
    twins = [copy.deepcopy(module.net), pickle.loads(buffer.getvalue()), loaded.net.eval()]
    with torch.no_grad():
        expected = module.step_loss(batch)
        for twin in twins:
            module.net = twin
            assert torch.equal(module.step_loss(batch), expected), "outputs differ"


def check_compile(make: Callable[[], Task], root: Path) -> None:
    """A compiled network grows as an eager one (traced by dynamo, run by the eager backend)."""

    def compiled() -> Task:
        module = make()
        module.net.compile(backend="eager")
        return module

    torch._dynamo.reset()
    # float32: a few steps of Adam amplify what tracing rounds in another order
    pairs = zip(fit(make, root, growing()).parameters(), fit(compiled, root, growing()).parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs), "weights differ"


FEATURES: dict[str, Check] = {
    "grows": check_grows,
    "`neurons`": check_neurons,
    "`mlp`": check_mlp,
    "trained host adapted, merged": check_adapted,
    "dormant is bit-equal": check_dormant,
    "resumes bit-equal": check_resume,
    "bf16-mixed": check_bf16,
    "EMA": check_ema,
    "`torch.compile`": check_compile,
    "copy, pickle, load": check_copy,
}


def verdict(check: Check, make: Callable[[], Task]) -> str:
    """``yes``, or why not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(make, Path(folder))
        except Exception as error:
            return f"no: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return "yes"


def note(make: Callable[[], Task]) -> str:
    """Which layers were left out, and why."""
    kinds = ("LSTM", "GRU", "ConvTranspose2d", "MultiheadAttention")
    left = [m for m in morph_(make()).modules if not m.taken and m.type in kinds]
    return ", ".join(f"`{m.type}` is left out: {m.reason}" for m in left)


def matrix(names: list[str]) -> str:
    """The matrix as a Markdown table, and what was left out."""
    lines = ["| model | " + " | ".join(FEATURES) + " |", "|---" * (len(FEATURES) + 1) + "|"]
    notes = []
    for name in names:
        make = ARCHITECTURES[name]
        lines.append(f"| {name} | " + " | ".join(verdict(check, make) for check in FEATURES.values()) + " |")
        text = note(make)
        if text:
            notes.append(f"- {name}: {text}")
    return "\n".join([*lines, "", *notes])


HEADER = """# Compatibility

Made by `python benchmarks/compatibility.py --write docs/compatibility.md`, which trains every model with every feature;
the tests run it again and fail if it says anything else.

"""


def quiet() -> None:
    """Only results are to be printed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    quiet()
    text = matrix(list(ARCHITECTURES))
    print(text)
    if arguments.write:
        arguments.write.write_text(HEADER + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
