"""g': a map of each block's input, so that on n(x_0) it sees what it saw in the sequential model.

    M = I + C (K + lambda s I)^-1      K = E[n0 n0'],  C = E[(t - n0) n0'],  s the mean of K's diagonal
    M_c <- M_c sqrt(E[t_c^2] / E[(M n0)_c^2])         for each channel c

with n0 the group's unit norm and t the one that the block read; expectations are over weighted tokens. Least
squares shrinks what it predicts, and a gated FFN roughly squares its input: hence the second line. Then
Wg <- Wg M and Wu <- Wu M, of the same shapes. Where gate and up have a bias the map is affine, M n0 + m: K, C
and the two second moments are then taken about the means, m = E[t] - M E[n0], and W m joins the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fxfuse.passes.weights import Wide
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["InputMaps", "Moments"]


@dataclass
class Moments:
    """Weighted means over tokens in float64: n0 n0', n0, and for one block (t - n0) n0', t and t^2."""

    gram: torch.Tensor
    mean: torch.Tensor
    cross: torch.Tensor
    read: torch.Tensor
    power: torch.Tensor

    def map(self, penalty: float, *, affine: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """M [hidden, hidden] and m [hidden], zero where the map is not affine."""
        gram, cross, power = self.gram, self.cross, self.power
        if affine:
            gram = gram - torch.outer(self.mean, self.mean)
            cross = cross - torch.outer(self.read - self.mean, self.mean)
            power = power - self.read.square()
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        solved = torch.linalg.solve(gram + penalty * self.gram.diagonal().mean() * eye, cross.T)
        matrix = eye + solved.T
        predicted = ((matrix @ gram) * matrix).sum(-1)
        ratio = (power.clamp(min=0.0) / predicted.clamp(min=1e-300)).sqrt()
        matrix = matrix * torch.where(predicted > 1e-12 * predicted.mean(), ratio, 1.0)[:, None]
        shift = self.read - matrix @ self.mean if affine else torch.zeros_like(self.mean)
        return matrix, shift


class InputMaps:
    """The maps of all blocks of a group, for any penalty, from one pass over the tokens for each block."""

    def __init__(self, ffn: WideFfn, tokens: GroupTokens) -> None:
        self.widths = [block.intermediate_size for block in tokens.blocks]
        self.moments = list(_moments(ffn, tokens))

    def apply(self, wide: Wide, penalty: float) -> Wide:
        """`wide` with its gate and up behind the maps."""
        gates, ups = [wide.gate_bias], [wide.up_bias] if wide.up is not None else []
        affine = all(bias is not None for bias in (*gates, *ups))
        parts = []
        for moments, rows in zip(self.moments, _rows(self.widths), strict=True):
            matrix, shift = moments.map(penalty, affine=affine)
            parts.append(_mapped(wide, rows, matrix, shift))
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return replace(wide, **joined)


def _mapped(wide: Wide, rows: slice, matrix: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rows of one block in gate, up and their biases."""
    found = {}
    for role in ("gate", "up"):
        weight, bias = getattr(wide, role), getattr(wide, f"{role}_bias")
        if weight is None:
            continue
        own = weight[rows].double()
        found[role] = (own @ matrix).float()
        if bias is not None:
            found[f"{role}_bias"] = (bias[rows].double() + own @ shift).float()
    return found


def _rows(widths: list[int]) -> Iterator[slice]:
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


def _moments(ffn: WideFfn, tokens: GroupTokens) -> Iterator[Moments]:
    """One block after the other, so that one [hidden, hidden] sum grows at a time; K is shared by all."""
    gram, mean, total = _of_start(ffn, tokens)
    for block in tokens.blocks:
        cross, read, power = (torch.zeros_like(each) for each in (gram, mean, mean))
        for place in tokens.places:
            given = tokens.at(place)
            start, seen = ffn.unit(given.x).double(), ffn.unit(tokens.read(block, place)).double()
            weight = given.weight.double().unsqueeze(-1) / total
            cross.addmm_((weight * (seen - start)).T, start)
            read += (weight * seen).sum(0)
            power += (weight * seen.square()).sum(0)
        yield Moments(gram, mean, cross, read, power)


def _of_start(ffn: WideFfn, tokens: GroupTokens) -> tuple[torch.Tensor, torch.Tensor, float]:
    """E[n0 n0'], E[n0] and the sum of the weights."""
    hidden, device = tokens.blocks[0].hidden_size, tokens.start(0).device
    gram = torch.zeros(hidden, hidden, dtype=torch.float64, device=device)
    mean, total = gram.new_zeros(hidden), 0.0
    for given in tokens:
        start, weight = ffn.unit(given.x).double(), given.weight.double().unsqueeze(-1)
        gram.addmm_((weight * start).T, start)
        mean += (weight * start).sum(0)
        total += float(weight.sum())
    return gram / total, mean / total, total
