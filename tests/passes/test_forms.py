"""Every form of a wide FFN computes what the default form does, in ONNX Runtime and in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fxfuse.frontends.dynamo_graph import DynamoGraph
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.frontends.torch_graph import FusedGraph, TorchGraph
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form, legal_forms
from fxfuse.passes.onnx.provenance import read_provenance
from fxfuse.passes.weights import refill, widen
from fxfuse.splitting import split_onnx
from tests import quantised_graphs
from tests.passes.graphs import Spec, Stack, parallel, symbolic
from tests.passes.graphs import example as torch_example
from tests.passes.onnx_graphs import HIDDEN, Block, Graph, example, run
from tests.quantised_graphs import Writer, dynamic, nbits, stored, then

TEXTS = ["two", "packed", "two/3", "packed/3", "two/50"]
OPERATORS = ["two, SimplifiedLayerNormalization", "packed/2, RMSNormalization"]


@pytest.mark.parametrize("text", [*TEXTS, *OPERATORS])
def test_a_form_is_read_as_it_is_written(text: str) -> None:
    assert str(Form.parse(text)) == text


@pytest.mark.parametrize("text", ["", "three", "two/0", "two/-1", "two, LayerNorm", "two/2/2", "packed,own"])
def test_what_is_no_form(text: str) -> None:
    with pytest.raises(ValueError, match="form"):
        Form.parse(text)


@pytest.mark.parametrize("width, count", [(256, 4), (1000, 3), (100, 4), (3, 8), (65, 2), (22528, 8)])
def test_slices_cover_the_width(width: int, count: int) -> None:
    spans = Form(slices=count).spans(width)
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert (spans[0][0], spans[-1][1], len(spans)) == (0, width, min(count, width))
    sizes = [stop - start for start, stop in spans]
    assert max(sizes) - min(sizes) <= (128 if width >= 64 * count else 1)
    assert all(start % 64 == 0 for start, _ in spans) or width < 64 * count


# ONNX

MEANINGS = {
    "plain": {},
    "ungated": {"gated": False},
    "layer": {"kind": "layer"},
}
WIDTHS = (12, 7, 20)


def graph(
    meaning: str, biased: bool, dtype: type = np.float32, opset: int = 20
) -> tuple[Graph, onnx.ModelProto]:
    """A chain of three blocks of unequal widths."""
    g, x = Graph(dtype=dtype, opset=opset), "x"
    for width in WIDTHS:
        block = g.new_block(width, **MEANINGS[meaning])
        if biased and width != 7:
            block.biases = {"gate": g.draw(width), "down": g.draw(HIDDEN)}
        layer = block.kind == "layer"
        block.shift = g.draw(HIDDEN) if layer else None
        x = g.block(x, block, norm=layer_operator if layer else None)
    return g, g.model(x)


def layer_operator(g: Graph, x: str, b: Block) -> str:
    return g.node("LayerNormalization", x, g.weight(b.gain), g.weight(b.shift), epsilon=b.eps)


def fused(model: onnx.ModelProto, form: Form, folder: Path) -> onnx.ModelProto:
    """One wide FFN in a form."""
    front = OnnxFile(model, folder, [{"x": example()}], folder, "f.onnx", "cpu")
    (chain,) = find_chains(front.view).chains
    made = front.apply([chain.blocks], forms=[form])
    assert made.forms == [form] or form.norm != "own"
    return made.model


@pytest.mark.parametrize("text", [*TEXTS, OPERATORS[0]])
@pytest.mark.parametrize(
    "meaning, biased", [("plain", False), ("plain", True), ("ungated", True), ("layer", True)]
)
def test_every_form_of_an_onnx_model(meaning: str, biased: bool, text: str, tmp_path: Path) -> None:
    g, model = graph(meaning, biased)
    written = fused(model, Form.parse(text), tmp_path)
    np.testing.assert_allclose(run(written, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)
    stored = sum(int(np.prod(t.dims)) for t in written.graph.initializer if len(t.dims) == 2)
    assert stored == sum(WIDTHS) * HIDDEN * (2 if meaning == "ungated" else 3)
    (group,), notes = read_provenance(written)
    assert not notes
    assert (group.form.products, group.form.slices) == (Form.parse(text).products, Form.parse(text).slices)


# torch

SPECS = {
    "plain": {},
    "biased": {"norm": "layer", "shift": True, "bias": True},
    "ungated": {"form": "ungated", "act": "gelu", "bias": True},
    "packed": {"form": "packed"},
}


Run = Callable[[FusedGraph], torch.Tensor]


def front(kind: str, stack: Stack, x: torch.Tensor) -> tuple[TorchGraph, Run]:
    """A front end over a stack, and how its fused graph is run."""
    if kind == "program":
        program = ExportedGraph(torch.export.export(stack, (x,)), [x])
        return program, lambda fused: program.finish(fused).module()(x)
    if kind == "symbolic":
        graph = TorchGraph(symbolic(stack, x, shapes=True).module, [x], {})
        return graph, lambda fused: fused.module(x)
    captured: list[tuple[torch.fx.GraphModule, list[torch.Tensor]]] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        captured.append((module, inputs))
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(stack, backend=backend)(x)
    (module, inputs) = captured[0]
    return DynamoGraph(module, inputs), lambda fused: fused.module(*inputs, *fused.added.values())[0]


@pytest.mark.parametrize(
    "kind, spec",
    [
        *(("dynamo", each) for each in SPECS),
        ("program", "biased"),
        ("program", "packed"),
        ("symbolic", "biased"),
    ],
)
def test_every_form_of_a_torch_graph(kind: str, spec: str) -> None:
    stack, x = Stack([Spec(width=width, **SPECS[spec]) for width in WIDTHS]), torch_example()
    graph, run_fused = front(kind, stack, x)
    (chain,) = find_chains(graph.view).chains
    for form in map(Form.parse, TEXTS):
        fused_graph = graph.apply([chain.blocks], forms=[form])
        assert fused_graph.forms == [form]
        with torch.no_grad():
            result = run_fused(fused_graph)
        torch.testing.assert_close(result.double(), parallel(stack, x), rtol=1e-5, atol=1e-5)


def test_weights_of_every_form_follow_their_sources() -> None:
    """What `refill` writes, the compiled graph reads: slices and halves are views of one memory."""
    stack, x = Stack([Spec(width=width, bias=True) for width in WIDTHS]), torch_example()
    graph, run_fused = front("dynamo", stack, x)
    made = [graph.apply([find_chains(graph.view).chains[0].blocks], forms=[Form.parse(t)]) for t in TEXTS]
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(1.5)
    for fused_graph in made:
        held = sum(tensor.numel() for tensor in fused_graph.added.values() if tensor.dim() == 2)
        assert held == 3 * sum(WIDTHS) * x.shape[-1]
        ((blocks, weights, _),) = fused_graph.groups
        refill(fused_graph.view, blocks, weights)
        with torch.no_grad():
            result = run_fused(fused_graph)
        torch.testing.assert_close(result.double(), parallel(stack, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["SimplifiedLayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_norm_as_one_operator(dtype: type, operator: str, tmp_path: Path) -> None:
    g, model = graph("plain", biased=False, dtype=dtype, opset=23)
    written = fused(model, Form(norm=operator), tmp_path)
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count(operator) == 1
    assert "ReduceMean" not in kinds
    bound = 1e-5 if dtype == np.float32 else 2e-2
    np.testing.assert_allclose(run(written, example(dtype))[0], g.parallel(example(dtype)), bound, bound)


@pytest.mark.parametrize("meaning, opset", [("plain", 20), ("layer", 23)])
def test_an_operator_without_a_place_is_left_out(meaning: str, opset: int, tmp_path: Path) -> None:
    """RMSNormalization is of opset 23, and no LayerNorm"""
    _, model = graph(meaning, biased=False, opset=opset)
    front = OnnxFile(model, tmp_path, [{"x": example()}], tmp_path, "f.onnx", "cpu")
    (chain,) = find_chains(front.view).chains
    assert front.apply([chain.blocks], forms=[Form.parse("packed, RMSNormalization")]).forms == [
        Form("packed")
    ]


@pytest.mark.parametrize(
    "write", [nbits(), nbits(zero="packed"), stored(block=16), dynamic(), then(nbits(bits=8), "Add")]
)
def test_quantised_products_are_packed(write: Writer, tmp_path: Path) -> None:
    blocks = [quantised_graphs.Block(write, nbits(), width=width) for width in (48, 32)]
    model, wanted = quantised_graphs.build(blocks), quantised_graphs.build(blocks, parallel=True)
    x = quantised_graphs.drawn()
    onnx_front = OnnxFile(model, tmp_path, [{"x": x}], tmp_path, "f.onnx", "cpu")
    (chain,) = find_chains(onnx_front.view).chains
    made = onnx_front.apply([chain.blocks], forms=[Form.parse("packed/2, SimplifiedLayerNormalization")])
    assert made.forms == [Form("packed")]
    np.testing.assert_allclose(run(made.model, x)[0], run(wanted, x)[0], rtol=1e-4, atol=1e-4)
    onnx.save(made.model, tmp_path / "made.onnx")
    report = split_onnx(tmp_path / "made.onnx", tmp_path / "s.onnx")
    assert ["its weights are quantised" in miss.reason for miss in report.misses] == [True]


@pytest.mark.parametrize("text", TEXTS)
def test_corrected_weights_are_written_in_every_form(text: str, tmp_path: Path) -> None:
    """Weights from elsewhere, as recovery hands them over"""
    g, model = graph("plain", biased=True)
    onnx_front = OnnxFile(model, tmp_path, [{"x": example()}], tmp_path, "f.onnx", "cpu")
    (chain,) = find_chains(onnx_front.view).chains
    wide = widen(onnx_front.view, chain.blocks).map(torch.Tensor.double)
    made = onnx_front.apply([chain.blocks], [wide], [Form.parse(text)])
    np.testing.assert_allclose(run(made.model, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)


# Which are worth timing


def test_forms_worth_timing() -> None:
    (chain,) = find_chains(symbolic(Stack([Spec()] * 4), torch_example(), shapes=True)).chains
    plain = ["two", "packed", "packed/2", "two/2", "two/4"]
    assert [str(form) for form in legal_forms(chain.blocks, "inductor")] == plain
    in_one = ["two", *(f"{each}, SimplifiedLayerNormalization" for each in plain)]
    assert [str(form) for form in legal_forms(chain.blocks, "onnxruntime", 22)] == in_one
    assert str(legal_forms(chain.blocks, "onnxruntime", 23)[-1]) == "two, RMSNormalization"
    stack = Stack([Spec(form="ungated", norm="layer", shift=True)] * 2)
    (chain,) = find_chains(symbolic(stack, torch_example(), shapes=True)).chains
    assert [str(form) for form in legal_forms(chain.blocks, "onnxruntime")] == ["two", "two/2"]


# Split again


@pytest.mark.parametrize(
    "text, external",
    [(OPERATORS[0], False), ("packed", True), ("two/3", False), ("packed/3", False), ("packed/3", True)],
)
def test_every_form_can_be_split(text: str, external: bool, tmp_path: Path) -> None:
    """Blocks that lie across two slices among them"""
    g, model = graph("plain", biased=True)
    onnx.save(fused(model, Form.parse(text), tmp_path), tmp_path / "f.onnx", save_as_external_data=external,
              size_threshold=200)  # fmt: skip
    done = split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    assert (len(done.groups), done.misses, done.notes) == (1, [], [])
    original, again = run(model, example())[0], run(onnx.load(tmp_path / "s.onnx"), example())[0]
    np.testing.assert_allclose(again, original, rtol=1e-4, atol=1e-4)
    left = {tensor.name for tensor in onnx.load(tmp_path / "s.onnx").graph.initializer}
    assert not {name for name in left if name.startswith("fxfuse")} - {"fxfuse.0/unit_gain"}
    parallel_form = split_onnx(tmp_path / "f.onnx", tmp_path / "p.onnx", parallel=True)
    assert parallel_form.error < 1e-5


def test_a_form_that_was_changed_is_not_split(tmp_path: Path) -> None:
    """The sum of the slices is their mean"""
    _, model = graph("plain", biased=False)
    written = fused(model, Form(slices=2), tmp_path)
    total = next(node for node in written.graph.node if node.op_type == "Sum")
    total.op_type = "Mean"
    onnx.save(written, tmp_path / "f.onnx")
    done = split_onnx(tmp_path / "f.onnx", tmp_path / "s.onnx")
    assert not done.groups
    (miss,) = done.misses
    assert miss.reason == (
        "its nodes are not as fxfuse wrote them in the form two/2: fuse the original model instead"
    )


@pytest.mark.parametrize("text", ["two", "packed", "packed/2"])
def test_a_corrected_group_stays_beside_one_that_is_split(text: str, tmp_path: Path) -> None:
    """Two groups of one file in two forms; a second fusion numbers its weights on"""
    g, x = Graph(), "x"
    for width in (64, 70, 80, 90):
        x = g.block(x, g.new_block(width))
    onnx_front = OnnxFile(g.model(x), tmp_path, [{"x": example()}], tmp_path, "f.onnx", "cpu")
    (chain,) = find_chains(onnx_front.view).chains
    groups = [chain.blocks[:2], chain.blocks[2:]]
    wide = widen(onnx_front.view, groups[1])
    made = onnx_front.apply(groups, [None, wide], [Form("packed", 2), Form.parse(text)])
    onnx.save(made.model, tmp_path / "made.onnx")
    done = split_onnx(tmp_path / "made.onnx", tmp_path / "s.onnx")
    assert done.groups == [tuple(block.name for block in groups[0])]
    assert ["corrected" in miss.reason for miss in done.misses] == [True]
    written = onnx.load(tmp_path / "s.onnx")
    (kept,), _ = read_provenance(written)
    assert str(kept.form) == text
    both = onnx_front.apply([[chain.blocks[0]], [chain.blocks[1]], groups[1]])
    np.testing.assert_allclose(
        run(written, example())[0], run(both.model, example())[0], rtol=1e-4, atol=1e-4
    )
