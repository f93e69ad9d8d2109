"""The tensors that a config.json calls for, and whether they are what lies in the files.

    model.embed_tokens.weight      [vocabulary, hidden]
    model.layers.N.input_layernorm.weight, .self_attn.*            where the layer has attention
    model.layers.N.post_attention_layernorm.weight, .mlp.*         where it has an FFN
    model.norm.weight              [hidden]
    lm_head.weight                 [vocabulary, hidden]            may be absent where it is tied

Shapes follow from heads, widths and biases alone, so that a config which contradicts its tensors is told
before any of them is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from fxfuse.checkpoints.records import Checkpoint, Layer
from fxfuse.checkpoints.settings import count_of, kv_heads, setting
from fxfuse.checkpoints.tensors import Tensors

__all__ = ["Shape", "expected", "is_ignored", "layer_number", "problems"]

Shape = tuple[int, ...]
_FLOATS = ("F64", "F32", "F16", "BF16")


def expected(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Names and shapes of all tensors but the output's where it is tied."""
    hidden, vocabulary = checkpoint.hidden_size, int(setting(checkpoint.config, "vocab_size"))
    found: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in checkpoint.layers:
        prefix = checkpoint.prefix(layer.number)
        found |= {f"{prefix}.{name}": shape for name, shape in _in_layer(checkpoint, layer)}
    found["model.norm.weight"] = (hidden,)
    if not setting(checkpoint.config, "tie_word_embeddings"):
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def _in_layer(checkpoint: Checkpoint, layer: Layer) -> Iterator[tuple[str, Shape]]:
    family, hidden = checkpoint.family, checkpoint.hidden_size
    if layer.attention:
        yield f"{family.attention_norm}.weight", (hidden,)
        for name, shape in _attention(checkpoint, layer):
            yield f"{family.attention}.{name}", shape
    if layer.ffn:
        yield f"{family.norm}.weight", (hidden,)
        yield from _ffn(checkpoint, layer.intermediate_size)


def _attention(checkpoint: Checkpoint, layer: Layer) -> Iterator[tuple[str, Shape]]:
    config, hidden = checkpoint.config, checkpoint.hidden_size
    size = int(setting(config, "head_dim"))
    queries, keys = count_of(config, "num_attention_heads") * size, kv_heads(checkpoint, layer) * size
    packed = checkpoint.family.packed is not None
    rows = {"qkv_proj": queries + 2 * keys} if packed else {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    biased = _attention_biases(checkpoint)
    for name, count in rows.items():
        yield f"{name}.weight", (count, hidden)
        if name in biased:
            yield f"{name}.bias", (count,)
    yield "o_proj.weight", (hidden, queries)
    if "o_proj" in biased:
        yield "o_proj.bias", (hidden,)
    if checkpoint.family.model_type == "qwen3":
        yield "q_norm.weight", (size,)
        yield "k_norm.weight", (size,)


def _attention_biases(checkpoint: Checkpoint) -> tuple[str, ...]:
    family = checkpoint.family.model_type
    if family == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    flagged = family in ("llama", "qwen3", "gemma", "granite", "nemotron-nas")
    on = flagged and setting(checkpoint.config, "attention_bias")
    return ("q_proj", "k_proj", "v_proj", "o_proj") if on else ()


def _ffn(checkpoint: Checkpoint, width: int) -> Iterator[tuple[str, Shape]]:
    family, hidden = checkpoint.family, checkpoint.hidden_size
    flagged = family.model_type in ("llama", "granite", "nemotron-nas")
    biased = flagged and setting(checkpoint.config, "mlp_bias")
    for name in family.ffn_weights:
        rows = hidden if name == family.down else 2 * width if name == family.packed else width
        yield f"{name}.weight", (rows, width if name == family.down else hidden)
        if biased:
            yield f"{name}.bias", (rows,)


def layer_number(name: str, layers: str) -> int | None:
    """The layer that a tensor stands in; None where it stands in none."""
    number = name.removeprefix(f"{layers}.").partition(".")[0]
    return int(number) if name.startswith(f"{layers}.") and number.isdecimal() else None


def is_ignored(checkpoint: Checkpoint, name: str) -> bool:
    """Whether readers pass over a tensor: of a half that its layer is said not to have, or a stored angle."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    number, family = layer_number(name, checkpoint.family.layers), checkpoint.family
    if number is None or number >= len(checkpoint.layers):
        return not name.startswith(f"{family.layers}.") and name == "lm_head.weight"
    layer, own = checkpoint.layers[number], name.removeprefix(f"{checkpoint.prefix(number)}.")
    attention = own.startswith((f"{family.attention}.", f"{family.attention_norm}."))
    ffn = own.startswith(("mlp.", f"{family.norm}."))
    return (attention and not layer.attention) or (ffn and not layer.ffn)


def problems(checkpoint: Checkpoint) -> Iterator[str]:
    """Where config.json and the tensors contradict one another, each a sentence; the worst first."""
    wanted, place = expected(checkpoint), checkpoint.folder / "config.json"
    tensors = checkpoint.tensors
    for name, shape in wanted.items():
        if name not in tensors:
            yield _missing(checkpoint, name)
        elif tensors[name].shape != shape:
            yield _misshapen(checkpoint, name, shape)
        elif tensors[name].dtype not in _FLOATS:
            yield (
                f"{name} is of type {tensors[name].dtype}, which cannot be fused: give the checkpoint before "
                "it was quantised."
            )
    for name in _orphans(tensors, wanted):
        if not is_ignored(checkpoint, name):
            yield f"{name} has no place in a model of {place}: correct config.json, or take the tensor out."


def _orphans(tensors: Tensors, wanted: dict[str, Shape]) -> list[str]:
    return [name for name in tensors if name not in wanted]


def _missing(checkpoint: Checkpoint, name: str) -> str:
    place, number = checkpoint.folder / "config.json", layer_number(name, checkpoint.family.layers)
    if number is None:
        return f"{name} is missing in {checkpoint.folder}, and {place} calls for it: copy it there."
    own = name.removeprefix(f"{checkpoint.prefix(number)}.")
    family = checkpoint.family
    if own.startswith((f"{family.attention}.", f"{family.attention_norm}.")):
        return (
            f"{place} says that layer {number} has attention, and {name} is missing: copy it there, or name "
            "the layer in per_layer_config as one that skips attention."
        )
    return f"{place} says that layer {number} has an FFN, and {name} is missing: copy it there."


def _misshapen(checkpoint: Checkpoint, name: str, shape: Shape) -> str:
    found, place = checkpoint.tensors[name].shape, checkpoint.folder / "config.json"
    number = layer_number(name, checkpoint.family.layers)
    width = None if number is None else _width(checkpoint, name, found)
    if number is not None and width is not None:
        told = f"the FFN of layer {number} is {checkpoint.layers[number].intermediate_size} wide"
        return f"{place} says that {told}, and {name} is {width} wide: correct config.json."
    shapes = f"must be of shape {list(shape)}, and it is of {list(found)}"
    return f"By {place} {name} {shapes}: correct the one that is wrong."


def _width(checkpoint: Checkpoint, name: str, shape: Shape) -> int | None:
    """How wide an FFN of this weight is; None where the tensor is none or has another hidden size."""
    family = checkpoint.family
    own = next((each for each in family.ffn_weights if name.endswith(f".{each}.weight")), None)
    if own is None or len(shape) != 2:
        return None
    width, hidden = shape[::-1] if own == family.down else shape
    if hidden != checkpoint.hidden_size or (own == family.packed and width % 2):
        return None
    return width // 2 if own == family.packed else width
