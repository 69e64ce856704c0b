"""Flag files are edited while people and runs read them: a lost comment or half a file would cost trust."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho.cli.yaml_edit import set_value, write_atomically

FILE = """# Flags of the search team.
enabled: true  # kill switch
percentage: 5.0   # ask before raising
allowlist: [a, "b*"]  # flow
blocklist:  # in lines
  - old.*   # since May

  # the next one is flaky
  - flaky
flags:
  fused_kernels:
    enabled: false  # later
# the end
"""


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    old, new = before.splitlines(), after.splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


@pytest.mark.parametrize(
    ("path", "value", "gone", "come"),
    [
        (["enabled"], False, ["enabled: true  # kill switch"], ["enabled: false  # kill switch"]),
        (
            ["percentage"],
            25,
            ["percentage: 5.0   # ask before raising"],
            ["percentage: 25   # ask before raising"],
        ),
        (
            ["allowlist"],
            ["a", "b*", "c"],
            ['allowlist: [a, "b*"]  # flow'],
            ['allowlist: ["a", "b*", "c"]  # flow'],
        ),
        (["blocklist"], ["old.*", "flaky", "new"], [], ['  - "new"']),
        (["blocklist"], ["flaky"], ["  - old.*   # since May"], []),
        (["flags", "fused_kernels", "percentage"], 50, [], ["    percentage: 50"]),
        (["salt"], "x: y", [], ['salt: "x: y"']),
        (["ramp", "guard", "errors"], 0, [], ["ramp:", "  guard:", "    errors: 0"]),
    ],
)
def test_only_the_line_in_question_changes(path, value, gone, come):
    after = set_value(FILE, path, value)
    assert changed_lines(FILE, after) == (gone, come)


def test_emptying_a_list_in_lines_keeps_the_rest():
    after = set_value(FILE, ["blocklist"], [])
    assert yaml.safe_load(after) == {**yaml.safe_load(FILE), "blocklist": []}
    assert "# the end" in after and "# kill switch" in after


@pytest.mark.parametrize(
    "text", ["", "# only a comment", "{}", "{a: 1}", "a: 1", "a:\n  b: 1", "enabled:\nb: 2\n", "b: 2\nenabled:"]
)
def test_key_is_added_or_filled_in_every_form_of_file(text):
    after = set_value(text, ["enabled"], False)
    assert yaml.safe_load(after) == {**(yaml.safe_load(text) or {}), "enabled": False}


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.one_of(st.booleans(), st.integers(), st.text(), st.lists(st.text(), max_size=3), st.none()),
    ),
    st.booleans(),
    st.sampled_from("abcde"),
    st.one_of(st.booleans(), st.floats(0, 100), st.text(), st.lists(st.text(min_size=1), max_size=3, unique=True)),
)
def test_result_says_what_was_asked_and_nothing_else(content, flow, key, value):
    text = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True)
    try:
        after = set_value(text, [key], value)
    except ValueError as error:  # refusing is fine, writing something else is not
        assert "nothing was written" in str(error)
        return
    assert yaml.safe_load(after) == {**content, key: value}


def test_scalar_on_the_way_is_refused():
    with pytest.raises(ValueError, match="`enabled` must be a mapping to hold `x`"):
        set_value(FILE, ["enabled", "x"], 1)


def test_readers_see_the_old_or_the_new_file_never_a_part(tmp_path: Path):
    path = tmp_path / "flags.yaml"
    texts = {letter * 200_000 for letter in "ab"}
    write_atomically(path, "a" * 200_000)
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        write_atomically(path, "ab"[number % 2] * 200_000)
    stop.set()
    reader.join()
    assert seen <= texts
    assert os.listdir(tmp_path) == ["flags.yaml"]


def test_link_and_mode_survive(tmp_path: Path):
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("a: 1")
    real.chmod(0o640)
    link.symlink_to(real)
    write_atomically(link, "a: 2")
    assert link.is_symlink() and real.read_text() == "a: 2" and real.stat().st_mode & 0o777 == 0o640
