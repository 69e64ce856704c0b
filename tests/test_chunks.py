"""Chunk geometry against ``numpy.array_split``, which gives the first D mod N parts one element more."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_morpho import ChunkManager
from lightning_morpho.chunks import auto_num_chunks
from lightning_morpho.grafting import blend_add, gather_chunks, scatter_chunks


@st.composite
def layouts(draw) -> tuple[ChunkManager, list[list[int]]]:
    features = draw(st.integers(1, 40))
    chunks = draw(st.integers(1, features))
    return ChunkManager(features, chunks), [part.tolist() for part in np.array_split(np.arange(features), chunks)]


def values(manager: ChunkManager, *leading: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(manager.num_features)
    return torch.randn(*leading, manager.num_features, generator=generator, dtype=torch.float64)


@given(layouts())
def test_chunks_partition_the_features_in_order(layout):
    manager, parts = layout
    assert [list(range(*manager.bounds(i))) for i in range(manager.num_chunks)] == parts
    assert [manager.chunk_of(f) for part in parts for f in part] == [i for i, part in enumerate(parts) for _ in part]
    assert manager.max_width == max(map(len, parts))
    assert manager.num_wide == sum(len(part) > len(parts[-1]) for part in parts)


@given(layouts())
def test_split_gives_the_wide_and_the_narrow_chunks_as_views(layout):
    manager, parts = layout
    x = values(manager, 2, 3)
    wide, narrow = manager.split(x)
    stacked = [*([] if wide is None else wide.unbind(-2)), *narrow.unbind(-2)]
    assert (wide is None) == (manager.num_wide == 0)
    assert len(stacked) == len(parts)
    for chunk, part in zip(stacked, parts, strict=True):
        assert torch.equal(chunk, x[..., part])
    assert narrow.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@given(layouts())
def test_concat_undoes_split_list(layout):
    manager, parts = layout
    x = values(manager, 3)
    pieces = manager.split_list(x)
    for piece, part in zip(pieces, parts, strict=True):
        assert torch.equal(piece, x[..., part])
    assert torch.equal(manager.concat(pieces), x)


@given(layouts())
def test_mask_marks_the_features_of_one_chunk(layout):
    manager, parts = layout
    for i, part in enumerate(parts):
        mask = manager.mask(i)
        assert mask.dtype == torch.bool
        assert mask.nonzero().flatten().tolist() == part


@given(layouts())
def test_reduce_mean_is_the_mean_of_each_chunk(layout):
    manager, parts = layout
    x = values(manager, 2)
    expected = np.stack([x.numpy()[:, part].mean(1) for part in parts], axis=1)
    # Both average at most 40 doubles of order 1: they agree to a few units in the last place.
    np.testing.assert_allclose(manager.reduce_mean(x).numpy(), expected, rtol=0, atol=1e-14)


@given(layouts())
def test_map_applies_the_function_to_each_chunk_with_its_index(layout):
    manager, parts = layout
    x = values(manager, 2)
    expected = x.clone()
    for i, part in enumerate(parts):
        expected[:, part] = x[:, part] * (i + 1)
    assert torch.equal(manager.map(lambda i, chunk: chunk * (i + 1), x), expected)


@given(layouts())
def test_expand_repeats_the_value_of_each_chunk(layout):
    manager, parts = layout
    expected = [float(i) for i, part in enumerate(parts) for _ in part]
    assert manager.expand(torch.arange(float(manager.num_chunks))).tolist() == expected


@given(layouts(), st.lists(st.integers(1, 3), max_size=3))
def test_gathered_chunks_are_padded_with_zeros_and_scatter_undoes_it(layout, leading):
    manager, parts = layout
    x = values(manager, *leading)
    rows = gather_chunks(x, manager)
    flat = x.reshape(-1, manager.num_features)
    assert rows.shape == (manager.num_chunks, len(flat), manager.max_width)
    for row, part in zip(rows, parts, strict=True):
        assert torch.equal(row[:, : len(part)], flat[:, part])
        assert not row[:, len(part) :].any()
    assert torch.equal(scatter_chunks(rows, manager, x.shape), x)


def test_scatter_drops_what_was_written_into_the_padding():
    manager = ChunkManager(5, 2)
    x = torch.arange(1.0, 6.0).view(1, 5)
    rows = gather_chunks(x, manager).clone()
    rows[1, :, 2] = 99.0
    assert torch.equal(scatter_chunks(rows, manager, x.shape), x)


def test_blend_adds_alpha_times_the_contribution_in_the_hosts_precision():
    host, delta = torch.tensor([1.0, 1.0], dtype=torch.bfloat16), torch.tensor([2.0, 4.0])
    blended = blend_add(host, delta, torch.tensor([0.5, 0.0]))
    assert blended.dtype == torch.bfloat16
    assert blended.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(("features", "chunks"), [(1, 1), (63, 1), (64, 1), (128, 2), (191, 2), (65_536, 1024)])
def test_automatic_layout_has_one_chunk_per_64_features(features, chunks):
    assert auto_num_chunks(features) == chunks
    assert ChunkManager(features).num_chunks == chunks


def test_automatic_layout_has_at_most_1024_chunks():
    assert auto_num_chunks(10**7) == 1024


@pytest.mark.parametrize(("features", "chunks", "named"), [(4, 5, "4 features, got 5"), (4, 0, "got 0"), (0, 1, "0")])
def test_impossible_layout_is_refused(features, chunks, named):
    with pytest.raises(ValueError, match=named):
        ChunkManager(features, chunks)


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside_the_layout_is_refused(index):
    manager = ChunkManager(7, 3)
    for use in (manager.bounds, manager.mask, manager.check_index):
        with pytest.raises(ValueError, match=rf"\[0, 2\], got {index}"):
            use(index)
    with pytest.raises(ValueError, match=r"\[0, 6\], got -1"):
        manager.chunk_of(-1)
    with pytest.raises(ValueError, match=r"\[0, 6\], got 7"):
        manager.chunk_of(7)


def test_tensor_of_another_width_is_refused():
    manager = ChunkManager(7, 3)
    for use in (manager.split, manager.split_list, manager.reduce_mean):
        with pytest.raises(ValueError, match=r"7 features, got shape \(2, 6\)"):
            use(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"\[3, 2, 2\], got \[2, 3, 2\]"):
        manager.concat([torch.zeros(2), torch.zeros(3), torch.zeros(2)])
    with pytest.raises(ValueError, match=r"\(3,\), got \(2,\)"):
        manager.expand(torch.zeros(2))
