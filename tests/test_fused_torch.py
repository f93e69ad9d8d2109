"""fxfuse.fuse on the graphs that torch makes of real families: dynamo, torch.export, its decompositions.

x3 = x0 + FFN0(norm0(x0)) + FFN1(norm1(x0)) + FFN2(norm2(x0));   x5 = x4 + FFN3(...) + FFN4(...)
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch.export import ExportedProgram

import fxfuse
from fxfuse import Report
from tests.closeness import GROUPS, assert_parallel, relative_error
from tests.conftest import ATEN_FORMS
from tests.exporters import dynamo_graph as capture_dynamo
from tests.exporters import exported, silenced
from tests.families import FUSED, HIDDEN, INTERMEDIATE, build, ids
from tests.parallel import parallel_model

Capture = Callable[..., tuple[fx.GraphModule, list[Any]]]
Export = Callable[..., ExportedProgram]
KINDS = ("llama", "gemma", "phi3", "gpt_neox")
"""One family of each kind of norm and FFN, where all eight would take long."""

FULL = [(name, torch.float32) for name in FUSED]
NARROW = [(name, torch.float16) for name in FUSED] + [
    (name, torch.bfloat16) for name in ("llama", "gpt_neox")
]


def cases(*pairs: tuple[str, torch.dtype]) -> pytest.MarkDecorator:
    names = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
    return pytest.mark.parametrize("name, dtype", pairs, ids=names)


def lengths(report: Report) -> list[int]:
    return [chain.length for chain in report.chains]


def names(report: Report) -> list[str]:
    return [block.name for chain in report.chains for block in chain.blocks]


def reasons(report: Report) -> dict[str, str]:
    """Give the misses by place, without the attention that stands between the two chains."""
    ends = "another branch, such as attention, is added"
    return {miss.where: miss.reason for miss in report.misses if ends not in miss.reason}


def layer(name: str, index: int) -> str:
    return f"{'gpt_neox' if name.startswith('gpt_neox') else 'model'}.layers.{index}.mlp"


def numbers(example_inputs: Sequence[Any]) -> list[Any]:
    """Give the sizes that dynamo passes as symbols as what they stand for."""
    return [int(each) if isinstance(each, torch.SymInt) else each for each in example_inputs]


def assert_fused(report: Report, name: str) -> None:
    assert lengths(report) == [3, 2]
    assert names(report) == [layer(name, index) for index in range(5)]
    assert [group.blocks for group in report.groups] == [
        tuple(layer(name, index) for index in group) for group in GROUPS
    ]
    assert [group.intermediate_size for group in report.groups] == [3 * INTERMEDIATE, 2 * INTERMEDIATE]
    assert [miss.where for miss in report.misses] == [report.chains[1].blocks[0].name]
    assert "another branch, such as attention, is added" in report.misses[0].reason
    assert report.error is None


# Every family in every graph


@cases(*FULL, *NARROW)
def test_dynamo_graph(dynamo_graph: Capture, name: str, dtype: torch.dtype) -> None:
    graph, example_inputs = dynamo_graph(name, dtype=dtype)
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None)
    assert_fused(report, name)
    assert_parallel(fused(*example_inputs)[0], name, dtype)


@cases(*[pair for pair in FULL if pair[0] in KINDS])
def test_dynamic_dynamo_graph(dynamo_graph: Capture, name: str, dtype: torch.dtype) -> None:
    """Batch and sequence are symbols among the example inputs."""
    graph, example_inputs = dynamo_graph(name, dynamic=True, dtype=dtype)
    assert any(isinstance(each, torch.SymInt) for each in example_inputs)
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None)
    assert_fused(report, name)
    assert_parallel(fused(*numbers(example_inputs))[0], name, dtype)


@cases(*FULL, *[pair for pair in NARROW if pair[0] in KINDS])
def test_exported_program(exported_program: Export, name: str, dtype: torch.dtype) -> None:
    fused, report = fxfuse.fuse(exported_program(name, dtype=dtype), (ids(),), min_sqnr=None)
    assert_fused(report, name)
    assert isinstance(fused, ExportedProgram)
    assert_parallel(fused.module()(ids()), name, dtype)


@cases(*FULL, *NARROW[-2:])
def test_decomposed_program(exported_program: Export, name: str, dtype: torch.dtype) -> None:
    fused, report = fxfuse.fuse(exported_program(name, "core_aten", dtype=dtype), (ids(),), min_sqnr=None)
    assert_fused(report, name)
    assert_parallel(fused.module()(ids()), name, dtype)


DYNAMIC = [*((name, "aten") for name in KINDS), ("phi3", "core_aten"), ("gpt_neox", "core_aten")]


@pytest.mark.parametrize("name, form", DYNAMIC)
def test_dynamic_program_holds_at_other_sizes(exported_program: Export, name: str, form: str) -> None:
    fused, report = fxfuse.fuse(exported_program(name, form, dynamic=True), (ids(),), min_sqnr=None)
    assert_fused(report, name)
    for size in ((2, 7), (3, 11)):
        assert_parallel(fused.module()(ids(*size)), name, size=size)


# What is reported


@pytest.mark.parametrize("name, norm, activation, gated", [
    ("llama", "RMSNorm", "silu", True),
    ("gemma", "RMSNorm", "gelu_tanh", True),
    ("phi3", "RMSNorm", "silu", True),
    ("gpt_neox", "LayerNorm", "gelu", False),
])  # fmt: skip
def test_blocks_are_described(
    dynamo_graph: Capture, name: str, norm: str, activation: str, gated: bool
) -> None:
    _, report = fxfuse.fuse(*dynamo_graph(name), min_sqnr=None)
    for chain in report.chains:
        for block in chain.blocks:
            assert (block.norm, block.gated) == (norm, gated)
            assert block.activation.startswith(activation.split("_")[0])
            assert (block.hidden_size, block.intermediate_size) == (HIDDEN, INTERMEDIATE)


def test_figures_agree_with_what_the_models_give(dynamo_graph: Capture) -> None:
    graph, example_inputs = dynamo_graph("llama")
    _, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None)
    original, parallel = build("llama")(ids()), parallel_model(build("llama"), GROUPS)(ids())
    p, q = original.double().log_softmax(-1), parallel.double().log_softmax(-1)
    end = report.end_to_end
    assert end["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert end["relative_error"] == pytest.approx(relative_error(parallel, original), rel=1e-4)
    assert end["top1_agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert end["tokens"] == 14


def test_groups_are_measured_where_they_stand(dynamo_graph: Capture) -> None:
    """sqnr = 10 log10 |x3 - x0|^2 / |x3(fused) - x3|^2, x0 = the stream after layer 0's attention"""
    _, report = fxfuse.fuse(*dynamo_graph("llama"), min_sqnr=None)
    model, streams = build("llama", hidden_states=True), []
    model.model.layers[0].post_attention_layernorm.register_forward_pre_hook(
        lambda _module, args: streams.append(args[0])
    )
    x3 = model(ids())[3].double()
    hand = parallel_model(build("llama"), GROUPS)
    after: list[Tensor] = []
    hand.model.layers[0].register_forward_hook(lambda _module, _args, output: after.append(output))
    hand(ids())
    signal, noise = (x3 - streams[0].double()).square().sum(), (after[0].double() - x3).square().sum()
    assert report.groups[0].sqnr_db == pytest.approx(float(10 * torch.log10(signal / noise)), abs=1e-3)
    assert report.groups[0].rewrite_error <= 2 * report.groups[0].rounding_error


def test_fusing_makes_the_graph_smaller_and_leaves_the_original_alone(dynamo_graph: Capture) -> None:
    graph, example_inputs = dynamo_graph("llama")
    code, expected = graph.code, graph(*example_inputs)[0]
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None)
    assert fused is not graph
    assert graph.code == code
    assert torch.equal(graph(*example_inputs)[0], expected)
    assert report.before.ffn_blocks == 5
    assert report.after.ffn_blocks == 2
    assert report.after.nodes < report.before.nodes
    assert report.after.depth < report.before.depth


# Exported programs stay whole


@pytest.mark.parametrize("form", ATEN_FORMS)
def test_program_re_decomposes_saves_and_loads(exported_program: Export, form: str) -> None:
    fused, _ = fxfuse.fuse(exported_program("llama", form, dynamic=True), (ids(),), min_sqnr=None)
    file = io.BytesIO()
    with silenced():
        torch.export.save(fused, file)
        file.seek(0)
        for program in (fused.run_decompositions(), torch.export.load(file)):
            assert_parallel(program.module()(ids(3, 9)), "llama", size=(3, 9))


def test_dead_parameters_are_gone_from_the_program(exported_program: Export) -> None:
    program = exported_program("llama")
    before = set(program.state_dict)
    fused, report = fxfuse.fuse(program, (ids(),), min_sqnr=None)
    kept = set(fused.state_dict)
    assert set(program.state_dict) == before
    assert not [name for name in kept if ".mlp." in name or "post_attention_layernorm" in name]
    assert len(kept - before) == 6
    assert {name for name in before if "self_attn" in name and name.split(".")[2] in "03"} <= kept
    stored = [*fused.state_dict.values(), *fused.constants.values()]
    held = sum(tensor.numel() for tensor in stored if isinstance(tensor, Tensor))
    assert held == report.after.parameters


@pytest.mark.parametrize("form", ATEN_FORMS)
def test_fused_program_has_nothing_left_to_fuse(exported_program: Export, form: str) -> None:
    fused, _ = fxfuse.fuse(exported_program("llama", form), (ids(),), min_sqnr=None)
    again, report = fxfuse.fuse(fused, (ids(),), min_sqnr=None)
    assert again is fused
    assert lengths(report) == []


def test_program_of_a_model_with_keyword_arguments() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("llama")

        def forward(self, input_ids: Tensor, *, scale: Tensor) -> Tensor:
            logits: Tensor = self.inner(input_ids)
            return logits * scale

    with silenced(), torch.no_grad():
        program = torch.export.export(Named(), (ids(),), {"scale": torch.tensor(1.0)}, strict=False)
    fused, report = fxfuse.fuse(program, (ids(), torch.tensor(1.0)), min_sqnr=None)
    assert lengths(report) == [3, 2]
    assert_parallel(fused.module()(ids(), scale=torch.tensor(1.0)), "llama")


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_module_of_a_program(exported_program: Export, name: str) -> None:
    """ExportedProgram.module() is a GraphModule whose weights are attributes."""
    fused, report = fxfuse.fuse(exported_program(name).module(), (ids(),), min_sqnr=None)
    assert isinstance(fused, fx.GraphModule)
    assert lengths(report) == [3, 2]
    assert_parallel(fused(ids()), name)


# symbolic_trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16, eps=1e-6)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def branch(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.down(nn.functional.silu(self.gate(h)) * self.up(h))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Stack(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def made(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1)
    return module.eval()


def stream() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


def summed(stack: Stack, x: Tensor) -> Tensor:
    return stack.head(x + sum(block(x) - x for block in stack.blocks))


@torch.no_grad()
def test_symbolic_trace() -> None:
    stack = made(Stack())
    x = stream()
    fused, report = fxfuse.fuse(fx.symbolic_trace(stack), (x,), min_sqnr=None)
    assert lengths(report) == [3]
    assert names(report) == ["blocks.0", "blocks.1", "blocks.2"]
    torch.testing.assert_close(fused(x), summed(stack, x), rtol=1e-5, atol=1e-5)


class PackedBlock(Block):
    """x + 0.5 f, f by products with transposed weights and a packed gate and up."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(16, 48)

    def branch(self, x: Tensor) -> Tensor:
        gate, up = (self.norm(x) @ self.both.weight.T + self.both.bias).chunk(2, dim=-1)
        return (nn.functional.silu(gate) * up) @ self.down.weight.T

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.branch(x), alpha=0.5)


def packed_stack() -> Stack:
    stack = Stack()
    stack.blocks = nn.ModuleList(PackedBlock() for _ in range(3))
    return made(stack)


@torch.no_grad()
def test_symbolic_trace_of_packed_weights_and_scaled_adds() -> None:
    """Such a graph tells no shapes; they come from the example inputs."""
    stack, x = packed_stack(), stream()
    fused, report = fxfuse.fuse(fx.symbolic_trace(stack), (x,), min_sqnr=None)
    assert lengths(report) == [3], reasons(report)
    torch.testing.assert_close(fused(x), summed(stack, x), rtol=1e-5, atol=1e-5)
    assert report.groups[0].rewrite_error <= 2 * report.groups[0].rounding_error


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: made(Stack()), packed_stack])
def test_graph_after_aot_functionalisation(make: Callable[[], Stack]) -> None:
    """Parameters are placeholders without names; linears are mm and view."""
    stack, x = make(), stream()
    caught: list[tuple[fx.GraphModule, list[Any]]] = []

    def compiler(module: fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            caught.append((module, list(args)))
            return module(*args)

        return make_boxed_func(call)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler, inference_compiler=compiler)
    torch.compile(stack, backend=backend, fullgraph=True)(x)
    ((graph, args),) = caught
    fused, report = fxfuse.fuse(graph, args, min_sqnr=None)
    assert lengths(report) == [3], reasons(report)
    torch.testing.assert_close(fused(*args)[0], summed(stack, x), rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_fused_graph_module() -> None:
    """The wide weights are parameters of the new module, trainable where the old ones were."""
    stack = made(Stack())
    x = stream()
    fused, _ = fxfuse.fuse(fx.symbolic_trace(stack), (x,), min_sqnr=None)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused(one).square().sum().backward()
    summed(stack, other).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    wide = [p for n, p in fused.named_parameters() if n.startswith("fxfuse_")]
    assert wide
    assert all(parameter.grad is not None for parameter in wide)


# Graphs that write in place


class InPlace(Stack):
    """x += FFN(norm(x)) on a stream of its own"""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        for block in self.blocks:
            x += block.branch(x)
        return self.head(x)


class Cached(Stack):
    """Reads back what it wrote into a buffer, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(2, 8, 16))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[:, : x.shape[1]] = x
        self.calls += 1
        return super().forward(self.cache[:, : x.shape[1]] + self.calls)


@torch.no_grad()
@pytest.mark.parametrize("capture", ["dynamo", "export", "module"])
@pytest.mark.parametrize("kind", [InPlace, Cached])
def test_measuring_sees_writes_and_makes_none(kind: type[Stack], capture: str) -> None:
    """The figures are those of the same stack on a stream that is never written over."""
    plain, x = made(Stack()), stream() + (kind is Cached)
    _, expected = fxfuse.fuse(fx.symbolic_trace(plain), (x,), min_sqnr=None)
    stack = made(kind())
    if capture == "dynamo":
        graph, example_inputs = capture_dynamo(stack, stream())
        for buffer in stack.buffers():
            buffer.zero_()
    else:
        program = exported(stack, (stream(),))
        graph, example_inputs = (program if capture == "export" else program.module()), [stream()]
    before = {name: buffer.clone() for name, buffer in stack.named_buffers()}
    held = example_inputs[0].clone()
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None)
    assert report.groups[0].sqnr_db == pytest.approx(expected.groups[0].sqnr_db, abs=1e-3)
    assert report.end_to_end["relative_error"] == pytest.approx(
        expected.end_to_end["relative_error"], rel=1e-3
    )
    for name, buffer in stack.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(example_inputs[0], held)
    run = fused.module() if isinstance(fused, ExportedProgram) else fused
    output = run(*example_inputs)
    output = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(output, summed(plain, x), rtol=1e-5, atol=1e-5)


def test_a_buffer_that_is_only_written_stays_in_the_program() -> None:
    class Remembers(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(2, 5, 16))

        def forward(self, x: Tensor) -> Tensor:
            self.last.copy_(x)
            return super().forward(x)

    with silenced():
        program = exported(made(Remembers()), (stream(),)).run_decompositions()
    fused, report = fxfuse.fuse(program, (stream(),), min_sqnr=None)
    assert lengths(report) == [3]
    run = fused.module()
    run(stream())
    assert torch.equal(dict(run.named_buffers())["last"], stream())


# What is left alone, and why


FORMS = [("dynamo", ""), *(("export", form) for form in ATEN_FORMS)]


@pytest.fixture
def fuse_form(dynamo_graph: Capture, exported_program: Export) -> Callable[..., tuple[Any, Any, Report]]:
    def run(kind: str, form: str, name: str, **options: Any) -> tuple[Any, Any, Report]:
        built = {key: options.pop(key) for key in ("hidden_states", "removed") if key in options}
        if kind == "dynamo":
            graph, example_inputs = dynamo_graph(name, **built)
        else:
            graph, example_inputs = exported_program(name, form, **built), [ids()]
        return (graph, *fxfuse.fuse(graph, example_inputs, **{"min_sqnr": None, **options}))

    return run


@pytest.mark.parametrize("kind, form", FORMS)
def test_sandwich_norms_are_left_alone(fuse_form: Callable[..., Any], kind: str, form: str) -> None:
    """x + norm(FFN(norm(x)))"""
    graph, fused, report = fuse_form(kind, form, "gemma2")
    assert fused is graph
    assert lengths(report) == []
    told = reasons(report)
    for index in range(5):
        assert "sandwich form" in told[layer("gemma2", index)]


@pytest.mark.parametrize("kind, form", FORMS)
def test_experts_are_left_alone(fuse_form: Callable[..., Any], kind: str, form: str) -> None:
    graph, fused, report = fuse_form(kind, form, "mixtral")
    assert fused is graph
    assert lengths(report) == []
    assert len([reason for reason in reasons(report).values() if "router" in reason]) == 5


@pytest.mark.parametrize("kind, form", FORMS)
def test_parallel_residual_layers_are_left_alone(fuse_form: Callable[..., Any], kind: str, form: str) -> None:
    """x + attention(norm1(x)) + FFN(norm2(x)): only layers without attention are blocks."""
    _, _, report = fuse_form(kind, form, "gpt_neox_parallel")
    assert lengths(report) == [2]
    assert names(report) == ["gpt_neox.layers.1.mlp", "gpt_neox.layers.2.mlp"]
    told = reasons(report)
    for index in (0, 3):
        assert "attention and FFN stand in parallel" in told[layer("gpt_neox", index)]
    (last,) = [miss.reason for miss in report.misses if miss.where == layer("gpt_neox", 4)]
    assert "between gpt_neox.layers.2.mlp and it on the residual stream another branch" in last


@pytest.mark.parametrize("kind, form", FORMS)
def test_taps_split_the_chain(fuse_form: Callable[..., Any], kind: str, form: str) -> None:
    """output_hidden_states makes every stream an output."""
    graph, fused, report = fuse_form(kind, form, "llama", hidden_states=True)
    assert fused is graph
    assert lengths(report) == []
    taps = [m for m in report.misses if "is also a graph output" in m.reason]
    assert {tap.where for tap in taps} == {layer("llama", index) for index in (1, 2, 4)}
    for tap in taps:
        before = int(tap.where.split(".")[2]) - 1
        assert f"the residual stream after {layer('llama', before)}" in tap.reason


@pytest.mark.parametrize("kind, form", FORMS)
def test_runs_of_one_say_that_they_stand_alone(fuse_form: Callable[..., Any], kind: str, form: str) -> None:
    graph, fused, report = fuse_form(kind, form, "llama", removed=())
    assert fused is graph
    assert reasons(report).keys() == {layer("llama", index) for index in range(5)}
    assert all("the block stands alone" in reason for reason in reasons(report).values())


def test_training_mode_with_dropout_is_refused(dynamo_graph: Capture) -> None:
    """phi3's branch goes through a dropout, which is active in training."""
    model = build("phi3", resid_pdrop=0.25).train()
    fused, report = fxfuse.fuse(exported(model, (ids(),)), (ids(),), min_sqnr=None)
    assert lengths(report) == []
    assert any("dropout (p=0.25) is active: call model.eval() first" in m.reason for m in report.misses)


# Budgets


def test_default_budget_leaves_what_loses_too_much(dynamo_graph: Capture) -> None:
    """Of the first three layers no two keep the 12 dB that are wanted; the last two do."""
    graph, example_inputs = dynamo_graph("llama")
    fused, report = fxfuse.fuse(graph, example_inputs)
    assert [group.blocks for group in report.groups] == [(layer("", 3), layer("", 4))]
    assert report.groups[0].sqnr_db >= 12
    told = reasons(report)
    assert told.keys() == {layer("", index) for index in range(3)}
    assert "left sequential: fusing model.layers.0-1.mlp keeps 11.4 dB" in told[layer("", 0)]
    assert all("dB, under the budget of 12 dB" in reason for reason in told.values())
    assert_parallel(fused(*example_inputs)[0], "llama", groups=((3, 4),))


def test_a_group_over_budget_is_cut_shorter(dynamo_graph: Capture) -> None:
    graph, example_inputs = dynamo_graph("llama")
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=11)
    assert [len(group.blocks) for group in report.groups] == [2, 2]
    assert reasons(report).keys() == {layer("", 2)}
    assert_parallel(fused(*example_inputs)[0], "llama", groups=((0, 1), (3, 4)))


def test_nothing_within_budget_returns_the_graph_itself(dynamo_graph: Capture) -> None:
    graph, example_inputs = dynamo_graph("llama")
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=60)
    assert fused is graph
    assert report.groups == []
    assert lengths(report) == [3, 2]
    assert reasons(report).keys() == {layer("llama", index) for index in range(5)}


@pytest.mark.parametrize("options, groups", [
    ({"max_group": 2}, {(0, 1), (1, 2), (3, 4)}),
    ({"exclude": r"layers\.0\."}, {(1, 2), (3, 4)}),
    ({"include": r"layers\.[34]\."}, {(3, 4)}),
])  # fmt: skip
def test_bounds_on_groups(
    dynamo_graph: Capture, options: dict[str, Any], groups: set[tuple[int, ...]]
) -> None:
    graph, example_inputs = dynamo_graph("llama")
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None, **options)
    found = tuple(tuple(int(name.split(".")[2]) for name in group.blocks) for group in report.groups)
    assert set(found) <= groups
    assert (3, 4) in found
    left = {layer("", index) for index in range(5)} - {name for g in report.groups for name in g.blocks}
    assert left == set(reasons(report))
    assert_parallel(fused(*example_inputs)[0], "llama", groups=found)


def test_max_kl_splits_the_worst_group_until_the_logits_are_near_enough(dynamo_graph: Capture) -> None:
    graph, example_inputs = dynamo_graph("llama")
    _, loose = fxfuse.fuse(graph, example_inputs, min_sqnr=None)
    bound = loose.end_to_end["kl"] / 2
    fused, report = fxfuse.fuse(graph, example_inputs, min_sqnr=None, max_kl=bound)
    assert 0 < report.fused_blocks < 5
    assert report.end_to_end["kl"] <= bound
    assert any(f"over the budget of {bound:g}" in reason for reason in reasons(report).values())
    unfused, none = fxfuse.fuse(graph, example_inputs, min_sqnr=None, max_kl=0.0)
    assert unfused is graph
    assert none.groups == []
    assert none.end_to_end == {}


# What a user's own export leaves behind


class TwiceCast(nn.Module):
    """A hand-written norm that casts the stream twice, before a packed SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(16) + 0.5)
        self.gate_up = nn.Parameter(torch.randn(48, 16) / 4)
        self.down = nn.Parameter(torch.randn(16, 24) / 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        hidden = (x.float() * scale).to(x.dtype) * self.gain
        gate, up = nn.functional.linear(hidden, self.gate_up).chunk(2, -1)
        return nn.functional.linear(nn.functional.silu(gate) * up, self.down)


class Tower(nn.Module):
    """Blocks in a row, after something that runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.ffns = nn.ModuleList(TwiceCast() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            shift = x.mean().sin()
        x = x + shift
        for ffn in self.ffns:
            x = x + ffn(x)
        return x


@pytest.mark.parametrize("kind", ["program", "module", "core"])
def test_an_export_under_grad_mode(kind: str) -> None:
    """A region without gradients becomes a submodule of the graph, which the fused program keeps."""
    model, x = Tower().eval(), torch.randn(2, 5, 16)
    program = torch.export.export(model, (x,))
    graph = {"program": program, "core": program.run_decompositions(), "module": program.module()}[kind]
    fused, report = fxfuse.fuse(graph, (x,), min_sqnr=None)
    assert lengths(report) == [3]
    run = fused.module() if isinstance(fused, ExportedProgram) else fused
    start = x + x.mean().sin()
    torch.testing.assert_close(run(x), start + sum(ffn(start) for ffn in model.ffns), atol=1e-5, rtol=1e-5)


def test_inputs_that_do_not_fit() -> None:
    x = torch.randn(2, 5, 16)
    program = torch.export.export(Tower().eval(), (x,))
    with pytest.raises(fxfuse.InputError, match="does not run on the example inputs"):
        fxfuse.fuse(program, (torch.randn(2, 5, 12),))
    with pytest.raises(fxfuse.InputError, match="must be a tuple or list"):
        fxfuse.fuse(program, x)
