"""Attention taken out of torch graphs: equal to models whose attention was removed by hand in code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxfuse
from fxfuse.errors import InputError
from fxfuse.passes.attention import find_attention
from fxfuse.passes.chains import find_chains
from fxfuse.passes.fx.structures import prune
from fxfuse.passes.fx.view import FxView
from fxfuse.removal.graphs import front_of
from tests import families

FAMILIES = ["llama", "gpt2", "gpt_neox", "granite", "gemma2", "qwen3_moe", "deepseek_v3", "t5"]
SIZE, HEADS = 16, 2


def chains(graph: Any) -> list[int]:
    view = graph if isinstance(graph, FxView) else front_of(graph).view
    return [len(chain.blocks) for chain in find_chains(view).chains]


def by_hand(family: str) -> tuple[Tensor, int]:
    """The output of the model whose attention was removed in code, and how many weights it reads."""
    model = families.build(family)
    return model(families.example(family)), len(model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_equals_the_model_by_hand(family: str, exported_program: Any) -> None:
    program = exported_program(family, removed=())
    less = fxfuse.remove_attention(program, families.REMOVED)
    expected, _ = by_hand(family)
    torch.testing.assert_close(less.module()(families.example(family)), expected, rtol=0, atol=0)
    assert sorted(chains(less)) == sorted(families.FAMILIES[family].chains)
    read = {spec.target for spec in less.graph_signature.input_specs} - {None}
    assert read == set(less.state_dict) | set(less.constants)
    assert not [name for name in less.state_dict if _is_of_gone(name, families.FAMILIES[family].attention)]
    assert len(find_attention(front_of(program).view)[0]) == 5  # the original is as it was


def _is_of_gone(name: str, attention: str) -> bool:
    return any(f".{layer}.{attention}." in name for layer in families.REMOVED)


def test_a_program_in_core_aten(exported_program: Any) -> None:
    less = fxfuse.remove_attention(exported_program("llama", form="core_aten", removed=()), "1,2,4")
    torch.testing.assert_close(less.module()(families.ids()), by_hand("llama")[0])
    assert chains(less) == [3, 2]


def test_a_module_of_a_program(exported_program: Any) -> None:
    """Parameters are the module's own there."""
    module = exported_program("llama", removed=()).module()
    less = fxfuse.remove_attention(module, "1,2,4")
    assert isinstance(less, GraphModule)
    torch.testing.assert_close(less(families.ids()), by_hand("llama")[0], rtol=0, atol=0)
    assert len(list(less.parameters())) == len(list(module.parameters())) - 3 * 5
    assert chains(less) == [3, 2]


def test_a_graph_of_dynamo(dynamo_graph: Any) -> None:
    """Weights are inputs there; those of the attentions are none any more."""
    graph, inputs = dynamo_graph("llama", removed=())
    less = fxfuse.remove_attention(graph, [1, 2, 4])
    names = [node.name for node in graph.graph.find_nodes(op="placeholder")]
    given = dict(zip(names, inputs, strict=True))
    left = [node.name for node in less.graph.find_nodes(op="placeholder")]
    assert len(left) == len(names) - 3 * 5
    (output,) = pytree.tree_leaves(less(*(given[name] for name in left)))
    torch.testing.assert_close(output, by_hand("llama")[0], rtol=1e-5, atol=1e-5)


# -- caches ----------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.qkv, self.out = nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE, SIZE)
        self.up, self.down = nn.Linear(SIZE, 24), nn.Linear(24, SIZE)

    def forward(self, x: Tensor, past: Any) -> Any:
        q, k, v = (
            each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.qkv(self.norm(x)).chunk(3, -1)
        )
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(self.norm2(x)))), (k, v)


class Cached(nn.Module):
    """Past and present keys and values in a structure that `shape` makes of one pair for each layer."""

    def __init__(self, shape: Any, flat: Any, gone: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shape, self.flat, self.gone = shape, flat, gone
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, past: Any) -> Any:
        pairs, present = self.flat(past), []
        for layer, pair in zip(self.layers, pairs, strict=True):
            x, own = layer(x, pair)
            present.append(own)
        return x, self.shape(present)


def _pairs(present: list[Any]) -> Any:
    return tuple(present)


def _lists(present: list[Any]) -> Any:
    return {"keys": [k for k, _ in present], "values": [v for _, v in present]}


def _named(present: list[Any]) -> Any:
    return {
        f"{name}.{n}": each for n, pair in enumerate(present) for name, each in zip("kv", pair, strict=True)
    }


SHAPES: dict[str, tuple[Any, Any]] = {
    "pairs": (_pairs, lambda past: past),
    "lists": (_lists, lambda past: list(zip(past["keys"], past["values"], strict=True))),
    "named": (_named, lambda past: [(past[f"k.{n}"], past[f"v.{n}"]) for n in range(len(past) // 2)]),
}


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(2, HEADS, 4, SIZE // HEADS), torch.randn(2, HEADS, 4, SIZE // HEADS)


@pytest.mark.parametrize("form", ["program", "module"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cache_of_a_gone_attention_goes(shape: str, form: str) -> None:
    """Inputs and outputs that are left keep their names and places."""
    make, flat = SHAPES[shape]
    torch.manual_seed(1)
    x, pairs = torch.randn(2, 3, SIZE), [pair() for _ in range(3)]
    model = Cached(make, flat)
    program = torch.export.export(model, (x, make(pairs)), strict=False)
    graph = program if form == "program" else program.module()
    less = fxfuse.remove_attention(graph, [1])
    left = make([pairs[0], pairs[1], pairs[2]])
    if shape == "named":
        left = {name: each for name, each in left.items() if not name.endswith(".1")}
    else:
        left = make([pairs[0], pairs[2]])
    called = less.module() if isinstance(less, ExportedProgram) else less
    out, present = called(x, left)
    expected, whole = _without(model, x, pairs)
    torch.testing.assert_close(out, expected)
    assert [each.shape for each in pytree.tree_leaves(present)] == [
        each.shape for each in pytree.tree_leaves(make(whole))
    ]
    if isinstance(less, ExportedProgram):
        kept = [
            name for name in program.graph_signature.user_inputs if name in less.graph_signature.user_inputs
        ]
        assert list(less.graph_signature.user_inputs) == kept
        assert len(kept) == 5
        assert "layers.1.qkv.weight" not in less.state_dict
        assert less.example_inputs is not None
        torch.testing.assert_close(called(*less.example_inputs[0])[0], expected)


def _without(model: Cached, x: Tensor, pairs: Any) -> tuple[Tensor, Any]:
    present = []
    for index, (layer, own) in enumerate(zip(model.layers, pairs, strict=True)):
        if index == 1:
            x = x + layer.down(F.silu(layer.up(layer.norm2(x))))
        else:
            x, kv = layer(x, own)
            present.append(kv)
    return x, present


def test_a_tuple_of_outputs_without_structure() -> None:
    """A graph of symbolic_trace returns nested tuples of nodes."""
    model = Cached(_pairs, lambda past: [past, past, past])

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Any:
            return self.inner(x, (k, v))

    program = torch.export.export(Flat(), (torch.randn(2, 3, SIZE), *pair()), strict=False)
    graph = program.graph_module
    graph.graph.set_codegen(torch.fx.graph.CodeGen())
    less = fxfuse.remove_attention(GraphModule(graph, graph.graph), [0, 1, 2])
    (output,) = next(reversed(less.graph.nodes)).args
    assert len(pytree.tree_leaves(output)) == 1


def test_structures_that_cannot_be_shortened() -> None:
    """A named tuple has its places by name."""
    import collections

    Pair = collections.namedtuple("Pair", "k v")
    make, flat = lambda present: [Pair(*each) for each in present], lambda past: past
    model = Cached(make, flat)
    pairs = [Pair(*pair()) for _ in range(3)]
    program = torch.export.export(model, (torch.randn(2, 3, SIZE), pairs), strict=False)
    with pytest.raises(InputError, match="The cache stands in a structure that cannot be made shorter"):
        fxfuse.remove_attention(program, [1])


def test_pruning_structures() -> None:
    spec = pytree.tree_structure((1, [2, 3], {"a": 4, "b": (5, 6)}, ()))
    assert prune(spec, []) == spec
    assert prune(spec, [1]) == pytree.tree_structure((1, [3], {"a": 4, "b": (5, 6)}, ()))
    assert prune(spec, [1, 2]) == pytree.tree_structure((1, {"a": 4, "b": (5, 6)}, ()))
    assert prune(spec, [3, 4]) == pytree.tree_structure((1, [2, 3], {"b": (6,)}, ()))
    assert prune(pytree.tree_structure([1]), [0]) == pytree.tree_structure(())


# -- what is refused -------------------------------------------------------------------------------


def test_refusals(exported_program: Any) -> None:
    program = exported_program("gpt_neox_parallel", removed=())
    with pytest.raises(InputError, match=r"layers\.1 cannot be removed: it stands in parallel with the FFN"):
        fxfuse.remove_attention(program, [1])
    with pytest.raises(InputError, match="A graph is not changed in place: take the copy"):
        fxfuse.remove_attention(program, [1], inplace=True)
    with pytest.raises(InputError, match="takes a module, GraphModule or ExportedProgram, not str"):
        fxfuse.remove_attention("model.onnx", [1])
