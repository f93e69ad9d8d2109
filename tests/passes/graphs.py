"""Tiny stacks of norm-FFN blocks with knobs, every way to trace them, and their meaning written by hand.

    Stack([Spec(), Spec(form="packed", eps=1e-5)])     x + ffn(norm(x)) twice
    parallel(stack, x)                                 x + the sum of the branches on x, in float64

Nothing of fxfuse is used to compute what a stack means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch.export import ExportedProgram
from torch.nn import functional as F

from fxfuse.passes.chains import find_chains
from fxfuse.passes.fx.rewrite import remove_unread, rewrite_group
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Block, Found
from fxfuse.passes.weights import widen
from tests import exporters

HIDDEN = 8


def _gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / 2**0.5))


def _gelu_tanh_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


# How it is written -> (the function, the name that the report should give it).
ACTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "silu": (F.silu, "silu"),
    "silu by hand": (lambda x: x * torch.sigmoid(x), "silu"),
    "silu turned": (lambda x: torch.sigmoid(x) * x, "silu"),
    "silu divided": (lambda x: x / (1.0 + torch.exp(-x)), "silu"),
    "gelu": (F.gelu, "gelu"),
    "gelu by hand": (_gelu_by_hand, "gelu"),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
    "gelu tanh by hand": (_gelu_tanh_by_hand, "gelu_tanh"),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
    "relu": (F.relu, "relu"),
    "relu as clamp": (lambda x: x.clamp(min=0), "relu"),
    "relu squared": (lambda x: F.relu(x).square(), "relu_squared"),
    "relu squared as power": (lambda x: torch.pow(F.relu(x), 2), "relu_squared"),
    "relu squared as product": (lambda x: F.relu(x) * F.relu(x), "relu_squared"),
    "tanh": (torch.tanh, "tanh"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "mish": (F.mish, "mish"),
    "mish by hand": (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
    "mish by log1p": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), "mish"),
    "mish with a threshold": (lambda x: x * torch.where(x > 20, x, torch.log1p(x.exp())).tanh(), "mish"),
    "relu as where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "relu"),
    "relu as mask": (lambda x: x * (x >= 0), "relu"),
    "relu as fill": (lambda x: x.masked_fill(x <= 0, 0.0), "relu"),
    "relu squared as clip": (lambda x: torch.clip(x, 0) ** 2, "relu_squared"),
    "silu by tanh": (lambda x: 0.5 * x * (1.0 + torch.tanh(x / 2)), "silu"),
    "silu by expit": (lambda x: x * torch.special.expit(x), "silu"),
    "gelu by erfc": (lambda x: 0.5 * x * torch.erfc(-x * 0.5**0.5), "gelu"),
    "softplus": (F.softplus, "softplus"),
    "softplus sharper": (lambda x: F.softplus(x, 2.0, 10.0), "elementwise"),
    "hardswish": (F.hardswish, "hardswish"),
    "hardswish by hand": (lambda x: x * F.relu6(x + 3.0) / 6.0, "hardswish"),
    "elu": (F.elu, "elu"),
    "elu by hand": (lambda x: torch.where(x > 0, x, torch.expm1(x)), "elu"),
    "selu": (F.selu, "selu"),
    "celu": (lambda x: F.celu(x, 1.3), "elementwise"),
    "leaky relu": (F.leaky_relu, "leaky_relu"),
    "leaky relu steeper": (lambda x: F.leaky_relu(x, 0.2), "elementwise"),
    "leaky relu by hand": (lambda x: torch.maximum(x, 0.01 * x), "leaky_relu"),
    "silu squared": (lambda x: F.silu(x).square(), "elementwise"),
    "nameless": (lambda x: torch.tanh(x) + 0.1 * x, "elementwise"),
}


@dataclass(frozen=True)
class Spec:
    """One block, as its author would write it.

    norm: "rms" or "layer" by hand, "rms_op" or "layer_op" as torch's function.
    gain: "gain", "none" or "plus_one"; shift: a LayerNorm's bias.
    form: "gated", "turned" (up * act(gate)), "packed", "packed_turned" (up rows first) or "ungated".
    add: "x+f", "f+x" or "inplace" (x.add_(f)).
    """

    norm: str = "rms"
    gain: str = "gain"
    shift: bool = False
    eps: float = 1e-6
    act: str = "silu"
    form: str = "gated"
    bias: bool = False
    width: int = 12
    add: str = "x+f"
    multiplier: float | None = None
    layer_scale: bool = False
    dropout: float | None = None


class HandNorm(nn.Module):
    """RMSNorm or LayerNorm computed in float32, as models write it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        centre = 0.0 if spec.gain == "plus_one" else 1.0
        self.weight = nn.Parameter(centre + 0.3 * torch.randn(HIDDEN)) if spec.gain != "none" else None
        self.bias = nn.Parameter(0.2 * torch.randn(HIDDEN)) if spec.shift else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight is not None and self.spec.gain == "plus_one":
            weight = weight + 1.0
        if self.spec.norm == "rms_op":
            return F.rms_norm(x, [HIDDEN], weight, self.spec.eps)
        if self.spec.norm == "layer_op":
            return F.layer_norm(x, [HIDDEN], weight, self.bias, self.spec.eps)
        y = self.unit(x.to(torch.float32)).to(x.dtype)
        y = y if weight is None else weight * y
        return y if self.bias is None else y + self.bias

    def unit(self, x: Tensor) -> Tensor:
        if self.spec.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.spec.eps)


class Mlp(nn.Module):
    """The FFN of a spec. Packed weights hold two halves of equal width."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        width, bias = spec.width, spec.bias
        if spec.form.startswith("packed"):
            self.gate_up_proj = nn.Linear(HIDDEN, 2 * width, bias)
        else:
            self.gate_proj = nn.Linear(HIDDEN, width, bias)
            self.up_proj = None if spec.form == "ungated" else nn.Linear(HIDDEN, width, bias)
        self.down_proj = nn.Linear(width, HIDDEN, bias)
        self.drop = nn.Dropout(spec.dropout) if spec.dropout is not None else None

    def activate(self, gate: Tensor) -> Tensor:
        return ACTS[self.spec.act][0](gate)

    def forward(self, h: Tensor) -> Tensor:
        form = self.spec.form
        if form.startswith("packed"):
            parts = self.gate_up_proj(h).chunk(2, -1)
            gate, up = parts if form == "packed" else (parts[1], parts[0])
            inner = self.activate(gate) * up
        elif form == "ungated":
            inner = self.activate(self.gate_proj(h))
        else:
            gate, up = self.activate(self.gate_proj(h)), self.up_proj(h)
            inner = gate * up if form == "gated" else up * gate
        f = self.down_proj(inner)
        return f if self.drop is None else self.drop(f)


class Layer(nn.Module):
    """x + ffn(norm(x)); tests override a method to write something else."""

    def __init__(self, spec: Spec = Spec()) -> None:
        super().__init__()
        self.spec = spec
        self.norm, self.mlp = HandNorm(spec), Mlp(spec)
        self.scale = nn.Parameter(0.5 + 0.1 * torch.randn(HIDDEN)) if spec.layer_scale else None

    def branch(self, x: Tensor) -> Tensor:
        f = self.mlp(self.norm(x))
        f = f if self.spec.multiplier is None else f * self.spec.multiplier
        return f if self.scale is None else self.scale * f

    def forward(self, x: Tensor) -> Tensor:
        f = self.branch(x)
        if self.spec.add == "inplace":
            return x.add_(f)
        return x + f if self.spec.add == "x+f" else f + x


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Spec | nn.Module], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(each) if isinstance(each, Spec) else each for each in layers)
        self.to(dtype).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def example(dtype: torch.dtype = torch.float32, batch: int = 2, length: int = 3) -> Tensor:
    """x [batch, length, HIDDEN]."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, length, HIDDEN, generator=generator).to(dtype)


# What a stack means, in float64


def branch(layer: Any, x: Tensor) -> Tensor:
    """FFN(norm(x)) of a `Layer`, from its parameters."""
    spec = layer.spec
    weights = {name: value.double() for name, value in layer.named_parameters()}
    h = x.double()
    if spec.norm.startswith("layer"):
        h = h - h.mean(-1, keepdim=True)
    h = h / torch.sqrt((h * h).mean(-1, keepdim=True) + spec.eps)
    if spec.gain != "none":
        h = h * (weights["norm.weight"] + (1.0 if spec.gain == "plus_one" else 0.0))
    if spec.shift:
        h = h + weights["norm.bias"]

    def product(name: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"mlp.{name}.weight"], weights.get(f"mlp.{name}.bias"))

    if spec.form.startswith("packed"):
        halves = product("gate_up_proj", h).split(spec.width, -1)
        gate, up = halves if spec.form == "packed" else halves[::-1]
    else:
        gate = product("gate_proj", h)
        up = torch.ones_like(gate) if spec.form == "ungated" else product("up_proj", h)
    f = product("down_proj", ACTS[spec.act][0](gate) * up)
    return f * (spec.multiplier or 1.0) * weights.get("scale", torch.ones(()).double())


def parallel(stack: Stack, x: Tensor, groups: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Each group of layer indices as x + the sum of its branches; one group of all unless told."""
    x = x.double()
    for group in groups or [range(len(stack.layers))]:
        x = x + sum(branch(stack.layers[index], x) for index in group)
    return x


# Every way to trace a stack: a view of the graph


def symbolic(model: nn.Module, x: Tensor, *, shapes: bool = False, leaf: bool = False) -> FxView:
    """symbolic_trace, down to functions or (`leaf`) with torch.nn modules as calls; no shapes unless told."""
    module = fx.symbolic_trace(model) if leaf else fx.GraphModule(model, _Deep().trace(model))
    if shapes:
        _Shapes(module).run(x.clone())
    return FxView(module)


def dynamo(model: nn.Module, x: Tensor) -> FxView:
    """What a torch.compile backend is given: parameters are placeholders."""
    module, inputs = exporters.dynamo_graph(model, x)
    placeholders = module.graph.find_nodes(op="placeholder")
    pairs = zip(placeholders, inputs, strict=True)
    own = {id(each) for each in (*model.parameters(), *model.buffers())}
    return FxView(module, {node: value for node, value in pairs if id(value) in own})


def aten(model: nn.Module, x: Tensor) -> FxView:
    """torch.export, as it comes."""
    return view_of_program(exporters.exported(model, (x,)))


def core(model: nn.Module, x: Tensor) -> FxView:
    """torch.export after run_decompositions()."""
    with exporters.silenced():
        return view_of_program(exporters.exported(model, (x,)).run_decompositions())


def aot(model: nn.Module, x: Tensor) -> FxView:
    """What AOTAutograd gives a compiler, for any batch and length: parameters are nameless placeholders."""
    caught: list[tuple[fx.GraphModule, list[Any]]] = []

    def compiler(module: fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            caught.append((module, list(args)))
            return module(*args)

        return make_boxed_func(call)

    decompositions = core_aten_decompositions()
    backend = aot_autograd(fw_compiler=compiler, inference_compiler=compiler, decompositions=decompositions)
    torch._dynamo.reset()
    x = x.clone()
    torch._dynamo.mark_dynamic(x, [0, 1])
    with exporters.silenced(), torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(x)
    ((module, args),) = caught
    own = {each.data_ptr() for each in (*model.parameters(), *model.buffers())}
    pairs = zip(module.graph.find_nodes(op="placeholder"), args, strict=True)
    weights = {n: each for n, each in pairs if isinstance(each, Tensor) and each.data_ptr() in own}
    view = FxView(module, weights)
    view.module.meta["sizes"] = [each for each in args if isinstance(each, int)]
    return view


def view_of_program(program: ExportedProgram) -> FxView:
    """A view in which the lifted parameters, buffers and constants are weights."""
    signature = program.graph_signature
    named: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored: Mapping[str, Any] = {**program.state_dict, **program.constants}
    nodes = program.graph_module.graph.find_nodes(op="placeholder")
    return FxView(program.graph_module, {n: stored[named[n.name]] for n in nodes if n.name in named})


TRACERS: dict[str, Callable[..., FxView]] = {
    "symbolic": lambda model, x: symbolic(model, x, shapes=True),
    "modules": lambda model, x: symbolic(model, x, shapes=True, leaf=True),
    "dynamo": dynamo,
    "aten": aten,
    "core": core,
    "aot": aot,
}


class _Deep(fx.Tracer):
    def is_leaf_module(self, _module: nn.Module, _name: str) -> bool:
        return False


class _Shapes(fx.Interpreter):
    """Leaves each value in its node's meta, where dynamo and torch.export leave a fake one."""

    def run_node(self, node: fx.Node) -> Any:
        node.meta["val"] = super().run_node(node)
        return node.meta["val"]


# Fuse, and run


def find(model: nn.Module, x: Tensor | None = None) -> Found:
    """The chains of a model by the quickest tracer that knows shapes."""
    return find_chains(symbolic(model, example() if x is None else x, shapes=True))


def lengths(found: Found) -> list[int]:
    """How many blocks each chain has."""
    return [len(chain.blocks) for chain in found.chains]


def reasons(found: Found) -> str:
    """All misses as text."""
    return "\n".join(f"{miss.where}: {miss.reason}" for miss in found.misses)


def run(view: FxView, x: Tensor) -> Tensor:
    """The graph's first output."""
    sizes = iter(view.module.meta.get("sizes", ()))
    nodes = view.module.graph.find_nodes(op="placeholder")
    args = [
        view.weights[n] if n in view.weights else next(sizes) if _is_size(n) else x.clone() for n in nodes
    ]
    with torch.no_grad():
        out = view.module(*args) if not _is_program(view) else fx.Interpreter(view.module).run(*args)
    return out[0] if isinstance(out, (tuple, list)) else out


def fuse(view: FxView, groups: Sequence[Sequence[Block]] | None = None) -> FxView:
    """Rewrite every chain, or the groups given, in place; returns a view of the result."""
    graph = view.module.graph
    groups = groups or [chain.blocks for chain in find_chains(view).chains]
    for index, blocks in enumerate(groups):
        nodes = {}
        with graph.inserting_before(next(iter(graph.nodes))):
            for name, tensor in widen(view, blocks).tensors().items():
                view.module.register_buffer(f"wide_{index}_{name}", tensor)
                nodes[name] = graph.get_attr(f"wide_{index}_{name}")
        rewrite_group(view, blocks, nodes)
    remove_unread(graph, {value for blocks in groups for block in blocks for value in block.interior})
    graph.lint()
    view.module.recompile()
    return FxView(view.module, view.weights)


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _is_program(view: FxView) -> bool:
    return not hasattr(view.module, "forward") or bool(view.weights)
