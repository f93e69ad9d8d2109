"""Arrays as calibration data: windows that do not overlap, the same split for one seed, and parts of it."""

import ml_dtypes
import numpy as np
import pytest
import torch

import fxfuse
from fxfuse.calibration import Calibration
from fxfuse.calibration.batches import positions
from fxfuse.calibration.vocabulary import check_vocabulary
from fxfuse.errors import InputError


def windows(batches) -> list[list[int]]:
    return [row.tolist() for batch in batches for row in batch["input_ids"]]


def ids(*shape: int) -> np.ndarray:
    """Ids that are all different, so that every token can be found again."""
    return np.arange(int(np.prod(shape))).reshape(shape)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_a_stream_is_cut_into_windows_that_are_all_there_once(dtype):
    stream = ids(250).astype(dtype)
    found = Calibration.of(stream, context=10, batch_size=4)
    assert found.fit[0]["input_ids"].dtype == torch.int64
    assert [len(batch["input_ids"]) for batch in found.fit] == [4] * 5
    assert (found.tokens, found.held_out_tokens) == (200, 50)
    every = sorted(windows(found.batches))
    assert every == stream.reshape(25, 10).tolist()


def test_what_is_left_of_the_last_window_is_left_out():
    assert sorted(windows(Calibration.of(ids(29), context=10).batches)) == ids(20).reshape(2, 10).tolist()


def test_one_seed_gives_one_order_and_another_seed_another():
    first, again, other = (Calibration.of(ids(2000), context=10, seed=seed) for seed in (0, 0, 1))
    assert windows(first.batches) == windows(again.batches)
    assert windows(first.fit) != windows(other.fit)
    assert windows(first.held_out) != windows(other.held_out)
    assert (first.seed, other.seed) == (0, 1)


@pytest.mark.parametrize("share, held", [(0.01, 1), (0.2, 4), (0.5, 10), (0.99, 19)])
def test_the_share_held_out_leaves_at_least_one_window_on_either_side(share, held):
    found = Calibration.of(ids(200), context=10, held_out=share)
    assert len(windows(found.held_out)) == held
    assert len(windows(found.fit)) == 20 - held


@pytest.mark.parametrize(
    "tokens, shape", [(500, [2, 250]), (2500, [10, 250]), (300, [2, 150]), (256, [2, 128])]
)
def test_no_more_tokens_are_read_than_asked_for(tokens, shape):
    found = Calibration.of(ids(9000), max_tokens=tokens, batch_size=99)
    rows = [len(row) for row in windows(found.batches)]
    assert [len(rows), rows[0]] == shape
    assert set(rows) == {shape[1]}


# -- rows and inputs by name -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list])
def test_rows_stay_rows(make):
    rows = ids(12, 7).tolist()
    found = Calibration.of(make(rows), context=3)
    assert sorted(windows(found.batches)) == rows


def test_inputs_by_name_are_shuffled_together():
    given = {"input_ids": ids(20, 5), "position_ids": ids(20, 5) + 1000, "scale": ids(20).astype(np.float32)}
    for batch in Calibration.of(given, batch_size=3).batches:
        assert torch.equal(batch["input_ids"] + 1000, batch["position_ids"])
        assert torch.equal(batch["input_ids"][:, 0] / 5, batch["scale"])


def test_one_array_of_whole_numbers_is_one_of_ids_whatever_it_is_called():
    assert list(Calibration.of({"tokens": ids(20, 5)}).fit[0]) == ["input_ids"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_of_rank_3_are_the_inputs_of_a_model_without_ids(dtype):
    given = torch.randn(10, 6, 4).to(dtype)
    found = Calibration.of(given)
    assert list(found.fit[0]) == ["0"]
    assert found.fit[0]["0"].dtype == dtype
    assert (found.tokens, found.held_out_tokens) == (48, 12)


def test_bfloat16_of_numpy_keeps_its_bits():
    given = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(ml_dtypes.bfloat16)
    for array in (given, given.view("V2")):  # as numpy saves it
        values = torch.cat([batch["0"] for batch in Calibration.of(array).batches])
        assert values.dtype == torch.bfloat16
        assert sorted(values.flatten().tolist()) == sorted(given.astype(np.float64).flatten().tolist())


def test_windows_that_repeat_are_taken_once_so_that_none_is_in_both_parts():
    rows = np.concatenate([ids(10, 5)] * 3)
    found = Calibration.of(rows)
    assert sorted(windows(found.batches)) == ids(10, 5).tolist()
    assert found.notes == ("20 of 30 windows repeat another and were left out.",)


def test_rows_that_hold_more_tokens_than_asked_for_are_cut():
    found = Calibration.of(ids(12, 300), max_tokens=400)
    assert found.batches[0]["input_ids"].shape == (1, 200)
    assert {row[0] % 300 for row in windows(found.batches)} == {0}


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 2, 500, 2500, 10_000, 40_000])
def test_a_limit_takes_no_more_and_hardly_less_and_leaves_what_is_held_out(tokens):
    whole = Calibration.of(ids(60_000))
    part = whole.limit(tokens)
    assert tokens * 0.98 <= part.tokens <= tokens
    assert windows(part.held_out) == windows(whole.held_out)
    fitted = {token for row in windows(whole.fit) for token in row}
    assert fitted >= {token for row in windows(part.fit) for token in row}
    assert (part.source, part.seed) == (whole.source, whole.seed)


def test_a_limit_above_what_there_is_changes_nothing():
    whole = Calibration.of(ids(6000))
    assert whole.limit(whole.tokens) is whole
    assert Calibration.of(whole, max_tokens=2) is whole


def test_a_limit_keeps_whole_windows_where_inputs_cannot_be_cut():
    whole = Calibration.of({"input_ids": ids(50, 10), "mask": np.ones((50, 1, 10, 10), np.float32)})
    assert whole.limit(57).tokens == 50
    with pytest.raises(InputError, match="7 tokens are asked for, and 2 windows of these inputs have 20"):
        whole.limit(7)


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(InputError, match="At least one token is needed to fit on, not 0"):
        Calibration.of(ids(600)).limit(0)


def test_padding_does_not_count():
    mask = np.ones((10, 6), np.int64)
    mask[:, 4:] = 0
    found = Calibration.of({"input_ids": ids(10, 6), "attention_mask": mask})
    assert (found.tokens, found.held_out_tokens) == (32, 8)
    counted = positions(found.fit[0])
    assert counted is not None
    assert counted.tolist() == (mask[:8] == 1).tolist()
    assert positions({"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}) is None


def test_data_go_to_a_device():
    assert Calibration.of(ids(600)).to("meta").fit[0]["input_ids"].is_meta


def test_it_is_a_public_name():
    assert fxfuse.Calibration is Calibration


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, reason",
    [
        (np.empty(0, np.int64), "The array of token ids is empty: give at least two windows"),
        (np.empty((4, 0), np.int64), "The array of token ids is empty"),
        ([], "The calibration data is empty: give at least two batches"),
        ({}, "The calibration data holds no arrays: give token ids as input_ids"),
        (ids(511), "holds 511 tokens, too few for two windows of 256, one to fit on and one to hold out"),
        (
            ids(1, 8),
            "holds one window where two different ones are needed, one to fit on and one to hold out",
        ),
        (np.zeros((5, 8), int), "holds one window where two different ones are needed"),
        (np.ones(900), "holds float64 where token ids are whole numbers: save them as int64"),
        (torch.ones(9, 9), "holds float32 where token ids are whole numbers"),
        (np.ones((9, 9), bool), "holds bool where token ids are whole numbers"),
        (ids(2, 3, 4), r"has the shape \[2, 3, 4\] where token ids are a stream \[tokens\] or rows"),
        ([[1, 2, 3], [4, 5]], "has ragged rows, of 2 to 3 tokens: give one stream of ids, or rows of one"),
        ({"input_ids": [[1, 2], [3]], "x": [1, 2]}, "'input_ids' of The calibration data has ragged rows"),
        (
            {"input_ids": ids(4, 2), "x": ids(3, 2)},
            r"differing numbers of windows \('input_ids' \[4, 2\], 'x' \[3, 2\]\)",
        ),
        (
            {"input_ids": ids(4), "x": ids(4, 2)},
            r"gives 'input_ids' the shape \[4\]: give \[windows, tokens\]",
        ),
        ({"input_ids": np.ones((4, 2)), "x": ids(4, 2)}, "gives token ids as float64: give whole numbers"),
        (torch.full((4, 3, 2), torch.nan), "The array of token ids holds NaN in '0': mend what makes"),
        (np.array([["a", "b"]]), "holds <U1 where token ids are whole numbers"),
        ([["a"], ["b"]], "is a list: give tensors, tuples or dicts of them, or texts"),
        (7, "cannot be read from int: give a path, an array of token ids, or an iterable of batches"),
    ],
)
def test_data_that_cannot_be_used_are_told_in_one_sentence(given, reason):
    with pytest.raises(InputError, match=reason) as told:
        Calibration.of(given)
    assert str(told.value).count(". ") == 0


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("context", 0, "context must be at least 1, not 0"),
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("max_tokens", 1, "max_tokens must be at least 2, not 1"),
        ("seed", -1, "seed must be at least 0, not -1"),
        ("held_out", 0, "held_out must be a share between 0 and 1, such as 0.2, not 0"),
        ("held_out", 1.0, "held_out must be a share between 0 and 1"),
        ("held_out", float("nan"), "held_out must be a share between 0 and 1"),
    ],
)
def test_arguments_that_mean_nothing_are_named(name, value, reason):
    with pytest.raises(InputError, match=reason):
        Calibration.of(ids(6000), **{name: value})


@pytest.mark.parametrize("token", [-1, 100, 50_000])
def test_a_token_outside_the_vocabulary_is_named_with_its_place_and_the_size(token):
    rows = ids(10, 10)
    rows[4, 7] = token
    found = Calibration.of(rows)
    with pytest.raises(InputError) as told:
        check_vocabulary(found, 100)
    assert f"token id {token} (in batch 0 " in str(told.value)
    assert ", 7]) is outside the model's vocabulary of 100: tokenize with" in str(told.value)
    with pytest.raises(InputError, match=f"token id {token} "):
        Calibration.of(rows, vocab_size=100)


def test_tokens_inside_the_vocabulary_pass():
    check_vocabulary(Calibration.of(ids(10, 10)), 100)
    check_vocabulary(Calibration.of(torch.randn(4, 3, 2)), 1)
