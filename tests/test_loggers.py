"""What loggers get: read back with each tool's own API, bounded in number, and never in the way of a training."""

import csv
import warnings

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from hosts import Host, linear_net, loaders, make_trainer, quick
from lightning_morpho import LayersConfig, Stage, TelemetryConfig
from lightning_morpho.integrations.reporting import MONITORED
from lightning_morpho.layers import Transition
from lightning_morpho.telemetry import Event, Refusal
from lightning_morpho.telemetry.figures import RUN_FIGURES, LayerFigures
from lightning_morpho.telemetry.lines import MOST_LINES, event_lines
from lightning_morpho.telemetry.run_log import METRICS_FILE, read_lines
from lightning_morpho.telemetry.series import MOST_SERIES, seed_map

STEPS = [9, 19, 29, 39, 49, 59]


def fit(root, loggers, *, level="standard", net=None, callbacks=(), epochs=6, **options):
    L.seed_everything(0)
    options = {"layers": LayersConfig(num_seeds=2)} | options
    callback = quick(telemetry=TelemetryConfig(table=False, level=level, every_n_steps=4), **options)
    trainer = make_trainer(
        root,
        callback,
        *callbacks,
        max_epochs=epochs,
        logger=loggers,
        log_every_n_steps=5,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )
    trainer.fit(Host(linear_net() if net is None else net, lr=3e-2), **loaders())
    return trainer, callback


def expected_figures(trainer, root) -> list[dict[str, float]]:
    """Figures of the run at each tick, as the run log holds them."""
    folder = trainer.log_dir or root
    return [line["run"] for line in read_lines(type(root)(folder) / METRICS_FILE) if line["kind"] == "tick"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """One run with all loggers at once; those that aren't installed are left out."""
    root = tmp_path_factory.mktemp("loggers")
    loggers = {"csv": CSVLogger(root, name="csv"), "tensorboard": TensorBoardLogger(root, name="tensorboard")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        try:
            from lightning.pytorch.loggers import WandbLogger

            loggers["wandb"] = WandbLogger(save_dir=root, offline=True)
        except ModuleNotFoundError:
            pass
        try:
            from lightning.pytorch.loggers import MLFlowLogger

            uri = f"sqlite:///{root / 'mlflow.db'}"
            loggers["mlflow"] = MLFlowLogger("growth", tracking_uri=uri, artifact_location=(root / "art").as_uri())
        except ModuleNotFoundError:
            pass
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer, callback = fit(root, list(loggers.values()))
        if "wandb" in loggers:
            loggers["wandb"].experiment.finish()
    refused = [str(w.message) for w in caught if "took no" in str(w.message)]
    return root, loggers, trainer, callback, refused


def need(together, name):
    root, loggers, trainer, callback, _ = together
    if name not in loggers:
        pytest.skip(f"{name} is not installed: pip install 'lightning-morpho[loggers]'")
    return root, loggers[name], expected_figures(trainer, root)


@pytest.mark.slow
def test_no_logger_refuses_what_it_is_given(together):
    assert together[-1] == []


@pytest.mark.slow
def test_csv_holds_the_figures_of_every_tick(together):
    _, logger, figures = need(together, "csv")
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        everything = list(csv.DictReader(file))
    rows = [row for row in everything if row["morpho/run/parameters"]]
    layers = [row for row in everything if row["morpho/net.2/alpha"]]
    assert [float(row["morpho/run/parameters"]) for row in rows] == [f["parameters"] for f in figures]
    assert [int(row["step"]) for row in layers] == [int(row["step"]) for row in rows] == STEPS
    assert not layers[0]["morpho/net.2/gradient_ratio"] and layers[1]["morpho/net.2/gradient_ratio"]
    assert rows[0]["morpho/run/return_per_parameter"] == "", "what wasn't measured is empty, not 0"


@pytest.mark.slow
def test_tensorboard_holds_scalars_histograms_layout_map_and_table(together):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    _, logger, figures = need(together, "tensorboard")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    added = [event.value for event in events.Scalars("morpho/run/added_parameters")]
    assert added == [f["added_parameters"] for f in figures]
    assert {"morpho/seeds/alpha", "morpho/seeds/stage", "morpho/seeds/silent"} <= set(tags["histograms"])
    stages = events.Histograms("morpho/seeds/stage")
    steps = [h.step for h in stages]
    assert steps[0] == STEPS[0] and set(steps) < set(STEPS), "drawn again where it has changed, and only there"
    assert stages[0].histogram_value.num == 4
    images = events.Images("morpho/seed_map")
    assert images and images[0].encoded_image_string.startswith(b"\x89PNG")
    assert "morpho/seeds/text_summary" in tags["tensors"]
    (layout,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    parsed = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    assert [category.title for category in parsed.category] == ["growth", "health"]


def wandb_records(data: bytes) -> list:
    """Messages of an offline file, parsed by W&B's own classes.

    The file is a LevelDB log: blocks of 32 KiB, each fragment with its checksum, length and kind (1 whole, 2 first,
    3 middle, 4 last), after a header of seven bytes.
    """
    from wandb.proto import wandb_internal_pb2

    place, whole, found = 7, b"", []
    while place + 7 <= len(data):
        left = -place % 32768
        if 0 < left < 7:  # too small for a fragment: padding
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


@pytest.mark.slow
def test_wandbs_offline_files_hold_scalars_histograms_map_and_table(together):
    root, _, figures = need(together, "wandb")
    (path,) = root.glob("wandb/offline-run-*/*.wandb")
    history = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in wandb_records(path.read_bytes())
        if record.WhichOneof("record_type") == "history"
    ]
    values = [float(row["morpho/run/parameters"]) for row in history if "morpho/run/parameters" in row]
    assert values == [f["parameters"] for f in figures]
    flat = str(history)
    assert "histogram" in flat and "images/separated" in flat and "table-file" in flat
    assert list(root.glob("wandb/offline-run-*/files/media/images/morpho/seed_map_*.png"))


@pytest.mark.slow
def test_mlflows_store_holds_scalars_map_and_table(together):
    root, logger, figures = need(together, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    history = client.get_metric_history(logger.run_id, "morpho/run/parameters")
    assert [metric.value for metric in sorted(history, key=lambda m: m.step)] == [f["parameters"] for f in figures]
    names = [path.name for path in (root / "art").rglob("*") if path.is_file()]
    assert "seeds.md" in names and any(name.startswith("morpho_seed_map") and name.endswith(".png") for name in names)


# ---------------------------------------------------------------- loggers by what they offer
class Experiment:
    """An experiment in the manner of Comet's."""

    def __init__(self):
        self.got: dict[str, list] = {"histogram": [], "image": []}

    def log_histogram_3d(self, values, name, step):
        self.got["histogram"].append((name, step))

    def log_image(self, image, name, step):
        self.got["image"].append((name, image.shape, step))


class Broken(Experiment):
    def log_histogram_3d(self, values, name, step):
        raise OSError("no network")


class OwnLogger(Logger):
    """A logger that nobody knows: scalars, and whatever its experiment offers."""

    name, version, root_dir, log_dir = "own", 0, None, None

    def __init__(self, experiment=None):
        super().__init__()
        self.given = experiment
        self.scalars: set[str] = set()

    @property
    def experiment(self):
        return self.given

    def log_metrics(self, metrics, step=None):
        self.scalars |= metrics.keys()

    def log_hyperparams(self, params, *args, **kwargs): ...


def test_an_unknown_logger_is_given_what_it_offers(tmp_path):
    logger, plain = OwnLogger(Experiment()), OwnLogger()
    fit(tmp_path, [logger, plain], epochs=2)
    got = logger.experiment.got
    assert ("morpho/seeds/alpha", 9) in got["histogram"]
    assert got["image"][0][0] == "morpho/seed_map" and got["image"][0][1][2] == 3
    assert "morpho/run/parameters" in plain.scalars


def test_a_logger_that_fails_is_left_out_and_the_training_goes_on(tmp_path):
    with pytest.warns(UserWarning, match="OwnLogger took no histogram.*no network") as caught:
        trainer, _ = fit(tmp_path, OwnLogger(Broken()), epochs=2)
    assert trainer.global_step == 20
    assert sum("took no histogram" in str(w.message) for w in caught) == 1


def test_a_run_without_a_logger_has_its_figures_for_other_callbacks(tmp_path):
    trainer, _ = fit(tmp_path, False, epochs=2)
    assert set(MONITORED) <= set(trainer.callback_metrics)
    assert {name.removeprefix("morpho/run/") for name in MONITORED} <= set(RUN_FIGURES)


def test_minimal_logs_the_run_alone_and_nothing_where_logging_is_off(tmp_path):
    logger = OwnLogger(Experiment())
    fit(tmp_path, logger, level="minimal", epochs=2)
    assert {name.rsplit("/", 1)[0] for name in logger.scalars if "morpho" in name} == {"morpho/run"}
    assert logger.experiment.got == {"histogram": [], "image": []}


# ---------------------------------------------------------------- how many
def deep_net(layers: int, width: int) -> nn.Sequential:
    inner = [part for _ in range(layers) for part in (nn.ReLU(), nn.Linear(width, width))]
    return nn.Sequential(nn.Linear(8, width), *inner, nn.ReLU(), nn.Linear(width, 3))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["minimal", "standard", "full"])
@pytest.mark.parametrize(("layers", "width", "seeds"), [(4, 1024, 1024), (150, 8, 2)])
def test_thousands_of_seeds_or_hundreds_of_layers_never_mean_thousands_of_series(tmp_path, level, layers, width, seeds):
    logger = OwnLogger(Experiment())
    options = {"layers": LayersConfig(num_seeds=seeds, exclude=["net.0", f"net.{2 * layers + 2}"])}
    _, callback = fit(tmp_path, logger, level=level, net=deep_net(layers, width), epochs=2, **options)
    assert callback.report.seeds == layers * seeds
    assert len({name for name in logger.scalars if name.startswith("morpho/")}) <= MOST_SERIES[level]
    assert len({name for name, _ in logger.experiment.got["histogram"]}) <= 5
    for _, (height, width_, _), _ in logger.experiment.got["image"]:
        assert height * width_ < 2**20


def transition(layer, chunk=0, reason="one round"):
    change = Transition(
        layer=layer,
        chunk=chunk,
        generation=0,
        blueprint="mlp",
        source=Stage.DORMANT,
        target=Stage.LOADING,
        reason=reason,
    )
    return Event(tick=1, step=1, transition=change)


def test_events_that_belong_together_take_one_line():
    events = [
        transition("a", 0),
        transition("a", 1),
        transition("b"),
        Refusal(tick=1, step=1, layer="c", reason="late"),
    ]
    assert event_lines(events) == [
        "a: 2 seeds DORMANT -> LOADING (one round)",
        "b: 1 seed DORMANT -> LOADING (one round)",
        "c: not grown (late)",
    ]


def test_lines_stay_few_when_hundreds_of_layers_change():
    events = [transition(f"layer{i}", chunk) for i in range(200) for chunk in range(3)]
    assert event_lines(events) == ["200 layers, layer0 ... layer199: 600 seeds DORMANT -> LOADING (one round)"]
    events = [transition(f"layer{i}", reason=f"reason {i}") for i in range(200)]
    lines = event_lines(events)
    assert (
        len(lines) == MOST_LINES
        and lines[-1].startswith("189 layers, ")
        and lines[-1].endswith("189 more kinds of events, see the event log")
    )


def test_seed_map_shows_the_stage_of_each_seed(tmp_path):
    stage = np.array([Stage.DORMANT, Stage.ACTIVE, Stage.FOSSILIZED], np.uint8)
    seeds = {"stage": stage, "alpha": np.array([0, 0.5, 1], np.float32)}
    layer = LayerFigures(name="a", on=True, stages={}, values={}, seeds=seeds)
    picture = seed_map([layer, layer])
    cell = picture.shape[1] // 3
    colours = [tuple(picture[cell // 2, cell // 2 + i * cell]) for i in range(3)]
    assert colours[0] == (225, 225, 225) and colours[2] == (230, 159, 0) and len(set(colours)) == 3
    assert colours[1][2] > colours[1][0], "live seeds are blue"
    assert picture.shape[0] == 3 * cell, "two blocks and a gap"


# ---------------------------------------------------------------- progress bars
class OwnBar(TQDMProgressBar):
    """A user's bar, with a column and an entry named like one of ours."""

    def __init__(self):
        super().__init__()
        self.seen: list[dict] = []

    def get_metrics(self, trainer, pl_module):
        items = super().get_metrics(trainer, pl_module) | {"mine": 1, "seeds": "the user's"}
        items.pop("v_num", None)
        return items


class Spy(L.Callback):
    def __init__(self):
        self.seen: list[dict] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(dict(trainer.progress_bar_callback.get_metrics(trainer, pl_module)))


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_bars_show_seeds_and_the_last_event_while_a_fit_runs(tmp_path, bar, capfd):
    spy, progress = Spy(), bar()
    fit(tmp_path, False, callbacks=[progress, spy], epochs=2)
    assert spy.seen[-1]["seeds"] == "4 live, 0 kept"
    assert spy.seen[-1]["growth"] == "4 loading @10"
    assert list(spy.seen[-1])[-2:] == ["seeds", "growth"], "the user's own stand first"
    assert "get_metrics" not in vars(progress), "the bar is as it was"
    printed = capfd.readouterr()
    assert "4 live" in printed.out + printed.err


def test_entries_of_a_users_own_bar_stay(tmp_path):
    spy = Spy()
    fit(tmp_path, False, callbacks=[OwnBar(), spy], epochs=2)
    assert spy.seen[-1]["mine"] == 1 and spy.seen[-1]["seeds"] == "the user's" and "growth" in spy.seen[-1]
