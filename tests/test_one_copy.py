"""options={"one_copy": True}: the parameters of fused blocks are views of the wide weights."""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import fxfuse
from tests.closeness import ROUNDING, assert_parallel, relative_error
from tests.exporters import dynamo_graph
from tests.families import build, ids
from tests.test_backend import CHANGES, Tiny, assert_same, frozen, latest, tokens


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, inner: str = "eager", **arguments: Any) -> Any:
    options = {"inner": inner, "min_sqnr": None, "one_copy": True}
    return torch.compile(model, backend=fxfuse, options=options, **arguments)


def weights(model: Tiny) -> list[Tensor]:
    own = [(m.gate_proj, m.up_proj, m.down_proj) for m in (layer.mlp for layer in model.layers)]
    return [linear.weight for each in own for linear in each]


def places(model: Tiny) -> set[int]:
    return {weight.untyped_storage().data_ptr() for weight in weights(model)}


def note(text: str) -> str:
    (found,) = [each for each in latest().notes if text in each]
    return found


@torch.no_grad()
@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_parameters_are_views_and_the_function_stays(inner: str) -> None:
    model = frozen()
    plain, count = copy.deepcopy(model), len(fxfuse.reports())
    before = [StorageWeakRef(weight.untyped_storage()) for weight in weights(model)]
    run = compiled(model, inner)
    for _ in range(3):
        assert_same(run(tokens()), plain.parallel(tokens()))
    assert len(fxfuse.reports()) == count + 1
    assert all(each.expired() for each in before)
    assert len(places(model)) == 3
    assert all(torch.equal(layer.norm.weight, torch.ones_like(layer.norm.weight)) for layer in model.layers)
    assert_same(model(tokens()), plain(tokens()))
    size = sum(weight.numel() for weight in weights(plain)) * 4
    assert f"views of {size / 1e6:,.1f} MB of wide weights" in note("one copy of the weights")
    other = frozen(seed=5)
    other.load_state_dict(model.state_dict())
    assert_same(other(tokens()), plain(tokens()))


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_answer_follows_the_weights(change: Callable[[Tiny], None]) -> None:
    """The changed model is what it would be with weights of its own; gains are folded in after each."""
    run, plain = compiled(model := frozen()), frozen()
    run(tokens())
    for _ in range(2):
        plain.load_state_dict(model.state_dict())
        change(model)
        change(plain)
        assert_same(run(tokens()), plain.parallel(tokens()))
        assert_same(run(tokens()), plain.parallel(tokens()))
        assert_same(model(tokens()), plain(tokens()))


@torch.no_grad()
def test_weights_are_written_without_a_copy_to_refresh() -> None:
    run = compiled(model := frozen())
    run(tokens())
    for layer in model.layers:
        layer.mlp.up_proj.weight.data.mul_(-1.5)
        layer.mlp.down_proj.weight.add_(0.1)
    assert_same(run(tokens()), model.parallel(tokens()))
    assert not any("rebuilt" in each for each in latest().notes)


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [None, True])
def test_graphs_of_one_model_share_one_copy(dynamic: bool | None) -> None:
    run = compiled(model := frozen(), dynamic=dynamic)
    plain, wide = frozen(), set()
    for length in (4, 9, 13):
        assert_same(run(tokens(length=length)), plain.parallel(tokens(length=length)))
        wide |= places(model)
    assert len(wide) == 3
    model.load_state_dict(frozen(seed=3).state_dict())
    plain.load_state_dict(frozen(seed=3).state_dict())
    for length in (4, 9):
        assert_same(run(tokens(length=length)), plain.parallel(tokens(length=length)))
    assert places(model) == wide


@torch.no_grad()
def test_other_groups_of_the_same_weights_need_no_memory() -> None:
    model, plain = frozen(depth=4), frozen(depth=4)
    compiled(model)(tokens())
    wide = places(model)
    torch._dynamo.reset()
    x = model.embed(tokens())
    for pair in (plain.layers[:2], plain.layers[2:]):
        x = x + sum(layer.branch(x) for layer in pair)
    options = {"inner": "aot_eager", "min_sqnr": None, "max_group": 2}
    run = torch.compile(model, backend=fxfuse, options=options)
    assert_same(run(tokens()), plain.lm_head(plain.norm(x)))
    assert [len(group.blocks) for group in latest().groups] == [2, 2]
    assert "; 0.0 MB stand beside" in note("one copy of the weights")
    assert places(model) == wide


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma", "gpt2"])
def test_families(name: str) -> None:
    """Gains of 1 + w, norms with a bias, weights stored as [in, out]."""
    run = compiled(model := build(name))
    for _ in range(2):
        assert_parallel(run(ids()), name)
    note("one copy of the weights")
    assert relative_error(model(ids()), build(name)(ids())) < ROUNDING[torch.float32]
    for parameter in model.parameters():
        parameter.add_(0.01)
    twin, expected = copy.deepcopy(model), run(ids())
    again = torch.compile(twin, backend=fxfuse, options={"inner": "eager", "min_sqnr": None})(ids())
    assert relative_error(expected, again) < ROUNDING[torch.float32]


def tied_elsewhere(model: Tiny) -> None:
    other = nn.Linear(32, 48, bias=False)
    other.weight = model.layers[1].mlp.gate_proj.weight
    model.__dict__["kept"] = other


def one_tensor(model: Tiny) -> None:
    packed = torch.cat([model.layers[0].mlp.gate_proj.weight, model.layers[0].mlp.up_proj.weight])
    model.layers[0].mlp.gate_proj.weight.data, model.layers[0].mlp.up_proj.weight.data = packed.chunk(2)


def one_norm(model: Tiny) -> None:
    model.layers[1].norm.weight = model.norm.weight


def made_in_inference(model: Tiny) -> None:
    with torch.inference_mode():
        model.layers[1].mlp.down_proj.weight = nn.Parameter(torch.ones(32, 48), requires_grad=False)


@torch.no_grad()
@pytest.mark.parametrize("change, sentence", [
    (tied_elsewhere, "one of its parameters belongs to several modules"),
    (one_tensor, "the gate weight of layers.0.mlp is itself a part of a larger tensor"),
    (one_norm, "norm_parameters_weight_ is also read outside of the group"),
    (made_in_inference, "was made in inference mode"),
])  # fmt: skip
def test_two_copies_stay_where_one_cannot_be(
    change: Callable[[Tiny], None], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(model := frozen())
    plain = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, "fxfuse"):
        run = compiled(model)
        assert_same(run(tokens()), plain.parallel(tokens()))
    assert sentence in note("two copies of the weights of layers.0-2.mlp stay, since")
    assert any(sentence in record.getMessage() for record in caplog.records)
    assert all(
        torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True)
    )
    model.layers[0].mlp.up_proj.weight.data.mul_(3.0)
    assert_same(run(tokens()), model.parallel(tokens()))


@torch.no_grad()
def test_packed_products_keep_two_copies() -> None:
    assert_parallel(compiled(build("phi3"))(ids()), "phi3")
    assert any("is a part of a packed one" in each for each in latest().notes)


def test_trained_parameters_get_their_gradients_again() -> None:
    run, plain = compiled(model := frozen()), frozen()
    with torch.no_grad():
        run(tokens())
    plain.load_state_dict(model.state_dict())
    for one in (model, plain):
        one.requires_grad_(True)(tokens()).square().sum().backward()
        torch.optim.SGD(one.parameters(), lr=1e-3).step()
    with torch.no_grad():
        assert_same(run(tokens()), plain.parallel(tokens()))


def test_a_wrong_value_is_an_error() -> None:
    graph, inputs = dynamo_graph(frozen(), tokens())
    with pytest.raises(ValueError, match="one_copy must be True or False, not 1"):
        fxfuse.backend(graph, inputs, options={"one_copy": 1})
