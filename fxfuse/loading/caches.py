"""Caches for attentions alone: a layer without attention has no entry.

    layer        0   1   2   3   4   5         transformers makes a cache from a configuration, one entry for
    attention    x   -   -   x   -   x         each of its layers; it asks for that configuration by
    entry        0           1       2         get_text_config(decoder=True)

The configuration of the model keeps all its layers, by which its forward and its masks go. Only what it
answers there is another: its attentions are the layers. So DynamicCache, StaticCache, the quantised and the
offloaded one have as many entries as there are attentions, in `generate` and where a user makes one, and
sliding layers keep their kind. An attention's `layer_idx` is its entry.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from typing import Any

from fxfuse.loading.configs import SKIP

__all__ = ["count_attentions"]


def count_attentions(config: Any, attentions: Sequence[int], own: Mapping[int, Mapping[str, Any]]) -> None:
    """Let caches that are made from `config` have entries for `attentions` alone.

    The configuration stays the same object under a class of the same name.

    Args:
        config: A configuration of transformers.
        attentions: The layers that have attention, in order.
        own: How layers depart from it, as in `per_layer_config`.
    """
    kept = {entry: _of_cache(own.get(layer, {})) for entry, layer in enumerate(attentions)}
    config.__class__ = _namesake(
        type(config), tuple(attentions), {entry: each for entry, each in kept.items() if each}
    )


def _of_cache(own: Mapping[str, Any]) -> dict[str, Any]:
    """What of a layer's own values an attention may know."""
    return {name: value for name, value in own.items() if name not in (SKIP, "intermediate_size")}


def _namesake(old: type, attentions: tuple[int, ...], own: dict[int, dict[str, Any]]) -> type:
    """A class of the same name whose instances answer for caches; they can be copied and pickled."""

    def get_text_config(self: Any, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        if decoder and not encoder:
            return _attentions_of(self, old, attentions, own)
        return old.get_text_config(self, decoder=decoder, encoder=encoder)  # type: ignore[attr-defined]

    def reduce(self: Any, _protocol: int) -> tuple[Any, ...]:
        return _restore, (old, attentions, own), dict(self.__dict__)

    parts = {"get_text_config": get_text_config, "__reduce_ex__": reduce, "__module__": old.__module__}
    return type(old.__name__, (old,), parts)


def _restore(old: type, attentions: tuple[int, ...], own: dict[int, dict[str, Any]]) -> Any:
    return copyreg.__newobj__(_namesake(old, attentions, own))  # type: ignore[attr-defined]


def _attentions_of(
    config: Any, kind: type, attentions: tuple[int, ...], own: dict[int, dict[str, Any]]
) -> Any:
    """The configuration of a model that has but the layers with attention."""
    made: Any = copyreg.__newobj__(kind)  # type: ignore[attr-defined]
    made.__dict__.update(config.__dict__)
    made.per_layer_config = None
    made.num_hidden_layers = len(attentions)
    types = made.__dict__.get("layer_types")
    if types is not None:
        made.layer_types = [each for layer, each in enumerate(types) if layer in attentions]
    if own:
        made.per_layer_config = own
    return made
