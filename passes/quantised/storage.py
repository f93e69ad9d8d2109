"""A product's quantised weight as it is stored, whatever operator holds it, and its exact stacking.

    W[n, k] = (q[n, k] - zero[n, k // block]) * scale[n, k // block]

One scale for the whole tensor or for each output is a single block as long as the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fxfuse.passes.elementwise import constant
from fxfuse.passes.quantised.formulas import RANGES, in_blocks, unpack
from fxfuse.passes.records import Linear, Value
from fxfuse.passes.view import Op, View, op_of

__all__ = ["Form", "Storage", "form_of", "read", "stack_columns", "stack_rows", "uneven"]


@dataclass(frozen=True)
class Form:
    """How a weight is stored; weights of one form are stacked by outputs as they are.

    operator: the native operator; kind: the integers' type; block: inputs that share a scale, None where all
    do; level: MatMulNBits's accuracy_level; turned: a Transpose stands before the product, of [out, in];
    objection: why it cannot be stacked, whatever stands beside it.
    """

    operator: str
    kind: str
    block: int | None
    level: int = 0
    float_zero: bool = False
    turned: bool = False
    objection: str | None = None

    def __str__(self) -> str:
        """As a user would say it: "MatMulNBits of uint4 in blocks of 32, accuracy_level 4"."""
        parts = [f"{self.operator} of {self.kind}"]
        parts += [f" in blocks of {self.block}"] if self.block is not None else []
        parts += [f", accuracy_level {self.level}"] if self.level else []
        parts += [", zero points that are no integers"] if self.float_zero else []
        return "".join([*parts, ", as [out, in]" if self.turned else ""])


@dataclass(frozen=True)
class Storage:
    """One weight [N, K]: q [N, blocks * block]; scale and zero [N, blocks], None for the form's own."""

    form: Form
    columns: int
    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None

    @property
    def block(self) -> int:
        """How many inputs share a scale."""
        return self.form.block or self.columns

    @property
    def middle(self) -> int:
        """The zero point where none is stored: MatMulNBits's integers have no sign, but stand for such."""
        return 1 << (int(self.form.kind[4:]) - 1) if self.form.operator == "MatMulNBits" else 0

    def zeros(self) -> torch.Tensor:
        """The zero points, [N, blocks]."""
        if self.zero is not None:
            return self.zero
        return torch.full(self.scale.shape, self.middle, dtype=torch.int32)

    def part(self, rows: slice) -> Storage:
        """Some of the outputs."""
        zero = self.zero[rows] if self.zero is not None else None
        return replace(self, q=self.q[rows], scale=self.scale[rows], zero=zero)

    def dequantised(self) -> torch.Tensor:
        """The weight it stands for, float64 [N, K]."""
        q = in_blocks(self.q.double(), self.block)
        value = (q - self.zeros().double()[..., None]) * self.scale.double()[..., None]
        return value.flatten(1)[:, : self.columns]


def form_of(view: View, linear: Linear) -> Form | None:
    """The form of a product's weight, read without its numbers; None where it is not quantised."""
    found = _behind(view, linear)
    if found is None:
        return None
    op, outputs = found
    kind, operator = str(op.attrs["kind"]), str(op.attrs["operator"])
    form = Form(operator, kind, op.attrs.get("block") or None, op.attrs.get("level", 0))
    if op.kind == "dequantize_packed":
        form = replace(form, float_zero=len(op.inputs) > 2 and not op.attrs["packed_zero"])
    elif operator == "DequantizeLinear":
        form = replace(form, turned=outputs == 0)
    return replace(form, objection=_objection(view, linear, op, outputs))


def _objection(view: View, linear: Linear, op: Op, outputs: int) -> str | None:
    """Why a weight cannot be stacked, whatever stands beside it."""
    if op.attrs["kind"] not in RANGES:
        return f"is stored as {op.attrs['kind']}, which is not stacked"
    if op.attrs.get("g_idx"):
        return "orders its inputs by a g_idx of its own"
    if any(_is_gemm(view, reader) for reader in view.readers(linear.weight)):
        return "is read by a Gemm, which ONNX Runtime rounds otherwise than the MatMul that would be written"
    if op.kind != "dequantize" or _count(view, op.inputs[1]) == 1:
        return None
    along_outputs = op.attrs["axis"] % 2 == outputs
    if along_outputs and op.attrs["block"]:
        return f"has its blocks along axis {op.attrs['axis']}, that of its outputs"
    if not along_outputs and not op.attrs["block"]:
        return f"has its scales along axis {op.attrs['axis']}, that of its inputs"
    return None


def read(view: View, linear: Linear) -> Storage:
    """The storage of a product whose form has no objection; the part that is meant, where it is packed."""
    found, form = _behind(view, linear), form_of(view, linear)
    assert found is not None
    assert form is not None
    op, outputs = found
    storage = _packed(view, op, form) if op.kind == "dequantize_packed" else _linear(view, op, form, outputs)
    return storage if linear.rows is None else storage.part(slice(*linear.rows))


def stack_rows(storages: Sequence[Storage]) -> Storage:
    """Weights of one form and K under one another, [sum of N, K]."""
    zero = torch.cat([each.zeros() for each in storages]) if _any_zero(storages) else None
    return replace(
        storages[0],
        q=torch.cat([each.q for each in storages]),
        scale=torch.cat([each.scale for each in storages]),
        zero=zero,
    )


def stack_columns(storages: Sequence[Storage]) -> Storage:
    """Weights of one form and N side by side, [N, sum of K], for which `uneven` has nothing to say."""
    columns = sum(each.columns for each in storages)
    q = torch.cat([each.q for each in storages], 1)
    if storages[0].form.block is None:
        return replace(storages[0], columns=columns, q=q)
    zero = torch.cat([each.zeros() for each in storages], 1) if _any_zero(storages) else None
    scale = torch.cat([each.scale for each in storages], 1)
    return replace(storages[0], columns=columns, q=q, scale=scale, zero=zero)


def uneven(storages: Sequence[Storage]) -> str | None:
    """Why weights of one form cannot stand side by side without a change; None if they can."""
    first = storages[0]
    if first.form.block is None:
        same = all(
            torch.equal(each.scale, first.scale) and torch.equal(each.zeros(), first.zeros())
            for each in storages
        )
        return None if same else "each has scales of its own for whole rows"
    odd = next((each for each in storages if each.columns % first.block), None)
    return None if odd is None else f"block size {first.block} does not divide {odd.columns}"


def _any_zero(storages: Sequence[Storage]) -> bool:
    return any(each.zero is not None for each in storages)


def _behind(view: View, linear: Linear) -> tuple[Op, int] | None:
    """The operator that dequantises a product's weight, and which axis of its result is the outputs'."""
    outputs = 1 if linear.transposed else 0
    value: object = linear.weight
    for _ in range(16):
        op = op_of(view, value)
        if op is None or op.kind in ("dequantize", "dequantize_packed"):
            return (op, outputs) if op is not None else None
        if op.kind not in ("transpose", "pass", "cast"):
            return None
        outputs = 1 - outputs if op.kind == "transpose" else outputs
        value = op.inputs[0]
    return None


def _is_gemm(view: View, value: Value) -> bool:
    op = view.op(value)
    return op is not None and op.kind == "linear" and op.attrs.get("operator") == "Gemm"


def _count(view: View, value: Value) -> int | None:
    shape = view.shape(value)
    return None if shape is None or None in shape else int(torch.Size(shape).numel())  # type: ignore[arg-type]


def _packed(view: View, op: Op, form: Form) -> Storage:
    (rows, columns), bits, block = op.attrs["shape"], op.attrs["bits"], op.attrs["block"]
    packed, scale, *zeros = (constant(view, each, None) for each in op.inputs)
    q = unpack(packed.reshape(rows, -1), bits)
    count = q.shape[1] // block
    zero = zeros[0].reshape(rows, -1) if zeros else None
    if zero is not None:
        zero = zero if form.float_zero else unpack(zero, bits)[:, :count].to(torch.int32)
    return Storage(form, columns, q, scale.reshape(rows, count), zero)


def _linear(view: View, op: Op, form: Form, outputs: int) -> Storage:
    parts = [constant(view, each, None) for each in op.inputs]
    q = parts[0] if outputs == 0 else parts[0].T
    rows = q.shape[0]

    def by_rows(factor: torch.Tensor) -> torch.Tensor:
        if factor.numel() == 1 or factor.dim() < 2:
            return factor.reshape(-1, 1).expand(rows, 1)
        return factor if outputs == 0 else factor.T

    scale = by_rows(parts[1])
    count = scale.shape[1]
    if form.block is not None and count == 1:
        scale = scale.expand(rows, -(-q.shape[1] // form.block))
    zero = by_rows(parts[2]).to(torch.int32).expand(scale.shape) if len(parts) > 2 else None
    padding = -q.shape[1] % (form.block or 1)
    q = q if q.dtype in (torch.int8, torch.uint8) else q.to(torch.int32)
    padded = torch.nn.functional.pad(q, (0, padding))
    return Storage(form, q.shape[1], padded, scale, zero)
