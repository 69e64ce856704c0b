"""Import direction, read off the source."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_morpho"

# A file imports only what stands above it: the core first, what needs Lightning or Hydra last.
ORDER = [
    "checks",
    "wording",
    "evidence",
    "lifecycle",
    "lifecycle_config",
    "rollout_config",
    "config",
    "random_state",
    "chunks",
    "state",
    "pairs",
    "grafting",
    "kernels",
    "blueprints",
    "layers",
    "flops",
    "rollout",
    "allocation",
    "eligibility",
    "surgery",
    "freezing",
    "confirmation",
    "checkpoint",
    "telemetry",
    "tamiyo",
    "isolation",
    "rewind",
    "presets",
    "run_config",
    "credit",
    "sizing",
    "divergence",
    "snapshot",
    "governor",
    "newborns",
    "views",
    "optim",
    "inquiry",
    "recovery",
    "engine",
    "export",
    "ab",
    "integrations",
    "callback",
    "tasks",
    "cli",
    "train",
    "__init__",
]

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


def unit(file: str) -> str:
    """Entry of the layout that a file belongs to."""
    return Path(file).parts[0].removesuffix(".py")


def imported(file: str) -> set[str]:
    """Dotted names of the modules that a file imports, inside functions and type checks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module is not None
            if node.module == PACKAGE.name:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def own(file: str) -> set[str]:
    """Entries of the layout that a file imports."""
    inner = {name.split(".")[1] for name in imported(file) if name.startswith(PACKAGE.name + ".")}
    # What `from lightning_morpho import X` takes from the package itself is `__init__`.
    return {entry if entry in ORDER else "__init__" for entry in inner} | (
        {"__init__"} if PACKAGE.name in imported(file) else set()
    )


def top_level(file: str) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


def test_walk_sees_the_package():
    assert {"config.py", "callback.py", "layers/seeds.py", "blueprints/neurons.py"} <= set(FILES)
    assert "layers" in own("surgery.py")
    assert "torch" in top_level("chunks.py")


@pytest.mark.parametrize("file", FILES)
def test_file_has_a_place_in_the_layout(file):
    assert unit(file) in ORDER


@pytest.mark.parametrize("file", [f for f in FILES if f != "__init__.py"])
def test_file_imports_only_what_stands_above_it(file):
    place = ORDER.index(unit(file))
    below = {entry for entry in own(file) if entry != unit(file) and ORDER.index(entry) > place}
    assert not below


@pytest.mark.parametrize("file", FILES)
def test_only_the_adapters_import_lightning(file):
    allowed = unit(file) in ("callback", "integrations", "tasks", "train")
    assert allowed or not top_level(file) & set(LIGHTNING)


@pytest.mark.parametrize("file", FILES)
def test_only_the_application_imports_hydra(file):
    allowed = unit(file) in ("cli", "train")
    assert allowed or not top_level(file) & {"hydra", "omegaconf"}


@pytest.mark.parametrize("file", FILES)
def test_tasks_are_used_by_the_application_alone(file):
    assert unit(file) in ("tasks", "train") or "tasks" not in own(file)


@pytest.mark.parametrize(
    "file", ["checks.py", "evidence.py", "lifecycle_config.py", "rollout_config.py", "config.py", "lifecycle.py"]
)
def test_configuration_and_lifecycle_need_the_standard_library_alone(file):
    assert top_level(file) <= {*sys.stdlib_module_names, PACKAGE.name}
