"""Iterables: what a DataLoader, a data set or a generator gives, read no further than needed."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fxfuse.calibration import Calibration
from fxfuse.errors import InputError

IDS = torch.arange(60).reshape(20, 3)


def rows(batches, name: str = "input_ids") -> list[list[int]]:
    return sorted(row.tolist() for batch in batches for row in batch[name])


def sizes(batches) -> list[int]:
    return [len(next(iter(batch.values()))) for batch in batches]


@pytest.mark.parametrize(
    "batches",
    [
        list(IDS.split(5)),
        tuple(IDS.split(5)),
        [part.numpy() for part in IDS.split(5)],
        [part.numpy().astype(np.uint16) for part in IDS.split(5)],
        [(part,) for part in IDS.split(5)],
        [[part] for part in IDS.split(5)],
        [{"input_ids": part} for part in IDS.split(5)],
        [{"input_ids": part.tolist()} for part in IDS.split(5)],
        [{"input_ids": part, "labels": part, "pixel_values": None} for part in IDS.split(5)],
        DataLoader(TensorDataset(IDS), batch_size=5),
        DataLoader(IDS, batch_size=5),
        DataLoader([{"input_ids": row} for row in IDS], batch_size=5),
    ],
)
def test_batches_of_one_shape_are_divided_window_by_window(batches):
    found = Calibration.of(batches, batch_size=2)
    assert list(found.fit[0]) == ["input_ids"]
    assert found.fit[0]["input_ids"].dtype == torch.int64
    assert rows(found.batches) == IDS.tolist()
    assert (sizes(found.fit), sizes(found.held_out)) == ([5, 5, 5, 1], [4])
    assert found.source == type(batches).__name__


@pytest.mark.parametrize(
    "items", [list(IDS), IDS.unbind(), [{"input_ids": row.tolist()} for row in IDS], iter(IDS.tolist())]
)
def test_single_windows_are_put_into_batches(items):
    found = Calibration.of(items, batch_size=6)
    assert rows(found.batches) == IDS.tolist()
    assert (sizes(found.fit), sizes(found.held_out)) == ([6, 6, 4], [4])


def test_labels_are_left_out_and_so_is_text_beside_ids():
    found = Calibration.of({"input_ids": IDS, "labels": IDS})
    assert list(found.fit[0]) == ["input_ids"]
    assert found.notes == ("'labels' was left out: no labels are needed.",)
    found = Calibration.of({"input_ids": part, "name": ["a"] * 5} for part in IDS.split(5))
    assert list(found.fit[0]) == ["input_ids"]
    assert found.notes == ("name was left out: it holds text.",)


def test_tuples_of_several_are_inputs_by_place():
    found = Calibration.of((part, part + 100) for part in IDS.split(5))
    assert rows(found.batches, "0") == IDS.tolist()
    assert rows(found.batches, "1") == (IDS + 100).tolist()


def test_a_float_alone_is_an_input_by_place():
    assert list(Calibration.of(torch.randn(4, 4, 3).split(1)).fit[0]) == ["0"]


def test_batches_of_differing_shapes_stay_whole():
    batches = [torch.full((2, 3 + index), index) for index in range(10)]
    found = Calibration.of(batches)
    assert len(found.held_out) == 2
    left = sorted((batch["input_ids"] for batch in found.batches), key=lambda each: each.shape[1])
    assert all(torch.equal(*pair) for pair in zip(left, batches, strict=True))
    assert found.limit(20).tokens <= 20
    with pytest.raises(InputError, match="The first batch alone has .* tokens where 3 are asked for"):
        found.limit(3)


def test_inputs_without_windows_stay_whole():
    given = ({"input_ids": part, "position_ids": torch.zeros(3, *part.shape).long()} for part in IDS.split(5))
    found = Calibration.of(given)
    assert {batch["position_ids"].shape for batch in found.batches} == {(3, 5, 3)}


def test_an_endless_source_is_read_no_further_than_the_tokens_asked_for():
    taken = []

    def endless():
        for index in itertools.count():
            taken.append(index)
            yield (torch.arange(10).reshape(2, 5) + 10 * index)[:, : 5 - index % ragged]

    ragged = 1
    found = Calibration.of(endless(), max_tokens=34)
    assert taken == [0, 1, 2, 3]
    assert found.tokens + found.held_out_tokens == 30
    taken.clear()
    ragged = 2
    found = Calibration.of(endless(), max_tokens=34)
    assert taken == [0, 1, 2, 3]
    assert found.tokens + found.held_out_tokens == 28


def test_the_same_batch_again_and_again_is_no_data():
    with pytest.raises(InputError, match="holds one window where two different ones are needed"):
        Calibration.of([IDS[:1]] * 5)


@pytest.mark.parametrize(
    "batches, reason",
    [
        (
            [IDS, {"x": IDS}],
            "Batch 1 of the calibration data holds the inputs x where batch 0 holds input_ids",
        ),
        ([object()], "Batch 0 of the calibration data is a object: give tensors, tuples or dicts of them"),
        (
            [{"input_ids": [[1], [2, 3]]}],
            "'input_ids' of Batch 0 of the calibration data has ragged rows: pad",
        ),
        ([{"name": "a"}], "Batch 0 of the calibration data holds no tensors: give token ids as input_ids"),
        ([IDS[0], IDS[1, :2]], "holds single windows of differing lengths: pad them into batches"),
        ([{"input_ids": IDS / 2}, {"input_ids": IDS / 3}], "The calibration data gives token ids as float32"),
        (
            [{"input_ids": IDS / 2}, {"input_ids": IDS[:, :2] / 3}],
            "Batch 0 of the calibration data gives token",
        ),
        ([torch.full((2, 3, 1), torch.nan), torch.ones(2, 2, 1)], "Batch 0 of the .* holds NaN in '0'"),
    ],
)
def test_batches_that_cannot_be_used_are_told_in_one_sentence(batches, reason):
    with pytest.raises(InputError, match=reason):
        Calibration.of(batches)


def test_one_batch_of_no_windows_is_too_little():
    with pytest.raises(InputError, match="holds one batch where two different ones are needed"):
        Calibration.of([{"input_ids": IDS, "position_ids": torch.zeros(3, 20, 3).long()}])
