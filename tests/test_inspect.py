"""fxfuse inspect: lines, chains and reasons, as an object, as text and JSON, of files and of functions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse import cli
from fxfuse.errors import InputError
from fxfuse.frontends.callables import capture
from fxfuse.inspection.api import inspect_model
from fxfuse.inspection.lines import inspect_view
from fxfuse.inspection.records import Inspection
from tests import families
from tests.passes.graphs import HIDDEN, Layer, Spec, Stack, example, symbolic
from tests.passes.test_stream import Attention
from tests.small_onnx import save

ROOT = Path(__file__).resolve().parent.parent


class Net(nn.Module):
    """`write(self, x)` over a few parts."""

    def __init__(self, write: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.a, self.b, self.c = Layer(), Layer(), Layer()
        self.attention, self.inner = Attention(), Attention()
        self.norm, self.other, self.final = (nn.LayerNorm(HIDDEN) for _ in range(3))
        self.router, self.mixing = nn.Linear(HIDDEN, 4), nn.Linear(HIDDEN, HIDDEN)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> object:
        return self.write(self, x)


def look(model: nn.Module | Callable[[Any, Tensor], object], length: int = 3) -> Inspection:
    """The inspection of a model by the quickest tracer that knows shapes."""
    model = model if isinstance(model, nn.Module) else Net(model)
    found = Inspection("model", "torch")
    inspect_view(symbolic(model, example(length=length), shapes=True), found)
    json.loads(found.to_json())
    return found


def lines(found: Inspection) -> list[tuple[str, str, int | None]]:
    return [(line.kind, line.name, line.chain) for line in found.lines()]


def told(found: Inspection) -> list[str]:
    return [f"{place.name}: {place.reason}" for place in found.places]


# -- lines -----------------------------------------------------------------------------------------


def test_a_decoder_with_two_chains(onnx_file):
    """Attention removed from layers 1, 2 and 4 of five."""
    found = inspect_model(onnx_file("llama"))
    ffn = [("ffn", f"model.layers.{layer}.mlp") for layer in range(5)]
    assert lines(found) == [
        ("start", "model.embed_tokens", None),
        ("attention", "model.layers.0.self_attn", None),
        *((*each, 1) for each in ffn[:3]),
        ("attention", "model.layers.3.self_attn", None),
        *((*each, 2) for each in ffn[3:]),
        ("norm", "model.norm", None),
    ]
    assert found.chains == [tuple(name for _, name in ffn[:3]), tuple(name for _, name in ffn[3:])]
    assert next(found.lines()).facts == {"operators": ["Gather"]}
    facts = dict(list(found.lines())[2].facts)
    assert facts.pop("intermediate_size") > families.HIDDEN
    assert facts.pop("eps") == pytest.approx(1e-6)
    assert facts.pop("hidden_size") == families.HIDDEN
    assert facts == {"norm": "RMSNorm", "activation": "silu", "gated": True, "dtype": "float32"}
    assert found.streams[0].hidden_size == families.HIDDEN


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_neox_parallel", "granite", "phi3"])
def test_a_file_and_a_program_tell_the_same(family, onnx_file):
    model, args = families.build(family), (families.ids(),)
    views, note = capture(model, args, {})
    found = Inspection("model", "torch")
    for view in views:
        inspect_view(view, found)
    file = inspect_model(onnx_file(family))
    assert note is None
    assert lines(found) == lines(file)
    assert {(p.kind, p.name) for p in found.places} == {(p.kind, p.name) for p in file.places}


def test_experts(onnx_file):
    found = inspect_model(onnx_file("mixtral"))
    assert [kind for kind, *_ in lines(found)].count("experts") == 5
    assert any("a router chooses experts here" in each for each in told(found))
    assert any("it feeds experts (model.layers.1.mlp)" in each for each in told(found))


def test_post_norm_reads_in_order():
    def write(m: Net, x: Tensor) -> object:
        y = m.norm(x + m.attention(x))
        return m.final(y + m.a.mlp(y))

    found = look(write)
    assert [line.kind for line in found.lines()] == ["start", "attention", "norm", "ffn", "norm"]
    assert "a.mlp: the FFN reads the residual stream without a norm before it (post-norm form)" in told(found)
    assert "norm: it stands on the residual stream itself (post-norm form)" in told(found)
    assert "final: it normalises the residual stream after a.mlp, and no FFN reads it" in told(found)


def test_parallel_attention_and_ffn():
    """one add takes both; two adds, of which the second's branch reads the stream before the first"""

    def one_add(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return x + (m.attention(h) + m.a.mlp(h))

    def two_adds(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return x + m.attention(h) + m.a.mlp(h)

    found = look(one_add)
    assert [line.kind for line in found.lines()] == ["start", "attention + ffn"]
    line = list(found.lines())[1]
    assert line.reason == "the FFN stands in parallel with attention: one residual add (add_1) takes both"
    assert "norm: it feeds attention + FFN (add_1)" in told(found)
    second = list(look(two_adds).lines())[2]
    assert second.facts["beside"]
    assert "attention and FFN stand in parallel" in str(second.reason)


def test_a_block_that_stands_alone():
    found = look(lambda m, x: m.b(x + m.attention(m.norm(x))))
    assert "b.mlp: it stands alone on the residual stream, between attention attention and the end" in told(
        found
    )
    assert "b.norm: its FFN b.mlp is not in a chain" in told(found)
    found = look(lambda m, x: m.final(m.a(x)))
    assert "a.mlp: it stands alone on the residual stream, between the start and norm final" in told(found)


def test_norms_that_feed_no_ffn():
    def write(m: Net, x: Tensor) -> object:
        x = x + m.other(m.attention(m.norm(x)))
        x = x + torch.tanh(m.mixing(m.final(x)))
        return m.b.norm(x.mean(1, keepdim=True)), m.a.norm(torch.ones(3, HIDDEN) * m.mixing.bias)

    found = told(look(write))
    assert "norm: it feeds attention (attention)" in found
    assert "other: it normalises what attention adds to the residual stream (sandwich form)" in found
    assert "final: it feeds mixing, which is no FFN" in found
    assert any(
        "it normalises what is computed from the residual stream after mixing, not the stream" in each
        for each in found
    )


def test_norms_elsewhere():
    def write(m: Net, x: Tensor) -> object:
        q, x = x.chunk(2, 1)
        x = m.norm(x)
        x = x + m.attention(m.other(x + m.final(m.mixing(x))))
        return m.a(x), m.c.norm(q)

    found = told(look(write, length=6))
    assert "norm: the residual stream begins at it" in found
    assert "c.norm: it normalises no residual stream" in found
    assert any("it normalises a value inside" in each and "not the residual stream" in each for each in found)


def test_nearly_a_norm_is_told():
    found = look(lambda m, x: m.a(x + m.attention(F.normalize(x, dim=1))))
    assert any("it divides by a length (normalize, an L2 norm)" in each for each in told(found))


def test_experts_by_an_operator():
    from tests.passes import onnx_graphs

    graph = onnx_graphs.Graph()
    block = graph.new_block()
    out = graph.node("QMoE", graph.rms("x", block), graph.weight(block.gate), domain="com.microsoft")
    model = graph.model(graph.node("Add", "x", out))
    found = Inspection("model", "onnx")
    inspect_view(onnx_graphs.view_of(model), found)
    assert any("it holds experts (n7), which are not one FFN" in each for each in told(found))


def test_a_value_from_elsewhere():
    def write(m: Net, x: Tensor) -> object:
        y, x = x.chunk(2, 1)
        return m.b(m.a(x) + m.mixing(y))

    found = look(write, length=6)
    assert [line.kind for line in found.lines()] == ["start", "ffn", "other", "ffn"]
    assert list(found.lines())[2].facts["operators"] == ["add of a value from elsewhere"]


def test_a_stream_goes_on_behind_other_operators():
    """a patch merging: two tokens become one"""

    def write(m: Net, x: Tensor) -> object:
        x = m.a(x + m.attention(m.norm(x)))
        return m.b(m.mixing(x.unflatten(1, (2, 2)).amax(2)))

    found = look(write, length=4)
    assert [line.kind for line in found.lines()] == ["start", "attention", "ffn", "other", "ffn"]
    assert "amax" in list(found.lines())[3].facts["operators"]
    assert any("between attention attention and another operation mixing" in each for each in told(found))


def test_streams_of_encoder_and_decoder():
    def write(m: Net, x: Tensor) -> object:
        x, y = x.chunk(2, 1)
        memory = m.a(x)
        y = y + F.scaled_dot_product_attention(m.norm(y), m.mixing(memory), memory)
        return m.b(y)

    found = look(write, length=6)
    assert [[line.kind for line in stream.lines] for stream in found.streams] == [
        ["start", "ffn"],
        ["start", "attention", "ffn"],
    ]
    assert found.streams[1].lines[1].facts["cross"]


def test_a_stream_inside_a_branch():
    def write(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        inner = m.b(h + m.attention(m.other(h)))
        return m.a(x + m.mixing(m.c(inner)))

    found = look(write)
    outer, inner = found.streams
    assert outer.inside is None
    assert inner.inside == outer.lines[1].name
    assert found.chains == [("b.mlp", "c.mlp")]
    assert f", inside {inner.inside}" in str(found)


def test_a_tap_is_told_where_the_chain_begins():
    def write(m: Net, x: Tensor) -> object:
        y = m.a(x)
        return m.c(m.b(y)), y

    found = look(write)
    reason = next(line.reason for line in found.lines() if line.name == "b.mlp")
    assert "the residual stream after a.mlp is also a graph output" in str(reason)
    assert "where a chain begins\n  b.mlp: the residual stream after a.mlp" in str(found)


def test_other_branches():
    found = look(lambda m, x: m.a(x + torch.tanh(m.mixing(x)) * 0.5))
    assert [line.kind for line in found.lines()] == ["start", "other", "ffn"]


def test_a_graph_without_a_stream(tmp_path):
    found = look(lambda m, x: torch.tanh(x))
    assert str(found) == "model: no residual stream found; no chain of FFN blocks"
    other = look(lambda m, x: x + torch.tanh(m.mixing(x)))
    assert str(other).startswith("model: no attention and no FFN; no chain of FFN blocks")
    assert (found.streams, found.places) == ([], [])


def test_bodies_are_shown_too(tmp_path):
    """Out = If(c): both branches the same chain"""
    from tests.test_bodies import if_model

    onnx.save(if_model()[1], tmp_path / "m.onnx")
    found = inspect_model(tmp_path / "m.onnx")
    places = {"then_branch of /If_0", "else_branch of /If_0"}
    assert {stream.inside for stream in found.streams} == places
    assert set(found.chains) == {tuple(f"layers.{i} in {place}" for i in range(3)) for place in places}
    assert {line.chain for line in found.streams[1].lines if line.kind == "ffn"} == {2}
    assert ", inside else_branch of /If_0" in str(found)


# -- text ------------------------------------------------------------------------------------------


def test_brackets_show_chains_and_like_reasons_are_told_once(onnx_file):
    text = str(inspect_model(onnx_file("llama"))).splitlines()
    assert text[0].endswith(": 2 attention, 5 FFN; chains of 3 and 2 FFN blocks")
    assert text[2] == "residual stream model.layers, hidden size 64"
    assert [line[0] for line in text[3:12]] == [" ", " ", "┌", "│", "└", " ", "┌", "└", " "]
    assert "chain 1: 3 FFN blocks" in text[5]
    assert "  model.layers.0,3.input_layernorm: it feeds attention (model.layers.N.self_attn)" in text


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_longer_than_the_screen(onnx_file, width):
    found = inspect_model(onnx_file("llama"))
    written = [text for text, _ in found.write(width)]
    assert max(map(len, written)) <= max(width, 45)
    whole = " ".join(" ".join(written).split())
    assert "is added (node_add_" in whole.replace("- ", "-")


def test_ten_thousand_lines_are_written_in_linear_time():
    from fxfuse.inspection.records import Line, Place, StreamReport

    steps = tuple(Line("ffn", f"layers.{i}.mlp", f"add_{i}", {}, 1) for i in range(10_000))
    places = [
        Place("norm", f"layers.{i}.norm", f"it feeds attention (layers.{i}.attn)") for i in range(10_000)
    ]
    found = Inspection("m", "onnx", [StreamReport("layers", 8, None, steps)], [("x",) * 10_000], places)
    text = str(found).splitlines()
    assert len(text) < 10_010
    assert text[-1] == "  layers.0-9999.norm: it feeds attention (layers.N.attn)"


# -- the command -----------------------------------------------------------------------------------

MAKER = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.down = nn.RMSNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
    def forward(self, x):
        return x + self.down(torch.relu(self.gate(self.norm(x))))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(4))
    def forward(self, x):
        x = self.layers[1](self.layers[0](x))
        torch._dynamo.graph_break()
        return self.layers[3](self.layers[2](x))

def two():
    return nn.Sequential(Block(), Block()), (torch.ones(1, 2, 8),)
def by_name():
    return nn.Sequential(Block(), Block()), {"input": torch.ones(1, 2, 8)}
def one_tensor():
    return nn.Sequential(Block(), Block()), torch.ones(1, 2, 8)
def broken():
    return Broken(), (torch.ones(1, 2, 8),)
def program():
    model, args = two()
    return torch.export.export(model, args), args
def wrong_shape():
    return nn.Sequential(Block()), (torch.ones(1, 2, 9),)
def alone():
    return nn.Linear(2, 2)
def third():
    return nn.Linear(2, 2), (torch.ones(2),), 3
def fails():
    raise ValueError("no such weights")
number = 3
"""


@pytest.fixture
def maker(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"maker_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MAKER)
    return name


@pytest.mark.parametrize("function", ["two", "by_name", "one_tensor", "program"])
def test_a_function_that_makes_a_model(maker, function):
    found = inspect_model(f"{maker}:{function}")
    assert found.graph == "torch"
    assert found.chains == [("0", "1")]


def test_a_file_with_a_function(maker):
    assert inspect_model(f"{maker}.py:two").chains == [("0", "1")]


def test_graph_breaks_are_told(maker):
    found = inspect_model(f"{maker}:broken")
    assert found.chains == [("layers.0", "layers.1"), ("layers.2", "layers.3")]
    assert [line.chain for line in found.lines()] == [None, 1, 1, None, 2, 2]
    assert "this model into 2 graphs, and no chain runs across a break" in str(found)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("gone", "There is no function gone in {m}"),
        ("number", "There is no function number in {m}"),
        ("alone", "{m}:alone must return a model and a tuple of its example inputs, not Linear"),
        ("third", "The third thing that {m}:third returns must be a dict of keyword arguments"),
        ("fails", "{m}:fails failed (ValueError: no such weights)"),
        ("wrong_shape", "The model cannot be captured ("),
    ],
)
def test_a_function_that_is_of_no_use(maker, function, sentence):
    with pytest.raises(InputError) as caught:
        inspect_model(f"{maker}:{function}")
    assert sentence.format(m=maker) in str(caught.value)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("gone.onnx", "There is no model file gone.onnx"),
        ("gone_module:f", "gone_module cannot be imported (ModuleNotFoundError"),
        ("gone.py:f", "There is no file gone.py"),
    ],
)
def test_a_model_that_is_not_there(tmp_path, monkeypatch, capsys, model, sentence):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", model]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


def test_the_command_shows_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # the folder's name may be long
    path = save(tmp_path / "m.onnx")
    assert cli.main(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == f"{path}: 3 FFN; chain of 3 FFN blocks"
    assert "\x1b" not in out


def test_the_command_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # the folder's name may be long
    path = save(tmp_path / "m.onnx", layers=1)
    assert cli.main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert cli.main(["inspect", str(path), "--json", str(tmp_path / "i.json")]) == 0
    assert "1 FFN; no chain of FFN blocks" in capsys.readouterr().out
    written = json.loads((tmp_path / "i.json").read_text())
    assert {**shown, "seconds": 0} == {**written, "seconds": 0}
    assert shown["streams"][0]["lines"][1]["name"] == "model.layers.0.mlp"
    assert shown["streams"][0]["lines"][1]["reason"] == shown["places"][0]["reason"]
    assert set(shown) == {"model", "graph", "streams", "chains", "places", "notes", "seconds", "versions"}


def test_json_takes_no_other_file(tmp_path, capsys):
    path = save(tmp_path / "m.onnx")
    (tmp_path / "notes.txt").write_text("keep me")
    assert cli.main(["inspect", str(path), "--json", str(tmp_path / "notes.txt")]) == 2
    assert cli.main(["inspect", str(path), "--json", str(path)]) == 2
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_a_pipe_gets_whole_lines_that_any_encoding_holds(tmp_path):
    save(tmp_path / "m.onnx")
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    settings.pop("COLUMNS", None)
    words = [sys.executable, "-m", "fxfuse.cli", "inspect", "m.onnx"]
    done = subprocess.run(words, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[0] for line in done.stdout.splitlines()[4:7]] == ["/", "|", "\\"]


def test_stacks_of_every_form(tmp_path):
    """Whatever form the blocks have, each is one line."""
    specs = [Spec(), Spec(norm="layer_op", shift=True), Spec(form="packed"), Spec(act="gelu", form="ungated")]
    found = look(Stack(specs))
    assert [line.kind for line in found.lines()] == ["start", *["ffn"] * len(specs)]
    assert all(line.reason for line in found.lines() if line.is_ffn and line.chain is None)
