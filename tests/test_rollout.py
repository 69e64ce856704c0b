"""Who is on: precedence, cohort sizes and their permanence."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_morpho import RolloutConfig
from lightning_morpho.rollout import cohort_bucket, decide

IDS = [f"user-{i}" for i in range(10_000)]

# First 12 hex digits of `printf '<salt>:<unit>' | sha256sum`.
GOLDEN = {
    ("chunked_layers", "encoder.0"): 0x6DB107D1A0B2,
    ("other", "model"): 0x3B3E51AB4D0C,
    ("", ""): 0xE7AC0786668E,
    ("salt", "modèle/é"): 0xACB7592FEDB1,
}


@pytest.mark.parametrize("in_cohort", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_kill_switch_beats_blocklist_beats_allowlist_beats_cohort(enabled, blocked, allowed, in_cohort):
    config = RolloutConfig(
        enabled=enabled,
        blocklist=("mod*",) if blocked else ("other",),
        allowlist=("*del",) if allowed else ("other",),
        percentage=100 if in_cohort else 0,
    )
    on, reason = decide("model", config)
    if not enabled:
        assert (on, reason) == (False, "rollout is disabled")
    elif blocked:
        assert (on, reason) == (False, "on the blocklist (`mod*`)")
    elif allowed:
        assert (on, reason) == (True, "on the allowlist (`*del`)")
    else:
        assert on is in_cohort
        assert "cohort bucket" in reason


@pytest.mark.parametrize("percentage", [0, 1, 10, 25, 50, 99, 100])
def test_cohort_has_the_share_that_was_asked_for(percentage):
    on = sum(decide(unit, RolloutConfig(percentage=percentage))[0] for unit in IDS)
    low, high = stats.binom.interval(0.99, len(IDS), percentage / 100)
    if percentage in (0, 100):
        low = high = len(IDS) * percentage // 100
    assert low <= on <= high


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_raising_the_percentage_only_adds(unit, a, b):
    low, high = sorted((a, b))
    assert decide(unit, RolloutConfig(percentage=low))[0] <= decide(unit, RolloutConfig(percentage=high))[0]


def test_flags_of_different_salts_select_independent_cohorts():
    first, second = (
        [decide(unit, RolloutConfig(percentage=30, salt=salt))[0] for unit in IDS] for salt in ("one", "two")
    )
    table = [
        [sum(a is x and b is y for a, b in zip(first, second, strict=True)) for y in (True, False)]
        for x in (True, False)
    ]
    # Independent cohorts give a p-value below 0.001 once in a thousand salts; equal ones give 0.
    assert stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize(("salt", "unit"), GOLDEN)
def test_bucket_is_the_golden_one(salt, unit):
    assert cohort_bucket(salt, unit) == GOLDEN[salt, unit] / 2**48 * 100


def test_a_fresh_process_gives_the_same_answers():
    units = [*IDS[:20], "modèle/é"]
    code = (
        "import sys; from lightning_morpho.rollout import cohort_bucket as b;"
        f"print([b('chunked_layers', u) for u in {units!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert eval(done.stdout) == [cohort_bucket("chunked_layers", unit) for unit in units]


def other_pythons() -> dict[str, str]:
    """Interpreters of other versions that run on this machine, on the path and from pyenv, by version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*(shutil.which(f"python3.{n}") for n in range(8, 20)), *pyenv.glob("versions/3.*/bin/python3")]
    found = {}
    for python in filter(None, candidates):
        asked = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() != "{}.{}".format(*sys.version_info[:2]):
            found[done.stdout.strip()] = str(python)
    return found


def test_other_pythons_give_the_golden_buckets():
    """The function's own source, without the package: an old interpreter has no torch."""
    code = f"""import hashlib, sys
{inspect.getsource(cohort_bucket)}
golden = {GOLDEN!r}
sys.exit(any(cohort_bucket(*key) != digits / 2**48 * 100 for key, digits in golden.items()))
"""
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python on this machine")
    wrong = [version for version, python in pythons.items() if subprocess.run([python, "-c", code]).returncode]
    assert not wrong, f"other cohorts under Python {wrong}"


@given(st.text(), st.text())
def test_bucket_lies_below_one_hundred(salt, unit):
    assert 0 <= cohort_bucket(salt, unit) < 100


@pytest.mark.parametrize("pattern", ["net.0", "model/net.0", "*.0", "model/*"])
def test_layer_rollout_matches_the_bare_and_the_full_name(pattern):
    config = RolloutConfig(unit="layer", percentage=0, allowlist=(pattern,))
    assert decide("model/net.0", config) == (True, f"on the allowlist (`{pattern}`)")


def test_layer_rollout_matches_the_bare_name_whatever_the_models_id():
    config = RolloutConfig(unit="layer", percentage=0, allowlist=("net.0",))
    assert decide("org/model/net.0", config)[0]


def test_model_rollout_matches_the_models_id_alone():
    config = RolloutConfig(percentage=0, allowlist=("b",))
    assert not decide("a/b", config)[0]
    assert decide("b", config)[0]


def test_patterns_distinguish_upper_and_lower_case():
    assert not decide("model", RolloutConfig(percentage=0, allowlist=("MODEL",)))[0]
