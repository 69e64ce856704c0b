"""A run followed in the terminal: live, through a pipe, before it exists and after it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from lightning_morpho.cli import main
from lightning_morpho.telemetry import EVENTS_FILE, append_event
from lightning_morpho.telemetry.follow import Follower, Tail
from lightning_morpho.telemetry.run_log import METRICS_FILE
from lightning_morpho.telemetry.saved_run import read_run
from lightning_morpho.telemetry.terminal import RunView, stages_by_layer, state_of
from logs import at, fit_start, grown_run, start, tick, transition, write

BORN = transition("net.2", 0, "DORMANT", "LOADING", 600, reason="a plateau")


def screen(run, width: int = 120, rows: int | None = None, encoding: str = "utf-8") -> str:
    with open(os.devnull, "w", encoding=encoding) as nowhere:
        console = Console(width=width, file=nowhere, record=True, force_terminal=False)
        console.print(RunView(run, now=0.0, rows=rows))
        return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_screen_shows_figures_curve_seeds_and_events(width, tmp_path):
    text = screen(read_run(grown_run(tmp_path / "mine")), width)
    for part in ("finished", "step 8,000 of 8,000", "30,000 (from 10,000, x 3)", "best val_acc", "kept", "DORMANT ->"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("rows", [24, 50])
def test_screen_fits_the_terminal_however_many_layers_there_are(rows, tmp_path):
    text = screen(read_run(grown_run(tmp_path, layers=90)), 120, rows)
    assert len(text.splitlines()) <= rows
    assert "more layers" in text


def test_a_terminal_without_unicode_gets_ascii_marks(tmp_path):
    text = screen(read_run(grown_run(tmp_path)), encoding="ascii")
    assert "# kept" in text and "■" not in text


def test_seeds_of_a_layer_are_known_before_the_first_tick(tmp_path):
    run = read_run(write(tmp_path, [fit_start(), start({"net.2": 3}), BORN]))
    assert stages_by_layer(run) == {"net.2": {"DORMANT": 2, "LOADING": 1}}
    assert "2 dormant" in screen(run)


def test_a_run_that_writes_nothing_any_more_is_called_silent(tmp_path):
    run = read_run(write(tmp_path, [fit_start(), start({})]))
    assert state_of(run, 1010.0) == "running"
    assert state_of(run, 1000.0 + 7200) == "silent for 2 h"


# ---------------------------------------------------------------------------------------- following
def test_only_whole_lines_are_taken_and_a_file_written_anew_begins_anew(tmp_path):
    tail = Tail(tmp_path / "log")
    assert not tail.read()
    tail.path.write_text('{"event": "a", "tick": 0, "step": 0}\n{"event": "b", "ti')
    assert tail.read() and [entry["event"] for entry in tail.entries] == ["a"]
    assert not tail.read()
    with tail.path.open("a") as file:
        file.write('ck": 0, "step": 1}\n')
    assert tail.read() and [entry["event"] for entry in tail.entries] == ["a", "b"]
    tail.path.write_text('{"event": "c", "tick": 0, "step": 0}\n')
    assert tail.read() and [entry["event"] for entry in tail.entries] == ["c"]


def test_a_run_is_followed_from_before_its_folder_exists(tmp_path):
    follower = Follower(tmp_path / "runs")
    assert follower.look() is None
    folder = tmp_path / "runs" / "a" / "csv"
    append_event(folder / EVENTS_FILE, fit_start())
    first = follower.look()
    assert first is not None and first.lives == () and follower.look() is first
    append_event(folder / EVENTS_FILE, BORN)
    append_event(folder / METRICS_FILE, tick(640))
    run = follower.look()
    assert [life.stage for life in run.lives] == ["LOADING"] and run.last_step == 640


def test_of_several_runs_the_newest_is_followed(tmp_path):
    for age, name in enumerate(["new", "old"]):
        write(tmp_path / name, [fit_start()])
        os.utime(tmp_path / name / EVENTS_FILE, (1000 - age, 1000 - age))
    assert Follower(tmp_path).look().folder.name == "new"


# ---------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize(("outcome", "code"), [("finished", 0), ("KeyboardInterrupt: ", 0), ("ValueError: no", 1)])
def test_once_prints_the_state_and_its_code_says_how_the_run_ended(outcome, code, tmp_path, capsys):
    write(tmp_path, [fit_start(), start({"net.2": 1}), BORN, at("end", 700, outcome=outcome)])
    assert main(["watch", str(tmp_path), "--once"]) == code
    printed = capsys.readouterr().out
    assert outcome.strip() in printed and "net.2: 1 seed DORMANT -> LOADING (a plateau)" in printed


def test_once_without_a_run_says_what_was_expected(tmp_path, capsys):
    assert main(["watch", str(tmp_path), "--once"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--every", "0"]) == 2
    assert "`--every` must be above 0" in capsys.readouterr().err


def spawn(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "lightning_morpho.cli", "watch", str(folder), "--every", "0.1"]
    # Tests that run in the background ignore Ctrl-C, and so would the process, which a terminal starts otherwise.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed)


@pytest.mark.slow
def test_through_a_pipe_each_event_is_a_line_until_the_run_ends(tmp_path):
    with spawn(tmp_path / "run") as process:
        assert process.stdout.readline().startswith("waiting for a run")
        write(tmp_path / "run", [fit_start(), start({"net.2": 1}), BORN])
        assert process.stdout.readline() == "step 600: net.2: 1 seed DORMANT -> LOADING (a plateau)\n"
        write(tmp_path / "run", [transition("net.2", 0, "LOADING", "ACTIVE", 640), at("end", 700, outcome="finished")])
        assert process.stdout.read().splitlines() == [
            "step 640: net.2: 1 seed LOADING -> ACTIVE (because)",
            "step 700: finished",
        ]
        assert process.wait() == 0


@pytest.mark.slow
def test_ctrl_c_ends_without_a_traceback(tmp_path):
    write(tmp_path, [fit_start(), BORN])
    with spawn(tmp_path) as process:
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stdout.read()
        assert process.wait() == 0
