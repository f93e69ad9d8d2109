"""Find chains: blocks that follow one another on the residual stream with nothing between them.

    x0 -> [norm FFN +] -> x1 -> [norm FFN +] -> x2 ...

1. Every residual add is read upwards once, so the cost is linear in the size of the graph.
2. Block B follows block A when B's stream is A's sum and nothing else reads that sum.
3. Two blocks that follow one another but may not share one wide FFN end a chain; the reason is kept.
4. A wide FFN that an earlier fusion wrote stays as it is, with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fxfuse.passes.blocks import match_block
from fxfuse.passes.collection import uncollected
from fxfuse.passes.naming import span
from fxfuse.passes.quantised.objections import difference as quantised_difference
from fxfuse.passes.records import Block, Chain, Found, Miss, Value
from fxfuse.passes.spellings.experts import match_experts
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, root

__all__ = ["find_chains"]


@uncollected()
def find_chains(view: View, *, requantize: bool = False) -> Found:
    """All chains of `view`, the blocks that stand alone, and the places that were almost blocks.

    With `requantize` blocks of quantised weights form a chain although their gains differ.
    """
    blocks: list[Block] = []
    misses: list[Miss] = []
    for value in view.values():
        found = match_block(view, value) or match_experts(view, value) or _whole(view, value)
        found = found or _wide_sum(view, value)
        if isinstance(found, Block):
            blocks.append(_with_origin(view, found))
        elif found is not None and found not in misses[-8:]:
            misses.append(found)
    runs = _runs(view, _named(blocks), misses, requantize)
    chains = tuple(Chain(tuple(run)) for run in runs if len(run) > 1)
    singles = tuple(run[0] for run in runs if len(run) == 1)
    misses += _breaks(view, runs, {miss.where for miss in misses})
    return Found(chains, singles, tuple(misses))


def _whole(view: View, value: Value) -> Miss | None:
    """An operator that hides several, and has to stay as it is."""
    op = view.op(value)
    if op is None or op.kind != "whole":
        return None
    return Miss(view.scope(value) or view.node_name(value), op.attrs["reason"])


def _wide_sum(view: View, value: Value) -> Miss | None:
    """A wide FFN that an earlier fusion wrote with a down product for each block: a sum, and so no block."""
    op = view.op(value)
    if op is None or op.kind != "add" or view.origin(value) is not None:
        return None
    values = [each for each in op.inputs if each is not None and not isinstance(each, (Op, int, float))]
    origins = [view.origin(each) for each in values]
    made_of = next((each for each in origins if each), None)
    return Miss(span(made_of), _made_earlier(made_of)) if made_of else None


def _with_origin(view: View, block: Block) -> Block:
    """`block`, marked and named as one that an earlier fusion wrote where the graph tells so."""
    values = (block.ffn.gate.weight, block.ffn.down.weight, block.ffn.activation.gate, block.branch)
    origins = [each for each in map(view.origin, values) if each is not None]
    made_of = max(origins, key=len, default=None)
    return replace(block, made_of=made_of, name=span(made_of or ()) or block.name)


def _named(blocks: Sequence[Block]) -> list[Block]:
    """Number the blocks of a module that is called more than once, so that every name is one block."""
    total, seen = Counter(block.name for block in blocks), Counter[str]()
    named = []
    for block in blocks:
        seen[block.name] += 1
        suffix = f"#{seen[block.name]}" if total[block.name] > 1 else ""
        named.append(replace(block, name=block.name + suffix))
    return named


def _runs(view: View, blocks: Iterable[Block], misses: list[Miss], requantize: bool) -> list[list[Block]]:
    runs: list[list[Block]] = []
    ends: dict[Value, list[Block]] = {}
    for block in blocks:
        if block.made_of is not None:
            misses.append(Miss(block.name, _made_earlier(block.made_of)))
        run = ends.pop(root(view, block.x), None)
        if run is not None:
            reason = _tap(view, run[-1], block) or _difference(run[-1], block)
            reason = reason or quantised_difference(view, run[-1], block, requantize=requantize)
            if reason is not None:
                misses += [Miss(block.name, reason)] if block.made_of is None else []
                run = None
        if run is None:
            run = []
            runs.append(run)
        run.append(block)
        ends[block.out] = run
    return runs


def _breaks(view: View, runs: Sequence[list[Block]], told: set[str]) -> list[Miss]:
    """Why a chain ends where it does, for those beside which another block stands further on."""
    misses = []
    for before, after in zip(runs, runs[1:], strict=False):
        last, first = before[-1], after[0]
        stream = root(view, first.x)
        op = op_of(view, stream)
        if op is None or first.name in told:
            continue
        alone = len(before) + len(after) < 3
        adds = op.kind == "add" and not any(is_constant(view, each) for each in op.inputs)
        if adds and any(root(view, each) == last.out for each in op.inputs):
            what = f"another branch, such as attention, is added ({view.node_name(stream)})"
            if alone:
                continue
        elif alone and not _comes_from(view, stream, last.out):
            continue
        else:
            what = f"something else stands ({view.node_name(stream)})"
        misses.append(Miss(first.name, f"between {last.name} and it on the residual stream {what}"))
    return misses


def _comes_from(view: View, value: Value, origin: Value) -> bool:
    """Whether `value` is made of `origin` in a few steps."""
    stack: list[Operand] = [value]
    for _ in range(16):
        if not stack:
            return False
        operand = stack.pop(0)
        if operand == origin:
            return True
        op = op_of(view, operand)
        stack += [each for each in op.inputs if not is_constant(view, each)] if op is not None else []
    return False


def _tap(view: View, before: Block, block: Block) -> str | None:
    """Why the stream between two blocks, or the inside of the second, must stay as it is."""
    allowed = block.interior | {block.out, block.x}
    stack: list[Value] = [before.out]
    stream: set[Value] = set()
    while stack:
        value = stack.pop()
        stream.add(value)
        if view.is_output(value):
            return f"the residual stream after {before.name} is also a graph output ({value})"
        for reader in view.readers(value):
            op = view.op(reader)
            if op is not None and op.kind in ("pass", "cast", "dropout"):
                stack += [reader] if reader not in stream else []
            elif reader not in allowed and not _reads_shape(view, reader):
                return f"the residual stream after {before.name} is also read by {view.node_name(reader)}"
    for value in block.interior - stream:
        if view.is_output(value):
            return f"{view.node_name(value)} inside {block.name} is also a graph output"
        for reader in view.readers(value):
            if reader not in allowed and not _goes_too(view, reader, allowed):
                return f"{view.node_name(value)} inside {block.name} is also read by {view.node_name(reader)}"
    return None


def _reads_shape(view: View, reader: Value) -> bool:
    """Whether the numbers of what `reader` reads do not matter to it, as to `weight.expand_as(x)`."""
    op = view.op(reader)
    return (op is not None and op.kind == "shape") or view.is_constant(reader)


def _goes_too(view: View, reader: Value, allowed: frozenset[Value]) -> bool:
    """Whether `reader` wants a shape for the block's own use alone, as for a reshape inside it."""
    op = view.op(reader)
    if op is not None and op.kind in ("cast", "pass") and not view.is_output(reader):
        return all(each in allowed or _goes_too(view, each, allowed) for each in view.readers(reader))
    stack = [reader]
    for _ in range(64):
        if op is None or op.kind != "shape" or not stack:
            break
        value = stack.pop()
        if view.is_output(value):
            return False
        stack += [each for each in view.readers(value) if each not in allowed]
    return op is not None and op.kind == "shape" and not stack


def _difference(before: Block, block: Block) -> str | None:
    """Why two neighbours cannot share one norm and one activation."""
    if before.made_of is not None or block.made_of is not None:
        return f"before it stands {before.name}, a wide FFN that fxfuse made"
    facts = [
        ("norms", before.norm.kind, block.norm.kind),
        ("eps", before.norm.eps, block.norm.eps),
        ("scales of the norm", before.norm.scale, block.norm.scale),
        ("hidden sizes", before.hidden_size, block.hidden_size),
        ("weight types", before.dtype, block.dtype),
        ("gated and ungated FFNs", before.gated, block.gated),
        ("activations", before.ffn.activation.name, block.ffn.activation.name),
    ]
    for what, one, other in facts:
        if one != other and not _close(one, other, 1e-3 if what == "eps" else 1e-6):
            values = f"{one:g} and {other:g}" if isinstance(one, float) else f"{one} and {other}"
            return f"{what} differ from {before.name}: {values}"
    pairs = zip(before.ffn.activation.fingerprint, block.ffn.activation.fingerprint, strict=True)
    if any(abs(one - other) > 1e-6 * max(1.0, abs(one)) for one, other in pairs):
        return f"the constants of the activation differ from {before.name}"
    return None


def _made_earlier(blocks: Sequence[str]) -> str:
    """Why a wide FFN is not fused again: what that loses could not be held against the original model."""
    names = span(blocks) or "blocks that are not named any more"
    return (
        f"it is a wide FFN that fxfuse made of {names}: fuse the original model, or run fxfuse split first "
        "(ONNX files whose weights are float and were not corrected)"
    )


def _close(one: object, other: object, tolerance: float) -> bool:
    numbers = isinstance(one, float) and isinstance(other, float)
    return numbers and abs(one - other) <= tolerance * max(one, other)  # type: ignore[operator, call-overload]
