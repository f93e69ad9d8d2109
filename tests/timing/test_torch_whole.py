"""A whole graph of torch before and after: its inputs at a token count, and once in real processes."""

from collections.abc import Callable

import torch
from torch.export import ExportedProgram

from fxfuse.frontends.exported import ExportedGraph
from fxfuse.passes.chains import find_chains
from fxfuse.timing.target import Target
from fxfuse.timing.torch_whole import TorchWhole, values_at
from tests import families


def test_inputs_follow_the_token_count(exported_program: Callable[..., ExportedProgram]):
    ids = families.example("llama")
    front = ExportedGraph(exported_program("llama", dynamic=True), (ids,))
    changed, known = values_at(front.inputs, 9)
    (value,) = changed.values()
    assert known
    assert value.shape == (1, 9)
    assert torch.equal(value[:, :7], ids[:1])
    assert values_at(ExportedGraph(exported_program("llama"), (ids,)).inputs, 9) == ({}, False)


def test_both_are_timed_in_processes_of_their_own(exported_program: Callable[..., ExportedProgram]):
    front = ExportedGraph(exported_program("llama"), (families.example("llama"),))
    fused = front.apply([find_chains(front.view).chains[0].blocks])
    steps: list[str] = []
    whole = TorchWhole(front, Target((5,), threads=1), "eager", {}, steps.append)
    (timing,) = whole(fused)
    assert (timing.tokens, steps) == (5, ["timing the whole model"])
    assert min(timing.original_ms, timing.fused_ms, timing.ratio) > 0
    (note,) = whole.notes
    assert note.endswith("not at 5 tokens")
