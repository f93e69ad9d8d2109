"""Where a model has FFNs and attentions that ranks can share, by the names of their products.

    FFN         gate_proj, up_proj -> down_proj      gate_up_proj -> down_proj      w1, w3 -> w2
    attention   q_proj, k_proj, v_proj -> o_proj     qkv_proj -> o_proj

A module is taken only when all its other parameters hold for every channel or head alike: a norm inside that
reads the whole width would see a part of it. What cannot be shared stays whole on every rank, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from fxfuse.parallel.split import Split

__all__ = ["Place", "Whole", "find_attentions", "find_ffns", "find_heads"]

_FFNS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("w1", "w3"), "w2"),
    (("up_proj",), "down_proj"),
)
_ATTENTIONS = ((("q_proj", "k_proj", "v_proj"), "o_proj"), (("qkv_proj",), "o_proj"))
_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class Place:
    """A module whose products are shared out: `first` by output channels, `last` by input channels.

    first: the parts that each of the first products holds. counts: attributes that hold numbers of heads.
    """

    path: str
    first: dict[str, tuple[int, ...]]
    last: str
    width: int
    counts: dict[str, int] = field(default_factory=dict)

    def splits(self, ranks: int) -> Iterator[tuple[str, Split, int]]:
        """Path, split and axis of every product."""
        for name, sizes in self.first.items():
            yield f"{self.path}.{name}", Split(sizes, ranks), 0
        yield f"{self.path}.{self.last}", Split((self.width,), ranks), 1


@dataclass(frozen=True)
class Whole:
    """A module that every rank keeps whole, and why."""

    path: str
    reason: str


def find_ffns(model: nn.Module) -> list[Place | Whole]:
    """Every FFN of `model`, in order."""
    return [found for path, module in model.named_modules() if (found := _ffn(path, module))]


def find_attentions(model: nn.Module, ranks: int) -> list[Place | Whole]:
    """Every attention of `model`, in order, shared by heads where queries' and keys' both divide."""
    return [found for path, module in model.named_modules() if (found := _attention(path, module, ranks))]


def find_heads(model: nn.Module) -> list[str]:
    """Output layers with a weight of their own, by path."""
    named = list(model.named_modules(remove_duplicate=False))
    owners: dict[int, int] = {}
    for _, module in named:
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = [(path, each) for path, each in named if path.rpartition(".")[2] == "lm_head"]
    return [path for path, each in found if type(each) is nn.Linear and owners[id(each.weight)] == 1]


def _ffn(path: str, module: nn.Module) -> Place | Whole | None:
    for first, last in _FFNS:
        products = _products(module, (*first, last))
        if products is None:
            continue
        *inner, down = products
        width = down.in_features
        if extra := _other_parameters(module, (*first, last)):
            return Whole(path, f"{extra[0]} in it reads the whole width")
        if len(inner) == 1 and inner[0].out_features == 2 * width:
            return Place(path, {first[0]: (width, width)}, last, width)
        if any(each.out_features != width for each in inner):
            return Whole(path, f"its first products are not as wide as {last} reads ({width})")
        return Place(path, dict.fromkeys(first, (width,)), last, width)
    return None


def _attention(path: str, module: nn.Module, ranks: int) -> Place | Whole | None:
    for first, last in _ATTENTIONS:
        products = _products(module, (*first, last))
        if products is not None:
            *inner, out = products
            return _by_heads(path, module, dict(zip(first, inner, strict=True)), last, out, ranks)
    return None


def _by_heads(
    path: str, module: nn.Module, inner: dict[str, nn.Linear], last: str, out: nn.Linear, ranks: int
) -> Place | Whole:
    width = out.in_features
    size = _head_size(module, width)
    if size is None:
        return Whole(path, "it has neither head_dim nor num_heads, so its heads are not known")
    sizes = {name: each.out_features for name, each in inner.items()}
    parts: dict[str, tuple[int, ...]] = {name: (each,) for name, each in sizes.items()}
    if len(sizes) == 1:
        name, total = next(iter(sizes.items()))
        keys = (total - width) // 2
        parts = {name: (width, keys, total - width - keys)}
    queries, keys, values = (each for sizes_of in parts.values() for each in sizes_of)
    if queries != width or keys != values or keys % size or queries % size:
        return Whole(path, f"its products ({queries}, {keys}, {values} channels) are no heads of {size}")
    extra = [each for each in _other_parameters(module, (*inner, last)) if not _by_head(module, each, size)]
    if extra:
        return Whole(path, f"{extra[0]} in it reads all heads")
    for what, count in (("query", queries // size), ("key-value", keys // size)):
        if count % ranks:
            return Whole(path, f"its {count} {what} heads do not divide by {ranks} ranks")
    return Place(path, parts, last, width, _counts(module, {queries // size, keys // size}))


def _products(module: nn.Module, names: tuple[str, ...]) -> list[nn.Linear] | None:
    found = [module._modules.get(name) for name in names]
    return [each for each in found if type(each) is nn.Linear] if _all_linear(found) else None


def _all_linear(found: list[nn.Module | None]) -> bool:
    return all(type(each) is nn.Linear for each in found)


def _other_parameters(module: nn.Module, names: tuple[str, ...]) -> list[str]:
    return [name for name, _ in module.named_parameters() if name.partition(".")[0] not in names]


def _by_head(module: nn.Module, name: str, size: int) -> bool:
    """Whether a parameter is the same for every head, as the norm of queries in Qwen3."""
    return tuple(module.get_parameter(name).shape) == (size,)


def _head_size(module: nn.Module, width: int) -> int | None:
    size = getattr(module, "head_dim", None)
    if isinstance(size, int):
        return size
    heads = next((each for name in _COUNTS[:2] if isinstance(each := getattr(module, name, None), int)), None)
    return width // heads if heads and width % heads == 0 else None


def _counts(module: nn.Module, heads: set[int]) -> dict[str, int]:
    """Attributes of the module that say how many heads it has."""
    held = {name: getattr(module, name, None) for name in _COUNTS}
    return {name: each for name, each in held.items() if isinstance(each, int) and each in heads}
