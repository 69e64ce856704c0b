"""What a person gets when a grown model is saved, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_morpho import Blueprint, HybridKasminaLayer, export, hybrid_layers, morph_, save_export
from lightning_morpho.blueprints import register_blueprint
from lightning_morpho.export import merge_, saving
from lightning_morpho.export.source import call_of
from lightning_morpho.tasks import ConvClassifier
from lightning_morpho.telemetry.events import SeedRecord

sys.path.insert(0, str(Path(__file__).parent))
from grown import config, grow_, grown, host_alone  # noqa: E402


@pytest.fixture(scope="module")
def conv() -> tuple[nn.Module, Tensor]:
    """A LightningModule whose three pairs of layers grew."""
    torch.manual_seed(0)
    model, x = ConvClassifier(channels=4), torch.randn(6, 1, 40)
    grow_(model, x, config("auto"))
    return model, x


def test_widened_net_loads_where_its_own_class_is_built_that_wide(conv):
    model, x = conv
    plain = export(model, prune=False)
    at_home = ConvClassifier(channels=12).eval()  # 4, and two beds of 4
    at_home.load_state_dict(plain.state_dict())
    assert (at_home(x) - model(x)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["auto", "mlp", "glu"])
def test_plain_model_carries_no_trace_of_this_package(kind):
    model, x = grown("vgg", kind)
    content = pickle.dumps(export(model))
    assert b"lightning_morpho" not in content
    assert torch.equal(pickle.loads(content)(x), export(model)(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_precision_of_the_model_is_kept(dtype, tmp_path):
    model, x = grown("vgg", "auto", dtype)
    report = save_export(model, tmp_path / "net", x, formats=["pt", "safetensors"])
    assert {p.dtype for p in torch.load(tmp_path / "net.pt", weights_only=False).parameters()} == {dtype}
    assert max(report.differences.values()) <= report.limit == saving.TOLERANCES[dtype] * report.scale


def test_model_and_its_mode_stay_as_they_were(conv, tmp_path):
    model, x = conv
    model.train()
    model.net[1].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    save_export(model, tmp_path / "net", x, formats=["pt"])
    assert model.training and not model.net[1].training
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], value) for key, value in after.items() if isinstance(value, Tensor))
    model.eval()


def test_an_example_that_the_model_does_not_take_is_named(conv, tmp_path):
    model, x = conv
    with pytest.raises(ValueError, match="`example` must be what ConvClassifier's forward takes.*It says: .*channel"):
        save_export(model, tmp_path / "net", x.expand(6, 3, 40), formats=["pt"])
    assert not list(tmp_path.iterdir())


def test_what_differs_too_much_is_refused_and_nothing_is_written(conv, tmp_path):
    model, x = conv
    with pytest.raises(ValueError, match=r"differs from the grown one by more than .* nothing was written"):
        save_export(model, tmp_path / "net", x, formats=["pt", "safetensors"], tolerance=0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_stays_if_the_new_one_is_refused(conv, tmp_path):
    model, x = conv
    (tmp_path / "net.pt").write_text("of yesterday")
    with pytest.raises(ValueError, match="nothing was written"):
        save_export(model, tmp_path / "net", x, formats=["pt"], tolerance=0.0)
    assert (tmp_path / "net.pt").read_text() == "of yesterday"


def test_a_wrong_file_would_be_noticed(conv, tmp_path, monkeypatch):
    model, x = conv
    monkeypatch.setattr(saving, "export", lambda model, prune: nn.Sequential(nn.Flatten(), nn.Linear(40, 10)))
    with pytest.raises(ValueError, match="differs from the grown one"):
        save_export(model, tmp_path / "net", x, formats=["pt"])


@pytest.mark.parametrize("formats", [[], ["h5"], "pt", ["pt", "tf"]])
def test_unknown_formats_are_named_with_the_known_ones(conv, formats, tmp_path):
    model, x = conv
    with pytest.raises(ValueError, match=r"`formats` must be a list of some of \['pt', 'pt2', 'onnx', 'safetensors'\]"):
        save_export(model, tmp_path / "net", x, formats=formats)


def test_missing_package_is_named_before_anything_is_done(conv, tmp_path, monkeypatch):
    model, x = conv
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-morpho\[onnx\]'"):
        save_export(model, tmp_path / "net", x, formats=["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_onnx_in_bfloat16_is_refused_with_the_way_out(tmp_path):
    model, x = grown("mlp", "auto", torch.bfloat16)
    with pytest.raises(ValueError, match=r"no bfloat16: .*\.float\(\)"):
        save_export(model, tmp_path / "net", x, formats=["onnx"])


class Reshaping(nn.Module):
    """Tied to batches of six."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))).reshape(6, 3) + torch.ones(6, 1)


def test_model_tied_to_its_batch_size_says_so_and_can_be_exported_so(tmp_path):
    model, x = Reshaping(), torch.randn(6, 6)
    grow_(model, x, config("auto"))
    with pytest.raises(ValueError, match="does not take 9 samples in place of 6: pass `dynamic_batch=False`"):
        save_export(model, tmp_path / "net", x, formats=["pt2"])
    save_export(model, tmp_path / "net", x, formats=["pt2"], dynamic_batch=False)
    program = torch.export.load(tmp_path / "net.pt2").module()
    assert (program(x) - model(x)).abs().max() < 1e-6


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Structured(nn.Module):
    """Keyword arguments in, nested outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, object]:
        h = torch.relu(self.a(x)) * scale
        y = self.b(h if mask is None else h * mask)
        return {"logits": y, "rest": (y.argmax(-1), [y.mean()])}


def test_dicts_in_and_nested_outputs_out_are_compared_and_dynamic(tmp_path):
    model = Structured()
    x, mask = torch.randn(5, 6), torch.ones(5, 1)
    grow_(model.a, x, config("neurons"))
    report = save_export(model, tmp_path / "net", {"x": x, "mask": mask}, formats=["pt", "pt2", "onnx"])
    assert max(report.differences.values()) < 1e-6
    program = torch.export.load(tmp_path / "net.pt2").module()
    out = program(x=torch.randn(2, 6), mask=torch.ones(2, 1))
    assert out["rest"][0].shape == (2,)


def test_metadata_and_card_say_where_the_model_comes_from(conv, tmp_path):
    import onnx
    from safetensors import safe_open

    model, x = conv
    record = SeedRecord(
        layer="net.4",
        chunk=0,
        generation=0,
        blueprint="span",
        born_tick=1,
        born_step=40,
        stage="FOSSILIZED",
        tick=9,
        reason="proven gain",
        figures={"rise": 0.25, "lower": 0.125},
    )
    formats = ["pt2", "onnx", "safetensors"]
    report = save_export(model, tmp_path / "net", x, formats=formats, records=[record], origin="run 7")
    extra = {"lightning_morpho.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        weights = file.metadata()
    graph = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    for found in (json.loads(extra["lightning_morpho.json"]), weights, graph):
        assert found["source"] == "run 7" and found["model"] == "ConvClassifier"
        assert int(found["parameters_before"]) == 338 and int(found["parameters"]) == report.after
    card = (tmp_path / "net.md").read_text()
    assert "| net.4[0] | span | 40 | FOSSILIZED | +0.2500 (> +0.1250) | proven gain |" in card
    assert re.search(r"\| net\.0 \| Conv1d\(1 → 4\) \| Conv1d\(1 → \d+\) \|", card)
    assert all(f"`{path.name}`" in card for path in report.files if path.suffix not in (".md", ".py"))
    assert "Origin: run 7." in card and f"{report.after:,} parameters" in card
    assert [path.name for path in report.files][-1] == "net.md"
    assert "largest difference" in str(report) and str(tmp_path / "net.onnx") in str(report)


def test_files_in_names_that_are_no_identifiers_still_load(tmp_path):
    model, x = grown("mlp", "neurons")
    save_export(model, tmp_path / "7-net.v2", x, formats=["safetensors"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7-net.v2.md", "7-net.v2.safetensors", "_7_net_v2.py"]


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding="valid", padding_mode="circular", groups=2),
        nn.Conv3d(1, 2, (1, 2, 3), dilation=2, bias=False),
        nn.Linear(3, 4, dtype=torch.float64),
        nn.BatchNorm2d(5, eps=1e-3, momentum=None, affine=False),
        nn.BatchNorm1d(5, track_running_stats=False, dtype=torch.bfloat16),
        nn.GELU("tanh"),
        nn.LayerNorm((2, 3)),
        nn.LeakyReLU(0.2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_constructor_calls_give_the_same_module(module):
    made = eval(call_of(module), {"nn": nn, "torch": torch})
    assert repr(made) == repr(module)
    made.load_state_dict(module.state_dict())


class Own(nn.Linear):
    pass


def test_source_of_a_module_of_your_own_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match="Use the format 'pt' or 'pt2'"):
        call_of(Own(2, 3))


@register_blueprint("without_plain_form")
class WithoutPlainForm(Blueprint):
    source = "input"

    def shapes(self):
        return {"w": (self.site.out_features, self.site.in_features)}

    def reset_(self, parameters, generator):
        parameters["w"].zero_()

    def grow(self, parameters, source):
        return source @ parameters["w"].T


def test_own_blueprint_without_a_plain_form_is_named():
    layer = HybridKasminaLayer(nn.Linear(4, 3), config("without_plain_form"))
    layer.request_germination()
    with pytest.raises(NotImplementedError, match="`without_plain_form` has no plain form"):
        export(nn.Sequential(layer))


class SharedLayer(nn.Module):
    """One layer under two names, called once by each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = nn.Sequential(self.first)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.first(x)))


@pytest.mark.parametrize("kind", ["neurons", "lowrank", "block"])
def test_a_layer_under_two_names_is_replaced_under_both(kind, tmp_path):
    model, x = SharedLayer(), torch.randn(5, 6)
    grow_(model, x, config(kind))
    plain = export(model)
    assert plain.again[0] is plain.first
    assert (plain(x) - model(x)).abs().max() < 1e-6
    save_export(model, tmp_path / "net", x, formats=["pt", "safetensors"])


class Tied(nn.Module):
    """An embedding whose weights are the output layer's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))))


@pytest.mark.parametrize("kind", ["neurons", "lowrank"])
def test_tied_weights_stay_tied_unless_one_changes(kind, tmp_path):
    model, ids = Tied(), torch.randint(0, 7, (5, 3))
    grow_(model, ids, config(kind))
    plain = export(model)
    assert (plain(ids) - model(ids)).abs().max() < 1e-6
    if kind == "neurons":
        assert plain.head.base.weight is plain.embed.weight
    report = save_export(model, tmp_path / "net", ids, formats=["pt", "pt2", "safetensors"])
    assert max(report.differences.values()) < 1e-6


@pytest.mark.parametrize("kind", ["neurons", "affine", "mlp"])
def test_model_that_is_itself_a_layer(kind, tmp_path):
    model, x = nn.Linear(6, 4), torch.randn(5, 6)
    grow_(model, x, config(kind))
    assert (export(model)(x) - model(x)).abs().max() < 1e-6
    report = save_export(model, tmp_path / "net", x, formats=["pt", "safetensors"])
    assert max(report.differences.values()) < 1e-6


@pytest.mark.parametrize("kind", ["lowrank", "affine"])
def test_kinds_that_fold_leave_the_architecture_alone(kind):
    model, x = grown("vgg", kind)
    plain, host = export(model), copy.deepcopy(model)
    assert {type(m) for m in plain.modules()} <= {nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU} | {
        nn.MaxPool2d,
        nn.Flatten,
        nn.Linear,
    }
    merge_(host)
    assert torch.equal(host(x), plain(x)), "folding in place and in a copy are the same"
    assert (host_alone(model, x) - model(x)).abs().max() > 1e-4


def test_compiled_model_is_exported_as_what_it_compiles(conv):
    model, x = conv
    assert torch.equal(export(torch.compile(model, backend="eager"))(x), export(model)(x))


def test_a_model_that_never_grew_leaves_as_it_is(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6)
    expected = model(x)
    morph_(model)
    report = save_export(model, tmp_path / "net", x, formats=["pt", "safetensors"])
    assert report.before == report.after
    assert "None." in (tmp_path / "net.md").read_text()
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), expected)
    assert hybrid_layers(model), "the model itself is still the grown one"
