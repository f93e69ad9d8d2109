"""Every recipe against the same sum, product or stack done by hand."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxfuse.checkpoints import pieces as module
from fxfuse.checkpoints.pieces import check, pieces
from fxfuse.checkpoints.records import Copy, Given, OutputTensor, Part, Same, Stacked, Summed
from fxfuse.checkpoints.tensors import Tensors, bytes_of
from fxfuse.errors import FxfuseError
from tests.checkpoints.hand import NAMES, draw, folder_of, made


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of a few rows and spans of some bytes, so that every tensor has several."""
    monkeypatch.setattr(module, "_BAND", 128)
    monkeypatch.setattr(module, "_SPAN", 100)


def tensors_of(folder: Path, **tensors: torch.Tensor) -> Tensors:
    return Tensors(folder_of(folder, tensors))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit."""
    return one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)


def test_copy_of_all_of_some_rows_and_of_a_scalar(tmp_path: Path) -> None:
    matrix, scalar = draw(11, 6), torch.tensor(3.0)
    found = tensors_of(tmp_path, matrix=matrix, scalar=scalar)
    assert same(made(found, Copy("matrix"), (11, 6)), matrix)
    assert same(made(found, Copy("matrix", (2, 9)), (7, 6)), matrix[2:9].clone())
    assert same(made(found, Copy("scalar"), ()), scalar)


def test_copy_times_a_factor_is_rounded_once(tmp_path: Path) -> None:
    matrix = draw(9, 7)
    found = tensors_of(tmp_path, matrix=matrix)
    expected = (matrix.double() * 0.22).float()
    assert same(made(found, Copy("matrix", factor=0.22), (9, 7)), expected)


def test_same_value_everywhere(tmp_path: Path) -> None:
    found = tensors_of(tmp_path, any=draw(1))
    assert same(made(found, Same(1.0), (50, 3), "BF16"), torch.ones(50, 3, dtype=torch.bfloat16))


def test_sum_of_biases_in_float64(tmp_path: Path) -> None:
    biases = [draw(40, seed=seed) for seed in range(3)]
    found = tensors_of(tmp_path, a=biases[0], b=biases[1], c=biases[2])
    total = biases[0].double() + biases[1].double() + biases[2].double()
    assert same(made(found, Summed(("a", "b", "c")), (40,)), total.float())
    assert same(made(found, Summed(("a", "b", "c"), 0.3), (40,)), (total * 0.3).float())


def test_tensor_at_hand(tmp_path: Path) -> None:
    tensor = draw(3, 4, dtype=torch.bfloat16)
    recipe = Given("BF16", (3, 4), bytes(bytes_of(tensor)))
    assert same(made(tensors_of(tmp_path, any=draw(1)), recipe, (3, 4), "BF16"), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stack_below_with_and_without_gain(tmp_path: Path, dtype: torch.dtype) -> None:
    """out = [w1 diag(g1); w2; 0]."""
    one, two, gain = draw(9, 8, dtype=dtype), draw(5, 8, dtype=dtype, seed=1), draw(8, dtype=dtype, seed=2)
    found = tensors_of(tmp_path, one=one, two=two, gain=gain)
    recipe = Stacked(((Part("one", gain="gain"), Part("two")),), 0, padding=3)
    folded = (one.double() * gain.double()).to(dtype)
    expected = torch.cat([folded, two, torch.zeros(3, 8, dtype=dtype)])
    assert same(made(found, recipe, (17, 8), NAMES[dtype]), expected)


def test_packed_runs_are_padded_each(tmp_path: Path) -> None:
    """out = [gate1; gate2; 0; up1; up2; 0] of packed gate_up products."""
    one, two = draw(8, 6), draw(4, 6, seed=1)
    found = tensors_of(tmp_path, one=one, two=two)
    runs = (
        (Part("one", rows=(0, 4)), Part("two", rows=(0, 2))),
        (Part("one", rows=(4, 8)), Part("two", rows=(2, 4))),
    )
    zeros = torch.zeros(2, 6)
    expected = torch.cat([one[:4], two[:2], zeros, one[4:], two[2:], zeros])
    assert same(made(found, Stacked(runs, 0, padding=2), (16, 6)), expected)


def test_stack_of_vectors(tmp_path: Path) -> None:
    one, two = draw(70), draw(3, seed=1)
    found = tensors_of(tmp_path, one=one, two=two)
    recipe = Stacked(((Part("one"), Part("two")),), 0, padding=2)
    assert same(made(found, recipe, (75,)), torch.cat([one, two, torch.zeros(2)]))


@pytest.mark.parametrize("factor", [1.0, 0.22])
def test_side_by_side(tmp_path: Path, factor: float) -> None:
    """down = [m d1 | m d2 | 0]."""
    one, two = draw(9, 5), draw(9, 7, seed=1)
    found = tensors_of(tmp_path, one=one, two=two)
    recipe = Stacked(((Part("one", factor=factor), Part("two", factor=factor)),), 1, padding=4)
    expected = torch.cat(
        [one.double() * factor, two.double() * factor, torch.zeros(9, 4).double()], 1
    ).float()
    assert same(made(found, recipe, (9, 16)), expected)


def test_gain_with_an_offset_and_types_that_differ(tmp_path: Path) -> None:
    """Gemma's gain is 1 + weight; a weight of another type is converted."""
    weight, gain = draw(9, 8, dtype=torch.bfloat16), draw(8, seed=1) / 10
    found = tensors_of(tmp_path, weight=weight, gain=gain)
    recipe = Stacked(((Part("weight", gain="gain", gain_offset=1.0),),), 0)
    assert same(made(found, recipe, (9, 8)), (weight.double() * (1 + gain.double())).float())
    assert same(made(found, Stacked(((Part("weight"),),), 0), (9, 8)), weight.float())


def test_columns_of_a_part(tmp_path: Path) -> None:
    wide = draw(9, 12, dtype=torch.bfloat16)
    found = tensors_of(tmp_path, wide=wide)
    recipe = Stacked(((Part("wide", rows=(1, 8), columns=(3, 7)),),), 0)
    assert same(made(found, recipe, (7, 4), "BF16"), wide[1:8, 3:7].contiguous())


def test_divided_by_gain_and_factor(tmp_path: Path) -> None:
    """What is folded with gain and factor comes back; where the gain is 0, 0 comes back."""
    gain = draw(8, seed=1)
    gain[3] = 0
    folded = draw(9, 8) * gain * 0.5
    found = tensors_of(tmp_path, folded=folded)
    held = Given("F32", (8,), bytes(bytes_of(gain)))
    back = made(found, Stacked(((Part("folded", gain=held, factor=0.5, divided=True),),), 0), (9, 8))
    expected = torch.where(gain == 0, torch.tensor(0.0), draw(9, 8))
    torch.testing.assert_close(back, expected, rtol=1e-6, atol=0)


@given(heights=st.lists(st.integers(0, 7), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_any_heights(tmp_path_factory: pytest.TempPathFactory, heights: list[int], padding: int) -> None:
    blocks = {f"w{n}": draw(height, 5, seed=n) for n, height in enumerate(heights)}
    downs = {f"d{n}": draw(6, height, seed=n) for n, height in enumerate(heights)}
    found = Tensors(folder_of(tmp_path_factory.mktemp("any"), blocks | downs))
    width = sum(heights) + padding
    below = Stacked((tuple(map(Part, blocks)),), 0, padding)
    beside = Stacked((tuple(map(Part, downs)),), 1, padding)
    assert same(made(found, below, (width, 5)), torch.cat([*blocks.values(), torch.zeros(padding, 5)]))
    assert same(made(found, beside, (6, width)), torch.cat([*downs.values(), torch.zeros(6, padding)], 1))


@pytest.mark.parametrize(
    "recipe, shape",
    [
        (Copy("w"), (9, 8)),
        (Stacked(((Part("w"),),), 1, padding=1), (9, 8)),
        (Stacked(((Part("w"), Part("v")),), 1), (9, 16)),
        (Stacked(((Part("w", rows=(4, 12)),),), 0), (8, 8)),
        (Stacked(((Part("w", columns=(4, 12)),),), 0), (9, 8)),
        (Given("F16", (2, 2), bytes(16)), (2, 2)),
    ],
)  # fmt: skip
def test_recipe_that_does_not_fit_is_a_bug(tmp_path: Path, recipe: object, shape: tuple[int, ...]) -> None:
    found = tensors_of(tmp_path, w=draw(8, 8), v=draw(10, 8))
    with pytest.raises(FxfuseError, match=r"out of shape .* would be written with .* report this\."):
        check(OutputTensor("out", "F32", shape, recipe), found)  # type: ignore[arg-type]


def test_pieces_are_small_and_read_nothing_before_they_are_made(tmp_path: Path) -> None:
    found = tensors_of(tmp_path, w=draw(64, 8), d=draw(8, 64))
    for recipe, shape in (
        (Copy("w"), (64, 8)),
        (Copy("w", factor=2.0), (64, 8)),
        (Stacked(((Part("d"), Part("d")),), 1), (8, 128)),
    ):
        folder = found["w"].file
        moved = folder.rename(folder.with_suffix(".away"))
        parts = list(pieces(OutputTensor("out", "F32", shape, recipe), found))
        moved.rename(folder)
        assert len(parts) > 1
        assert max(each.nbytes for each in parts) <= max(128, 128 * 4)
