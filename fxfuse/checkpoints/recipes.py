"""How every tensor of the fused checkpoint is made, in the order in which they are written.

Names are those of the source with layers numbered anew, but for nemotron-nas, which knows Llama's alone:
packed products are taken apart by their rows there, and a family's multipliers go into the weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from fxfuse.checkpoints.dialects.anymodel import file_of
from fxfuse.checkpoints.dialects.factors import Factors, factors_of
from fxfuse.checkpoints.expected import expected, layer_number
from fxfuse.checkpoints.ffn_recipes import FFNWriter
from fxfuse.checkpoints.records import Checkpoint, Copy, Layout, OutputLayer, OutputTensor
from fxfuse.checkpoints.settings import count_of, kv_heads, setting

__all__ = ["output_tensors"]

_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def output_tensors(checkpoint: Checkpoint, layout: Layout) -> list[OutputTensor]:
    """All tensors of the fused checkpoint: embeddings, layers by number, last norm, output."""
    return list(_Writer(checkpoint, layout).tensors())


class _Writer:
    """The recipes of one checkpoint in one layout."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout) -> None:
        self.checkpoint, self.layout = checkpoint, layout
        self.as_llama = layout.dialect == "nemotron-nas"
        self.factors = factors_of(checkpoint.config) if self.as_llama else Factors()
        self.names: dict[int | None, list[str]] = defaultdict(list)
        for name in expected(checkpoint):
            self.names[layer_number(name, checkpoint.family.layers)].append(name)

    def tensors(self) -> Iterator[OutputTensor]:
        """In the order of the model."""
        embeddings, *others = self.names[None]
        yield self._copy(
            embeddings, embeddings, None, self.factors.embeddings, self._file(None, "embeddings")
        )
        ffns = FFNWriter(self.checkpoint, self.as_llama, self.factors.residual)
        for layer in self.layout.layers:
            if layer.attention:
                yield from self._attention(layer)
            if layer.ffn:
                yield from ffns.tensors(layer, self._file(layer.number, "ffn"))
        for name in others:
            factor = self.factors.logits if name == _HEAD else 1.0
            yield self._copy(name, name, None, factor, self._file(None, "lm_head"))
        if _HEAD not in others and not self.factors.tied:
            yield self._copy(_HEAD, _EMBEDDINGS, None, self.factors.logits, "")

    def _file(self, layer: int | None, part: str) -> str:
        return file_of(layer, part) if self.layout.dialect == "anymodel" else ""

    def _copy(
        self, name: str, source: str, rows: tuple[int, int] | None, factor: float, file: str
    ) -> OutputTensor:
        found = self.checkpoint.tensors[source]
        shape = found.shape if rows is None else (rows[1] - rows[0], *found.shape[1:])
        return OutputTensor(name, found.dtype, shape, Copy(source, rows, factor), file)

    def _attention(self, layer: OutputLayer) -> Iterator[OutputTensor]:
        """The first source's attention and its norm."""
        family, first = self.checkpoint.family, layer.sources[0]
        old, new = self.checkpoint.prefix(first), f"{family.layers}.{layer.number}"
        file = self._file(layer.number, "attention")
        for name in self.names[first]:
            own = name.removeprefix(f"{old}.")
            if own.startswith((f"{family.attention_norm}.", f"{family.attention}.")):
                for part, rows in self._parts(own, first):
                    yield self._copy(f"{new}.{part}", name, rows, self._attention_factor(part), file)

    def _parts(self, own: str, layer: int) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """An output's names and the rows of the stored tensor that they are: several of a packed product."""
        if not (self.as_llama and ".qkv_proj." in own):
            yield own, None
            return
        size = int(setting(self.checkpoint.config, "head_dim"))
        queries = count_of(self.checkpoint.config, "num_attention_heads") * size
        keys = kv_heads(self.checkpoint, self.checkpoint.layers[layer]) * size
        start = 0
        for name, count in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield own.replace("qkv_proj", name), (start, start + count)
            start += count

    def _attention_factor(self, own: str) -> float:
        if ".q_proj." in own:
            return self.factors.queries
        return self.factors.residual if ".o_proj." in own else 1.0
