import math

import pytest

from fxfuse.analysis.ranking import spearman


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 100, 1000, 10000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([86, 97, 99, 100, 101], [5, 20, 28, 27, 50], 0.9),
        # Equal values share their mean rank: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
        ([1, 2, 2, 3], [1, 2, 3, 4], 3 / math.sqrt(10)),
    ],
)
def test_spearman_by_hand(one, other, expected):
    assert spearman(one, other) == pytest.approx(expected)
    assert spearman(other, one) == pytest.approx(expected)


@pytest.mark.parametrize("one", [[], [1.0], [2.0, 2.0, 2.0]])
def test_where_there_is_no_order(one):
    assert math.isnan(spearman(one, one))


def test_lengths_that_differ():
    with pytest.raises(ValueError, match="3 and 2 values"):
        spearman([1, 2, 3], [1, 2])
