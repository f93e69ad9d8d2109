"""One product through ONNX Runtime's quantiser, whole and a part at a time, and with no trace in the logs."""

import logging
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from fxfuse.quantisation import library
from fxfuse.quantisation.library import quantise
from fxfuse.quantisation.options import Quantise

NODE = helper.make_node("MatMul", ["x", "W"], ["y"], "product")
WEIGHT = np.random.default_rng(0).standard_normal((70, 96)).astype(np.float32)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("part", [1, 70 * 20, 70 * 95])
def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch, kind: str, part: int) -> None:
    whole = quantise(NODE, WEIGHT, 20, Quantise(kind))
    monkeypatch.setattr(library, "PART", part)
    parts = quantise(NODE, WEIGHT[:, :96], 20, Quantise(kind))
    assert parts.nodes == whole.nodes
    assert list(parts.tensors) == list(whole.tensors)
    for name, array in whole.tensors.items():
        np.testing.assert_array_equal(parts.tensors[name], array)


def test_int8_has_a_scale_for_each_output() -> None:
    made = quantise(NODE, WEIGHT, 20, Quantise("int8"))
    packed, scale = made.tensors[made.weight], made.tensors["W_scale"]
    assert packed.dtype == np.int8
    assert scale.shape == (96,)
    assert np.abs(packed * scale - WEIGHT).max() <= scale.max() / 2 + 1e-6
    assert [node.op_type for node in made.nodes].count("MatMulInteger") == 1


def test_int4_is_symmetric_and_reads_8_bits() -> None:
    made = quantise(NODE, WEIGHT, 20, Quantise("int4"))
    (node,) = made.nodes
    attributes = {each.name: each.i for each in node.attribute}
    assert node.op_type == "MatMulNBits"
    assert attributes == {"K": 70, "N": 96, "bits": 4, "block_size": 32, "accuracy_level": 4}
    assert len(node.input) == 3  # no zero points
    assert made.tensors[made.weight].shape == (96, 3, 16)


def test_float16_scales_stay_float16() -> None:
    made = quantise(NODE, WEIGHT.astype(np.float16), 20, Quantise("int4"))
    assert made.tensors["W_scales"].dtype == np.float16


def test_logs_and_folder_stay_clean(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level, root.disabled
    library._library.cache_clear()
    for kind in ("int8", "int4"):
        quantise(NODE, WEIGHT, 20, Quantise(kind))
    assert (list(root.handlers), root.level, root.disabled) == before
    assert not caplog.records
