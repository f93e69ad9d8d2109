"""torch.fx graphs as views: native operators in canonical form, constants, readers, names, and writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxfuse.passes import elementwise
from fxfuse.passes.elementwise import SELU
from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.fx.run import compute
from fxfuse.passes.fx.view import Attribute, FxView, module_path
from fxfuse.passes.fx.writes import Writes
from tests.passes.graphs import (
    HIDDEN,
    TRACERS,
    Spec,
    Stack,
    aten,
    core,
    dynamo,
    example,
    find_chains,
    symbolic,
)


class Net(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.write = write
        self.weight, self.vector = nn.Parameter(torch.randn(6, HIDDEN)), nn.Parameter(torch.randn(HIDDEN))
        self.square = nn.Parameter(torch.randn(HIDDEN, HIDDEN))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, x)


def last(write, *, shapes: bool = True, tracer=None) -> tuple[FxView, fx.Node]:
    """The view of one expression, and the node that computes it."""
    model = Net(write)
    view = tracer(model, example()) if tracer else symbolic(model, example(), shapes=shapes)
    (output,) = view.module.graph.output_node().all_input_nodes
    return view, output


def op_of(write, **options):
    view, node = last(write, **options)
    return view.op(node)


@pytest.mark.parametrize(
    ("write", "kind", "attrs"),
    [
        (lambda m, x: x + m.vector, "add", {}),
        (lambda m, x: torch.add(x, m.vector), "add", {}),
        (lambda m, x: x.add(m.vector), "add", {}),
        (lambda m, x: torch.add(x, m.vector, alpha=2), "add", {}),
        (lambda m, x: x - m.vector, "sub", {}),
        (lambda m, x: 1.0 - x, "sub", {}),
        (lambda m, x: x * 2.0, "mul", {}),
        (lambda m, x: x / m.vector, "div", {}),
        (lambda m, x: torch.div(x, 2.0), "div", {}),
        (lambda m, x: torch.div(x, 2.0, rounding_mode="floor"), "another div", {}),
        (lambda m, x: x**2, "pow", {}),
        (lambda m, x: torch.pow(x, exponent=2), "pow", {}),
        (lambda m, x: torch.mul(input=x, other=m.vector), "mul", {}),
        (lambda m, x: x * 1.0, "pass", {}),
        (lambda m, x: 0 + x, "pass", {}),
        (lambda m, x: torch.addcmul(x, x, m.vector, value=2), "add", {}),
        (lambda m, x: torch.addcdiv(x, x, m.vector), "add", {}),
        (lambda m, x: x.masked_fill(x > 0, 0.0), "where", {}),
        (lambda m, x: torch.max(x, m.vector), "maximum", {}),
        (lambda m, x: torch.max(x, -1), "max", {}),
        (lambda m, x: F.elu(x, 0.5), "elu", {"alpha": 0.5}),
        (lambda m, x: F.hardtanh(x, -2.0), "hardtanh", {"min_val": -2.0, "max_val": 1.0}),
        (lambda m, x: torch.full_like(x, 2.0), "full_like", {}),
        (lambda m, x: -x, "neg", {}),
        (lambda m, x: x.clamp(min=0), "maximum", {}),
        (lambda m, x: x.clamp(0, 6), "minimum", {}),
        (lambda m, x: F.gelu(x, approximate="tanh"), "gelu", {"approximate": "tanh"}),
        (lambda m, x: F.gelu(x), "gelu", {"approximate": "none"}),
        (lambda m, x: F.softplus(x), "softplus", {"beta": 1, "threshold": 20}),
        (lambda m, x: F.softplus(x, beta=2), "softplus", {"beta": 2, "threshold": 20}),
        (lambda m, x: x.to(torch.float16), "cast", {"dtype": "float16"}),
        (lambda m, x: x.half(), "cast", {"dtype": "float16"}),
        (lambda m, x: x.to(dtype=torch.float64), "cast", {"dtype": "float64"}),
        (lambda m, x: x.type_as(m.vector), "cast", {"dtype": "float32"}),
        (lambda m, x: x.to("cpu"), "cast", {"dtype": "float32"}),
        (lambda m, x: x.to(torch.int64), "to", {}),
        (lambda m, x: x.contiguous(), "pass", {}),
        (lambda m, x: x.reshape(-1, HIDDEN), "pass", {}),
        (lambda m, x: x.flatten(0, 1), "pass", {}),
        (lambda m, x: x.unsqueeze(0), "pass", {}),
        (lambda m, x: x.reshape(-1), "reshape", {}),
        (lambda m, x: x.view(2, 3, 4, 2), "view", {}),
        (lambda m, x: F.dropout(x, 0.1, False), "dropout", {"active": False, "p": 0.1}),
        (lambda m, x: F.dropout(x, 0.1), "dropout", {"active": True, "p": 0.1}),
        (lambda m, x: F.dropout(x, p=0.0), "dropout", {"active": False, "p": 0.0}),
        (lambda m, x: x.mean(-1, keepdim=True), "mean", {}),
        (lambda m, x: x.mean(dim=[2], keepdim=True), "mean", {}),
        (lambda m, x: torch.mean(x, -1), "row_mean", {}),
        (lambda m, x: x.sum(-1, keepdim=True), "mul", {}),
        (lambda m, x: x.sum(1, keepdim=True), "sum", {}),
        (lambda m, x: x.norm(dim=-1), "sqrt", {}),
        (lambda m, x: x.norm(p=1, dim=-1), "norm", {}),
        (lambda m, x: F.normalize(x, dim=-1), "div", {}),
        (lambda m, x: F.normalize(x), "normalize", {}),
        (lambda m, x: x[..., 0].unsqueeze(-1), "column", {}),
        (lambda m, x: x[..., None], "column", {}),
        (lambda m, x: x[:, None], "pass", {}),
        (lambda m, x: x[None, ..., None], "getitem", {}),
        (lambda m, x: x[0, :, :, None], "getitem", {}),
        (lambda m, x: x.mean(1, keepdim=True), "another mean", {"axes": (1,), "kept": True}),
        (lambda m, x: x.mean((1, 2), keepdim=True), "another mean", {"axes": (1, 2), "kept": True}),
        (lambda m, x: x.mean(), "another mean", {}),
        (lambda m, x: x.var(-1, correction=0, keepdim=True), "mean", {}),
        (lambda m, x: x.var(-1, keepdim=True), "mul", {}),
        (lambda m, x: x.var(1, keepdim=True), "var", {}),
        (lambda m, x: x.std(-1, keepdim=True), "sqrt", {}),
        (lambda m, x: F.rms_norm(x, [HIDDEN], m.vector, 1e-6), "rms_norm", {"eps": 1e-6}),
        (lambda m, x: F.rms_norm(x, [3, HIDDEN]), "another rms_norm", {"axes": (-2, -1)}),
        (lambda m, x: F.layer_norm(x, [HIDDEN]), "layer_norm", {"eps": 1e-5}),
        (lambda m, x: F.layer_norm(x, [3, HIDDEN]), "another layer_norm", {"axes": (-2, -1)}),
        (lambda m, x: F.linear(x, m.weight), "linear", {"transposed": False}),
        (lambda m, x: x @ m.square, "linear", {"transposed": True}),
        (lambda m, x: torch.matmul(x, other=m.square), "linear", {"transposed": True}),
        (lambda m, x: x @ x.transpose(1, 2), "matmul", {}),
        (lambda m, x: torch.addmm(m.vector, x[0], m.square), "linear", {"transposed": True}),
        (lambda m, x: torch.addmm(m.vector, x[0], m.square, beta=2), "linear", {"transposed": True}),
        (
            lambda m, x: torch.addmm(m.vector, x[0], m.square, alpha=2),
            "linear",
            {"transposed": True, "alpha": 2},
        ),
        (lambda m, x: torch.bmm(x, m.square.expand(2, -1, -1)), "linear", {"transposed": True}),
        (
            lambda m, x: torch.bmm(x, m.square.unsqueeze(0).expand(2, -1, -1).mT),
            "linear",
            {"transposed": False},
        ),
        (lambda m, x: torch.bmm(x, x.mT), "bmm", {}),
        (lambda m, x: torch.einsum("bsi,oi->bso", x, m.weight), "linear", {"transposed": False}),
        (lambda m, x: torch.einsum("io, bsi -> bso", m.square, x), "linear", {"transposed": True}),
        (lambda m, x: torch.einsum("...i,oi->...o", x, m.weight), "linear", {"transposed": False}),
        (lambda m, x: torch.einsum("bsi,oi->bos", x, m.weight), "einsum", {}),
        (lambda m, x: torch.einsum("bsi,si->bsi", x, m.weight[:3]), "einsum", {}),
        (lambda m, x: torch.tensordot(x, m.weight, ([-1], [1])), "linear", {"transposed": False}),
        (lambda m, x: torch.tensordot(x, m.square, dims=1), "linear", {"transposed": True}),
        (lambda m, x: m.weight.t(), "transpose", {}),
        (lambda m, x: m.weight.T, "transpose", {}),
        (lambda m, x: m.weight.transpose(-1, 0), "transpose", {}),
        (lambda m, x: m.weight.permute(1, 0), "transpose", {}),
        (lambda m, x: m.weight.permute(0, 1), "pass", {}),
        (lambda m, x: x.transpose(1, 2), "another transpose", {}),
        (lambda m, x: x.chunk(2, -1)[1], "part", {"start": 4, "stop": 8}),
        (lambda m, x: x.chunk(3, 2)[-1], "part", {"start": 6, "stop": 8}),
        (lambda m, x: x.split(5, -1)[1], "part", {"start": 5, "stop": 8}),
        (lambda m, x: torch.split(x, [1, 7], dim=-1)[1], "part", {"start": 1, "stop": 8}),
        (lambda m, x: x.narrow(-1, 2, 3), "part", {"start": 2, "stop": 5}),
        (lambda m, x: x.narrow(1, 0, 2), "narrow", {}),
        (lambda m, x: torch.tensor_split(x, [3, 5], -1)[1], "part", {"start": 3, "stop": 5}),
        (lambda m, x: x[:, :, 2:5], "part", {"start": 2, "stop": 5}),
        (lambda m, x: x[:, :2, 2:5], "getitem", {}),
        (lambda m, x: x[:], "pass", {}),
        (lambda m, x: x[..., : x.shape[-1] // 2], "part", {"start": 0, "stop": 4}),
        (lambda m, x: x.unflatten(-1, (2, 4))[..., 1, :], "part", {"start": 4, "stop": 8}),
        (lambda m, x: x.view(2, 3, 2, 4).unbind(-2)[-1], "part", {"start": 4, "stop": 8}),
        (lambda m, x: x.view(2, 3, 2, 4).select(2, 0), "part", {"start": 0, "stop": 4}),
        (lambda m, x: x.view(2, 3, 2, 4).select(1, 0), "select", {}),
        (lambda m, x: x.view(2, 3, 4, 2)[..., 0], "interleaved slice", {}),
        (lambda m, x: x.view(3, 2, 4, 2)[:, :, 0], "part", {"start": 0, "stop": 2}),
        (lambda m, x: F.glu(x), "mul", {}),
        (lambda m, x: F.glu(x[:, :2], 1), "glu", {}),
        (lambda m, x: x.chunk(2, 1)[0], "getitem", {}),
        (lambda m, x: x[..., 2:5], "part", {"start": 2, "stop": 5}),
        (lambda m, x: x[..., ::2], "interleaved slice", {}),
        (lambda m, x: x[0], "getitem", {}),
        (lambda m, x: torch.topk(x, 2)[0], "getitem", {}),
        (lambda m, x: torch.cumsum(x, -1), "cumsum", {}),
    ],
)
def test_operators(write, kind: str, attrs: dict[str, object]) -> None:
    op = op_of(write)
    assert (op.kind, dict(op.attrs)) == (kind, attrs)


@pytest.mark.parametrize(("dim", "transposes"), [((-1, -2), True), ((0, 1), True), ((1, -1), False)])
def test_transpose_axes(dim: tuple[int, int], transposes: bool) -> None:
    assert (op_of(lambda m, x: m.weight.transpose(*dim)).kind == "transpose") is transposes


@pytest.mark.parametrize("tracer", [dynamo, aten, core])
@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda m, x: F.silu(x + m.vector), {"silu", "mul"}),
        (lambda m, x: x.to(torch.float64), {"cast"}),
        (lambda m, x: torch.rsqrt(x * x), {"rsqrt"}),
        (lambda m, x: F.linear(x, m.weight, None), {"linear", "pass"}),
        (lambda m, x: x.mean(-1, keepdim=True), {"mean"}),
        (lambda m, x: F.dropout(x, 0.1, False), {"dropout", "pass"}),
        (lambda m, x: x.split(5, -1)[1] * 2.0, {"mul"}),
    ],
)
def test_operators_in_other_forms(write, kind: set[str], tracer) -> None:
    assert op_of(write, tracer=tracer).kind in kind


def test_native_layer_norm_covers_its_tuple() -> None:
    view, node = last(lambda m, x: F.layer_norm(x, [HIDDEN], m.vector, m.vector, 1e-3), tracer=core)
    op = view.op(node)
    assert (op.kind, op.attrs["eps"], len(op.via)) == ("layer_norm", pytest.approx(1e-3), 1)


def test_a_split_without_a_known_width_is_no_part() -> None:
    assert op_of(lambda m, x: x.chunk(2, -1)[1], shapes=False).kind == "getitem"


@fx.wrap
def silu(x: Tensor) -> Tensor:
    return x + 1.0


def test_a_function_that_borrows_a_name_is_another_function() -> None:
    assert op_of(lambda m, x: silu(x)).kind == f"{__name__}.silu"


def test_an_operator_of_another_library_is_another_operator() -> None:
    with torch.library._scoped_library("fxfuse_test", "DEF") as library:
        library.define("silu(Tensor x) -> Tensor")
        graph = fx.Graph()
        x = graph.placeholder("x")
        for target in (torch.ops.fxfuse_test.silu, torch.ops.fxfuse_test.silu.default):
            assert name_of(graph.call_function(target, (x,))) == "fxfuse_test::silu"
        for target in (torch.ops.aten.silu, torch.ops.aten.silu.default, F.silu):
            assert name_of(graph.call_function(target, (x,))) == "silu"


# Modules that symbolic_trace leaves as calls


@pytest.mark.parametrize(
    ("module", "kind", "attrs"),
    [
        (nn.SiLU(), "silu", {}),
        (nn.ReLU(), "relu", {}),
        (nn.GELU(approximate="tanh"), "gelu", {"approximate": "tanh"}),
        (nn.Mish(), "mish", {}),
        (nn.Identity(), "pass", {}),
        (nn.Dropout(0.2), "dropout", {"active": True, "p": 0.2}),
        (nn.Dropout(0.2).eval(), "dropout", {"active": False, "p": 0.2}),
        (nn.Linear(HIDDEN, 3), "linear", {"transposed": False}),
        (nn.LayerNorm(HIDDEN, eps=1e-3), "layer_norm", {"eps": 1e-3}),
        (nn.LayerNorm([4, HIDDEN]), "LayerNorm", {}),
        (nn.RMSNorm(HIDDEN, eps=1e-3), "rms_norm", {"eps": 1e-3}),
        (nn.RMSNorm(HIDDEN), "rms_norm", {"eps": torch.finfo(torch.float32).eps}),
        (nn.LeakyReLU(0.2), "leaky_relu", {"negative_slope": 0.2}),
        (nn.PReLU(), "prelu", {}),
        (nn.Softplus(2.0), "softplus", {"beta": 2.0, "threshold": 20.0}),
        (nn.ELU(0.5), "elu", {"alpha": 0.5}),
        (nn.SELU(), "elu", SELU),
        (nn.CELU(2.0), "elu", {"alpha": 2.0, "input_scale": 0.5}),
        (nn.ReLU6(), "hardtanh", {"min_val": 0.0, "max_val": 6.0}),
        (nn.GLU(), "mul", {}),
        (nn.GLU(1), "GLU", {}),
        (nn.Dropout1d(0.2).eval(), "dropout", {"active": False, "p": 0.2}),
        (nn.RReLU(), "RReLU", {}),
    ],
)
def test_modules(module: nn.Module, kind: str, attrs: dict[str, object]) -> None:
    x = example(length=4)
    view = symbolic(nn.Sequential(module), x, leaf=True, shapes=True)
    (node,) = view.values()
    op = view.op(node)
    assert (op.kind, dict(op.attrs)) == (kind, attrs)
    assert view.scope(node) == "0"


def test_weights_of_modules_are_attributes() -> None:
    model = nn.Sequential(nn.Linear(HIDDEN, 3, bias=False), nn.LayerNorm(3))
    view = symbolic(model, example(), leaf=True)
    linear, norm = (view.op(node) for node in view.values())
    assert linear.inputs[1:] == (Attribute("0.weight"), None)
    assert norm.inputs[1:] == (Attribute("1.weight"), Attribute("1.bias"))
    weight = linear.inputs[1]
    assert view.stored(weight) is model[0].weight
    assert (view.shape(weight), view.dtype(weight)) == ((3, HIDDEN), "float32")
    assert (view.is_constant(weight), view.is_parameter(weight)) == (True, True)
    assert (view.scope(weight), view.node_name(weight)) == ("0", "0.weight")
    assert view.readers(weight) == [next(iter(view.values()))]


# Constants, readers, shapes


@pytest.mark.parametrize("tracer", TRACERS.values())
def test_constants_are_what_no_input_reaches(tracer) -> None:
    view, node = last(lambda m, x: (x + 1.0) * (m.vector + 1.0), tracer=tracer)
    op = view.op(node)
    assert [view.is_constant(value) for value in op.inputs] == [False, True]
    assert view.is_parameter(op.inputs[1])
    assert not view.is_parameter(op.inputs[0])


def test_a_buffer_is_no_parameter() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.held

    view = dynamo(Held(), example())
    (mul,) = view.values()
    held = view.op(mul).inputs[1]
    assert (view.is_constant(held), view.is_parameter(held)) == (True, False)


@pytest.mark.parametrize("tracer", ["dynamo", "aten", "core"])
def test_assertions_read_nothing(tracer: str) -> None:
    view = TRACERS[tracer](Stack([Spec()]), example())
    (x,) = (n for n in view.module.graph.find_nodes(op="placeholder") if n not in view.weights)
    assert not [each for each in view.readers(x) if "assert" in view.node_name(each)]
    assert not view.is_output(x)
    (block,) = find_chains(view).singles
    assert view.is_output(block.out)
    assert view.readers(block.out) == []


def test_calls_that_nothing_needs_read_nothing() -> None:
    """symbolic_trace leaves dead code in a graph; a write is not dead."""

    def write(m: Net, x: Tensor) -> Tensor:
        y = torch.relu(x)
        (y + 1.0).square()
        torch.sigmoid(x * 2.0).mul_(3.0)
        return y

    view, node = last(write)
    nodes = {each.name: each for each in view.module.graph.nodes}
    assert view.readers(node) == []
    assert view.readers(nodes["x"]) == [nodes["relu"], nodes["mul"]]


def test_constants_are_computed_as_the_graph_computes_them() -> None:
    """Any pure function of weights is one: a slice, a norm, tensors that the graph makes."""
    for write in (
        lambda m, x: x + m.square[1:].cumsum(0)[2],
        lambda m, x: x + F.normalize(m.square, dim=0)[3],
        lambda m, x: x + torch.cat([m.vector[:4], torch.ones(4)]),
        lambda m, x: x + m.square.std(-1),
    ):
        view, node = last(write)
        constant = view.op(node).inputs[1]
        assert view.is_constant(constant)
        assert view.is_parameter(constant)
        torch.testing.assert_close(
            elementwise.constant(view, constant).float(), write(view.module, torch.zeros(HIDDEN))
        )


@pytest.mark.parametrize(
    "write",
    [
        lambda m, x: x + torch.rand_like(m.vector),
        lambda m, x: x + F.dropout(m.vector, 0.5),
        lambda m, x: x + m.vector.clone().mul_(2.0),
        lambda m, x: x + torch.empty_like(m.vector),
    ],
)
def test_what_changes_from_run_to_run_is_no_constant(write) -> None:
    view, node = last(write)
    assert not view.is_constant(view.op(node).inputs[1])


def test_shapes_as_far_as_they_are_known() -> None:
    view = symbolic(Stack([Spec()]), example())
    (block,) = find_chains(view).singles
    assert (view.shape(block.out), view.dtype(block.out)) == (None, None)
    view = dynamo(Stack([Spec()]), example())
    (block,) = find_chains(view).singles
    assert (view.shape(block.out), view.dtype(block.out)) == ((2, 3, HIDDEN), "float32")


@pytest.mark.parametrize("tracer", TRACERS)
def test_blocks_are_named_by_their_layer(tracer: str) -> None:
    found = find_chains(TRACERS[tracer](Stack([Spec(), Spec(form="packed")]), example()))
    assert [block.name for block in found.chains[0].blocks] == ["layers.0.mlp", "layers.1.mlp"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("L['self'].layers.2", "layers.2"),
        ("L['self'].model.layers[3].mlp", "model.layers.3.mlp"),
        ("L['self']._modules['layers']._modules['0'].mlp", "layers.0.mlp"),
        ("L['fn']._orig_mod.layers.1", "layers.1"),
        ("L__self__.layers.1", "layers.1"),
        ("layers.1.mlp", "layers.1.mlp"),
        ("", ""),
    ],
)
def test_module_paths(text: str, path: str) -> None:
    assert module_path(text) == path


# In-place writes


def graph_of(write) -> tuple[Writes, dict[str, fx.Node]]:
    view = symbolic(Net(lambda m, x: write(x * 1.0)), example())
    return Writes(view.module), {node.name: node for node in view.module.graph.nodes}


def overwritten(x: Tensor) -> Tensor:
    y = torch.relu(x)
    y.mul_(2.0)
    return y + 1.0


def overwritten_through_a_view(x: Tensor) -> Tensor:
    y = torch.relu(x)
    y.view(-1).mul_(2.0)
    return y + 1.0


def rewritten(x: Tensor) -> Tensor:
    return torch.relu(x).mul_(2.0) + 1.0


@pytest.mark.parametrize(
    ("write", "spoiled", "noticed"),
    [(overwritten, True, True), (overwritten_through_a_view, True, True), (rewritten, False, False)],
)
def test_a_value_is_spoiled_when_it_is_read_after_a_write(write, spoiled: bool, noticed: bool) -> None:
    writes, nodes = graph_of(write)
    assert writes.spoil(nodes["relu"]) is spoiled
    assert writes.is_noticed(nodes["mul_"]) is noticed


@pytest.mark.parametrize(
    "write",
    [
        lambda y: F.relu(y, inplace=True),
        lambda y: F.relu(y, True),
        lambda y: F.dropout(y, 0.1, False, True),
        lambda y: torch.sigmoid(y, out=y),
        lambda y: y.clamp_(max=1.0),
    ],
)
def test_every_way_to_write_in_place(write) -> None:
    def both(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return write(y) + y

    writes, nodes = graph_of(both)
    assert writes.spoil(nodes["tanh"])


def test_a_module_may_write_in_place() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.SiLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(x)
            return self.act(y) * y

    view = symbolic(Inside(), example(), leaf=True)
    kinds = {view.node_name(value): view.op(value).kind for value in view.values()}
    assert kinds == {
        "tanh": "tanh that is written over",
        "act": "silu beside an in-place write",
        "mul": "mul",
    }


# Computing single values


def test_compute_runs_what_is_needed_and_nothing_else() -> None:
    def explode(m: Net, x: Tensor) -> Tensor:
        y = torch.relu(x + 1.0)
        return y * 2.0 + x.view(7, 7).sum()

    view = symbolic(Net(explode), example())
    nodes = {node.name: node for node in view.module.graph.nodes}
    found = compute(view.module, [nodes["mul"]], {nodes["relu"]: torch.tensor(3.0)})
    assert found == {nodes["mul"]: torch.tensor(6.0)}
    x = example()
    found = compute(view.module, [nodes["relu"], nodes["mul"]], {nodes["x"]: x})
    torch.testing.assert_close(found[nodes["mul"]], 2.0 * torch.relu(x + 1.0))
    torch.testing.assert_close(found[nodes["relu"]], torch.relu(x + 1.0))
