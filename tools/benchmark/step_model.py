"""A small model of the time of a decode step under tensor parallel, and what the paper's figures say in it.

    step = weights / (ranks * bandwidth) + parts * (own + all_reduce)

parts: FFNs and attentions in a row, each of which ends in an all-reduce. own: what a part costs beyond the
reading of its weights (norm, add, activation, launches, the ends of its products). Fusing moves no fewer
weights, so all that it saves is

    removed * (own + all_reduce)

Published (arXiv 2503.18908): 8 H100, tensor parallel 8, one user.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published", "latency_at"]


@dataclass(frozen=True)
class Published:
    """Tokens a second; 49 FFNs became 4; hidden size 16384 in 16 bits.

    weights: bytes; 253e9 numbers of 8 bits each, since 16 would take longer to read than the step does.
    parts: 126 FFNs and 76 attentions before fusing. bandwidth: of an H100 by its data sheet, bytes a second.
    """

    whole: float = 41.44
    removed_attention: float = 63.38
    fused: float = 70.92
    removed: int = 45
    hidden_size: int = 16384
    ranks: int = 8
    weights: float = 253e9
    parts: int = 202
    bandwidth: float = 3.35e12

    @property
    def message(self) -> int:
        """Bytes of an all-reduce at one token."""
        return 2 * self.hidden_size

    @property
    def saved_us(self) -> float:
        """What fusing took off a step."""
        return 1e6 / self.removed_attention - 1e6 / self.fused

    @property
    def per_part_us(self) -> float:
        """The same for each FFN that went: own + all_reduce."""
        return self.saved_us / self.removed

    @property
    def reading_us(self) -> float:
        """What reading a rank's weights takes at least."""
        return 1e6 * self.weights / self.ranks / self.bandwidth

    @property
    def expected_per_part_us(self) -> float:
        """What a part costs as the step before fusing has it, without a look at the fused one."""
        return (1e6 / self.removed_attention - self.reading_us) / self.parts

    def all_reduce_us(self, own_us: float) -> float:
        """The all-reduce that explains the published step, where a part costs `own_us` by itself."""
        return self.per_part_us - own_us

    def tokens_per_second(self, own_us: float, all_reduce_us: float) -> float:
        """What fusing would give with such parts."""
        return 1e6 / (1e6 / self.removed_attention - self.removed * (own_us + all_reduce_us))


PUBLISHED = Published()


def latency_at(message: int, measured: dict[int, float]) -> float:
    """Microseconds of an all-reduce of `message` bytes, on the line between the sizes around it."""
    sizes = sorted(measured)
    if message <= sizes[0]:
        return measured[sizes[0]]
    for small, large in zip(sizes, sizes[1:], strict=False):
        if message <= large:
            share = (message - small) / (large - small)
            return measured[small] + share * (measured[large] - measured[small])
    return measured[sizes[-1]] * message / sizes[-1]
