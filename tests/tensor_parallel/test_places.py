"""Which modules ranks share, and why others stay whole."""

from typing import Any

import pytest
from torch import nn

from fxfuse.parallel.places import Place, Whole, find_attentions, find_ffns, find_heads
from models.decoder import Decoder, DecoderConfig, LayerConfig


class Held(nn.Module):
    """Children by name, and attributes."""

    def __init__(self, *, attributes: dict[str, Any] | None = None, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        for name, value in (attributes or {}).items():
            setattr(self, name, value)


def _ffn(up: int = 16, **more: nn.Module) -> nn.Module:
    return Held(
        mlp=Held(gate_proj=nn.Linear(8, 16), up_proj=nn.Linear(8, up), down_proj=nn.Linear(16, 8), **more)
    )


def _attention(keys: int = 16, head_dim: int | None = 4, **more: nn.Module) -> nn.Module:
    attributes = {} if head_dim is None else {"head_dim": head_dim}
    products = {"q_proj": 16, "k_proj": keys, "v_proj": 16 if keys == 10 else keys}
    linears = {name: nn.Linear(8, size) for name, size in products.items()}
    return Held(attn=Held(**linears, o_proj=nn.Linear(16, 8), attributes=attributes, **more))


def test_every_ffn_and_attention_of_a_decoder() -> None:
    model = Decoder(DecoderConfig(layers=(LayerConfig(True, 512), LayerConfig(False, 1024))))
    assert [(each.path, each.width) for each in find_ffns(model)] == [
        ("layers.0.mlp", 512),
        ("layers.1.mlp", 1024),
    ]
    assert [each.path for each in find_attentions(model, 2)] == ["layers.0.self_attn"]


@pytest.mark.parametrize(
    "names, first",
    [
        (("w1", "w3", "w2"), {"w1": (16,), "w3": (16,)}),
        (("up_proj", "down_proj"), {"up_proj": (16,)}),
    ],
)
def test_names_of_products(names: tuple[str, ...], first: dict[str, tuple[int, ...]]) -> None:
    *inner, last = names
    model = Held(mlp=Held(**{name: nn.Linear(8, 16) for name in inner}, **{last: nn.Linear(16, 8)}))
    assert find_ffns(model) == [Place("mlp", first, last, 16)]


def test_two_halves_of_a_packed_product() -> None:
    model = Held(mlp=Held(gate_up_proj=nn.Linear(8, 32), down_proj=nn.Linear(16, 8)))
    assert find_ffns(model) == [Place("mlp", {"gate_up_proj": (16, 16)}, "down_proj", 16)]


def test_queries_keys_and_values_of_a_packed_product() -> None:
    attention = Held(
        qkv_proj=nn.Linear(8, 32),
        o_proj=nn.Linear(16, 8),
        attributes={"head_dim": 4, "num_key_value_heads": 2},
    )
    place = Place("attn", {"qkv_proj": (16, 8, 8)}, "o_proj", 16, {"num_key_value_heads": 2})
    assert find_attentions(Held(attn=attention), 2) == [place]


@pytest.mark.parametrize(
    "model, reason",
    [
        (_ffn(inner_norm=nn.RMSNorm(16)), "inner_norm.weight in it reads the whole width"),
        (_ffn(up=12), "its first products are not as wide as down_proj reads (16)"),
        (
            _attention(head_dim=None),
            "it has neither head_dim nor num_heads, so its heads are not known",
        ),
        (_attention(keys=10), "its products (16, 10, 16 channels) are no heads of 4"),
        (_attention(q_norm=nn.RMSNorm(16)), "q_norm.weight in it reads all heads"),
        (_attention(keys=4), "its 1 key-value heads do not divide by 2 ranks"),
    ],
)
def test_why_a_module_stays_whole(model: nn.Module, reason: str) -> None:
    (found,) = [*find_ffns(model), *find_attentions(model, 2)]
    assert isinstance(found, Whole)
    assert found.reason == reason


def test_a_norm_of_each_head_is_no_obstacle() -> None:
    (found,) = find_attentions(_attention(q_norm=nn.RMSNorm(4)), 2)
    assert isinstance(found, Place)


def test_an_output_layer_that_shares_its_weight_stays_whole() -> None:
    model = Held(embed_tokens=nn.Embedding(32, 8), lm_head=nn.Linear(8, 32, bias=False))
    assert find_heads(model) == ["lm_head"]
    model.lm_head.weight = model.embed_tokens.weight
    assert find_heads(model) == []
