"""A drawn decoder as torch modules: every part in one of the ways people write it.

The way is drawn for each block by itself, so that neighbours that mean the same are written differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.properties.meaning import ACTIVATIONS, Meaning

__all__ = ["HIDDEN", "NEAR_MISSES", "Decoder", "Writing", "writings"]

HIDDEN = 8


@dataclass(frozen=True)
class Writing:
    """How one block is written; `near` is the near miss that it is instead, if any."""

    norm: str  # "op", "rsqrt", "divided", "power", "reciprocal", "length"
    square: str  # "pow", "mul", "square"
    axis: int
    wide: bool  # the norm in float32
    gain: str  # "after", "before" the cast back, or "offset": 1 + (gain - 1)
    product: str  # "linear", "matmul", "addmm", "einsum", "module"
    form: str  # "apart", "packed", "packed_turned", "axis", "narrow"
    spelled: bool  # the activation operator by operator
    flips: tuple[bool, ...]  # operand order of: norm, gain, act * up, residual
    multiplier: str  # "after", "before", "alpha"
    near: str | None = None


writings = st.builds(
    Writing,
    norm=st.sampled_from(["op", "rsqrt", "divided", "power", "reciprocal", "length"]),
    square=st.sampled_from(["pow", "mul", "square"]),
    axis=st.sampled_from([-1, 2]),
    wide=st.booleans(),
    gain=st.sampled_from(["after", "before", "offset"]),
    product=st.sampled_from(["linear", "matmul", "addmm", "einsum"]),
    form=st.sampled_from(["apart", "packed", "packed_turned", "axis", "narrow"]),
    spelled=st.booleans(),
    flips=st.tuples(*[st.booleans()] * 4),
    multiplier=st.sampled_from(["after", "before", "alpha"]),
)

NEAR_MISSES = (
    "mean over positions", "squares of another value", "gain per position", "gain after the eps",
    "gate reads the stream", "up plus one", "softmax", "constant per channel", "learned slope",
    "three products", "tap inside", "post-norm", "norm of the branch", "stream doubled", "subtracted",
    "weight read again", "rows mixed",
)  # fmt: skip


class Block(nn.Module):
    """x + multiplier * down(act(gate(norm(x))) * up(norm(x)))"""

    def __init__(self, meaning: Meaning, writing: Writing) -> None:
        super().__init__()
        self.meaning, self.writing = meaning, writing
        width, n = meaning.width, HIDDEN
        self.gain = nn.Parameter(0.3 * torch.randn(n) + (0.0 if writing.gain == "offset" else 1.0))
        self.shift = nn.Parameter(0.2 * torch.randn(n)) if meaning.norm == "layer" else None
        names = ("gate", "up", "down") if meaning.gated else ("gate", "down")
        self.packed = meaning.gated and writing.form != "apart"
        sizes = {"gate": (width, n), "up": (width, n), "down": (n, width)}
        for name in names:
            self.register_parameter(name, nn.Parameter(0.5 * torch.randn(sizes[name])))
            bias = nn.Parameter(0.3 * torch.randn(sizes[name][0])) if meaning.biased else None
            self.register_parameter(f"{name}_bias", bias)
        if self.packed:
            self._pack()
        self.slope = nn.Parameter(torch.tensor(0.3))
        self.vector, self.positions = nn.Parameter(torch.randn(width)), nn.Parameter(torch.rand(3, 1) + 0.5)

    def weights(self) -> dict[str, Tensor]:
        """The parameters in float64 under the names that `Meaning.branch` knows."""
        found = {name: value.detach().double() for name, value in self.named_parameters()}
        if self.writing.gain == "offset":
            found["gain"] = found["gain"] + 1.0
        if self.packed:
            for suffix in ("", "_bias") if self.meaning.biased else ("",):
                halves = found[f"both{suffix}"].split(self.meaning.width)
                turned = self.writing.form == "packed_turned"
                found[f"gate{suffix}"], found[f"up{suffix}"] = halves[::-1] if turned else halves
        return found

    def forward(self, x: Tensor) -> Tensor:
        near, flip = self.writing.near, self.writing.flips[3]
        if near == "post-norm":
            return self._norm(x + self._ffn(x))
        f = self._ffn(self._norm(x))
        if near == "norm of the branch":
            f = self._norm(f)
        if near == "tap inside":
            f = f * torch.sigmoid(f)
        alpha = self.meaning.multiplier
        if near == "subtracted":
            return x - f
        x = 2.0 * x if near == "stream doubled" else x
        if alpha != 1.0 and self.writing.multiplier == "alpha":
            return torch.add(x, f, alpha=alpha)
        return f + x if flip else x + f

    def _pack(self) -> None:
        order = ("up", "gate") if self.writing.form == "packed_turned" else ("gate", "up")
        for suffix in ("", "_bias"):
            parts = [getattr(self, f"{name}{suffix}") for name in order]
            both = nn.Parameter(torch.cat(parts)) if parts[0] is not None else None
            self.register_parameter(f"both{suffix}", both)
            for name in order:
                delattr(self, f"{name}{suffix}")

    # The norm

    def _norm(self, x: Tensor) -> Tensor:
        how, near, meaning = self.writing, self.writing.near, self.meaning
        gain = self.gain + 1.0 if how.gain == "offset" else self.gain
        odd = near in (
            "mean over positions",
            "squares of another value",
            "gain per position",
            "gain after the eps",
        )
        if how.norm == "op" and not odd:
            if meaning.norm == "layer":
                return F.layer_norm(x, [HIDDEN], gain, self.shift, meaning.eps)
            return F.rms_norm(x, [HIDDEN], gain, meaning.eps)
        y = x.float() if how.wide else x
        y = self._unit(y - y.mean(how.axis, keepdim=True) if meaning.norm == "layer" else y)
        y = y * self.positions if near == "gain per position" else y
        y = y.to(x.dtype) if how.gain != "before" else y
        y = gain * y if how.flips[1] else y * gain
        y = y if self.shift is None else y + self.shift
        return y.to(x.dtype)

    def _unit(self, z: Tensor) -> Tensor:
        how, eps = self.writing, self.meaning.eps
        axis = 1 if how.near == "mean over positions" else how.axis
        s = z + 1.0 if how.near == "squares of another value" else z
        if how.norm == "length" and how.near is None:
            m = (torch.linalg.vector_norm(z, dim=axis, keepdim=True) / HIDDEN**0.5).square()
        else:
            squares = {"pow": s.pow(2), "mul": s * s, "square": s.square()}[how.square]
            m = squares.mean(axis, keepdim=True)
        if how.near == "gain after the eps":
            return z / (torch.sqrt(m) + 0.1)
        m = eps + m if how.flips[0] else m + eps
        if how.norm == "divided":
            return z / torch.sqrt(m)
        r = {"power": m**-0.5, "reciprocal": 1.0 / torch.sqrt(m)}.get(how.norm, torch.rsqrt(m))
        return r * z if how.flips[0] else z * r

    # The FFN

    def _ffn(self, h: Tensor) -> Tensor:
        near = self.writing.near
        gate, up = self._first(h)
        if near == "gate reads the stream":
            gate = self._product(torch.tanh(h), "gate") if not self.packed else gate * h.sum(-1, keepdim=True)
        if near == "rows mixed":
            gate = gate.flip(1)
        act = self._activate(gate)
        act = act.softmax(-1) if near == "softmax" else act
        act = act * self.vector if near == "constant per channel" else act
        act = torch.maximum(act, self.slope * act) if near == "learned slope" else act
        up = up + 1.0 if near == "up plus one" and up is not None else up
        if near == "up plus one" and up is None:
            act = act * (gate + 1.0) * gate.mean(-1, keepdim=True)
        if near == "three products":
            act = act + F.linear(h, self.down.T) + (0.0 if up is None else gate)
        inner = act if up is None else up * act if self.writing.flips[2] else act * up
        before = self.writing.multiplier == "before" and self.meaning.multiplier != 1.0
        f = self._product(
            inner * self.meaning.multiplier if before and not self.meaning.biased else inner, "down"
        )
        if near == "weight read again":
            f = f + (h * self.down.mean(1).detach().abs() * h.mean()).sum(-1, keepdim=True)
        done = before and not self.meaning.biased or self.writing.multiplier == "alpha"
        return f if done or self.meaning.multiplier == 1.0 else self.meaning.multiplier * f

    def _first(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.meaning.gated:
            return self._product(h, "gate"), None
        if not self.packed:
            return self._product(h, "gate"), self._product(h, "up")
        both, width = self._product(h, "both"), self.meaning.width
        if self.writing.form == "axis":
            both = both.unflatten(-1, (2, width))
            return both[..., 0, :], both.select(-2, 1)
        if self.writing.form == "narrow":
            return both.narrow(-1, 0, width), both[..., width:]
        first, second = both.chunk(2, -1)
        return (second, first) if self.writing.form == "packed_turned" else (first, second)

    def _product(self, x: Tensor, name: str) -> Tensor:
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias")
        how = self.writing.product
        if how == "linear" or (how == "addmm" and bias is None):
            return F.linear(x, weight, bias)
        if how == "addmm":
            return torch.addmm(bias, x.view(-1, weight.shape[1]), weight.t()).view(2, 3, weight.shape[0])
        y = torch.einsum("bsi,oi->bso", x, weight) if how == "einsum" else x @ weight.T
        return y if bias is None else bias + y if self.writing.flips[1] else y + bias

    def _activate(self, gate: Tensor) -> Tensor:
        name = self.meaning.activation
        if not self.writing.spelled:
            return ACTIVATIONS[name](gate)
        return {
            "silu": lambda g: g / (1.0 + torch.exp(-g)),
            "gelu": lambda g: 0.5 * g * (1.0 + torch.erf(g * 0.5**0.5)),
            "gelu_tanh": lambda g: (
                0.5 * g * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3)))
            ),
            "relu": lambda g: torch.where(g > 0, g, 0.0),
            "relu_squared": lambda g: g.clamp(min=0) * F.relu(g),
            "quick_gelu": lambda g: torch.sigmoid(g * 1.702) * g,
        }[name](gate)


class Decoder(nn.Module):
    """Blocks, and between them what their meanings say; taps are outputs."""

    def __init__(self, meanings: Sequence[Meaning], writings: Sequence[Writing], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(*each) for each in zip(meanings, writings, strict=True))
        self.mixing = nn.Parameter(0.2 * torch.randn(3, 3))
        self.to(dtype).eval().requires_grad_(False)

    def __repr__(self) -> str:
        dtype = self.mixing.dtype
        return f"{dtype} " + ", ".join(f"{block.meaning} {block.writing}" for block in self.blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        taps = []
        for block in self.blocks:
            before = block.meaning.before
            taps += [x] if before == "tap" else []
            x = self.between(before, x)
            x = block(x)
        return (x, *taps)

    def between(self, before: str | None, x: Tensor) -> Tensor:
        """Another branch, as attention would be, or a multiplier; the stream as it is otherwise."""
        if before == "mixing":
            return x + torch.tanh(self.mixing.to(x.dtype) @ x)
        return x * 0.75 if before == "scaled" else x
