"""Holds a split file against the fused one, in ONNX Runtime, before it is put in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

from fxfuse.errors import VerificationError
from fxfuse.frontends.onnx_file import OnnxFile, vocab_size
from fxfuse.inputs import Sample, draw_inputs, specs_of
from fxfuse.naming import span
from fxfuse.numerics import relative_error
from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.provenance import WideGroup
from fxfuse.passes.records import Block

__all__ = ["check_split"]

Placed = tuple[onnx.ModelProto, Path]
_TIMES = 64
"""Sums in another order differ by this many roundings at most; a wrong row differs by thousands."""


def check_split(
    fused: Placed, split: Placed, pairs: Sequence[tuple[Block, WideGroup]], parallel: bool
) -> float:
    """The largest relative difference between a wide FFN and the sum of its blocks, on inputs that are drawn.

    Raises:
        VerificationError: It is more than rounding, or the blocks do not make the chain that was recorded.
    """
    samples = draw_inputs(specs_of(fused[0]), 0, vocab_size(fused[0]))
    before, after = (_front(each, samples, split[1]) for each in (fused, split))
    streams = before.states([value for block, _ in pairs for value in (block.x, block.out)])[0]
    found = {block.name: block for chain in find_chains(after.view).chains for block in chain.blocks}
    states = after.states([block.out for block, _ in pairs])[0] if parallel else {}
    largest = 0.0
    for block, group in pairs:
        x, roundings = streams[block.x], float(_TIMES)
        if parallel:
            update = streams[block.out] - x
            error = relative_error(states[block.out] - x, update)
            roundings *= max(1.0, float(x.double().norm() / update.double().norm()))  # those of the stream
        else:
            total = sum(after.branch(each, x, 0).double() for each in _chain(found, block, group))
            error = relative_error(torch.as_tensor(total), before.branch(block, x, 0).double())
        if not error <= roundings * torch.finfo(getattr(torch, block.dtype)).eps:
            raise VerificationError(
                f"The blocks {span(group.blocks)} differ from their wide FFN by {error:.2g}: nothing was "
                "written; please report this model."
            )
        largest = max(largest, error)
    return largest


def _front(placed: Placed, samples: Sequence[Sample], workspace: Path) -> OnnxFile:
    model, folder = placed
    return OnnxFile(model, folder, samples, workspace, "")


def _chain(found: dict[str, Block], wide: Block, group: WideGroup) -> list[Block]:
    """The blocks of the group as the matcher sees them, one after the other where the wide FFN stood."""
    blocks = [found[name] for name in group.blocks if name in found]
    places = [(block.x, block.out) for block in blocks]
    links = [stop == start for (_, stop), (start, _) in zip(places, places[1:], strict=False)]
    whole = len(blocks) == len(group.blocks) and all(links)
    if not whole or (places[0][0], places[-1][1]) != (wide.x, wide.out):
        raise VerificationError(
            f"The blocks {span(group.blocks)} are not found again as a chain: nothing was written; please "
            "report this model."
        )
    return blocks
