"""What tells one model from another, and the facts of its chains."""

from __future__ import annotations

import torch

from fxfuse.analysis.records import ChainFacts, ModelId
from fxfuse.frontends.protocol import Runnable
from fxfuse.passes.chains import find_chains
from fxfuse.passes.quantised.storage import form_of
from fxfuse.passes.records import Block, Chain, Found, Linear
from fxfuse.passes.view import View

__all__ = ["chain_facts", "model_id", "weight_bytes"]

_SCALE_BYTES = 2  # of each block of quantised weights; zero points are small beside it


def model_id(front: Runnable, found: Found | None = None) -> ModelId:
    """Hidden size, and name and width of every FFN block in the graph's order; `found` where it is known."""
    found = found or find_chains(front.view)
    places = {value: place for place, value in enumerate(front.view.values())}
    blocks = [*(block for chain in found.chains for block in chain.blocks), *found.singles]
    blocks.sort(key=lambda block: places[block.out])
    hidden = blocks[0].hidden_size if blocks else 0
    return ModelId(hidden, tuple((block.name, block.intermediate_size) for block in blocks))


def chain_facts(view: View, chain: Chain) -> ChainFacts:
    """Names, widths and bytes of a chain's blocks."""
    return ChainFacts(
        tuple(block.name for block in chain.blocks),
        tuple(block.intermediate_size for block in chain.blocks),
        tuple(weight_bytes(view, block) for block in chain.blocks),
    )


def weight_bytes(view: View, block: Block) -> int:
    """Bytes of a block's matrices as they are stored."""
    elements = block.hidden_size * block.intermediate_size
    linears = [block.ffn.gate, block.ffn.up, block.ffn.down]
    return sum(round(elements * _bytes_each(view, block, each)) for each in linears if each is not None)


def _bytes_each(view: View, block: Block, linear: Linear) -> float:
    """Bytes of one weight."""
    form = form_of(view, linear)
    if form is None:
        return float(getattr(torch, block.dtype).itemsize)
    bits = int("".join(each for each in form.kind if each.isdecimal())[:2] or 8)
    return bits / 8 + (_SCALE_BYTES / form.block if form.block else 0.0)
