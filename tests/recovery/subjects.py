"""Small random decoders with chains of 3 and 2 FFNs of unequal widths, and data to recover them on."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fxfuse.analysis.states import States
from fxfuse.calibration import Activations, Calibration
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.frontends.torch_model import read_torch
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.recover import unrounded
from fxfuse.recovery.tokens import GroupTokens
from models.decoder import Decoder, DecoderConfig, LayerConfig

VOCAB, HIDDEN = 64, 32
LAYERS = tuple(
    LayerConfig(attention, width)
    for attention, width in ((True, 40), (False, 48), (False, 24), (True, 36), (False, 36))
)
STYLES = {
    "gated": {},
    "plain": {"norm": "layer", "activation": "gelu", "gated": False, "bias": True},
    "biased": {"norm": "layer", "bias": True},
}
"""RMSNorm and SwiGLU; LayerNorm, GELU and biases, ungated; LayerNorm and biases, gated."""


def decoder(style: str = "gated", dtype: torch.dtype = torch.float32) -> Decoder:
    """Return a decoder with random weights whose FFNs change the stream by about a third of it."""
    config = DecoderConfig(VOCAB, HIDDEN, 2, layers=LAYERS, **STYLES[style])  # type: ignore[arg-type]
    model, generator = Decoder(config), torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * noise
        elif "embed" in name:
            parameter.data = noise
        else:
            onto_stream = "down_proj" in name or "o_proj" in name
            parameter.data = noise * parameter.shape[1] ** -0.5 * (0.5 if onto_stream else 1.0)
    return model.to(dtype).eval().requires_grad_(False)


def ids(windows: int, length: int = 16, seed: int = 1) -> Tensor:
    """Return token ids [windows, length]."""
    return torch.randint(0, VOCAB, (windows, length), generator=torch.Generator().manual_seed(seed))


@functools.cache
def calibration(windows: int = 160) -> Calibration:
    """Return four fifths of the windows of 16 tokens to fit on, one fifth held out."""
    return Calibration.of(ids(windows), batch_size=16)


def front(style: str = "gated", dtype: torch.dtype = torch.float32) -> TorchGraph:
    """Return the decoder as a graph that is run, not written; the same one for the same arguments."""
    return _front(style, dtype)


@functools.cache
def _front(style: str, dtype: torch.dtype) -> TorchGraph:
    return read_torch(decoder(style, dtype), calibration().fit[0])


def chains(style: str = "gated", dtype: torch.dtype = torch.float32) -> list[tuple[Block, ...]]:
    """Return its chains of 3 and 2 blocks."""
    return [chain.blocks for chain in find_chains(front(style, dtype).view).chains]


class Group:
    """One group with its data: what the parts of recovery work on; `close` frees it."""

    def __init__(self, style: str = "gated", windows: int = 160) -> None:
        self.front, self.blocks = front(style), chains(style)[0]
        self.ffn, self.wide = WideFfn(self.front.view, self.blocks[0]), unrounded(self.front, self.blocks)
        self.store = Activations()
        values = [*(block.x for block in self.blocks), self.blocks[-1].out]
        self.states = States(self.front, calibration(windows).fit, self.store, values, part="fit")
        self.tokens = GroupTokens(self.states, self.blocks, ("fit", self.blocks[0].x))

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return x and end [tokens, hidden] and weights [tokens, 1] of all tokens, in float64."""
        parts = list(self.tokens)
        x, end = (torch.cat([getattr(each, name) for each in parts]).double() for name in ("x", "end"))
        return x, end, torch.cat([each.weight for each in parts]).double().unsqueeze(-1)

    def reads(self, block: Block) -> Tensor:
        """Return what a block reads in the sequential model, [tokens, hidden] in float64."""
        return torch.cat([self.tokens.read(block, place) for place in self.tokens.places]).double()


def names(group: Sequence[Block]) -> tuple[str, ...]:
    """Return the names of a group's blocks."""
    return tuple(block.name for block in group)
