"""What quantised tensors mean, as pure functions of tensors.

    w = (q - zero) * scale        q small integers; zero and scale for a row, a channel or a block

A packed tensor holds several integers in a byte, the first one in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = [
    "FUNCTIONS",
    "RANGES",
    "dequantise",
    "dequantise_packed",
    "pack",
    "quantise",
    "round_rows",
    "unpack",
]

RANGES = {
    "int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127),
    "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
}  # fmt: skip
"""The least and the greatest value of each type whose storage is understood."""


def in_blocks(values: torch.Tensor, block: int) -> torch.Tensor:
    """[..., n * block] as [..., n, block]."""
    return values.reshape(*values.shape[:-1], -1, block)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The integers of a uint8 tensor [..., bytes] as uint8 [..., bytes * 8 / bits]."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The opposite of `unpack`; a last byte that is not full is filled with zeros."""
    count = 8 // bits
    values = torch.nn.functional.pad(values, (0, -values.shape[-1] % count))
    parts = in_blocks(values, count)
    packed = torch.zeros(parts.shape[:-1], dtype=torch.uint8)
    for index in range(count):
        packed |= parts[..., index] << (index * bits)
    return packed


def dequantise(
    q: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    axis: int = 1,
    block: int = 0,
    **_: object,
) -> torch.Tensor:
    """ONNX DequantizeLinear: one scale, one for each index of `axis`, or one for each `block` along it."""
    wide = torch.promote_types(scale.dtype, torch.float32)
    value = q.to(wide)
    if zero is not None:
        value = value - _along(zero, q, axis, block).to(wide)
    return value * _along(scale, q, axis, block).to(wide)


def dequantise_packed(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    shape: tuple[int, int],
    bits: int,
    block: int,
    packed_zero: bool = True,
    **_: object,
) -> torch.Tensor:
    """MatMulNBits's weight [N, K] from [N, blocks, bytes] (spec: com.microsoft.MatMulNBits)."""
    rows, columns = shape
    wide = torch.promote_types(scale.dtype, torch.float32)
    q = unpack(packed.to(torch.uint8).reshape(rows, -1), bits).to(wide)
    count = q.shape[1] // block
    middle = torch.full((rows, count), float(1 << (bits - 1)), dtype=wide)
    if zero is not None:
        zero = unpack(zero.to(torch.uint8).reshape(rows, -1), bits) if packed_zero else zero.reshape(rows, -1)
        middle = zero[:, :count].to(wide)
    value = (in_blocks(q, block) - middle[..., None]) * scale.reshape(rows, count, 1).to(wide)
    return value.flatten(1)[:, :columns]


def quantise_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    kind: str,
    axis: int = 1,
    block: int = 0,
    **_: object,
) -> torch.Tensor:
    """ONNX QuantizeLinear of a constant; the integers come back in a type that holds them."""
    value = (x / _along(scale, x, axis, block)).round()
    if zero is not None:
        value = value + _along(zero, x, axis, block).to(value.dtype)
    return value.clamp(*RANGES[kind]).to(torch.int32)


def _along(factor: torch.Tensor, like: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """A scale or zero point, spread over a tensor of `like`'s shape."""
    if factor.numel() == 1:
        return factor.reshape(())
    if block:
        return factor.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    shape = [1] * like.dim()
    shape[axis] = -1
    return factor.reshape(shape)


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "dequantize": dequantise,
    "dequantize_packed": dequantise_packed,
    "quantize": quantise_linear,
}
"""The operators whose results are constants where their operands are, by canonical kind."""


def quantise(
    weight: torch.Tensor, block: int, low: int, high: int, middle: int | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Round a float64 weight [N, K] to the nearest of low..high: q [N, K], scale and zero [N, K / block].

    With `middle` that is the zero point, and the scale reaches the greatest magnitude exactly, as in ONNX
    Runtime's MatMulNBitsQuantizer; without, a zero point is chosen. Scales are of `dtype`.
    """
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % block))
    padded = in_blocks(padded, block)
    if middle is None:
        least, most = padded.amin(-1).clamp(max=0.0), padded.amax(-1).clamp(min=0.0)
        scale = ((most - least) / (high - low)).to(dtype).double()
        zero = (low - least / _nonzero(scale)).round().clamp(low, high)
    else:
        peak = padded.gather(-1, padded.abs().argmax(-1, keepdim=True))[..., 0]
        below, above = middle - low, high - middle
        scale = (peak / -below if below > above else peak.abs() / above).to(dtype).double()
        zero = torch.full_like(scale, float(middle))
    q = (padded / _nonzero(scale)[..., None] + zero[..., None]).round().clamp(low, high)
    return q.flatten(1).to(torch.int32), scale.to(dtype), None if middle is not None else zero


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0.0, torch.ones_like(scale), scale)


def round_rows(x: torch.Tensor, block: int | None) -> torch.Tensor:
    """Round x as int8 would hold it: a scale for each `block` of a row, one for the whole where None.

    The first is what MatMulNBits does at accuracy_level 4, the second what DynamicQuantizeLinear does.
    """
    if block is None:
        least, most = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
        scale = _nonzero((most - least) / 255)
        zero = (-least / scale).round()
        return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block))
    padded = in_blocks(padded, block)
    scale = _nonzero(padded.abs().amax(-1, keepdim=True) / 127)
    return ((padded / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]
