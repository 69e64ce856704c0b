"""Run folders read back: whatever is missing, a person gets what is there, and is told what is not."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho.cli import main
from lightning_morpho.telemetry import EVENTS_FILE, append_event, read_run, write_report
from lightning_morpho.telemetry.events import EVENT_KINDS
from lightning_morpho.telemetry.happenings import happenings
from lightning_morpho.telemetry.metric_files import curve_of, read_csv_metrics
from lightning_morpho.telemetry.report.data import thinned
from lightning_morpho.telemetry.run_folders import find_run
from lightning_morpho.telemetry.run_log import METRICS_FILE
from lightning_morpho.telemetry.saved_run import lives_of
from lightning_morpho.telemetry.story import tell
from logs import PHASE1, at, fit_start, grown_run, start, tick, transition, write, write_metrics


def born(layer: str = "net.2", chunk: int = 0, step: int = 600, **more):
    return transition(layer, chunk, "DORMANT", "LOADING", step, **more)


def kept(layer: str = "net.2", chunk: int = 0, step: int = 840, **more):
    figures = {"rise": 0.5, "lower": 0.4, "batches": 9}
    return transition(
        layer, chunk, "ACTIVE", "FOSSILIZED", step, **({"figures": figures, "reason": "proven gain"} | more)
    )


def active(layer: str = "net.2", chunk: int = 0, step: int = 720, **more):
    return transition(layer, chunk, "LOADING", "ACTIVE", step, **more)


# ---------------------------------------------------------------------------------------- finding a run
@pytest.mark.parametrize("asked", ["runs/a/csv/" + EVENTS_FILE, "runs/a/csv", "runs/a", "runs"])
def test_a_run_is_found_by_its_log_its_folder_or_any_above(asked, tmp_path):
    write(tmp_path / "runs/a/csv", [fit_start()])
    assert find_run(tmp_path / asked) == tmp_path / "runs/a/csv"


def test_a_folder_of_many_runs_lists_them(tmp_path, capsys):
    for name in "ab":
        write(tmp_path / name, [fit_start()])
    assert main(["report", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "holds 2" in told and f"{tmp_path / 'a'}" in told and f"{tmp_path / 'b'}" in told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "holds no run: no `morpho_events.jsonl`"),
        (lambda folder: None, "there is no such folder"),
        (lambda folder: write_metrics(folder, 400), "trained without MorphoCallback"),
    ],
)
def test_a_folder_without_a_run_says_what_was_expected_and_what_is_near(make, message, tmp_path, capsys):
    write(tmp_path / "other", [fit_start()])
    make(tmp_path / "mine")
    assert main(["report", str(tmp_path / "mine")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "MorphoCallback" in told or str(tmp_path / "other") in told
    assert not (tmp_path / "mine" / "report.html").exists()


# ---------------------------------------------------------------------------------------- what counts
def test_a_line_cut_off_by_a_kill_costs_that_line_alone(tmp_path):
    folder = write(tmp_path, [fit_start(), born(), active()])
    with (folder / EVENTS_FILE).open("a") as file:
        file.write('{"event": "transition", "step": 84')
    assert [life.stage for life in read_run(folder).lives] == ["ACTIVE"]
    append_event(folder / EVENTS_FILE, kept())  # the run goes on after it
    assert [life.stage for life in read_run(folder).lives] == ["FOSSILIZED"]


@pytest.mark.parametrize("remains", ["3", "[]", '{"event": "tick"}', '{"step": 3}', '"a"', "null"])
def test_remains_of_a_line_that_are_valid_json_are_left_out(remains, tmp_path):
    folder = write(tmp_path, [fit_start(), born()])
    with (folder / EVENTS_FILE).open("a") as file:
        file.write(remains + "\n")
    assert len(read_run(folder).entries) == 2


def test_what_a_resumed_run_did_again_is_not_counted_twice(tmp_path):
    folder = tmp_path
    for entry in [fit_start(), born(), active(), kept(), fit_start(600), active(step=760), kept(step=880)]:
        append_event(folder / EVENTS_FILE, entry)
    log = read_run(folder)
    (life,) = log.lives
    assert [(spell.stage, spell.start, spell.end) for spell in life.spells] == [
        ("LOADING", 600, 760),
        ("ACTIVE", 760, 880),
        ("FOSSILIZED", 880, None),
    ]
    assert log.replaced == 2 and "resumed 1 time" in tell(log)[0]


def test_a_run_begun_anew_in_the_same_folder_replaces_the_old_one(tmp_path):
    for entry in [fit_start(), born("old"), fit_start(), born("new")]:
        append_event(tmp_path / EVENTS_FILE, entry)
    assert [life.layer for life in read_run(tmp_path).lives] == ["new"]


def test_a_log_that_begins_in_the_middle_knows_seeds_from_then_on(tmp_path):
    folder = write(tmp_path, [fit_start(680), kept()])
    (life,) = read_run(folder).lives
    assert [(spell.stage, spell.start) for spell in life.spells] == [("ACTIVE", 680), ("FOSSILIZED", 840)]
    write_report(folder)
    assert "resumed at step 680" in (folder / "report.html").read_text()


def test_what_programs_wrote_for_programs_is_no_happening():
    deferred = {"event": "deferred", "tick": 1, "step": 40, "layer": "net.2", "chunk": 0, "reason": "not measured yet"}
    decided = {"event": "decided", "tick": 1, "step": 40, "observation": {}, "decisions": []}
    told = happenings([fit_start(), decided, deferred, tick(40)])
    assert [str(happening) for happening in told] == ["step 40: net.2: deferred (not measured yet)"]


def test_two_generations_of_a_chunk_are_two_lives():
    culled = transition("net.2", 0, "ACTIVE", "CULLED", 800)
    entries = [
        born(),
        active(),
        culled,
        transition("net.2", 0, "CULLED", "DORMANT", 900),
        born(step=1000, generation=1),
    ]
    first, second = lives_of(entries)
    assert (first.stage, first.spells[-1].end, first.living) == ("CULLED", 900, False)
    assert (second.name, second.stage, second.living) == ("net.2[0] #1", "LOADING", True)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(allow_nan=True)), max_size=60))
def test_steps_of_a_curve_rise_whatever_was_written(points):
    curve = curve_of((step, value, None) for step, value in points)
    if curve is not None:
        assert list(curve.steps) == sorted(set(curve.steps))
        assert curve.steps[-1] <= points[-1][0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(6, 60))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values, most):
    chosen = thinned(values, most)
    assert chosen == sorted(set(chosen)) and len(chosen) <= max(most, 1)
    assert {0, len(values) - 1} <= set(chosen)
    assert min(values[i] for i in chosen) == min(values) and max(values[i] for i in chosen) == max(values)


# ---------------------------------------------------------------------------------------- metrics
def test_metrics_of_csv_count_steps_done_and_leave_out_what_is_cut(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,val_loss,note\n0,39,0.5,x\n1,79,nan,\n1,79,0.25,\n2,11")
    curve = read_csv_metrics(path)["val_loss"]
    assert (curve.steps, curve.values, curve.epochs) == ((40, 80), (0.5, 0.25), (1, 2))


def test_metrics_lie_beside_the_log_or_in_another_loggers_folder(tmp_path):
    write(tmp_path / "wandb", [fit_start()])
    write_metrics(tmp_path / "csv", 400)
    log = read_run(tmp_path)
    assert log.metrics["val_acc"].steps[-1] == 400 and log.source == "metrics.csv"


def test_metrics_of_tensorboard_are_read(tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(tmp_path))
    for step in (39, 79):
        writer.add_scalar("val_loss", 1 / (step + 1), step)
        writer.add_scalar("epoch", 0, step)
    writer.close()
    log = read_run(write(tmp_path, [fit_start()]))
    assert log.source == "TensorBoard"
    assert log.metrics["val_loss"].steps == (40, 80) and "epoch" not in log.metrics
    assert log.metrics["val_loss"].values == pytest.approx((1 / 40, 1 / 80))


def test_without_a_logger_what_the_run_wrote_itself_are_the_curves(tmp_path):
    lines = [at("metrics", step, values={"val_loss": 10 / step, "gone": None}) for step in (40, 80)]
    log = read_run(write(tmp_path, [fit_start(), *lines, tick(80, added_parameters=5.0, credit=None)]))
    assert log.metrics["val_loss"].values == (0.25, 0.125) and log.metrics["val_loss"].epochs == (1, 2)
    assert set(log.metrics) == {"val_loss", "morpho/run/added_parameters"} and log.source == METRICS_FILE


def test_a_logger_that_lost_the_first_half_of_a_resumed_run_is_completed(tmp_path):
    lines = [at("metrics", step, values={"val_loss": 0.5}) for step in (40, 80, 120)]
    (tmp_path / "metrics.csv").write_text("epoch,step,val_loss\n1,79,0.4\n1,99,0.3\n")
    curve = read_run(write(tmp_path, [fit_start(), *lines])).metrics["val_loss"]
    assert (curve.steps, curve.values) == ((40, 80, 100, 120), (0.5, 0.4, 0.3, 0.5))


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ([], None),
        ([start({})], None),
        ([start({}), at("end", 400, outcome="finished")], "finished"),
        ([start({}), at("end", 400, outcome="KeyboardInterrupt: "), start({}, 400)], None),
    ],
)
def test_a_run_says_how_it_ended_if_it_did(lines, outcome, tmp_path):
    assert read_run(write(tmp_path, [fit_start(), *lines])).outcome == outcome


def test_time_between_two_fits_is_not_time_of_the_run(tmp_path):
    again = [line | {"time": line["time"] + 86_400} for line in (start({}, 400), tick(800))]
    assert read_run(write(tmp_path, [fit_start(), start({}), tick(400), *again])).seconds == pytest.approx(8)


# ---------------------------------------------------------------------------------------- the story
def test_the_story_names_what_grew_when_and_what_it_was_worth(tmp_path):
    entries = [
        fit_start(),
        start({"net.2": 2}, host="ConvNet", parameters=338),
        tick(2000, added_parameters=5000),
        born(reason="15%"),
        born(chunk=1, reason="15%"),
    ]
    entries += [active(), active(chunk=1), kept(), transition("net.2", 1, "ACTIVE", "CULLED", 840, reason="no gain")]
    write_metrics(tmp_path, 2000)
    story = " ".join(tell(read_run(write(tmp_path, entries))))
    for part in (
        "ConvNet (338 parameters) trained for 2,000 steps (50 epochs) in 20 s on cpu.",
        "1 of its 2 modules could grow, with 2 seeds in them.",
        "At step 600, 2 seeds germinated in `net.2` as span (15%).",
        "1 was kept (proven gain) and 1 culled (no gain).",
        "without it the held-out loss would rise by 0.5 (95% sure: by more than 0.4)",
        "from 338 to 5,338 parameters (15.8 times)",
        "The best `val_acc` was 0.84, at step 2,000; before anything grew it was 0.6364.",
    ):
        assert part in story, story


REFUSED = {"event": "refused", "tick": 1, "step": 40, "layer": "a", "reason": "the rate has decayed"}


@pytest.mark.parametrize("entries", [[], [fit_start()], [fit_start(), REFUSED]])
def test_a_run_without_germination_says_why(entries, tmp_path):
    folder = write(tmp_path, entries)
    (folder / EVENTS_FILE).touch()
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "Nothing grew" in page
    assert ("the rate has decayed" in page) == (REFUSED in entries)


@pytest.mark.parametrize("kind", [kind for kind in EVENT_KINDS if kind not in ("fit_start", "transition")])
def test_every_kind_of_event_has_its_sentence(kind, tmp_path):
    """Else a reader of the report does not learn that it happened."""
    told = {"layer": "net.4", "chunk": 0, "reason": "the reason", "text": "the finding", "figures": {}}
    more = [{"event": kind, "tick": 3, "step": step, **told} for step in (640, 680)]
    without = tell(read_run(write(tmp_path / "without", [fit_start(), born(step=600), born(chunk=1, step=680)])))
    story = tell(read_run(write(tmp_path / "with", [fit_start(), born(step=600), born(chunk=1, step=680), *more])))
    new = [sentence for sentence in story if sentence not in without]
    assert len(new) == 1
    assert "the reason" in new[0] or "the finding" in new[0]
    assert "2 times" in new[0] or "640 and 680" in new[0]


def test_the_bound_is_told_with_the_confidence_that_it_holds_with(tmp_path):
    judged = kept(figures={"rise": 0.5, "lower": 0.4, "confidence": 0.99})
    story = " ".join(tell(read_run(write(tmp_path, [fit_start(), born(), active(), judged]))))
    assert "(99% sure: by more than 0.4)" in story


def test_many_rounds_are_told_in_one_sentence(tmp_path):
    sentences = tell(read_run(grown_run(tmp_path, layers=6, path=PHASE1)))
    assert sum("germinated" in sentence for sentence in sentences) == 1


# ---------------------------------------------------------------------------------------- the file
def test_the_report_is_one_file_that_names_no_server(tmp_path):
    path = write_report(grown_run(tmp_path / "run"), tmp_path / "elsewhere" / "page.html")
    page = path.read_text(encoding="utf-8")
    assert len(page) < 1_500_000
    assert "default-src 'none'" in html.unescape(page)
    assert not re.search(r"<(?:link|img|iframe|script)[^>]*(?:src|href)=", page)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_name_in_the_log_is_text_in_the_page(tmp_path):
    name = "</script><script>alert(1)</script>"
    page = write_report(write(tmp_path, [fit_start(), start({name: 1}), born(name)])).read_text()
    assert "<script>alert" not in page


def test_a_report_that_cant_be_written_is_an_error_of_the_command(tmp_path, capsys):
    folder = write(tmp_path / "run", [fit_start()])
    assert main(["report", str(folder), "--out", str(folder / EVENTS_FILE / "page.html")]) == 2
    assert "morpho report:" in capsys.readouterr().err


def test_settings_that_differ_from_the_default_are_marked(tmp_path):
    page = write_report(write(tmp_path, [fit_start(), start({"net.0": 4})])).read_text()
    changed = re.findall(r'class="changed"><dt><code>([^<]*)</code></dt><dd>([^<]*)<', page)
    assert changed == [("num_seeds", "4")]
