"""Which channels a rank holds."""

import hypothesis.strategies as st
import torch
from hypothesis import given

from fxfuse.parallel.split import Split


def test_matching_halves_of_a_packed_product() -> None:
    packed = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    split = Split((4, 4), 2)
    assert split.local(packed, 0, 0).tolist() == [0, 1, 10, 11]
    assert split.local(packed, 0, 1).tolist() == [2, 3, 12, 13]


def test_a_rest_is_filled_with_zeros() -> None:
    split = Split((5,), 4)
    held = [split.local(torch.arange(1, 6), 0, rank).tolist() for rank in range(4)]
    assert held == [[1, 2], [3, 4], [5, 0], [0, 0]]
    assert split.padding == 3


def test_a_share_has_memory_of_its_own() -> None:
    whole = torch.zeros(8, 2)
    assert Split((8,), 2).local(whole, 0, 0).untyped_storage().nbytes() == whole.nbytes // 2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 1))
def test_whole_undoes_local(sizes: list[int], ranks: int, dim: int) -> None:
    split = Split(tuple(sizes), ranks)
    shape = [3, 3]
    shape[dim] = sum(sizes)
    whole = torch.arange(shape[0] * shape[1]).reshape(shape)
    held = [split.local(whole, dim, rank) for rank in range(ranks)]
    assert torch.equal(split.whole(held, dim), whole)
