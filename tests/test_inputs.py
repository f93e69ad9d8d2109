"""Inputs: a user's files are checked against the model, and what is drawn hangs together."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fxfuse.errors import InputError
from fxfuse.inputs import InputSpec, draw_inputs, load_inputs, specs_of
from fxfuse.specs import dim_names, dim_size

BF16 = np.dtype(ml_dtypes.bfloat16)


def spec(name: str, dtype: object, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


IDS = spec("input_ids", np.int64, "batch", "seq")
MASK = spec("attention_mask", np.int64, "batch", "seq")
X = spec("x", np.float32, "batch", 4)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "s.npz", **arrays)
        return [tmp_path / "s.npz"]

    return save


# -- specs -----------------------------------------------------------------------------------------


def test_specs_are_the_inputs_without_initializers():
    x = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", None, 4])
    w = helper.make_tensor_value_info("W", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "g", [x, w], [], [helper.make_tensor("W", TensorProto.FLOAT, [1], [1.0])])
    assert specs_of(helper.make_model(graph)) == [InputSpec("x", BF16, ("n", None, 4))]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None), "is a sequence_type"),
        (helper.make_tensor_value_info("s", TensorProto.STRING, [1]), "holds strings"),
        (helper.make_tensor_value_info("s", TensorProto.FLOAT, None), "has no shape"),
    ],
)
def test_an_input_that_is_no_tensor_of_numbers_is_named(value, reason):
    with pytest.raises(InputError, match=f"input 's' {reason}"):
        specs_of(helper.make_model(helper.make_graph([], "g", [value], [])))


def test_sizes_are_computed_from_names():
    sizes = {"past": 3, "s1": 4, "odd name": 5}
    assert dim_size("past + 2*s1 - 1", sizes) == 10
    assert [dim_size(dim, sizes) for dim in ("odd name", 7, None, "s9", "s9 + 1", "Max(s1, 2)")] == [
        5,
        7,
        *[None] * 4,
    ]
    assert dim_names("past + s1") == ["past", "s1"]
    assert dim_names("a.b") == ["a.b"]


# -- a user's files --------------------------------------------------------------------------------


def test_each_file_is_one_sample(tmp_path):
    for index in range(2):
        np.savez(tmp_path / f"{index}.npz", x=np.full((2, 4), index, np.float32))
    first, second = load_inputs([tmp_path / "0.npz", str(tmp_path / "1.npz")], [X])
    assert first["x"].sum() == 0
    assert second["x"].sum() == 8


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.int32, np.int64),
        (np.int64, np.int32),
        (np.bool_, np.int64),
        (np.float64, np.float32),
        (np.float32, np.float16),
        (np.float32, BF16),
        (BF16, BF16),
    ],
)
def test_types_that_keep_the_values_are_cast(save, given, expected):
    values = np.array([[0, 1, 1, 0]]).astype(given)
    (sample,) = load_inputs(save(x=values), [spec("x", expected, 1, 4)])
    assert sample["x"].dtype == expected
    np.testing.assert_array_equal(sample["x"].astype(float), [[0, 1, 1, 0]])


@pytest.mark.parametrize(
    ("given", "dtype", "reason"),
    [
        (
            np.ones((1, 4), np.float32),
            np.int64,
            "as float32 where the model expects int64: save it in that type",
        ),
        (np.ones((1, 4), np.int64), np.float32, "as int64 where the model expects float32: save it"),
        (np.ones((1, 4), np.int64), np.bool_, "as int64 where the model expects bool: save it"),
        (np.full((1, 4), 2**40), np.int32, "as int64 where the model expects int32: its values do not fit"),
        (np.full((1, 4), -1), np.uint8, "as int64 where the model expects uint8: its values"),
        (
            np.full((1, 4), 1e30),
            np.float16,
            "as float64 where the model expects float16: its values do not fit",
        ),
    ],
)
def test_other_types_are_refused(save, given, dtype, reason):
    with pytest.raises(InputError, match=rf"s\.npz gives 'x' {reason}"):
        load_inputs(save(x=given), [spec("x", dtype, 1, 4)])


@pytest.mark.parametrize(
    ("given", "specs", "reason"),
    [
        (
            {"input_id": (1, 2)},
            [IDS],
            "holds 'input_id', which is no input of the model: did you mean 'input_ids'?",
        ),
        ({"zzz": (1, 2)}, [IDS, MASK], "the model's inputs are input_ids, attention_mask"),
        (
            {"input_ids": (1, 2)},
            [IDS, MASK],
            r"lacks the input 'attention_mask': .* expects int64\[batch, seq\]",
        ),
        (
            {"input_ids": (2,)},
            [IDS],
            r"'input_ids' the shape \(2,\) where the model expects int64\[batch, seq\]",
        ),
        (
            {"a": (1, 3)},
            [spec("a", int, 1, 4)],
            r"'a' the size 3 at axis 1 where .* expects 4: .* int64\[1, 4\]",
        ),
        (
            {"input_ids": (1, 5), "attention_mask": (1, 6)},
            [IDS, MASK],
            "'attention_mask' the size 6 at axis 1 where the model expects 5, since seq is 5 in 'input_ids'",
        ),
        (
            {"m": (1, 6), "input_ids": (1, 5), "kv": (1, 2)},
            [spec("m", int, "batch", "past + seq"), IDS, spec("kv", int, "batch", "past")],
            "'m' the size 6 .* expects 7, since past is 2 in 'kv' and seq is 5 in 'input_ids'",
        ),
    ],
)
def test_what_does_not_fit_is_named(save, given, specs, reason):
    with pytest.raises(InputError, match=reason) as caught:
        load_inputs(save(**{name: np.zeros(shape, np.int64) for name, shape in given.items()}), specs)
    assert "s.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_without_a_name_are_free(save):
    free = [spec("x", np.float32, None, "s9 + 1"), spec("y", np.float32, None, None)]
    (sample,) = load_inputs(save(x=np.ones((1, 2), np.float32), y=np.ones((3, 4), np.float32)), free)
    assert sample["y"].shape == (3, 4)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no input file .*s\.npz"):
        load_inputs([tmp_path / "s.npz"], [X])


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"s\.npz is no \.npz file: write it with numpy\.savez"):
        load_inputs([tmp_path / "s.npz"], [X])


def test_a_damaged_archive_is_named(save):
    (path,) = save(x=np.zeros((100, 4), np.float32))
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.npz (cannot be read|holds a damaged array)"):
        load_inputs([path], [X])


def test_pickled_objects_are_never_loaded(save):
    with pytest.raises(InputError, match="holds pickled objects in 'x', which are never loaded"):
        load_inputs(save(x=np.array([object()], dtype=object)), [X])


# -- drawn -----------------------------------------------------------------------------------------

PAST_KEY = spec("past_key_values.0.key", np.float32, "batch", 2, "past_sequence_length", 8)
TOTAL_MASK = spec("attention_mask", np.int64, "batch", "total_sequence_length")
POSITIONS = spec("position_ids", np.int64, "batch", "seq")


def draw(*specs: InputSpec, **sizes: int) -> dict[str, np.ndarray]:
    (sample,) = draw_inputs(specs, 0, 50, **sizes)
    assert [(value.dtype, value.ndim) for value in sample.values()] == [
        (s.dtype, len(s.shape)) for s in specs
    ]
    return sample


def test_a_decoder_without_past():
    sample = draw(IDS, TOTAL_MASK, POSITIONS, PAST_KEY)
    assert sample["input_ids"].shape == (1, 64)
    assert 30 < sample["input_ids"].max() < 50
    np.testing.assert_array_equal(sample["attention_mask"], np.ones((1, 64)))
    np.testing.assert_array_equal(sample["position_ids"], [np.arange(64)])
    assert sample[PAST_KEY.name].shape == (1, 2, 0, 8)


def test_a_decoder_with_past():
    sample = draw(IDS, TOTAL_MASK, POSITIONS, PAST_KEY, batch=2, sequence=3, past=5)
    assert sample["attention_mask"].shape == (2, 8)
    np.testing.assert_array_equal(sample["position_ids"], [[5, 6, 7]] * 2)
    np.testing.assert_array_equal(sample[PAST_KEY.name], np.zeros((2, 2, 5, 8)))


def test_sizes_without_speaking_names_follow_their_place():
    """What torch.export writes: s0, s1, and the mask over s1 + s5."""
    mask = spec("attention_mask", np.bool_, "s0", "s1 + s5")
    sample = draw(mask, spec("input_ids", np.int64, "s0", "s1"), batch=2, sequence=6, past=3)
    assert sample["input_ids"].shape == (2, 6)
    assert sample["attention_mask"].shape == (2, 9)
    assert sample["attention_mask"].all()


def test_unknown_sizes_follow_their_place_too():
    sample = draw(spec("tokens", np.int32, None, None), spec("mask", np.int32, None, None), sequence=6)
    assert sample["tokens"].shape == sample["mask"].shape == (1, 6)


def test_fixed_sizes_lead():
    ids, past = spec("ids", np.int64, 3, 4), spec("past_0", np.float16, 3, 2, 10, 8)
    sample = draw(ids, spec("mask", np.int64, "b", "total"), spec("position_ids", np.int64, "b", 4), past)
    assert sample["mask"].shape == (3, 14)
    np.testing.assert_array_equal(sample["position_ids"][0], [10, 11, 12, 13])


@pytest.mark.parametrize(("ids", "seq", "past"), [("seq", 64, 36), (20, 20, 80)])
def test_a_fixed_mask_leaves_the_rest_to_the_past(ids, seq, past):
    sample = draw(
        spec("input_ids", np.int64, 1, ids),
        spec("attention_mask", np.int64, 1, 100),
        spec("past_key_values.0.value", np.float32, 1, 2, "p", 8),
    )
    assert sample["input_ids"].shape == (1, seq)
    assert sample["past_key_values.0.value"].shape == (1, 2, past, 8)


def test_a_fixed_mask_shorter_than_asked_shortens_the_sequence():
    sample = draw(IDS, spec("attention_mask", np.int64, "batch", 16))
    assert sample["input_ids"].shape == (1, 16)


def test_what_an_encoder_fixes_is_its_own():
    """Whisper: 1500 frames from the encoder, and a decoder of any length."""
    states = spec("encoder_hidden_states", np.float32, 1, 1500, 8)
    cross = spec("past_key_values.0.encoder.key", np.float32, 1, 2, 1500, 8)
    own = spec("past_key_values.0.decoder.key", np.float32, 1, 2, "past_decoder_sequence_length", 8)
    sample = draw(cross, own, states, IDS)
    assert sample["input_ids"].shape == (1, 64)
    assert sample[own.name].shape == (1, 2, 0, 8)


def test_three_axes_of_positions():
    sample = draw(IDS, spec("position_ids", np.int64, 3, "batch", "seq"), sequence=4)
    np.testing.assert_array_equal(sample["position_ids"], np.tile(np.arange(4), (3, 1, 1)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (spec("token_type_ids", np.int64, "batch", "seq"), np.zeros((1, 4))),
        (spec("use_cache_branch", np.bool_, 1), [False]),
        (spec("past_sequence_length", np.int32, 1), [3]),
        (spec("total_sequence_length", np.int32), 7),
        (spec("seqlens_k", np.int32, "batch"), [6]),
        (spec("cache_position", np.int64, "s7"), [3, 4, 5, 6]),
        (spec("num_logits_to_keep", np.int64), 0),
        (spec("mask4", np.float32, 1, 1, "seq", "total"), np.zeros((1, 1, 4, 7))),
        (spec("causal_mask", np.bool_, 1, 1, "seq", "total"), np.ones((1, 1, 4, 7))),
        (spec("is_on", np.bool_, 2), [True, True]),
    ],
)
def test_inputs_with_a_fixed_meaning(given, expected):
    np.testing.assert_array_equal(draw(IDS, given, sequence=4, past=3)[given.name], expected)


@pytest.mark.parametrize(
    "shape", [("N", 3, "H", "W"), (None, 3, None, None), ("b", "num_channels", 224, 224)]
)
def test_images(shape):
    pixels = draw(spec("pixel_values", np.float32, *shape))["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BF16])
def test_floats_are_normal_in_every_type(dtype):
    x = draw(spec("x", dtype, "batch", "seq", 32))["x"].astype(np.float64)
    assert x.shape == (1, 64, 32)
    assert abs(x.std() - 1) < 0.1


def test_token_ids_fit_small_vocabularies_and_types():
    (sample,) = draw_inputs([spec("ids", np.int8, 1, 1000)], 0, 100_000)
    assert sample["ids"].min() >= 0
    (sample,) = draw_inputs([IDS], 0)
    assert sample["input_ids"].max() < 256


def test_the_seed_decides_and_the_order_of_inputs_does_not():
    first = draw_inputs([IDS, X], 7, samples=2)
    again = draw_inputs([X, IDS], 7, samples=2)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["input_ids"], other["input_ids"])
        np.testing.assert_array_equal(one["x"], other["x"])
    assert (first[0]["input_ids"] != first[1]["input_ids"]).any()
    assert (first[0]["input_ids"] != draw_inputs([IDS], 8)[0]["input_ids"]).any()


def test_a_type_that_nothing_is_drawn_for_is_named():
    with pytest.raises(InputError, match="input 'z' of type complex64: give inputs"):
        draw_inputs([spec("z", np.complex64, 1)], 0)


def test_what_is_drawn_passes_the_check_of_a_users_file(save):
    specs = [IDS, TOTAL_MASK, POSITIONS, PAST_KEY]
    (sample,) = draw_inputs(specs, 0, sequence=5, past=2)
    (loaded,) = load_inputs(save(**sample), specs)
    assert loaded.keys() == sample.keys()


def test_onnx_keeps_bfloat16():
    assert np.dtype(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)) == BF16
