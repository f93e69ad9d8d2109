"""Whole recoveries: what is kept and what is refused, in which order groups are fitted, and on what."""

import dataclasses
import math

import pytest
import torch

from fxfuse.analysis.changes import fused as fused_branches
from fxfuse.calibration import Calibration
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.passes.weights import Wide, widen
from fxfuse.recovery import Recovered, RecoveryOptions, recover
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.recover import unrounded
from tests.closeness import relative_error
from tests.recovery.subjects import HIDDEN, STYLES, calibration, chains, front, ids, names

FEW = RecoveryOptions(penalties=(1e-3, 1e-2, 1e-1, 1.0, 10.0))
FRESH = ids(40, seed=99)
"""Tokens that no recovery has seen."""


def fresh_kl(graph: TorchGraph, groups: list, wides: list[Wide | None]) -> Divergence:  # type: ignore[type-arg]
    """KL with these groups fused, on fresh tokens; None stands for the naive weights."""
    batch = {"input_ids": FRESH}
    logits = graph.logits(batch)
    (original,) = graph.run(batch, [logits])
    known = {}
    for group, wide in zip(groups, wides, strict=True):
        (x,) = graph.run(batch, [group[0].x], known)
        known = {group[-1].out: WideFfn(graph.view, group[0]).apply(wide or unrounded(graph, group), x)}
    meter = DivergenceMeter()
    meter.add(original, graph.run(batch, [logits], known)[0])
    return meter.result()


def shapes(wide: Wide) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in wide.tensors().items()}


@pytest.mark.parametrize("style", STYLES)
def test_recovery_wins_on_tokens_it_never_saw(style: str) -> None:
    graph, groups = front(style), chains(style)
    found = recover(graph, groups, calibration(), FEW)
    assert [group.kept for group in found.groups] == ["g' + h"] * 2
    before, after = fresh_kl(graph, groups, [None, None]), fresh_kl(graph, groups, found.wides)
    assert after.kl < 0.5 * before.kl
    assert found.kl_before is not None
    assert found.kl_after is not None
    assert found.kl_after.kl < 0.5 * found.kl_before.kl
    assert [names(group) for group in groups] == [group.blocks for group in found.groups]


@pytest.mark.parametrize("style", STYLES)
def test_no_shape_changes(style: str) -> None:
    graph, groups = front(style), chains(style)
    for group, wide in zip(groups, recover(graph, groups, calibration(), FEW).wides, strict=True):
        assert wide is not None
        assert shapes(wide) == shapes(widen(graph.view, group))


def test_distillation_goes_further_than_the_fit() -> None:
    graph, groups = front(), chains()[:1]
    fitted = recover(graph, groups, calibration(), FEW)
    steps = {"steps": 120, "batch_tokens": 256, "check_every": 20, "rate": 1e-2}
    options = dataclasses.replace(FEW, method="distill", **steps)  # type: ignore[arg-type]
    found = recover(graph, groups, calibration(), options)
    assert found.groups[0].kept == "distilled"
    assert found.groups[0].error_after < 0.9 * fitted.groups[0].error_after
    assert fresh_kl(graph, groups, found.wides).kl < fresh_kl(graph, groups, fitted.wides).kl
    again = recover(graph, groups, calibration(), options)
    assert torch.equal(again.wides[0].gate, found.wides[0].gate)  # type: ignore[union-attr]


def test_later_groups_are_fitted_on_what_the_earlier_ones_give() -> None:
    """x^ of the second group comes through the attention between the chains; its target is the true x_n."""
    graph, groups = front(), chains()
    found = recover(graph, groups, calibration(), FEW)
    held_out = calibration().held_out
    wrong = total = 0.0
    for batch in held_out:
        x, end = graph.run(batch, [groups[0][0].x, groups[1][-1].out])
        first = WideFfn(graph.view, groups[0][0]).apply(found.wides[0], x)  # type: ignore[arg-type]
        (x,) = graph.run(batch, [groups[1][0].x], {groups[0][-1].out: first})
        other = WideFfn(graph.view, groups[1][0]).apply(found.wides[1], x)  # type: ignore[arg-type]
        share = (other - end).double().square().sum(-1) / end.double().square().sum(-1)
        wrong, total = wrong + float(share.sum()), total + share.numel()
    assert found.groups[1].error_after == pytest.approx(wrong / total, rel=1e-4)
    alone = recover(graph, groups[1:], calibration(), FEW)
    assert alone.groups[0].error_before < found.groups[1].error_before  # it reads the sequential stream


def test_groups_may_come_in_any_order() -> None:
    graph, groups = front(), chains()
    one, other = recover(graph, groups, calibration(), FEW), recover(graph, groups[::-1], calibration(), FEW)
    assert [group.blocks for group in other.groups] == [names(group) for group in groups[::-1]]
    for first, second in zip(one.wides, other.wides[::-1], strict=True):
        assert torch.equal(first.down, second.down)  # type: ignore[union-attr]


@pytest.mark.parametrize("tokens", [32, 160])
@pytest.mark.parametrize("method", ["fit", "distill"])
def test_few_tokens_never_make_it_worse(tokens: int, method: str) -> None:
    """A width of 112 and fewer tokens than that: held-out tokens refuse, or what they let through helps."""
    graph, groups = front(), chains()
    data = Calibration.of(ids(200), batch_size=16).limit(tokens)
    options = dataclasses.replace(FEW, method=method, steps=20, batch_tokens=32, check_every=5)
    found = recover(graph, groups, data, options)
    assert fresh_kl(graph, groups, found.wides).kl <= fresh_kl(graph, groups, [None, None]).kl
    assert f"recovery was fitted on {tokens} tokens of the calibration data" in found.notes[0]
    few = f"recovery had {tokens} tokens to fit a width of 112: give at least 224, and 16 for each unit"
    assert any(note.startswith(few) for note in found.notes)


def test_what_loses_is_not_kept() -> None:
    """Held-out tokens of another kind than those that are fitted on: nothing that is learned there helps."""
    graph, groups = front(), chains()[:1]
    one_token = torch.arange(16).repeat(32, 1)
    data = Calibration(({"input_ids": one_token},), ({"input_ids": ids(32, seed=3)},))
    found = recover(graph, groups, data, dataclasses.replace(FEW, penalties=(1e-6,)))
    (group,) = found.groups
    assert found.wides == [None]
    assert (group.kept, group.won, group.reason) == ("naive", False, "nothing wins on held-out tokens")
    assert group.error_after == group.error_before
    assert [trial.name for trial in group.trials] == ["naive", "g'", "h"]
    assert all(trial.error > group.error_before for trial in group.trials[1:])
    assert found.kl_after == found.kl_before


def test_two_windows_are_too_few_to_be_sure() -> None:
    graph, groups = front(), chains()[:1]
    data = Calibration(calibration().fit, ({"input_ids": ids(1, length=32)},))
    assert recover(graph, groups, data, FEW).wides == [None]


@pytest.mark.parametrize("solver", ["blocks", "gradients"])
def test_iterative_solvers_win_nearly_as_much(solver: str) -> None:
    graph, groups = front(), chains()[:1]
    direct = recover(graph, groups, calibration(), FEW).groups[0]
    found = recover(graph, groups, calibration(), dataclasses.replace(FEW, solver=solver)).groups[0]
    assert (direct.solver, found.solver) == ("direct", solver)
    assert found.error_before - found.error_after > 0.95 * (direct.error_before - direct.error_after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_fitted_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    graph, groups = front("gated", dtype), chains("gated", dtype)
    found = recover(graph, groups, calibration(), FEW)
    assert [group.kept for group in found.groups] == ["g' + h"] * 2
    for wide in found.wides:
        for tensor in wide.tensors().values():  # type: ignore[union-attr]
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, tensor.to(dtype).float())
    exact = recover(front(), chains(), calibration(), FEW)
    errors = [each.groups[0].error_after for each in (found, exact)]
    assert errors[0] < 1.2 * errors[1]


def test_the_naive_form_is_the_sum_of_the_blocks() -> None:
    graph, group = front("plain"), chains("plain")[0]
    batch = {"input_ids": FRESH}
    (x,) = graph.run(batch, [group[0].x])
    own = WideFfn(graph.view, group[0]).apply(unrounded(graph, group), x)
    assert relative_error(own, fused_branches(graph, batch, group, x)) < 1e-6


def test_padding_counts_for_nothing() -> None:
    """Tokens behind a mask may hold anything: the weights come out the same."""
    graph, groups = front(), chains()[:1]
    part = ids(64)
    mask = torch.ones_like(part)
    mask[:, 12:] = 0
    found = []
    for filler in (0, 9):
        padded = part.clone()
        padded[:, 12:] = filler
        batch = {"input_ids": padded, "attention_mask": mask}
        data = Calibration((batch,), (batch,))
        found.append(recover(_Unmasked(graph), groups, data, FEW).groups[0])  # type: ignore[arg-type]
    assert found[0].tokens == 64 * 12
    assert found[0].error_after == pytest.approx(found[1].error_after, rel=1e-6)
    assert found[0].kl_after == pytest.approx(found[1].kl_after, rel=1e-6)


class _Unmasked:
    """The decoder reads no mask: it is causal, so padding at the end changes nothing before it."""

    def __init__(self, graph: TorchGraph) -> None:
        self.view, self._graph = graph.view, graph

    def run(self, batch, wanted, known=None):  # type: ignore[no-untyped-def]
        return self._graph.run({"input_ids": batch["input_ids"]}, wanted, known)

    def logits(self, batch):  # type: ignore[no-untyped-def]
        return self._graph.logits({"input_ids": batch["input_ids"]})


def test_activations_may_lie_on_the_disk() -> None:
    graph, groups = front(), chains()
    kept, moved = (
        recover(graph, groups, calibration(), dataclasses.replace(FEW, activations=bound))
        for bound in (2 << 30, 50_000)
    )
    assert relative_error(moved.wides[1].down, kept.wides[1].down) < 1e-4  # type: ignore[union-attr]
    assert "went to a temporary file" in moved.notes[-1]


def test_a_model_without_logits_is_judged_by_its_streams() -> None:
    class Blind(_Unmasked):
        def logits(self, batch):  # type: ignore[no-untyped-def]
            raise InputError("No output of the model looks like logits: give a model that returns them.")

    found = recover(Blind(front()), chains()[:1], calibration(), FEW)  # type: ignore[arg-type]
    assert found.groups[0].reason == "it wins on held-out tokens; the model has no logits to judge by"
    assert found.kl_after is None
    assert found.groups[0].kl_after is None


def test_progress_tells_what_is_done() -> None:
    told: list[str] = []
    recover(front(), chains()[:1], calibration(), FEW, told.append)
    words = (
        "running the model",
        "adding up the Gram matrix: 8 of 8",
        "fitting input maps",
        "fitting down projections",
        "judging a group",
    )
    assert all(any(text.startswith(word) for text in told) for word in words)


# Sentences


def test_data_are_needed_to_choose_by() -> None:
    empty = torch.zeros(0, 16, dtype=torch.int64)
    for fit, held_out, missing in ((ids(4), empty, "held out to choose by"), (empty, ids(4), "to fit on")):
        data = Calibration(({"input_ids": fit},), ({"input_ids": held_out},))
        with pytest.raises(InputError, match=f"hold no tokens {missing}: give more of them"):
            recover(front(), chains(), data, FEW)


def test_all_groups_together_have_to_win() -> None:
    from fxfuse.recovery.recover import keep_only_gains

    before, after = Divergence(0.1, 0.01, 0.9, 100), Divergence(0.2, 0.01, 0.9, 100)
    found = recover(front(), chains()[:1], calibration(), FEW)
    lost = Recovered(list(found.wides), list(found.groups), before, after)
    keep_only_gains(lost)
    assert lost.wides == [None]
    assert lost.kl_after == before
    assert lost.groups[0].reason == "all groups together gain nothing at the logits"
    assert lost.notes == [
        "no recovery was kept: all groups together gave a KL of 0.2 nats on held-out tokens, not below the "
        "naive 0.1"
    ]


def test_a_group_that_overflows_is_named() -> None:
    from fxfuse.recovery.group import candidates
    from fxfuse.recovery.judging import Candidate, Errors

    class Broken:
        fit = type("Tokens", (), {"blocks": chains()[0]})()

        def candidate(self, name: str, wide: Wide) -> Candidate:
            return Candidate(name, wide, Errors(torch.tensor([math.nan]), torch.ones(1)))

    with pytest.raises(InputError, match=r"The blocks layers.0-2.mlp side by side give NaN or infinity"):
        candidates(Broken(), unrounded(front(), chains()[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "sentence"), [
    ("fitt", "The recovery's method must be 'fit' or 'distill', not 'fitt'."),
    ({"solver": "qr"}, "The recovery's solver must be auto, direct, blocks, gradients, not 'qr'."),
    ({"step": 3}, "unknown recovery option 'step': did you mean 'steps'?"),
    ({"steps": 0}, "The recovery's steps must be a whole number above 0, not 0."),
    ({"penalties": (0.0,)}, "The recovery's penalties must be greater than 0, not (0.0,)."),
    ({"rate": -1.0}, "The recovery's rate must be greater than 0, not -1.0."),
    ({"memory": -1}, "The recovery's memory and activations are bytes: give 0 or more."),
    (7, 'recover must be "fit", "distill" or RecoveryOptions, not 7.'),
])  # fmt: skip
def test_options_are_checked(options: object, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        RecoveryOptions.of(options)
    assert str(caught.value) == sentence


def test_options_may_be_words_dicts_or_themselves() -> None:
    assert RecoveryOptions.of(None) is None
    assert RecoveryOptions.of("distill") == RecoveryOptions(method="distill")
    assert RecoveryOptions.of({"steps": 9, "penalties": [1.0]}) == RecoveryOptions(steps=9, penalties=(1.0,))
    assert RecoveryOptions.of(FEW) is FEW
    assert HIDDEN == 32
