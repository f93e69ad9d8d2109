r"""Write the wide FFN of blocks with quantised weights, each product by the operator that it was before.

    x0 ---> first norm ---> gate, up (stacked) ---> act ---> down (stacked) ------------------> Add ---> xn
                                                      \---> Split ---> down, down ... ---> Add /

The lower way is that of down products whose integers cannot stand side by side unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

from fxfuse.passes.forms import Form
from fxfuse.passes.onnx.rewrite import copy_region, put_branch
from fxfuse.passes.onnx.unit_norm import unit_norm
from fxfuse.passes.onnx.view import OnnxView, to_numpy
from fxfuse.passes.onnx.writer import Writer, cast_to, split
from fxfuse.passes.quantised.formulas import pack
from fxfuse.passes.quantised.groups import Product, QuantisedGroup
from fxfuse.passes.quantised.storage import Storage
from fxfuse.passes.records import Block, Value

__all__ = ["rewrite_quantised"]

_MICROSOFT = "com.microsoft"
_STEPS = {"add": "Add", "mul": "Mul", "div": "Div"}


def rewrite_quantised(
    view: OnnxView,
    blocks: Sequence[Block],
    group: QuantisedGroup,
    prefix: str,
    form: Form = Form(),  # noqa: B008
) -> tuple[Writer, Form]:
    """Replace `blocks` by the wide FFN `group`; as `rewrite_group` does with float weights.

    There are no slices, and gate and up are packed where they are stored alike: gives what was written.
    """
    first = blocks[0]
    writer = Writer(view.graph, prefix)
    packed = group.packed() if form.packed(group.up is not None) else None
    norm = form.norm if group.folded else "own"
    if group.folded:
        hidden = unit_norm(view, writer, first, norm)
    else:
        hidden = cast_to(view, writer, str(first.norm.output), first.dtype, "norm_cast")
    products, activation = _Products(writer, first.dtype), first.ffn.activation
    known: dict[Value, gs.Tensor]
    if packed is not None:
        both, width = products.write(hidden, packed, "gate_up"), sum(b.intermediate_size for b in blocks)
        gate, up = split(view, writer, both, [width, width], ["gate", "up"])
        known = {activation.gate: gate, activation.up: up}
    else:
        known = {activation.gate: products.write(hidden, group.gate, "gate")}
        if group.up is not None:
            known[activation.up] = products.write(hidden, group.up, "up")
    inner = copy_region(view, writer, activation.output, known)
    put_branch(view, writer, blocks, _downs(view, products, blocks, group, inner))
    return writer, Form("packed" if packed is not None else "two", norm=norm)


def _downs(
    view: OnnxView, products: _Products, blocks: Sequence[Block], group: QuantisedGroup, inner: gs.Tensor
) -> gs.Tensor:
    if group.apart is None:
        return products.write(inner, group.downs[0], "down")
    writer = products.writer
    sizes = [block.intermediate_size for block in blocks]
    parts = split(view, writer, inner, sizes, [f"inner_{index}" for index in range(len(sizes))])
    total: gs.Tensor | None = None
    for index, (part, down) in enumerate(zip(parts, group.downs, strict=True)):
        product = products.write(part, down, f"down_{index}")
        total = product if total is None else writer.node("Add", [total, product], "down_sum", product)
    assert total is not None
    return total


class _Products:
    """Writes wide products; `dtype` is that of the values between them."""

    def __init__(self, writer: Writer, dtype: str) -> None:
        self.writer = writer
        self.dtype = dtype
        self._quantised: dict[str, list[gs.Variable]] = {}

    def write(self, x: gs.Tensor, product: Product, role: str) -> gs.Tensor:
        """The product of x and its constants; `role` names it."""
        y = self._product(x, product, role)
        for index, (kind, vector) in enumerate(product.steps):
            constant = self._store(f"{role}_{kind}_{index}", vector.to(getattr(torch, self.dtype)))
            y = self.writer.node(_STEPS[kind], [y, constant], f"{role}_proj_{kind}", x)
        return y

    def _product(self, x: gs.Tensor, product: Product, role: str) -> gs.Tensor:
        if product.storage is None:
            assert product.weight is not None
            weight = self._weight(role, to_numpy(product.weight.T))
            return self.writer.node("MatMul", [x, weight], f"{role}_proj", x)
        write = {
            "MatMulNBits": self._nbits,
            "DequantizeLinear": self._dequantised,
            "MatMulInteger": self._integers,
            "MatMulIntegerToFloat": self._integers_to_float,
            "DynamicQuantizeMatMul": self._dynamic,
        }[product.storage.form.operator]
        return write(x, product.storage, role)

    def _nbits(self, x: gs.Tensor, storage: Storage, role: str) -> gs.Tensor:
        bits, (rows, count) = int(storage.form.kind[4:]), storage.scale.shape
        packed = pack(storage.q.to(torch.uint8), bits).reshape(rows, count, -1)
        inputs = [x, self._weight(role, packed.numpy()), self._store(f"{role}_scale", storage.scale)]
        if storage.zero is not None:
            whole = storage.zero if storage.form.float_zero else pack(storage.zero.to(torch.uint8), bits)
            inputs.append(self._store(f"{role}_zero", whole))
        attrs = {"K": storage.columns, "N": rows, "bits": bits, "block_size": storage.block}
        attrs |= {"accuracy_level": storage.form.level} if storage.form.level else {}
        return self.writer.node("MatMulNBits", inputs, f"{role}_proj", x, domain=_MICROSOFT, **attrs)

    def _dequantised(self, x: gs.Tensor, storage: Storage, role: str) -> gs.Tensor:
        blocked, turned = storage.form.block is not None, storage.form.turned
        attrs = {"axis": int(blocked == turned)} | ({"block_size": storage.block} if blocked else {})
        factors = [storage.q[:, : storage.columns], storage.scale]
        factors += [storage.zero] if storage.zero is not None else []
        q, scale, *zero = (each if turned else each.T for each in factors)
        scale, *zero = (each if blocked else each.reshape(-1) for each in (scale, *zero))
        inputs = [self._weight(role, self._integer(q, storage))]
        inputs.append(self._store(f"{role}_scale", scale))
        inputs += [self.writer.constant(f"{role}_zero", self._integer(each, storage)) for each in zero]
        weight = self.writer.node("DequantizeLinear", inputs, f"{role}_weight", inputs[1], **attrs)
        if storage.scale.dtype != getattr(torch, self.dtype):
            weight = self.writer.node("Cast", [weight], f"{role}_weight_cast", x, to=_element(self.dtype))
        if turned:
            weight = self.writer.node("Transpose", [weight], f"{role}_turned", weight, perm=[1, 0])
        return self.writer.node("MatMul", [x, weight], f"{role}_proj", x)

    def _columns(self, storage: Storage, role: str) -> tuple[gs.Constant, gs.Constant, list[gs.Constant]]:
        """Integers [in, out], scales [out], zero points [out] where there are any."""
        weight = self._weight(role, self._integer(storage.q.T, storage))
        scale = self._store(f"{role}_scale", storage.scale.reshape(-1))
        zero = [] if storage.zero is None else [self._integer(storage.zero.reshape(-1), storage)]
        return weight, scale, [self.writer.constant(f"{role}_zero", each) for each in zero]

    def _integers(self, x: gs.Tensor, storage: Storage, role: str) -> gs.Tensor:
        q, q_scale, q_zero = self._quantise(x)
        weight, scale, zero = self._columns(storage, role)
        product = self.writer.node("MatMulInteger", [q, weight, q_zero, *zero], f"{role}_integers")
        product.dtype = np.int32
        value = self.writer.node("Cast", [product], f"{role}_cast", q_scale, to=_element("float32"))
        scales = self.writer.node("Mul", [q_scale, scale], f"{role}_scales", q_scale)
        return self.writer.node("Mul", [value, scales], f"{role}_proj", q_scale)

    def _integers_to_float(self, x: gs.Tensor, storage: Storage, role: str) -> gs.Tensor:
        q, q_scale, q_zero = self._quantise(x)
        weight, scale, zero = self._columns(storage, role)
        inputs = [q, weight, q_scale, scale, q_zero, *zero]
        return self.writer.node("MatMulIntegerToFloat", inputs, f"{role}_proj", q_scale, domain=_MICROSOFT)

    def _dynamic(self, x: gs.Tensor, storage: Storage, role: str) -> gs.Tensor:
        weight, scale, zero = self._columns(storage, role)
        inputs = [x, weight, scale, *zero]
        return self.writer.node("DynamicQuantizeMatMul", inputs, f"{role}_proj", x, domain=_MICROSOFT)

    def _quantise(self, x: gs.Tensor) -> list[gs.Variable]:
        """Quantise x: integers, with their scale and zero point; once for all products that read it."""
        if x.name not in self._quantised:
            kinds = {"quantised": np.uint8, "scale": np.float32, "zero_point": np.uint8}
            names = [
                self.writer.free(f"{self.writer.prefix}/{len(self._quantised)}_{name}") for name in kinds
            ]
            outputs = [
                gs.Variable(name, dtype=kind) for name, kind in zip(names, kinds.values(), strict=True)
            ]
            self.writer.nodes.append(gs.Node("DynamicQuantizeLinear", names[0], {}, [x], outputs))
            self._quantised[x.name] = outputs
        return self._quantised[x.name]

    def _weight(self, role: str, array: np.ndarray) -> gs.Constant:
        constant = self.writer.constant(role, array)
        self.writer.weights[role] = constant.name
        return constant

    def _store(self, name: str, tensor: torch.Tensor) -> gs.Constant:
        return self.writer.constant(name, to_numpy(tensor))

    @staticmethod
    def _integer(values: torch.Tensor, storage: Storage) -> np.ndarray:
        kind = onnx.helper.tensor_dtype_to_np_dtype(_element(storage.form.kind))
        return np.ascontiguousarray(values.numpy()).astype(kind)


def _element(name: str) -> int:
    kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())
    return int(getattr(onnx.TensorProto, kind))
