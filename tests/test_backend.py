"""torch.compile(model, backend=fxfuse), and that its answer is never that of older weights.

y = head(norm(x0 + FFN0(norm0(x0)) + FFN1(norm1(x0)) + FFN2(norm2(x0))))     x0 = embed(ids) or the input
"""

import copy
import io
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxfuse
from fxfuse import Report
from tests.closeness import ROUNDING, assert_parallel, relative_error
from tests.exporters import dynamo_graph
from tests.families import build, ids

HIDDEN, WIDTH, VOCAB = 32, 48, 20


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.up_proj = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.down_proj = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)
        self.mlp = Gated()

    def branch(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Tiny(nn.Module):
    def __init__(self, depth: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        fill(self, seed)
        self.eval()

    def embed(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else self.embed_tokens(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))

    def parallel(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.lm_head(self.norm(x + sum(layer.branch(x) for layer in self.layers)))


def fill(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.15 * noise)


def frozen(**arguments: Any) -> Tiny:
    return Tiny(**arguments).requires_grad_(False)


def tokens(batch: int = 2, length: int = 6) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(7))


def vectors() -> Tensor:
    return torch.randn(2, 6, HIDDEN, generator=torch.Generator().manual_seed(7))


def compiled(model: nn.Module, inner: Any = "eager", backend: Any = fxfuse, **arguments: Any) -> Any:
    options = {"inner": inner, "min_sqnr": None} | arguments.pop("options", {})
    return torch.compile(model, backend=backend, options=options, **arguments)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fxfuse"]


def latest() -> Report:
    return fxfuse.reports()[-1]


def assert_same(output: Tensor, expected: Tensor) -> None:
    assert relative_error(output.detach(), expected.detach()) < ROUNDING[torch.float32]


def assert_fused(model: Tiny, run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The answer is that of the parallel form, and the parallel form is another than the sequential."""
    output = run(x)
    assert latest().error is None
    assert [len(group.blocks) for group in latest().groups] == [len(model.layers)]
    assert_same(output, model.parallel(x))
    assert relative_error(output.detach(), model(x).detach()) > 1e-3


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Ways to name the backend, and what compiles the rest


@pytest.mark.parametrize("backend", [fxfuse, "fxfuse", fxfuse.backend], ids=["module", "name", "function"])
def test_ways_to_name_the_backend(backend: Any) -> None:
    assert_fused(model := frozen(), compiled(model, backend=backend), tokens())


def test_name_is_listed() -> None:
    assert "fxfuse" in torch._dynamo.list_backends()


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_inner_backends(inner: str) -> None:
    assert_fused(model := frozen(), compiled(model, inner), tokens())


def test_inner_callable_is_given_the_rewritten_graph() -> None:
    seen: list[str] = []

    def inner(module: torch.fx.GraphModule, _example_inputs: list[Any]) -> Callable[..., Any]:
        seen.append(module.code)
        return module.forward

    assert_fused(model := frozen(), compiled(model, inner), tokens())
    assert seen[0].count("functional.silu(") == 1
    assert "fxfuse_0_gate" in seen[0]


def test_inner_options_and_mode_are_passed_on() -> None:
    seen: dict[str, Any] = {}

    def inner(module: torch.fx.GraphModule, _example_inputs: list[Any], **given: Any) -> Callable[..., Any]:
        seen.update(given)
        return module.forward

    model = frozen()
    run = compiled(model, options={"inner": inner, "inner_options": {"level": 3}})
    assert_fused(model, run, tokens())
    assert seen == {"options": {"level": 3}}


@torch.no_grad()
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_go_to_inductor(mode: str) -> None:
    """torch.compile takes either mode or options, so the default budget holds: small updates pass it."""
    model = frozen()
    for layer in model.layers:
        layer.mlp.down_proj.weight.mul_(0.05)
    run = torch.compile(model, backend=fxfuse, mode=mode)
    assert_fused(model, run, tokens())
    assert_same(run(tokens(4)), model.parallel(tokens(4)))


@torch.no_grad()
def test_families_under_inductor() -> None:
    model = build("qwen2")
    assert_parallel(compiled(model, "inductor")(ids()), "qwen2")
    assert [len(group.blocks) for group in latest().groups] == [3, 2]


@torch.no_grad()
@pytest.mark.parametrize("name, inner", [
    ("llama", "eager"), ("gemma", "eager"), ("gpt_neox", "eager"), ("phi3", "eager"),
    ("llama", "aot_eager"), ("gpt_neox", "aot_eager"),
])  # fmt: skip
def test_families_at_several_lengths(name: str, inner: str) -> None:
    """dynamic=True makes eps a tensor and the sizes symbols; one graph answers for all lengths.

    Inner backends that go through AOT make dynamo start over with numbers in the place of those tensors.
    """
    run = compiled(build(name), inner, dynamic=True)
    count = len(fxfuse.reports())
    for size in ((2, 7), (3, 11), (2, 16), (4, 5)):
        assert_parallel(run(ids(*size)), name, size=size)
    assert [len(group.blocks) for group in latest().groups] == [3, 2]
    assert len(fxfuse.reports()) == count + (1 if inner == "eager" else 2)


@torch.no_grad()
def test_automatic_dynamic_shapes_measure_again() -> None:
    run = compiled(model := frozen())
    for length in (4, 9, 13):
        assert_fused(model, run, tokens(length=length))


# What is told


def test_reports_are_in_order_newest_last() -> None:
    before = fxfuse.reports()
    compiled(model := frozen())(tokens())
    compiled(frozen(depth=2), options={"max_group": 2, "exclude": "nothing"})(tokens())
    added = fxfuse.reports()[len(before) :]
    assert [report.chains[0].length for report in added] == [3, 2]
    assert added[0].before.ffn_blocks == 3
    assert added[0].after.ffn_blocks == 1
    wide = 3 * len(model.layers) * HIDDEN * WIDTH * 4
    assert any(f"{wide / 1e6:,.1f} MB" in note for note in added[0].notes)
    assert added[0].versions["torch"] == torch.__version__
    added.clear()
    assert len(fxfuse.reports()) == len(before) + 2


def test_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxfuse"):
        run = compiled(frozen())
        for _ in range(3):
            run(tokens())
    (record,) = [record for record in caplog.records if record.name == "fxfuse"]
    assert record.levelname == "INFO"
    assert "fused 3 FFN blocks into 1 (3), chains found: 3" in record.getMessage()


@pytest.mark.parametrize("options, sentence", [
    ({"min_snqr": 3}, "unknown option 'min_snqr': did you mean 'min_sqnr'?"),
    ({"inner_option": {}}, "unknown option 'inner_option': did you mean 'inner_options'?"),
    ({"zzz": 1}, "unknown option 'zzz': known are"),
    ({"inner": "inducto"}, "no torch.compile backend 'inducto' to use as inner: did you mean 'inductor'?"),
    ({"inner": 3}, "inner must be the name of a torch.compile backend or a callable, not 3."),
    ({"max_group": 1}, "max_group must be a whole number of at least 2 or None, not 1."),
    ({"include": "("}, "is not a regular expression"),
])  # fmt: skip
def test_unknown_options_are_errors(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match="InputError") as caught:
        compiled(frozen(), options=options)(tokens())
    assert sentence in str(caught.value)


def test_options_are_a_value_error_without_torch_compile() -> None:
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="did you mean 'max_kl'"):
        fxfuse.backend(graph, [torch.zeros(2)], options={"max_k": 1})


def test_graph_without_chains_compiles_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).requires_grad_(False)
    x = torch.randn(3, 4)
    assert torch.equal(compiled(model)(x), model(x))
    assert latest().chains == []
    assert latest().error is None


def test_graph_breaks_give_a_report_for_each_graph() -> None:
    class Broken(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for layer in self.layers[:3]:
                x = layer(x)
            torch._dynamo.graph_break()
            for layer in self.layers[3:]:
                x = layer(x)
            return self.lm_head(self.norm(x))

    model = Broken(depth=5).requires_grad_(False)
    count = len(fxfuse.reports())
    output = compiled(model)(tokens())
    chains = [chain.length for report in fxfuse.reports()[count:] for chain in report.chains]
    assert chains == [3, 2]
    x = model.embed(tokens())
    for part in (model.layers[:3], model.layers[3:]):
        x = x + sum(layer.branch(x) for layer in part)
    assert_same(output, model.lm_head(model.norm(x)))


# Weights that change after compilation


def scale_in_place(model: Tiny) -> None:
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.down_proj.weight.mul_(1.5)


def scale_data(model: Tiny) -> None:
    model.layers[1].mlp.up_proj.weight.data.mul_(-2.0)


def replace_data(model: Tiny) -> None:
    model.layers[1].mlp.gate_proj.weight.data = torch.flip(model.layers[1].mlp.gate_proj.weight.data, [0])


def change_gain(model: Tiny) -> None:
    model.layers[2].norm.weight.data.add_(0.5)


def replace_parameter(model: Tiny) -> None:
    old = model.layers[0].mlp.down_proj.weight
    model.layers[0].mlp.down_proj.weight = nn.Parameter(old * 2, requires_grad=False)


def replace_module(model: Tiny) -> None:
    model.layers[1] = Tiny(seed=5).requires_grad_(False).layers[1]


def load(model: Tiny) -> None:
    model.load_state_dict(Tiny(seed=9).state_dict())


def load_by_assignment(model: Tiny) -> None:
    model.load_state_dict(Tiny(seed=9).requires_grad_(False).state_dict(), assign=True)


def one_element(model: Tiny) -> None:
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[3, 5] = 40.0


def step(model: Tiny) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def to_float16_and_back(model: Tiny) -> None:
    model.half().float()


CHANGES = [
    scale_in_place, scale_data, replace_data, change_gain, replace_parameter, replace_module, load,
    load_by_assignment, one_element, step, to_float16_and_back,
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_answer_follows_the_weights(change: Callable[[Tiny], None]) -> None:
    run = compiled(model := frozen())
    assert_fused(model, run, tokens())
    old = run(tokens())
    change(model)
    for _ in range(2):
        output = run(tokens())
        assert_same(output, model.parallel(tokens()))
    if change is not to_float16_and_back:
        assert relative_error(output, old) > 1e-2
    change(model)
    assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_answer_follows_the_weights_in_compiled_graphs(inner: str) -> None:
    run = compiled(model := frozen(), inner)
    assert_fused(model, run, tokens())
    for change in (scale_in_place, load, replace_parameter):
        change(model)
        assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
def test_following_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    run = compiled(model := frozen())
    run(tokens())
    with caplog.at_level(logging.WARNING, "fxfuse"):
        for _ in range(3):
            scale_in_place(model)
            run(tokens())
    (line,) = told(caplog)
    assert "weights changed after compilation" in line
    assert any("weights changed after compilation" in note for note in latest().notes)


@torch.no_grad()
def test_models_that_share_their_code_keep_their_own_weights() -> None:
    one, other = frozen(seed=1), frozen(seed=2)
    runs = [(model, compiled(model)) for model in (one, other)]
    for _ in range(3):
        for model, run in runs:
            assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
def test_weights_under_dynamic_shapes() -> None:
    run = compiled(model := frozen(), dynamic=True)
    for length in (4, 7, 9):
        load(model) if length == 7 else scale_in_place(model)
        assert_same(run(tokens(length=length)), model.parallel(tokens(length=length)))


@torch.no_grad()
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_an_eps_that_changes_is_measured_again(inner: str) -> None:
    run = compiled(model := frozen(), inner, dynamic=True)
    assert_fused(model, run, tokens())
    model.layers[1].norm.eps = 0.5
    assert_same(run(tokens()), model(tokens()))
    assert any("eps differ from layers.0.mlp: 1e-06 and 0.5" in miss.reason for miss in latest().misses)


@torch.no_grad()
def test_an_eps_that_is_an_input_must_stay_what_it_was() -> None:
    """Under dynamic=True an eps is an input of the graph, and fused blocks share the first one's."""
    graph, example_inputs = dynamo_graph(frozen(), tokens(), compile_dynamic=True)
    run = fxfuse.backend(graph, example_inputs, options={"inner": "eager", "min_sqnr": None})
    names = [str(node.target) for node in graph.graph.find_nodes(op="placeholder")]
    run(*example_inputs)
    example_inputs[names.index("L_self_modules_layers_modules_1_modules_norm_eps")] = torch.tensor(0.5)
    with pytest.raises(RuntimeError, match=r"eps\) changed after compilation: call torch.compiler.reset"):
        run(*example_inputs)


# Gradients


def test_trainable_weights_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model, reference = Tiny(), Tiny()
    with caplog.at_level(logging.INFO, "fxfuse"):
        compiled(model)(tokens()).square().sum().backward()
    reference(tokens()).square().sum().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert "the weights of layers.0.mlp require gradients" in latest().error
    assert latest().groups == []
    (line,) = told(caplog)
    assert "not fused" in line
    assert "torch.no_grad()" in line


def test_trainable_weights_are_fused_without_gradients() -> None:
    run = compiled(model := Tiny())
    run(tokens())
    assert latest().groups == []
    with torch.no_grad():
        assert_fused(model, run, tokens())
    assert_same(run(tokens()), model(tokens()))
    assert run(tokens()).requires_grad


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_weights_that_become_trainable_get_their_gradients(inner: str) -> None:
    run = compiled(model := frozen(), inner)
    assert_fused(model, run, tokens())
    model.requires_grad_(True)
    run(tokens()).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(tokens()).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_gradient_of_the_input_is_that_of_the_parallel_form(inner: str) -> None:
    run = compiled(model := frozen(), inner)
    one, other = vectors().requires_grad_(), vectors().requires_grad_()
    assert_fused(model, run, one)
    run(one).square().sum().backward()
    model.parallel(other).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_other_weights_may_be_trained() -> None:
    """Only the head is trained: its gradient is that of the parallel form."""
    model, reference = frozen(), frozen()
    model.lm_head.requires_grad_(True)
    reference.lm_head.requires_grad_(True)
    run = compiled(model, "aot_eager")
    assert_fused(model, run, tokens())
    run(tokens()).square().sum().backward()
    reference.parallel(tokens()).square().sum().backward()
    torch.testing.assert_close(model.lm_head.weight.grad, reference.lm_head.weight.grad, rtol=1e-4, atol=1e-4)


# Modes of torch


def test_inference_mode() -> None:
    run = compiled(model := Tiny())
    with torch.inference_mode():
        assert_fused(model, run, tokens())
        scale_in_place(model)
        assert_same(run(tokens()), model.parallel(tokens()))
    with torch.no_grad():
        assert_fused(model, run, tokens())
        scale_in_place(model)
        assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        run = compiled(model := frozen())
        assert_fused(model, run, tokens())
        fill(model, 3)
        assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_autocast_is_left_alone(inner: str) -> None:
    run = compiled(model := frozen(), inner)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = run(tokens()), model(tokens())
    assert "autocast is on" in latest().error
    assert output.dtype == expected.dtype
    assert relative_error(output, expected) < ROUNDING[torch.bfloat16]
    assert_fused(model, run, tokens())


@torch.no_grad()
def test_half_precision() -> None:
    model = frozen().to(torch.bfloat16)
    output = compiled(model)(tokens())
    assert latest().groups
    assert relative_error(output, copy.deepcopy(model).double().parallel(tokens())) < ROUNDING[torch.bfloat16]


# What measuring must not touch


@torch.no_grad()
def test_random_state_is_left_alone() -> None:
    class Noisy(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.embed(x) + 0.01 * torch.randn(HIDDEN))

    model = Noisy().requires_grad_(False)
    torch.manual_seed(3)
    first = compiled(model)(tokens())
    torch.manual_seed(3)
    second = compiled(model)(tokens())
    assert latest().groups
    assert torch.equal(first, second)


@torch.no_grad()
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_buffers_and_inputs_are_written_once_a_call(inner: str) -> None:
    """A key-value cache and a counter that the graph writes in place, and an input it writes into."""

    class Cached(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(2, 6, HIDDEN))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            self.calls.add_(1)
            mask.mul_(2.0)
            self.cache[:, :3] += self.embed(x)[:, :3]
            return super().forward(self.embed(x) + self.cache + mask)

    model, plain, mask = Cached().requires_grad_(False), frozen(), torch.ones(HIDDEN)
    run = compiled(model, inner)
    for count in (1, 2, 3):
        output = run(tokens(), mask)
        cache = torch.zeros(2, 6, HIDDEN)
        cache[:, :3] = count * plain.embed(tokens())[:, :3]
        torch.testing.assert_close(model.cache, cache)
        assert int(model.calls) == count
        assert torch.equal(mask, torch.full((HIDDEN,), 2.0**count))
        assert_same(output, plain.parallel(plain.embed(tokens()) + cache + mask))
    assert latest().groups


def test_gradients_at_hand_are_left_alone() -> None:
    model = frozen()
    held = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = held[name]
    x = vectors().requires_grad_()
    compiled(model)(x)
    assert latest().groups
    assert x.grad is None
    assert all(parameter.grad is held[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(each, torch.ones_like(each)) for each in held.values())


@torch.no_grad()
def test_nan_in_the_weights_is_told_and_compiled_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = frozen()
    model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with caplog.at_level(logging.WARNING, "fxfuse"):
        output = compiled(model)(tokens())
    torch.testing.assert_close(output, model(tokens()), equal_nan=True)
    assert "gives NaN or infinity at layers.1.mlp" in latest().error
    assert latest().groups == []
    assert len(told(caplog)) == 1


@torch.no_grad()
def test_over_budget_is_compiled_as_it_is() -> None:
    run = compiled(model := frozen(), options={"min_sqnr": 90.0})
    assert_same(run(tokens()), model(tokens()))
    assert latest().groups == []
    assert all("under the budget of 90 dB" in miss.reason for miss in latest().misses)


# Copies of a compiled model


@torch.no_grad()
def test_deepcopy_of_a_compiled_model() -> None:
    run = compiled(model := frozen())
    assert_fused(model, run, tokens())
    twin = copy.deepcopy(run)
    load(twin._orig_mod)
    assert_same(twin(tokens()), twin._orig_mod.parallel(tokens()))
    assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
@pytest.mark.parametrize("backend", [fxfuse, "fxfuse", fxfuse.backend], ids=["module", "name", "function"])
def test_pickle_of_a_compiled_model(backend: Any) -> None:
    run = compiled(model := frozen(), backend=backend)
    expected = run(tokens())
    twin = pickle.loads(pickle.dumps(run))
    assert_same(twin(tokens()), expected)
    file = io.BytesIO()
    torch.save(run, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False)(tokens()), model.parallel(tokens()))


def test_module_is_a_singleton_under_copy_and_pickle() -> None:
    assert copy.deepcopy(fxfuse) is fxfuse
    assert pickle.loads(pickle.dumps(fxfuse)) is fxfuse


@torch.no_grad()
def test_compile_in_place() -> None:
    model, plain = frozen(), frozen()
    model.compile(backend=fxfuse, options={"inner": "eager", "min_sqnr": None})
    assert_same(model(tokens()), plain.parallel(tokens()))


@torch.no_grad()
def test_compile_a_function() -> None:
    model = frozen()

    @torch.compile(backend=fxfuse, options={"inner": "eager", "min_sqnr": None})
    def predict(x: Tensor) -> Tensor:
        return model(x).argmax(-1)

    assert torch.equal(predict(tokens()), model.parallel(tokens()).argmax(-1))
    assert latest().groups[0].blocks[0].endswith("layers.0.mlp")
