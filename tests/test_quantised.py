"""fxfuse.fuse_onnx on files that ONNX Runtime's quantisers make of a real family's export.

The oracle is the quantised file itself with its FFNs side by side: x_k = x_{k-1} + FFN_k(norm(x_0)), the same
integers in the same operators.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from onnxruntime.quantization import quantize_dynamic as to_dynamic
from onnxruntime.quantization import quantize_static as to_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

import fxfuse
from fxfuse import Report, VerificationError
from fxfuse.frontends import onnx_file
from tests.exporters import onnx_torchscript, silenced
from tests.families import INTERMEDIATE, build, ids
from tests.forms.derived import session as session_optimised

Make = Callable[[Path, Path], Any]
GROUPS = [[0, 1, 2], [3, 4]]


def nbits(source: Path, path: Path, **options: Any) -> None:
    with silenced():
        maker = MatMulNBitsQuantizer(onnx.load(source), algo_config=DefaultWeightOnlyQuantConfig(**options))
        maker.process()
    onnx.save(maker.model.model, path)


def dynamic(source: Path, path: Path, **options: Any) -> None:
    with silenced():
        to_dynamic(source, path, **options)


def optimised(source: Path, path: Path, make: Make) -> None:
    """The graph that a session saves of what `make` makes."""
    first = path.with_suffix(".first.onnx")
    make(source, first)
    session_optimised(first, path, "llama")


def part(function: Callable[..., Any], **options: Any) -> Make:
    return functools.partial(function, **options)


QDQ = {"quant_format": QuantFormat.QDQ, "op_types_to_quantize": ("MatMul",)}
# How the file is made; whether ONNX Runtime rounds what products read; what becomes of gate, up and down.
STACKED, APART = (
    "stacked without a change; down stacked too",
    "stacked without a change; down kept as {n} products, because ",
)
FORMS: dict[str, tuple[Make, bool, str]] = {
    "4 bits": (part(nbits, block_size=16, is_symmetric=True), False, STACKED),
    "4 bits, zero points, accuracy_level 4": (
        part(nbits, block_size=16, is_symmetric=False, accuracy_level=4), True, STACKED,
    ),
    "8 bits": (part(nbits, bits=8, block_size=16, is_symmetric=False), False, STACKED),
    "blocks that do not fit": (
        part(nbits, block_size=64, is_symmetric=False), False,
        f"{APART}block size 64 does not divide {INTERMEDIATE}",
    ),
    "int4 behind DequantizeLinear": (part(nbits, block_size=16, is_symmetric=True, **QDQ), True, STACKED),
    "uint4 behind DequantizeLinear": (part(nbits, block_size=16, is_symmetric=False, **QDQ), True, STACKED),
    "what a session makes of these": (
        part(optimised, make=part(nbits, block_size=16, is_symmetric=False, **QDQ)), True, STACKED,
    ),
    "dynamic int8": (part(dynamic, weight_type=QuantType.QInt8), True, f"{APART}MatMulInteger"),
    "dynamic int8 by channel": (
        part(dynamic, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True), True,
        f"{APART}MatMulInteger",
    ),
    "dynamic uint8": (part(dynamic, weight_type=QuantType.QUInt8), True, f"{APART}MatMulInteger"),
    "what a session makes of int8": (
        part(optimised, make=part(dynamic, per_channel=True)), True, f"{APART}DynamicQuantizeMatMul",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(family, equal): the family's file; with `equal` all norms have gains of one."""
    folder = tmp_path_factory.mktemp("quantised")

    @functools.cache
    def write(family: str = "llama", equal: bool = True) -> Path:
        model = build(family)
        for name, parameter in model.named_parameters():
            if equal and "norm" in name and name.endswith("weight"):
                parameter.data.fill_(1.0)
        return onnx_torchscript(model, (ids(),), folder / f"{family}.{equal}.onnx", dynamic=True)

    return write


def fuse(path: Path, out: Path, **options: Any) -> Report:
    return fxfuse.fuse_onnx(path, out, **{"min_sqnr": None, "provider": "cpu", **options})


def add_of(layer: int) -> str:
    """The FFN's residual add; a layer that kept its attention has another one before it."""
    return f"/model/layers.{layer}/{'Add_1' if layer in (0, 3) else 'Add'}_output_0"


def run(model: onnx.ModelProto, *taps: str) -> list[np.ndarray]:
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in taps)
    opened = fxfuse.session(model.SerializeToString(), "cpu", options={"log_severity_level": 4})
    return [np.asarray(each) for each in opened.run(["logits", *taps], {"input_ids": ids().numpy()})]


def side_by_side(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let every norm of a group read the stream before it; the adds stay, as a running sum."""
    by_output = {node.output[0]: node for node in model.graph.node}
    for group in GROUPS:
        adds = [by_output[add_of(layer)] for layer in group]
        streams = [next(name for name in add.input if "/mlp/" not in name) for add in adds]
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name in streams and all(node is not add for add in adds):
                    node.input[index] = streams[0]
    return model


def error(value: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def wide_types(out: Path) -> set[int]:
    """The types in which the weights of the wide FFNs are stored, scales apart."""
    wide = [each for each in onnx.load(out).graph.initializer if each.name.startswith("fxfuse")]
    return {each.data_type for each in wide if not each.name.endswith("_scale")}


# Exact stacking


@pytest.mark.parametrize("form", FORMS)
def test_quantised_products_are_stacked_as_they_are(exported: Any, tmp_path: Path, form: str) -> None:
    make, rounds, done = FORMS[form]
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    make(exported(), path)
    report = fuse(path, out)
    assert [chain.length for chain in report.chains] == [3, 2]
    assert [group.intermediate_size for group in report.groups] == [3 * INTERMEDIATE, 2 * INTERMEDIATE]
    for group in report.groups:
        assert group.requantisation_error is None
        assert group.quantised is not None
        assert done.format(n=len(group.blocks)) in group.quantised
        assert group.rewrite_error < 1e-6
        assert (group.rounding_error > 1e-3) == rounds
    taps = [add_of(2)]
    fused, oracle = run(onnx.load(out), *taps), run(side_by_side(onnx.load(path)), *taps)
    assert error(fused[1], oracle[1]) < 1e-6
    # Further on what products read is rounded to 8 bits again, where a last bit may make a step.
    assert error(fused[0], oracle[0]) < (1e-3 if rounds else 5e-6)
    assert TensorProto.FLOAT not in wide_types(out)


@pytest.mark.parametrize("form", ["4 bits", "dynamic int8"])
def test_its_own_output_is_left_alone(exported: Any, tmp_path: Path, form: str) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    FORMS[form][0](exported(), path)
    fuse(path, out)
    again = fuse(out, tmp_path / "again.onnx")
    assert again.output is None
    assert [miss.where for miss in again.misses if "it is a wide FFN that fxfuse made of" in miss.reason] == [
        "model.layers.0-2.mlp",
        "model.layers.3-4.mlp",
    ]


def test_blocks_keep_their_names_where_products_lost_theirs(onnx_file: Any, tmp_path: Path) -> None:
    # The quantiser drops the paths that torch.onnx notes at its nodes; the weights have numbers for names.
    path = tmp_path / "in.onnx"
    nbits(onnx_file("llama"), path, block_size=16)
    report = fuse(path, tmp_path / "out.onnx", requantize=True, dry_run=True)
    names = [block.name for chain in report.chains for block in chain.blocks]
    assert names == [f"model.layers.{index}.mlp" for index in range(5)]


def test_the_table_says_what_was_done(exported: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    FORMS["dynamic int8"][0](exported(), path)
    text = " ".join(str(fuse(path, tmp_path / "out.onnx")).split())
    assert (
        "note: model.layers.3-4.mlp: gate and up (MatMulInteger of int8) stacked without a change; down kept "
        "as 2 products, because MatMulInteger rounds what it reads with one scale for the whole of it"
    ) in text


# Gains


def test_gains_that_differ_are_left_alone(exported: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    nbits(exported(equal=False), path, block_size=16)
    report = fuse(path, out)
    assert report.output is None
    assert not out.exists()
    told = [miss.reason for miss in report.misses if "the gains of the norms differ from" in miss.reason]
    assert len(told) == 3
    assert all(reason.endswith("(--requantize, requantize=True), or fuse the float model") for reason in told)


AGAIN: dict[str, tuple[Make, float]] = {
    "4 bits": (part(nbits, block_size=16, is_symmetric=True), 0.12),
    "4 bits, zero points": (part(nbits, block_size=16, is_symmetric=False, accuracy_level=4), 0.12),
    "8 bits": (part(nbits, bits=8, block_size=32, is_symmetric=False), 0.01),
    "int4 behind DequantizeLinear": (part(nbits, block_size=16, is_symmetric=True, **QDQ), 0.12),
    "dynamic int8": (part(dynamic, per_channel=True), 0.01),
    "dynamic uint8": (part(dynamic, weight_type=QuantType.QUInt8), 0.01),
}


@pytest.mark.parametrize("form", AGAIN)
def test_weights_are_quantised_again_when_asked(exported: Any, tmp_path: Path, form: str) -> None:
    make, most = AGAIN[form]
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    make(exported(equal=False), path)
    report = fuse(path, out, requantize=True)
    assert [chain.length for chain in report.chains] == [3, 2]
    exact = run(side_by_side(onnx.load(path)), add_of(2))[1]
    fused = run(onnx.load(out), add_of(2))[1]
    for group in report.groups:
        assert group.requantisation_error is not None
        assert 0.0 < group.requantisation_error < most
        assert group.quantised is not None
        assert "quantised again with the gains folded in" in group.quantised
    assert 0.0 < error(fused, exact) < most + 0.02
    saved = json.loads(report.to_json())["groups"][0]
    assert saved["requantisation_error"] == report.groups[0].requantisation_error
    assert "(relative error of these weights " in " ".join(str(report).split())


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "granite"])
def test_packed_ungated_and_scaled_ffns(exported: Any, tmp_path: Path, family: str) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    nbits(exported(family, equal=False), path, block_size=32)
    report = fuse(path, out, requantize=True)
    assert [len(group.blocks) for group in report.groups] == [3, 2]
    assert run(onnx.load(out))[0].shape == (2, 7, 128)


def test_the_loss_is_of_what_is_written(exported: Any, tmp_path: Path) -> None:
    # A bound between the loss of fusing alone and that of the file: the group is halved, then left.
    path = tmp_path / "in.onnx"
    nbits(exported(equal=False), path, block_size=16)
    pair = {"include": r"layers\.[34]\."}
    written = fuse(path, tmp_path / "out.onnx", requantize=True, **pair).groups[0].sqnr_db
    report = fuse(path, tmp_path / "less.onnx", requantize=True, min_sqnr=written + 0.01, **pair)
    assert report.output is None
    told = [miss.reason for miss in report.misses if "quantised again its group keeps" in miss.reason]
    assert len(told) == 2
    assert all(f"dB, under the budget of {written + 0.01:g} dB" in reason for reason in told)


# What is refused, and what is caught


class _Samples(CalibrationDataReader):
    """Two samples."""

    def __init__(self) -> None:
        self.left = [{"input_ids": ids(seed=seed).numpy()} for seed in range(2)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("kept", ["as written", "session"])
@pytest.mark.parametrize("operators", [["MatMul"], None])
@pytest.mark.parametrize("quant_format", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_calibrated_activations_are_refused(
    exported: Any, tmp_path: Path, quant_format: QuantFormat, operators: Any, kept: str
) -> None:
    path = tmp_path / "in.onnx"
    with silenced():
        to_static(exported(), path, _Samples(), quant_format=quant_format, op_types_to_quantize=operators)
    if kept == "session":
        path = session_optimised(path, tmp_path / "session.onnx", "llama")
    report = fuse(path, tmp_path / "out.onnx", requantize=True)
    assert report.output is None
    told = [miss for miss in report.misses if "quantised by calibrated scales of its own" in miss.reason]
    assert [miss.where for miss in told] == [f"model.layers.{index}.mlp" for index in range(5)]


DAMAGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "rows in another order": (
        "4 bits",
        lambda storage: replace(storage, q=storage.q.roll(1, 0)),
        "differs from the parallel sum by",
    ),
    "scales that are half a percent off, less than 8 bits show": (
        "4 bits, zero points, accuracy_level 4",
        lambda storage: replace(storage, scale=storage.scale * 1.005),
        "differs from the unfused ones of the same integers by",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_caught(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    form, spoil, told = DAMAGES[damage]
    honest = onnx_file.stack

    def damaged(view: Any, blocks: Any) -> Any:
        group = honest(view, blocks)
        return replace(group, gate=replace(group.gate, storage=spoil(group.gate.storage)))

    monkeypatch.setattr(onnx_file, "stack", damaged)
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    FORMS[form][0](exported(), path)
    with pytest.raises(VerificationError, match=told):
        fuse(path, out)
    assert not out.exists()
