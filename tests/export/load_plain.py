"""Run as a script where ``lightning_morpho`` can't be imported: load what was exported, and print how far it is off."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


class Blocker:
    """As if neither this package nor its Hydra plugin were installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ("lightning_morpho", "hydra_plugins"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":  # not where tests are collected
    sys.meta_path.insert(0, Blocker())

import torch  # noqa: E402

from benchmarks.architectures import ARCHITECTURES  # noqa: E402


def load(path: Path, architecture: str) -> Any:
    if path.suffix == ".pt":
        return torch.load(path, weights_only=False)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    if path.suffix == ".safetensors":
        spec = importlib.util.spec_from_file_location("grown_architecture", path.with_name(f"{path.stem}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        architecture = "gpt" if architecture == "adapter" else architecture
        return module.load(ARCHITECTURES[architecture]().net.to(torch.get_default_dtype()), str(path))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for reference in sorted(folder.glob("*.reference")):
        saved = torch.load(reference, weights_only=True)
        for path in sorted(folder.glob(f"{reference.stem}.*")):
            if path.suffix in (".pt", ".pt2", ".onnx", ".safetensors"):
                torch.set_default_dtype(saved["x"].dtype)
                with torch.no_grad():
                    output = load(path, saved["architecture"])(saved["x"])
                found[path.name] = float((output - saved["y"]).abs().max())
    assert not any(name.startswith("lightning_morpho") for name in sys.modules)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
