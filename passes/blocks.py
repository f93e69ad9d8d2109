r"""A block: norm, FFN and residual add, read upwards from the add.

    x ---> norm ---> FFN ---> + ---> out
     \------------------------^

How each part may be written is the matter of `fxfuse.passes.spellings`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxfuse.passes.block_names import name_of_block
from fxfuse.passes.elementwise import constant
from fxfuse.passes.near_norms import near_norm
from fxfuse.passes.quantised.objections import objection as quantised_objection
from fxfuse.passes.records import FFN, Block, Linear, Miss, Norm, Step, Value
from fxfuse.passes.spellings.ffns import FFNMatch, NearlyFFN, match_ffn
from fxfuse.passes.spellings.norms import match_norm
from fxfuse.passes.view import Op, Operand, View, is_constant, root, strip

__all__ = ["match_block"]

Shape = tuple[int | None, ...]


def match_block(view: View, out: Value) -> Block | Miss | None:
    """The block whose residual add computes `out`; a `Miss` where it is almost one; None where it is none."""
    op = view.op(out)
    if op is None or len(op.inputs) != 2 or any(is_constant(view, each) for each in op.inputs):
        return None
    if op.kind == "sub":
        return _subtracted(view, out, op)
    if op.kind != "add":
        return _spoiled(view, out, op) if op.kind.startswith("add ") else None
    misses = []
    for stream, branch in (op.inputs, op.inputs[::-1]):
        found = _match_branch(view, out, stream, branch)
        if isinstance(found, Block):
            return found
        if found is not None:
            misses.append(found)
    return misses[0] if misses else None


def _subtracted(view: View, out: Value, op: Op) -> Miss | None:
    """A sum that takes the FFN off the stream."""
    found = _match_branch(view, out, *op.inputs)
    if not isinstance(found, Block):
        return None
    return Miss(
        found.name, f"the FFN is subtracted from the residual stream ({view.node_name(out)}), not added"
    )


def _spoiled(view: View, out: Value, op: Op) -> Miss | None:
    """A residual add that an in-place write makes another: "add beside an in-place write"."""
    for stream, branch in (op.inputs, op.inputs[::-1]):
        found = _match_branch(view, out, stream, branch)
        if isinstance(found, Block):
            return Miss(found.name, f"its residual add is an {op.kind} ({view.node_name(out)})")
    return None


@dataclass(frozen=True)
class _Reading:
    """What is known of a branch once its FFN is recognised."""

    view: View
    out: Value
    ffn: FFNMatch
    trail: set[Value]

    @property
    def name(self) -> str:
        return name_of_block(self.view, self.ffn, self.out)

    def miss(self, reason: str) -> Miss:
        return Miss(self.name, reason)


def _match_branch(view: View, out: Value, stream: Operand, branch: Operand) -> Block | Miss | None:
    if branch is None or isinstance(branch, (int, float)) or stream is None or isinstance(stream, Op):
        return None
    hidden = {branch} if not isinstance(branch, Op) else set()
    match = match_ffn(view, branch)
    if match is None:
        return _after_norm(view, out, branch)
    if isinstance(match, NearlyFFN):
        return Miss(_place(view, out, branch), match.reason) if _reads(view, match, stream) else None
    reading = _Reading(view, out, match, set(hidden) | set(match.trail))
    if match.rounded is not None:
        return reading.miss(_calibrated(view, match.rounded))
    if strip(view, match.source) == strip(view, stream):
        return reading.miss("the FFN reads the residual stream without a norm before it (post-norm form)")
    norm = match_norm(view, match.source, reading.trail)
    if norm is None:
        nearly = near_norm(view, match.source)
        if nearly is not None:
            return reading.miss(f"what stands before the FFN is no norm that is known: {nearly}")
        return reading.miss(f"no norm stands before the FFN, which reads {view.node_name(match.source)}")
    return _join(reading, stream, branch, norm)


def _reads(view: View, nearly: NearlyFFN, stream: Operand) -> bool:
    """Whether the first products of something read a norm of `stream`, as an FFN's would."""
    for source in nearly.sources:
        norm = match_norm(view, source, set())
        if norm is not None and strip(view, norm.source) == strip(view, stream):
            return True
    return False


def _join(reading: _Reading, stream: Operand, branch: Operand, norm: Norm) -> Block | Miss:
    view, match = reading.view, reading.ffn
    source = root(view, norm.source, reading.trail)
    base = root(view, stream, reading.trail)
    if strip(view, source) != strip(view, base):
        return reading.miss(
            f"the norm reads {view.node_name(source)} but the residual add reads {view.node_name(base)}: "
            "attention and FFN stand in parallel, or something lies between"
        )
    read = [view.shape(each) for each in (norm.output, stream)]
    reshaped = next((each for each in read if not _fit(each, view.shape(reading.out))), None)
    if reshaped is not None:
        return reading.miss(
            f"the norm reads the stream reshaped to {_spelled(reshaped)}, "
            f"the residual add as {_spelled(view.shape(reading.out))}"
        )
    if match.objection is not None:
        return reading.miss(match.objection)
    shared = _shared_weight(view, match.ffn, reading.trail)
    if shared is not None:
        return reading.miss(shared)
    stored = quantised_objection(view, match.ffn)
    if stored is not None:
        return reading.miss(stored)
    sizes = _sizes(view, match.ffn)
    if sizes is None or not _steps_fit(view, (*norm.gain, *match.ffn.down.steps), sizes[0]):
        return reading.miss("the shapes of its weights are not known or do not fit together")
    return Block(
        name=reading.name, norm=norm, ffn=match.ffn, x=stream, branch=branch, out=reading.out,
        hidden_size=sizes[0], intermediate_size=sizes[1],
        dtype=view.dtype(match.ffn.down.weight) or "float32",
        interior=frozenset(reading.trail - {base, source, stream}),
    )  # fmt: skip


def _fit(one: Shape | None, other: Shape | None) -> bool:
    """Whether two shapes may be the same, as far as they are known."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other, strict=True)
    )


def _spelled(shape: Shape | None) -> str:
    return "?" if shape is None else str(["?" if size is None else size for size in shape]).replace("'", "")


def _calibrated(view: View, value: Value) -> str:
    """Why an FFN whose activations are quantised by stored scales cannot share a wide one."""
    op = view.op(value)
    scale = op.attrs["scale"] if op is not None else None
    figure = f", scale {float(constant(view, scale).reshape(-1)[0]):.3g}" if is_constant(view, scale) else ""
    return (
        f"its activations are quantised by calibrated scales of its own ({view.node_name(value)}{figure}), "
        "and blocks that read one input need one: fuse the float model, then quantise it"
    )


def _after_norm(view: View, out: Value, branch: Operand) -> Miss | None:
    """Sandwich forms: x + norm(FFN(norm(x)))."""
    norm = match_norm(view, branch, set()) if not isinstance(branch, Op) else None
    if norm is None:
        return None
    match = match_ffn(view, strip(view, norm.source))
    if not isinstance(match, FFNMatch):
        return None
    return _Reading(view, out, match, set()).miss(
        "a norm stands between the FFN and the residual add (sandwich form)"
    )


def _shared_weight(view: View, ffn: FFN, trail: set[Value]) -> str | None:
    """A weight that something outside the block reads too cannot be folded into this block alone."""
    for linear in (ffn.gate, ffn.up, ffn.down):
        if linear is None:
            continue
        values = _chain_of_constants(view, linear.weight)
        stored = next((each for each in values if view.op(each) is None), linear.weight)
        for reader in (reader for value in values for reader in view.readers(value)):
            op = view.op(reader)
            if reader not in trail and not view.is_constant(reader) and not (op and op.kind == "shape"):
                return f"its weight {view.node_name(stored)} is also read by {view.node_name(reader)}"
    return None


def _chain_of_constants(view: View, weight: Value) -> list[Value]:
    found: dict[Value, None] = {}
    beside: dict[Value, None] = {}
    stack: list[Operand] = [weight]
    while stack:
        value = stack.pop()
        if value is None or isinstance(value, (int, float)) or value in found:
            continue
        if isinstance(value, Op):
            stack.extend(value.inputs)
            continue
        found[value] = None
        op = view.op(value)
        # Scales and zero points are copied, so others may read them too.
        stack.extend(op.inputs[:1] if op and op.kind.startswith("dequantize") else op.inputs if op else ())
        if op is None:
            beside |= dict.fromkeys(each for each in view.readers(value) if view.is_constant(each))
    return list(found | beside)


def _sizes(view: View, ffn: FFN) -> tuple[int, int] | None:
    """hidden_size and intermediate_size, if every product agrees with them."""
    down = _shape(view, ffn.down)
    gate = _shape(view, ffn.gate)
    up = _shape(view, ffn.up) if ffn.up else gate
    if down is None or gate is None or gate != up or down != gate[::-1]:
        return None
    return down


def _steps_fit(view: View, steps: tuple[Step, ...], hidden_size: int) -> bool:
    """Whether constants that are applied to [..., hidden_size] have its size, or are one number."""
    shapes = [view.shape(step.operand) for step in steps if not isinstance(step.operand, (Op, int, float))]
    return all(not shape or shape[-1] in (None, 1, hidden_size) for shape in shapes)


def _shape(view: View, linear: Linear) -> tuple[int, int] | None:
    """(out, in) of a product, of its part where it is packed."""
    shape = view.shape(linear.weight)
    if shape is None or len(shape) != 2 or None in shape:
        return None
    rows, columns = shape[::-1] if linear.transposed else shape
    if linear.rows is not None:
        rows = linear.rows[1] - linear.rows[0]
    return rows, columns  # type: ignore[return-value]


def _place(view: View, out: Value, branch: Operand) -> str:
    inner = strip(view, branch)
    scope = view.scope(inner) if not isinstance(inner, Op) and inner is not None else ""
    return scope.rpartition(".")[0] or view.node_name(out)
