"""Statistics against numpy in double precision, the event log, and the table of seeds."""

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lightning_morpho import ChunkManager, ChunkStatistics, Stage
from lightning_morpho.layers import Transition
from lightning_morpho.telemetry import Event, SeedRecord, append_event, read_events, seed_table
from lightning_morpho.telemetry.functional import Moments, add_sample, merge_moments


def reference(sample: np.ndarray, chunks: int) -> dict[str, np.ndarray]:
    """Per chunk: mean, variance and share of silent features of ``(M, D)`` values."""
    sample = sample.astype(np.float64)
    parts = np.array_split(np.arange(sample.shape[1]), chunks)
    return {
        "mean": np.array([sample.mean(0)[p].mean() for p in parts]),
        "variance": np.array([sample.var(0)[p].mean() for p in parts]),
        "silent": np.array([(sample.max(0)[p] <= 0).mean() for p in parts]),
        "activation_norm": np.array([np.sqrt((sample[:, p] ** 2).sum(1).mean()) for p in parts]),
    }


def check(statistics, expected, **tolerance):
    computed = statistics.compute()
    assert set(computed) == {"mean", "variance", "silent", "activation_norm"}
    for name, values in expected.items():
        np.testing.assert_allclose(computed[name].numpy(), values, err_msg=name, **tolerance)


# ---------------------------------------------------------------- statistics
@given(st.integers(1, 12), st.data())
def test_statistics_equal_numpys_whatever_the_chunks_and_the_batches(features, data):
    chunks = data.draw(st.integers(1, features))
    sizes = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    samples = [rng.normal(-1, 2, (size, features)).astype(np.float32) for size in sizes]
    statistics = ChunkStatistics(ChunkManager(features, chunks))
    for sample in samples:
        statistics.update(torch.from_numpy(sample))
    # float32 sums of at most 42 values of order 1: errors of a few 1e-7.
    check(statistics, reference(np.concatenate(samples), chunks), rtol=1e-5, atol=2e-6)


def test_small_variance_at_a_large_mean_is_not_lost():
    rng = np.random.default_rng(0)
    sample = rng.normal(1000, 0.01, (64, 500, 4)).astype(np.float32)
    statistics = ChunkStatistics(ChunkManager(4, 2))
    for batch in sample:
        statistics.update(torch.from_numpy(batch))
    expected = reference(sample.reshape(-1, 4), 2)
    assert expected["variance"] == pytest.approx(1e-4, rel=0.05)
    # A running float32 mean near 1000 is off by at most 3e-5 a merge: squared, 1e-9 of 1e-4.
    check(statistics, {"variance": expected["variance"]}, rtol=1e-3)
    check(statistics, {"mean": expected["mean"]}, rtol=1e-6)


def test_many_updates_of_unequal_size_do_not_drift():
    rng = np.random.default_rng(1)
    samples = [rng.normal(i / 100, 1, (1 + i % 5, 3)).astype(np.float32) for i in range(1000)]
    statistics = ChunkStatistics(ChunkManager(3, 1))
    for sample in samples:
        statistics.update(torch.from_numpy(sample))
    # A thousand float32 merges, each good to 6e-8, errors of random sign.
    check(statistics, reference(np.concatenate(samples), 1), rtol=1e-4)


def test_leading_axes_are_positions():
    x = torch.randn(2, 3, 4, 6)
    together, flat = (ChunkStatistics(ChunkManager(6, 4)) for _ in range(2))
    together.update(x)
    flat.update(x.reshape(24, 6))
    for name, values in together.compute().items():
        assert torch.equal(values, flat.compute()[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_activations_of_any_precision_are_taken(dtype):
    sample = np.random.default_rng(0).integers(-8, 8, (32, 4)).astype(np.float32)
    statistics = ChunkStatistics(ChunkManager(4, 2))
    statistics.update(torch.from_numpy(sample).to(dtype))
    # Small integers are exact in every type; the moments are formed in float32 at least.
    check(statistics, reference(sample, 2), rtol=1e-6, atol=1e-6)


def test_feature_is_silent_only_if_no_batch_has_raised_it_above_zero():
    statistics = ChunkStatistics(ChunkManager(4, 2))
    statistics.update(torch.tensor([[-1.0, 0.0, 0.0, 1.0]]))
    statistics.update(torch.tensor([[2.0, 0.0, 0.0, -1.0]]))
    assert statistics.compute()["silent"].tolist() == [0.5, 0.5]


@pytest.mark.filterwarnings("ignore:.*compute.*before the.*update:UserWarning")
@pytest.mark.parametrize("case", ["never", "reset", "empty batch"])
def test_what_was_not_measured_is_nan(case):
    statistics = ChunkStatistics(ChunkManager(5, 2))
    if case == "empty batch":
        statistics.update(torch.zeros(0, 5))
    if case == "reset":
        statistics.update(torch.ones(3, 5))
        assert not statistics.compute()["mean"].isnan().any()
        statistics.reset()
    for name, values in statistics.compute().items():
        assert values.shape == (2,) and values.isnan().all(), name


def stacked(*ranks: ChunkStatistics) -> ChunkStatistics:
    """A metric in the state that torchmetrics' synchronisation leaves: one row a rank."""
    joined = ChunkStatistics(ranks[0].chunks)
    joined.update(torch.zeros(1, ranks[0].chunks.num_features))
    for name in joined._defaults:
        setattr(joined, name, torch.stack([getattr(rank, name) for rank in ranks]))
    return joined


@pytest.mark.parametrize("sizes", [(10, 7), (10, 0), (0, 7), (3, 4, 5)])
def test_ranks_together_have_the_statistics_of_all_samples(sizes):
    rng = np.random.default_rng(2)
    samples = [rng.normal(10 * i - 5, 1 + i, (size, 5)).astype(np.float32) for i, size in enumerate(sizes)]
    ranks = []
    for sample in samples:
        rank = ChunkStatistics(ChunkManager(5, 2))
        rank.update(torch.from_numpy(sample))
        ranks.append(rank)
    # float32 sums of at most 17 values of order 10.
    check(stacked(*ranks), reference(np.concatenate(samples), 2), rtol=1e-5, atol=1e-5)


def test_ranks_that_saw_nothing_give_nan():
    ranks = [ChunkStatistics(ChunkManager(5, 2)) for _ in range(2)]
    assert all(values.isnan().all() for values in stacked(*ranks).compute().values())


def test_counts_are_exact_integers():
    statistics = ChunkStatistics(ChunkManager(1, 1))
    statistics.count = torch.tensor(2**40)
    statistics.update(torch.zeros(3, 1))
    assert statistics.count.dtype == torch.int64 and statistics.count.item() == 2**40 + 3


@given(st.integers(0, 6), st.integers(0, 6))
def test_merged_moments_are_those_of_both_samples(m, n):
    rng = np.random.default_rng(10 * m + n)
    a, b = rng.normal(3, 1, (m, 2)), rng.normal(-3, 2, (n, 2))

    def moments(sample):
        return add_sample(Moments.none(2, torch.float64), torch.from_numpy(sample))

    count, mean, m2, largest = merge_moments(moments(a), moments(b))
    both = np.concatenate([a, b])
    assert count.item() == m + n
    if len(both):
        np.testing.assert_array_equal(largest, both.max(0))
        # The weight of the second sample is a float32 quotient: good to 6e-8, times a shift of at most 10.
        np.testing.assert_allclose(mean, both.mean(0), rtol=0, atol=1e-6)
        np.testing.assert_allclose(m2, ((both - both.mean(0)) ** 2).sum(0), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- events
def event(source="ACTIVE", target="CULLED", tick=4, chunk=1, generation=0, reason="no gain", **figures) -> Event:
    transition = Transition(
        layer="net.0",
        chunk=chunk,
        generation=generation,
        blueprint="mlp",
        source=Stage[source],
        target=Stage[target],
        reason=reason,
        figures=figures,
    )
    return Event(tick=tick, step=10 * tick, transition=transition)


def test_event_log_gives_back_what_was_written(tmp_path):
    path = tmp_path / "run" / "deep" / "events.jsonl"
    entries = [event(rise=math.nan, lower=-0.5).to_dict(epoch=3), {"event": "fit_start"}, event(reason="é\n").to_dict()]
    for entry in entries:
        append_event(path, entry)
    assert list(read_events(path)) == entries
    assert entries[0] == {
        "event": "transition",
        "tick": 4,
        "step": 40,
        "epoch": 3,
        "layer": "net.0",
        "chunk": 1,
        "generation": 0,
        "blueprint": "mlp",
        "from": "ACTIVE",
        "to": "CULLED",
        "reason": "no gain",
        "figures": {"rise": None, "lower": -0.5},
    }


def strict(line: str):
    """Parse as other languages do: NaN and Infinity are no JSON."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize(
    "figure",
    [
        math.nan,
        math.inf,
    ],
)
def test_event_log_is_valid_json_for_every_reader(figure, tmp_path):
    append_event(tmp_path / "events.jsonl", event(rise=figure).to_dict())
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert strict(line)["figures"] == {"rise": None}


def test_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    for tick in (1, 2):
        append_event(path, event(tick=tick).to_dict())
    path.write_text(path.read_text()[:-7])
    assert [entry["tick"] for entry in read_events(path)] == [1]


def test_log_of_a_run_that_was_killed_and_resumed_can_be_read(tmp_path):
    path = tmp_path / "events.jsonl"
    for tick in (1, 2):
        append_event(path, event(tick=tick).to_dict())
    path.write_text(path.read_text()[:-7])
    append_event(path, event(tick=3).to_dict())
    append_event(path, event(tick=4).to_dict())
    assert [entry["tick"] for entry in read_events(path)] == [1, 3, 4]


# ---------------------------------------------------------------- records and table
def test_record_follows_the_seed_to_its_end_and_keeps_the_figures():
    record = SeedRecord.born(event("DORMANT", "LOADING", tick=2, reason="one round"))
    assert (record.key, record.born_tick, record.born_step, record.stage) == (("net.0", 1, 0), 2, 20, "LOADING")
    record = record.updated(event("LOADING", "ACTIVE", tick=3, reason="warm-up over"))
    assert (record.stage, record.tick, record.born_tick) == ("ACTIVE", 3, 2)
    record = record.updated(event("ACTIVE", "CULLED", tick=9, rise=-0.5, lower=-1.0))
    assert (record.stage, record.tick, record.reason) == ("CULLED", 9, "no gain")
    assert record.updated(event("CULLED", "DORMANT", tick=12)) == record
    assert record.figures == {"rise": -0.5, "lower": -1.0}


def record(chunk=0, *, layer="net.0", generation=0, reason="kept", **figures) -> SeedRecord:
    return SeedRecord(
        layer=layer,
        chunk=chunk,
        generation=generation,
        blueprint="mlp",
        born_tick=1,
        born_step=75,
        stage="FOSSILIZED",
        tick=5,
        reason=reason,
        figures=figures,
    )


def printed(records, width: int = 200, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(seed_table(records, **options))
    return console.file.getvalue().splitlines()


def rows(records, **options) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in printed(records, **options) if line.startswith("net.")]


def test_table_has_one_row_a_seed():
    seeds = [
        record(0, rise=0.25, lower=0.125),
        record(1, generation=2, rise=-0.25, lower=math.nan),
        record(2),
    ]
    assert rows(seeds) == [
        ["net.0[0]", "mlp", "75", "+0.250 (> +0.125)", "FOSSILIZED (kept)"],
        ["net.0[1] #2", "mlp", "75", "-0.250 (no bound)", "FOSSILIZED (kept)"],
        ["net.0[2]", "mlp", "75", "not measured", "FOSSILIZED (kept)"],
    ]


def test_table_names_every_seed_and_its_reason_in_80_columns():
    """Names of seeds cut short, of which several begin alike, would say nothing."""
    name, reason = "net.encoder.layer1.0.downsample.0", "proven gain of the group, judged with net.stem[0], net.head[0]"
    _, head, _, *body = printed([record(0, layer=name, reason=reason, rise=0.25, lower=0.125)], width=80)
    assert "".join(line[: head.index("grew")].strip() for line in body) == f"{name}[0]"
    assert " ".join(line[head.index("stage") :].strip() for line in body) == "FOSSILIZED (proven gain of the group)"


def test_table_leaves_the_rest_out_and_says_how_many():
    seeds = [record(i) for i in range(45)]
    assert len(rows(seeds)) == 40
    assert "5 more seeds are in the event log." in printed(seeds)[-1]
    assert [row[0] for row in rows(seeds, most=2)] == ["net.0[0]", "net.0[1]"]
    assert "more seeds" not in "".join(printed(seeds[:40]))


def test_table_of_no_seeds_says_so():
    assert rows([]) == []
    assert "No seed germinated in this fit." in printed([])[-1]


def test_reason_is_printed_as_it_is():
    assert rows([record(reason="asked for by [ops]")])[0][-1] == "FOSSILIZED (asked for by [ops])"
