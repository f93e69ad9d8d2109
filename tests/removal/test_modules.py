"""Attention removed from torch modules: they stay modules, and equal those that lost it by hand."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxfuse
import models
from fxfuse.errors import InputError, VerificationError
from fxfuse.frontends.torch_model import read_torch
from fxfuse.passes.chains import find_chains
from fxfuse.removal import modules
from fxfuse.removal.layers import take_out
from models.decoder import Decoder, DecoderConfig, LayerConfig
from models.surgery import remove_attention as by_hand
from tests import families

FAMILIES = ["llama", "gemma2", "phi3", "gpt2", "granite", "deepseek_v3", "vit"]
SIZE, HEADS = 16, 2


def chains(model: nn.Module, **batch: Tensor) -> list[int]:
    return [len(chain.blocks) for chain in find_chains(read_torch(model.eval(), batch).view).chains]


def stock(name: str = "Llama", layers: int = 3, **config: Any) -> Any:
    """A model of transformers with random weights."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    made = getattr(transformers, f"{name}Config")(**(sizes | config))
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    return getattr(transformers, name + head)(made).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_equals_the_model_by_hand(family: str) -> None:
    model, given = families.build(family, removed=()), families.example(family)
    name = "pixel_values" if families.FAMILIES[family].pixels else "input_ids"
    before = dict(model.state_dict())
    less = fxfuse.remove_attention(model, families.REMOVED, batch={name: given})
    torch.testing.assert_close(less(given), families.build(family)(given), rtol=0, atol=0)
    assert model.state_dict().keys() == before.keys()
    gone = before.keys() - less.state_dict().keys()
    assert not less.state_dict().keys() - before.keys()
    layers = {int(next(part for part in name.split(".") if part.isdecimal())) for name in gone}
    assert layers == set(families.REMOVED)
    attention = f".{families.FAMILIES[family].attention}."
    assert all(attention in name or "norm" in name.lower() or ".ln_1." in name for name in gone)
    assert not any(
        attention in name and f".{layer}." in name for name in less.state_dict() for layer in (1, 2, 4)
    )
    shared = {each.data_ptr() for each in model.parameters()} & {
        each.data_ptr() for each in less.parameters()
    }
    assert not shared


def test_the_demo_model_equals_its_own_surgery() -> None:
    dense = models.load_demo("demo-dense").eval()
    less = fxfuse.remove_attention(dense, "5-10")
    other = by_hand(dense, range(5, 11)).eval()
    ids = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(less(ids), other(ids), rtol=0, atol=0)
    assert less.state_dict().keys() == other.state_dict().keys()
    assert less.layers[5].self_attn is None
    assert less.layers[5].input_layernorm is None
    assert chains(less, input_ids=ids) == [7]
    other.load_state_dict(less.state_dict())


@pytest.mark.parametrize(
    "name, config",
    [("Llama", {}), ("GPT2", {"n_layer": 3}), ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
     ("Mistral", {"sliding_window": 4}), ("Cohere", {})],
)  # fmt: skip
def test_it_generates_with_its_cache(name: str, config: dict[str, Any]) -> None:
    less = fxfuse.remove_attention(stock(name, **config), [1])
    ids = torch.arange(12).reshape(1, 12) + 3
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache, without = (less.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(with_cache, without)
    assert len(less(ids, output_hidden_states=True).hidden_states) == 4


def test_it_trains_and_is_copied_and_pickled_and_exported_again() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=32, hidden_size=16, num_heads=2, layers=(LayerConfig(),) * 4))
    less = fxfuse.remove_attention(model.train(), [2, 3])
    assert less.training
    ids = torch.arange(12).reshape(2, 6)
    file = io.BytesIO()
    torch.save(less, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    less(ids).logsumexp(-1).mean().backward()
    assert all(each.grad is not None for each in less.parameters())
    for other in (copy.deepcopy(less), loaded):
        torch.testing.assert_close(other(ids), less(ids))
        assert chains(other, input_ids=ids) == [3]
    assert type(less.layers[2]).__name__ == "Layer"
    assert isinstance(less.layers[2], type(model.layers[2]))
    assert chains(fxfuse.remove_attention(less, [1]), input_ids=ids) == [4]


def test_in_place() -> None:
    model = stock(layers=2)
    weights = sum(each.numel() for each in model.parameters())
    less = fxfuse.remove_attention(model, "model.layers.1.self_attn", inplace=True)
    assert less is model
    assert sum(each.numel() for each in model.parameters()) < weights
    assert model.model.layers[1].self_attn is None


def test_the_first_attention_and_the_cache() -> None:
    """Its cache is where a model of transformers reads how long the past is."""
    model = stock(layers=2)
    reason = (
        "Without model.layers.0.self_attn the model's cache goes wrong, since it takes its length from the "
        "first attention of each kind: keep that one, or pass cache=False and run without a cache."
    )
    keys, kind = model.state_dict().keys(), type(model.model.layers[0])
    with pytest.raises(InputError) as caught:
        fxfuse.remove_attention(model, [0], inplace=True)
    assert str(caught.value) == reason
    assert model.state_dict().keys() == keys  # as it was
    assert type(model.model.layers[0]) is kind
    less = fxfuse.remove_attention(model, [0], cache=False)
    assert less.model.layers[0].self_attn is None


# -- dropout, modes --------------------------------------------------------------------------------


class Layer(nn.Module):
    """`write(self, x, y)` of x and what the attention gives."""

    def __init__(self, write: Callable[[Any, Tensor, Any], object]) -> None:
        super().__init__()
        self.write = write
        self.norm, self.norm2 = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.attention = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(SIZE, 24), nn.Linear(24, SIZE)
        self.scale = nn.Parameter(torch.full((SIZE,), 0.5))

    def forward(self, x: Tensor, *, flag: bool = False) -> object:
        h = self.norm(x)
        return self.write(self, x, self.attention(h, h, h, need_weights=False))

    def ffn(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), 0.5, self.training)


class Net(nn.Module):
    def __init__(self, write: Callable[[Any, Tensor, Any], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(write) for _ in range(3))
        self.head = nn.Linear(SIZE, 8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x)


def remove(write: Callable[[Any, Tensor, Any], object]) -> Net:
    return fxfuse.remove_attention(Net(write), [1], batch={"x": torch.randn(2, 5, SIZE)})


def test_a_layer_keeps_its_modes() -> None:
    """Dropout is active in training alone, as it was; a parameter of the attention's branch goes."""
    less = remove(lambda m, x, y: m.ffn(x + m.scale * y[0]))
    x = torch.randn(2, 5, SIZE)
    assert "layers.1.scale" not in less.state_dict()
    assert "layers.0.scale" in less.state_dict()
    torch.testing.assert_close(less(x), less(x), rtol=0, atol=0)
    layer = less.train().layers[1]
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_a_layer_that_hands_on_what_its_attention_computes() -> None:
    with pytest.raises(InputError, match=r"Layer hands on something else that layers\.1\.attention computes"):
        remove(lambda m, x, y: (m.ffn(x + y[0]), y[0]))


def test_a_layer_that_cannot_be_read() -> None:
    def write(m: Any, x: Tensor, y: Any) -> Tensor:
        return m.ffn(x + y[0]) if float(x.detach().abs().sum()) >= 0 else x

    def quiet(m: Any, x: Tensor, y: Any) -> Tensor:
        return m.ffn(x + y[0]) if len(x) > 0 else x

    with pytest.raises(
        InputError, match="The forward of Layer, which holds layers.1.attention, cannot be read"
    ):
        remove(quiet)
    with pytest.raises(InputError, match="torch.export cannot capture the model"):
        remove(write)


def test_an_attention_that_is_no_child_of_its_layer() -> None:
    """The add stands in the attention itself, as in Bloom."""
    model = stock("Bloom", n_layer=3, n_head=4)
    with pytest.raises(InputError, match=r"self_attention is no module of its own that is called once"):
        fxfuse.remove_attention(model, [1])


def test_an_attention_that_is_not_added_to_the_input() -> None:
    """a sum over a stack of both is no residual add"""
    layer = Layer(lambda m, x, y: m.ffn(torch.stack([x, y[0]]).sum(0)))
    with pytest.raises(
        InputError, match="The forward of Layer does not add layers.1.attention to what it is"
    ):
        take_out(layer, "attention", "layers.1.attention")


# -- what is given ---------------------------------------------------------------------------------


def test_a_model_that_takes_no_ids() -> None:
    with pytest.raises(InputError, match="The model takes no input_ids, so give batch="):
        fxfuse.remove_attention(Net(lambda m, x, y: m.ffn(x + y[0])), [1])


def test_a_model_without_numbers_to_compare() -> None:
    with pytest.raises(InputError, match="The model gives nothing that could be compared"):
        modules._result([torch.ones(2, dtype=torch.int64)])


def test_a_wrong_result_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "take_out", lambda *_: None)
    with pytest.raises(VerificationError, match="What the model gives without attention differs by"):
        fxfuse.remove_attention(stock(layers=2), [1])
