"""Choosing attentions by measuring: greedy, by number and by budget, with a preference for runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxfuse
from fxfuse.calibration import Calibration
from fxfuse.divergence import DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.frontends.torch_model import read_torch
from fxfuse.passes.attention import find_attention, stream_updates
from fxfuse.removal.choosing import choose
from fxfuse.removal.running import run_without
from tests import families
from tests.passes.test_attention import view_of

IDS = torch.randint(0, families.VOCAB, (10, 12), generator=torch.Generator().manual_seed(3))


class Front:
    """A front end over the attentions of a graph; leaving out some costs what `cost` says of their places.

    The logits' distribution is set so that its KL is exactly that.
    """

    def __init__(self, cost: Mapping[frozenset[int], float] | Any) -> None:
        self.view = view_of(_four)
        self.cost = cost
        self.attentions = find_attention(self.view)[0]
        self.places = {each.x: place for place, each in enumerate(self.attentions)}
        self.outs = {each.out: place for place, each in enumerate(self.attentions)}
        self.end = stream_updates(self.view)[-1].out

    def logits(self, batch: Any) -> Any:
        return self.end

    def run(
        self, batch: Any, wanted: Sequence[Any], known: Mapping[Any, Tensor] | None = None
    ) -> list[Tensor]:
        """A stream is a set of the places left out, as a row of four flags."""
        stream = torch.zeros(1, 1, 4)
        for value, tensor in (known or {}).items():
            stream = stream.maximum(tensor)
            if value in self.outs:
                stream[..., self.outs[value]] = 1.0
        return [self._logits(stream) if value == self.end else stream.clone() for value in wanted]

    def _logits(self, stream: Tensor) -> Tensor:
        gone = frozenset(index for index in range(4) if stream[0, 0, index] > 0)
        kl = self.cost(gone) if gone else 0.0
        share = torch.tensor(2.0).neg().mul(kl).exp()  # KL(1/2, 1/2 || p, 1 - p) = -log(4 p (1 - p)) / 2
        p = (1 - (1 - share).sqrt()) / 2
        return torch.stack([p, 1 - p]).log().reshape(1, 1, 2)


def _four(m: Any, x: Tensor) -> Tensor:
    for _ in range(4):
        x = m.b(x + m.attention(m.norm(x)))
    return x


def chosen(cost: Any, **bounds: Any) -> list[int]:
    front = Front(cost)
    batch = {"x": torch.zeros(1, 1)}
    choice = choose(front, Calibration((batch,), (batch,)), **bounds)  # type: ignore[arg-type]
    places = {each.name: place for place, each in enumerate(front.attentions)}
    return [places[name] for name in choice.names]


SINGLE = {0: 0.001, 1: 0.02, 2: 0.03, 3: 0.01}


def _sum(gone: frozenset[int]) -> float:
    return sum(SINGLE[each] for each in gone)


def test_the_cheapest_goes_first_and_the_first_one_stays() -> None:
    assert chosen(_sum, number=1) == [3]
    assert chosen(_sum, number=3, patience=1) == [3, 1, 2]
    assert chosen(_sum, number=1, first=True) == [0]
    assert chosen(_sum, number=9) == [3, 2, 1]
    assert chosen(_sum, number=9, among="1-2", patience=1) == [1, 2]


def test_one_that_makes_a_run_longer_is_preferred_up_to_patience() -> None:
    """3 is gone; then 2 (.04 in all) makes a run, 1 (.03) costs less: 1.33 times is within 1.5, not 1.3"""
    assert chosen(_sum, number=2) == [3, 2]
    assert chosen(_sum, number=2, patience=1.3) == [3, 1]


def test_it_is_measured_again_after_each_removal() -> None:
    """1 alone costs least but one, and much when 3 is gone."""

    def cost(gone: frozenset[int]) -> float:
        return _sum(gone) + (5.0 if {1, 3} <= gone else 0.0)

    assert chosen(cost, number=2, patience=1) == [3, 2]


def test_a_budget() -> None:
    assert chosen(_sum, max_kl=0.035, patience=1) == [3, 1]
    assert chosen(_sum, max_kl=0.035) == [3, 1]  # with 2 it would be over it
    assert chosen(_sum, max_kl=0.035, number=1) == [3]
    assert chosen(_sum, max_kl=0.005) == []


def test_what_a_choice_tells() -> None:
    front, batch = Front(_sum), {"x": torch.zeros(1, 1)}
    choice = choose(front, Calibration((batch,), (batch,)), max_kl=0.035)  # type: ignore[arg-type]
    assert [round(step.kl, 4) for step in choice.steps] == [0.01, 0.03]
    assert [len(step.tried) for step in choice.steps] == [3, 2]
    assert [step.extends for step in choice.steps] == [False, False]
    assert choice.kl == pytest.approx(0.03, rel=1e-3)
    assert choice.held_out_kl == pytest.approx(0.03, rel=1e-3)
    assert choice.layers == (1, 3)
    assert choice.stopped.startswith("the next one, ")
    assert choice.stopped.endswith("would bring the KL to 0.06 nats")


def test_measured_as_if_removed() -> None:
    """Every figure of every round is that of the model whose attentions were removed by hand."""
    model = families.build("llama", removed=(), layers=4)
    choice = fxfuse.choose_attention(model, IDS, number=2, first=True, batch_size=4, context=12)
    calibration = Calibration.of(IDS, batch_size=4, context=12)
    gone: list[int] = []
    assert [len(step.tried) for step in choice.steps] == [4, 3]
    for step in choice.steps:
        for each in step.tried:
            less = families.build("llama", removed=(*gone, _layer(each.name)), layers=4)
            meter = DivergenceMeter()
            for batch in calibration.fit:
                meter.add(model(**batch), less(**batch))
            assert each.kl == pytest.approx(meter.result().kl, rel=1e-3)
        gone.append(_layer(step.name))
    assert choice.layers == tuple(sorted(gone))


def _layer(name: str) -> int:
    return int(name.split(".")[2])


def test_values_that_come_before_and_behind() -> None:
    """A file's present keys of layer 2 come behind the removal of layer 1, before that of layer 3."""
    model = families.build("llama", removed=(), layers=4, hidden_states=True)
    ids = families.ids()
    front = read_torch(model, {"input_ids": ids})
    attentions = [each for each in find_attention(front.view)[0] if each.layer in (1, 3)]
    wanted = list(next(reversed(front.module.graph.nodes)).all_input_nodes)
    found = run_without(front, {"input_ids": ids}, wanted, attentions)
    expected = families.build("llama", removed=(1, 3), layers=4, hidden_states=True)(ids)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other)


def test_a_file(onnx_file: Any, tmp_path: Path) -> None:
    """In ONNX Runtime the same attentions go at the same cost as in torch."""
    source = onnx_file("llama", dynamic=True, removed=())
    options: dict[str, Any] = {"number": 2, "batch_size": 4, "context": 12}
    file = fxfuse.choose_attention(source, IDS.numpy(), provider="cpu", **options)
    torch_model = fxfuse.choose_attention(families.build("llama", removed=()), IDS, **options)
    assert file.names == torch_model.names
    for one, other in zip(file.steps, torch_model.steps, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-3)
    removal = fxfuse.remove_attention_onnx(source, tmp_path / "less.onnx", file, provider="cpu")
    assert set(removal.removed) == set(file.names)
    assert removal.choice is file


def test_bounds_that_make_no_sense() -> None:
    for bounds, reason in (
        ({}, "Say how much may go: number=, max_kl=, or both."),
        ({"number": 0}, "The number of attentions to remove must be 1 or more, not 0."),
        ({"max_kl": 0.0}, "max_kl must be above 0 nats, not 0."),
        ({"number": 1, "patience": 0.5}, "patience must be 1 or more, not 0.5."),
        (
            {"number": 1, "among": [0]},
            "The model has no attention that may go: allow the first one, or another",
        ),
    ):
        with pytest.raises(InputError) as caught:
            chosen(_sum, **bounds)
        assert str(caught.value).startswith(reason)


def test_numbers_that_are_none() -> None:
    with pytest.raises(InputError, match="The model gives NaN as logits on the calibration data"):
        front = Front(_sum)
        front._logits = lambda _: torch.full((1, 1, 2), torch.nan)  # type: ignore[method-assign]
        batch = {"x": torch.zeros(1, 1)}
        choose(front, Calibration((batch,), (batch,)), number=1)  # type: ignore[arg-type]
