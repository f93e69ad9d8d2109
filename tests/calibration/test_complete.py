"""What a decoder's file asks for beside ids is filled in, and what it does not read is left out."""

import numpy as np
import onnx
import pytest
import torch

from fxfuse.calibration import Calibration
from fxfuse.calibration.complete import complete, fixed_sizes
from fxfuse.errors import InputError
from fxfuse.sessions import session
from fxfuse.specs import InputSpec, specs_of
from tests.families import VOCAB


def spec(name: str, dtype: object, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


IDS = spec("input_ids", np.int64, "batch", "sequence")
MASK = spec("attention_mask", np.int64, "batch", "total_sequence_length")
POSITIONS = spec("position_ids", np.int64, "batch", "sequence")
PAST = [
    spec(f"past_key_values.{layer}.{kind}", np.float32, "batch", 2, "past_sequence_length", 8)
    for layer in range(2)
    for kind in ("key", "value")
]
BATCH = {"input_ids": torch.arange(12).reshape(3, 4)}


def test_masks_positions_and_an_empty_cache_are_filled_in():
    found = complete(BATCH, [IDS, MASK, POSITIONS, *PAST])
    assert list(found) == ["input_ids", "attention_mask", "position_ids", *(each.name for each in PAST)]
    assert torch.equal(found["input_ids"], BATCH["input_ids"])
    assert found["attention_mask"].tolist() == [[1] * 4] * 3
    assert found["position_ids"].tolist() == [[0, 1, 2, 3]] * 3
    assert {found[each.name].shape for each in PAST} == {(3, 2, 0, 8)}


def test_the_lengths_that_onnxruntime_genai_asks_for_are_filled_in():
    lengths = [spec("seqlens_k", np.int32, "batch"), spec("total_sequence_length", np.int32)]
    found = complete(BATCH, [IDS, *lengths])
    assert found["seqlens_k"].tolist() == [3] * 3
    assert found["total_sequence_length"].tolist() == 4
    assert found["seqlens_k"].dtype == torch.int32


def test_ids_take_the_type_and_the_name_that_the_model_has():
    found = complete(BATCH, [spec("tokens", np.int32, "batch", "sequence"), MASK])
    assert list(found) == ["tokens", "attention_mask"]
    assert found["tokens"].dtype == torch.int32
    assert found["tokens"].tolist() == BATCH["input_ids"].tolist()


def test_inputs_by_place_take_the_names_in_order():
    x = spec("hidden_states", np.float32, "batch", "sequence", 5)
    given = {"0": torch.randn(2, 3, 5), "1": torch.ones(2, 3).long()}
    found = complete(given, [x, MASK])
    assert torch.equal(found["hidden_states"], given["0"])
    assert torch.equal(found["attention_mask"], given["1"])


def test_bfloat16_goes_through():
    given = torch.randn(2, 3, 5).bfloat16()
    found = complete({"x": given}, [spec("x", "bfloat16", "batch", "sequence", 5)])
    assert torch.equal(found["x"], given)


def test_a_mask_that_is_given_is_kept():
    mask = torch.tensor([[1, 1, 1, 0]] * 3)
    found = complete(BATCH | {"attention_mask": mask}, [IDS, MASK])
    assert torch.equal(found["attention_mask"], mask)


def test_what_the_model_does_not_read_is_left_out_where_it_says_nothing():
    given = {
        "attention_mask": torch.ones(3, 4).long(),
        "position_ids": torch.arange(4).expand(3, 4),
        "token_type_ids": torch.zeros(3, 4).long(),
    }
    assert list(complete(BATCH | given, [IDS])) == ["input_ids"]


@pytest.mark.parametrize(
    "given, specs, reason",
    [
        (
            {"attention_mask": torch.tensor([[1, 1, 1, 0]] * 3)},
            [IDS],
            "The calibration batch holds 'attention_mask', which is no input of the model",
        ),
        (
            {"x": torch.ones(3, 4, 5)},
            [IDS],
            "The calibration batch holds 'x', which is no input of the model",
        ),
        (
            {},
            [IDS, spec("inputs_embeds", np.float32, "batch", "sequence", 5)],
            "The calibration batch lacks the input 'inputs_embeds'",
        ),
        ({}, [spec("input_ids", np.int64, "batch", 9)], "the size 4 at axis 1 where the model expects 9"),
        ({}, [spec("input_ids", np.int64, 1, "sequence")], "the size 3 at axis 0 where the model expects 1"),
        ({}, [spec("x", np.float32, "batch", "s")], "gives 'x' as int64 where the model expects float32"),
    ],
)
def test_a_batch_that_does_not_fit_is_told(given, specs, reason):
    with pytest.raises(InputError, match=reason):
        complete(BATCH | given, specs)


def test_all_batches_of_a_calibration_are_completed():
    found = Calibration.of(np.arange(100), context=5).completed([IDS, MASK])
    assert all(list(batch) == ["input_ids", "attention_mask"] for batch in found.batches)
    assert (found.tokens, found.held_out_tokens) == (80, 20)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_take_the_size_that_the_model_fixes(size):
    whole = Calibration.of(np.arange(250), context=5, batch_size=4)
    found = whole.completed([spec("input_ids", np.int64, size, 5)])
    assert {len(batch["input_ids"]) for batch in found.batches} == {size}
    left = [
        f"{over} windows that fill no batch of {size} were left out."
        for over in (40 % size, 10 % size)
        if over
    ]
    assert found.notes == tuple(left)
    with pytest.raises(InputError, match="the size 10 at axis 0 where the model expects 11"):
        whole.completed([spec("input_ids", np.int64, 11, 5)])


@pytest.mark.parametrize("form, dynamic", [("opset20", True), ("opset20", False), ("older", True)])
def test_files_as_torch_writes_them_run_on_completed_batches(onnx_file, form, dynamic):
    path = onnx_file("llama", form, dynamic=dynamic)
    specs = specs_of(onnx.load(path))
    length = fixed_sizes(specs)[1] or 9
    opened = session(path, "cpu")
    for batch in Calibration.of(np.arange(40 * length) % VOCAB, context=length).completed(specs).batches:
        (logits, *_) = opened.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        assert logits.shape[1:] == (length, VOCAB)


def test_sizes_that_a_model_fixes_are_read():
    assert fixed_sizes([MASK, IDS]) == (None, None)
    assert fixed_sizes([spec("input_ids", np.int64, 1, 64)]) == (1, 64)
    assert fixed_sizes([spec("x", np.int64, 7)]) == (7, None)
    assert fixed_sizes([]) == (None, None)
