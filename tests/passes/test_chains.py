"""Which blocks form a chain, what ends one, and the reason that is kept for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxfuse.passes.chains import _difference, find_chains
from tests.passes.graphs import (
    HIDDEN,
    TRACERS,
    Layer,
    Spec,
    Stack,
    dynamo,
    example,
    find,
    fuse,
    lengths,
    reasons,
    run,
    symbolic,
)


class Net(nn.Module):
    """`write(a, b, c, x)` over three layers."""

    def __init__(self, write: Callable[..., object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.a, self.b, self.c = Layer(), Layer(), Layer()
        self.mixing = nn.Linear(HIDDEN, HIDDEN)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> object:
        return self.write(self, x)


def two_outputs(m: Net, x: Tensor) -> object:
    y = m.a(x)
    return m.c(m.b(y)), y


def shared_norm(m: Net, x: Tensor) -> object:
    y = m.a(x)
    h = m.b.norm(y)
    return m.c(y + m.b.mlp(h)), h


def norm_read_elsewhere(m: Net, x: Tensor) -> object:
    y = m.a(x)
    h = m.b.norm(y)
    return m.c(y + m.b.mlp(h)) + m.mixing(h)


def stream_read_elsewhere(m: Net, x: Tensor) -> object:
    y = m.a(x)
    return m.c(m.b(y)) + m.mixing(y)


def stream_read_through_a_clone(m: Net, x: Tensor) -> object:
    y = m.a(x)
    return m.c(m.b(y)) + m.mixing(y.clone().to(torch.float32))


def output_through_a_clone(m: Net, x: Tensor) -> object:
    y = m.a(x)
    return m.c(m.b(y)), y.clone()


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo", "aten", "core"])
@pytest.mark.parametrize(
    ("write", "pattern"),
    [
        (two_outputs, r"b\.mlp: the residual stream after a\.mlp is also a graph output \(\w+\)"),
        (
            output_through_a_clone,
            r"b\.mlp: the residual stream after a\.mlp is also a graph output \(clone\w*\)",
        ),
        (stream_read_elsewhere, r"b\.mlp: the residual stream after a\.mlp is also read by \w+"),
        (stream_read_through_a_clone, r"b\.mlp: the residual stream after a\.mlp is also read by \w+"),
        (shared_norm, r"b\.mlp: \w+ inside b\.mlp is also a graph output"),
        (norm_read_elsewhere, r"b\.mlp: \w+ inside b\.mlp is also read by \w+"),
    ],
)
def test_taps_end_a_chain(tracer: str, write: Callable[..., object], pattern: str) -> None:
    """[a], [b, c], since something reads what is between a and b"""
    found = find_chains(TRACERS[tracer](Net(write), example()))
    assert lengths(found) == [2]
    assert [block.name for block in found.chains[0].blocks] == ["b.mlp", "c.mlp"]
    assert [block.name for block in found.singles] == ["a.mlp"]
    assert re.search(pattern, reasons(found)), reasons(found)


def branch_between(m: Net, x: Tensor) -> object:
    y = m.b(m.a(x))
    return m.c(y + m.mixing(y))


def scaling_between(m: Net, x: Tensor) -> object:
    return m.c(m.b(m.a(x)) * 2.0)


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo", "aten", "core"])
@pytest.mark.parametrize(
    ("write", "pattern"),
    [
        (
            branch_between,
            r"and it on the residual stream another branch, such as attention, is added \(\w+\)",
        ),
        (scaling_between, r"and it on the residual stream something else stands \(\w+\)"),
    ],
)
def test_a_chain_ends_for_a_reason(tracer: str, write: Callable[..., object], pattern: str) -> None:
    """[a, b], c, since something stands between b and c"""
    found = find_chains(TRACERS[tracer](Net(write), example()))
    assert lengths(found) == [2]
    assert re.search(r"c\.mlp: between b\.mlp " + pattern, reasons(found)), reasons(found)


def ends_are_read(m: Net, x: Tensor) -> object:
    """Both ends of a chain, and the first block's inside, are there after the rewrite as well."""
    h = m.a.norm(x)
    y = m.c(m.b(x + m.a.mlp(h)))
    return m.mixing(y) + m.mixing(x) + h, y


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo", "core"])
def test_what_may_be_read(tracer: str) -> None:
    view = TRACERS[tracer](Net(ends_are_read), example())
    assert lengths(find_chains(view)) == [3]


def measured(m: Net, x: Tensor) -> object:
    y = m.a(x)
    z = m.b(y)
    return m.c(z) + torch.ones(y.shape[0], 1, 1) * z.size(1)


def test_readers_of_a_shape_do_not_end_a_chain() -> None:
    assert lengths(find_chains(dynamo_dynamic(Net(measured)))) == [3]


def dynamo_dynamic(model: nn.Module):
    """Dynamo's graph with symbolic batch and length, where sizes are computed in the graph."""
    from fxfuse.passes.fx.view import FxView
    from tests import exporters

    module, inputs = exporters.dynamo_graph(model, example(), dynamic=True)
    placeholders = module.graph.find_nodes(op="placeholder")
    own = {id(each) for each in model.parameters()}
    pairs = zip(placeholders, inputs, strict=True)
    return FxView(module, {node: value for node, value in pairs if id(value) in own})


def test_a_size_for_the_blocks_own_reshape_does_not_end_a_chain() -> None:
    class Flat(Layer):
        def branch(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            return self.mlp(h.reshape(h.shape[0] * h.shape[1], HIDDEN)).reshape(h.shape).to(h.dtype)

    stack = Stack([Flat(), Flat(), Flat()])
    view = symbolic(stack, example(), shapes=True)
    assert lengths(find_chains(view)) == [3], reasons(find_chains(view))
    assert lengths(find_chains(dynamo_dynamic(stack))) == [3]
    x = example()
    expected = x + sum(layer.branch(x) for layer in stack.layers)
    torch.testing.assert_close(run(fuse(view), x), expected, rtol=1e-5, atol=1e-5)


def test_a_size_of_the_inside_that_leaves_the_block_ends_a_chain() -> None:
    def write(m: Net, x: Tensor) -> object:
        y = m.a(x)
        normed = m.b.norm(y)
        h = m.b.mlp.gate_proj(normed)
        inner = torch.nn.functional.silu(h) * m.b.mlp.up_proj(normed)
        return m.c(y + m.b.mlp.down_proj(inner)) * h.size(0)

    assert "inside b.mlp is also read by size" in reasons(find(Net(write)))


@pytest.mark.parametrize(
    ("specs", "expected", "reason"),
    [
        ([Spec(), Spec(eps=1e-5)], [], "eps differ from layers.0.mlp: 1e-06 and 1e-05"),
        ([Spec(), Spec(norm="layer")], [], "norms differ from layers.0.mlp: rms and layer"),
        ([Spec(), Spec(act="relu")], [], "activations differ from layers.0.mlp: silu and relu"),
        (
            [Spec(act="gelu"), Spec(act="gelu tanh")],
            [],
            "activations differ from layers.0.mlp: gelu and gelu_tanh",
        ),
        (
            [Spec(act="relu"), Spec(act="relu", form="ungated")],
            [],
            "gated and ungated FFNs differ from layers.0.mlp: True and False",
        ),
        (
            [Spec(), Spec(), Spec(eps=1e-5), Spec(eps=1e-5)],
            [2, 2],
            "layers.2.mlp: eps differ from layers.1.mlp",
        ),
        ([Spec(), Spec(eps=1.0000001e-6)], [2], None),
        ([Spec(norm="rms"), Spec(norm="rms_op")], [2], None),
        ([Spec(norm="layer"), Spec(norm="layer_op", shift=True)], [2], None),
        ([Spec(), Spec(act="silu by hand", form="packed")], [2], None),
        ([Spec(gain="none"), Spec(gain="plus_one"), Spec()], [3], None),
    ],
)
def test_neighbours_that_differ(specs: list[Spec], expected: list[int], reason: str | None) -> None:
    found = find(Stack(specs))
    assert lengths(found) == expected, reasons(found)
    assert reason in reasons(found) if reason is not None else not found.misses


def test_weight_types_that_differ() -> None:
    class Cast(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp(self.norm(x).to(torch.float16)).to(x.dtype)

    stack = Stack([Spec(), Cast(Spec())])
    stack.layers[1].mlp.half()
    assert "weight types differ from layers.0.mlp: float32 and float16" in reasons(find(stack))


def test_constants_of_an_activation_that_differ() -> None:
    class Sharp(Layer):
        def __init__(self, alpha: float) -> None:
            super().__init__(Spec())
            self.mlp.activate = lambda gate: gate * torch.sigmoid(alpha * gate) + 0.01 * gate

    reason = "the constants of the activation differ from layers.0.mlp"
    assert reason in reasons(find(Stack([Sharp(1.5), Sharp(1.6)])))
    assert lengths(find(Stack([Sharp(1.5), Sharp(1.5)]))) == [2]


def test_hidden_sizes_that_differ() -> None:
    """No stream has two sizes, so the comparison is asked directly."""
    (block,) = find(Stack([Spec()])).singles
    reason = _difference(block, replace(block, hidden_size=16))
    assert reason == "hidden sizes differ from layers.0.mlp: 8 and 16"


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x * 2.0,
        torch.tanh,
        lambda x: x + 1.0,
        lambda x: x.to(torch.float64).float(),
        lambda x: x.flip(1),
    ],
)
def test_another_operation_on_the_stream_ends_a_chain(between: Callable[[Tensor], Tensor]) -> None:
    found = find(Net(lambda m, x: m.c(m.b(between(m.a(x))))))
    assert lengths(found) == [2]
    assert [block.name for block in found.singles] == ["a.mlp"]


def test_two_ffns_beside_one_another_are_no_chain() -> None:
    def write(m: Net, x: Tensor) -> object:
        return x + m.a.branch(x) + m.b.branch(x)

    found = find(Net(write))
    assert lengths(found) == []
    assert "attention and FFN stand in parallel" in reasons(found)


def test_a_fork_is_no_chain() -> None:
    found = find(Net(lambda m, x: m.b(y := m.a(x)) + m.c(y)))
    assert lengths(found) == []
    assert "the residual stream after a.mlp is also read by" in reasons(found)


def test_blocks_of_a_module_called_twice_are_numbered() -> None:
    """Linear layers apart, so that no weight is shared."""

    class Lent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    view = symbolic(Lent(), example(), shapes=True)
    view.scope = lambda value: "body"  # type: ignore[method-assign]
    assert [block.name for block in find_chains(view).chains[0].blocks] == ["body#1", "body#2"]


def test_finding_changes_nothing() -> None:
    view = dynamo(Stack([Spec(), Spec(form="packed"), Spec(eps=1e-5)]), example())
    before = str(view.module.graph)
    assert find_chains(view) == find_chains(view)
    assert str(view.module.graph) == before


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from([1e-6, 1e-5]), st.sampled_from(["silu", "gelu"])), min_size=1, max_size=6
    )
)
def test_chains_are_the_maximal_runs_of_equal_neighbours(kinds: list[tuple[float, str]]) -> None:
    runs = [[kinds[0]]]
    for kind in kinds[1:]:
        if kind == runs[-1][-1]:
            runs[-1].append(kind)
        else:
            runs.append([kind])
    found = find(Stack([Spec(eps=eps, act=act, width=3) for eps, act in kinds]))
    assert lengths(found) == [len(each) for each in runs if len(each) > 1]
    assert len(found.singles) == sum(len(each) == 1 for each in runs)
    assert len(found.misses) == len(runs) - 1


# Every reason is produced somewhere


TELLING = [
    "budget.py", "inside.py", "planning/greedy.py", "planning/using.py", "report.py", "splitting.py",
    "inspection", "split_source.py",
    "frontends/bodies.py", "frontends/callables.py", "frontends/dynamo_graph.py",
    "quantisation/judging.py", "quantisation/onnx.py", "quantisation/torch.py", "timing/choosing.py",
]  # fmt: skip
"""The parts of fxfuse that give reasons, next to all of passes."""


def written_reasons() -> dict[str, str]:
    """The longest fixed piece of every reason in the source: literals given to a Miss, or returned."""
    root = Path(__file__).parents[2]
    places = [root / "passes", *(root / "fxfuse" / name for name in TELLING)]
    files = [path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])]
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            for text in _reason_nodes(node):
                pieces = [each.value for each in ast.walk(text) if isinstance(each, ast.Constant)]
                longest = max(
                    (each.strip(" :(") for each in pieces if isinstance(each, str)), key=len, default=""
                )
                if longest.count(" ") > 1:
                    found[longest] = f"{path.name}:{text.lineno}"
    return found


def _reason_nodes(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = node.args[-1:] if name in ("Miss", "miss") else []
    else:
        given = [node.value] if isinstance(node, (ast.Return, ast.Assign)) and node.value else []
    branches = [
        b for each in given for b in ((each.body, each.orelse) if isinstance(each, ast.IfExp) else (each,))
    ]
    return [each for each in branches if isinstance(each, (ast.JoinedStr, ast.Constant))]


def test_every_part_that_makes_misses_is_searched() -> None:
    root = Path(__file__).parents[2] / "fxfuse"
    files = [path for path in root.rglob("*.py") if "passes" not in path.relative_to(root).parts]
    making = {path.relative_to(root).as_posix() for path in files if re.search(r"\bMiss\(", path.read_text())}
    assert making <= {*TELLING}


def test_every_reason_is_asserted_by_a_test() -> None:
    texts = [path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py")]
    tests = re.sub(r"\"\s*f?\"|\\", "", "\n".join(texts))
    missing = {reason: place for reason, place in written_reasons().items() if reason not in tests}
    assert not missing
    assert len(written_reasons()) > 15
