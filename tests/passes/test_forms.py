"""Every form of a wide FFN computes what the default form does, in ONNX Runtime and in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form, legal_forms
from fxfuse.passes.onnx.provenance import read_provenance
from tests.passes.onnx_graphs import HIDDEN, Block, Graph, example, run

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


def graph(meaning: str, biased: bool, dtype: type = np.float32) -> tuple[Graph, onnx.ModelProto]:
    """A chain of three blocks of unequal widths."""
    g, x = Graph(dtype=dtype), "x"
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
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_every_form_of_an_onnx_model(meaning: str, biased: bool, text: str, tmp_path: Path) -> None:
    g, model = graph(meaning, biased)
    written = fused(model, Form.parse(text), tmp_path)
    np.testing.assert_allclose(run(written, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)
    stored = sum(int(np.prod(t.dims)) for t in written.graph.initializer if len(t.dims) == 2)
    assert stored == sum(WIDTHS) * HIDDEN * (2 if meaning == "ungated" else 3)
    (group,), notes = read_provenance(written)
    assert not notes
    assert (group.form.products, group.form.slices) == (Form.parse(text).products, Form.parse(text).slices)
