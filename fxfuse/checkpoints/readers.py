"""Which programs load a checkpoint, and what keeps the others from it.

| reader              | reads                                            |
| ------------------- | ------------------------------------------------ |
| fxfuse              | everything that opens                            |
| transformers        | layers that do not differ                        |
| mlx-lm              | nemotron-nas, layers that do not differ          |
| vLLM                | nemotron-nas, layers that do not differ          |
| llama.cpp           | nemotron-nas, layers that do not differ          |
| TensorRT-LLM        | nemotron-nas, layers that do not differ          |
| Model-Optimizer     | AnyModel                                         |

The reading class of `per_layer_config` is in transformers 5.23, its model code for these families is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxfuse.checkpoints.dialects.anymodel import DESCRIBED
from fxfuse.checkpoints.families import Family
from fxfuse.checkpoints.file_rules import leftovers
from fxfuse.checkpoints.reader_names import FXFUSE, LLAMA_CPP, OPTIMIZER, READERS, TRANSFORMERS, TRT, VLLM
from fxfuse.checkpoints.reader_rules import RULES
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.seen import Seen
from fxfuse.checkpoints.settings import setting

__all__ = ["Reading", "readings"]

_HOW = {
    FXFUSE: "fxfuse.load_pretrained",
    VLLM: "told to trust the folder's code (--trust-remote-code)",
    TRT: "told to trust the folder's code (--trust_remote_code)",
    LLAMA_CPP: "after convert_hf_to_gguf.py",
}


@dataclass(frozen=True)
class Reading:
    """Whether one reader loads the checkpoint: problems: what it stumbles over; how: what to call it with."""

    reader: str
    problems: tuple[str, ...] = ()
    how: str = ""

    @property
    def loads(self) -> bool:
        """Whether nothing is in its way."""
        return not self.problems


def readings(checkpoint: Checkpoint, broken: list[str]) -> list[Reading]:
    """The verdict of every reader; `broken`: what no reader loads."""
    return [_reading(checkpoint, reader, broken) for reader in READERS]


def _reading(checkpoint: Checkpoint, reader: str, broken: list[str]) -> Reading:
    found = tuple(broken) or tuple(dict.fromkeys(_problems(Seen(checkpoint), reader)))
    by_dialect = reader in (FXFUSE, LLAMA_CPP) or checkpoint.dialect == "nemotron-nas"
    return Reading(reader, found, _HOW.get(reader, "") if by_dialect and not found else "")


def _problems(seen: Seen, reader: str) -> Iterator[str]:
    dialect = seen.checkpoint.dialect
    if reader == FXFUSE:
        return
    if reader == OPTIMIZER:
        yield from _optimizer(seen)
    elif dialect == "plain":
        return
    elif dialect == "nemotron-nas" and reader != TRANSFORMERS:
        for rule, readers in RULES:
            if reader in readers:
                yield from rule(seen)
    elif reader == TRANSFORMERS:
        yield "its model code builds all layers alike: load it with fxfuse.load_pretrained"
    else:
        yield _alike(seen.checkpoint.family)


def _alike(family: Family) -> str:
    """What is said of a reader whose layers differ in nemotron-nas alone."""
    told = f"it builds all layers of {family.model_type} alike"
    if family.llama is None:
        return f"{told}: write it as nemotron-nas"
    return f"{told}, and nemotron-nas, the form that it reads, holds no {family.model_type}: {family.llama}"


def _optimizer(seen: Seen) -> Iterator[str]:
    """Descriptors find a model's class by its type, and sort tensors by patterns which hold no biases."""
    checkpoint = seen.checkpoint
    if checkpoint.dialect != "anymodel":
        yield "it reads block_configs with intermediate_size: write it as anymodel"
        return
    family = checkpoint.family.model_type
    if family not in DESCRIBED:
        yield f"it has no descriptor of {family}"
    if family == "llama":
        for name in ("attention_bias", "mlp_bias"):
            if setting(checkpoint.config, name):
                yield f"its descriptor of llama has no place for biases ({name})"
    for number, entry in enumerate(seen.entries):
        attention = entry.get("attention") or {"no_op": True}  # later versions write subblock_configs
        if not attention.get("no_op") and attention.get("num_key_value_heads") is None:
            yield f"the attention of layer {number} has no num_key_value_heads in its block_config"
            return
    yield from leftovers(seen)
