"""Small models of real families, with random weights and attention removed from some layers.

    x = x + attention(norm(x));  x = x + ffn(norm(x))      a layer as its family writes it
                                 x = x + ffn(norm(x))      a layer whose attention is removed

`FAMILIES` are all of them. `FUSED` are the eight on which every detail is tested, `REFUSED` have no chain.
"""

from tests.families.build import build, decoder_layers, example, has_attention, ids
from tests.families.records import HIDDEN, INTERMEDIATE, REMOVED, VOCAB, Family
from tests.families.table import FAMILIES

__all__ = [
    "FAMILIES", "FUSED", "HIDDEN", "INTERMEDIATE", "REFUSED", "REMOVED", "VOCAB", "Family",
    "build", "decoder_layers", "example", "has_attention", "ids",
]  # fmt: skip

FUSED = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt_neox", "granite"]
REFUSED = ["gemma2", "mixtral"]
