"""Attention removed from ONNX files: equal in ONNX Runtime to the torch model that lost it by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fxfuse
from fxfuse.errors import FxfuseError, InputError, VerificationError
from fxfuse.head_sizes import head_sizes
from fxfuse.removal import genai, onnx_check
from fxfuse.removal.records import Removal
from fxfuse.sessions import session
from fxfuse.specs import specs_of
from tests import families, forms
from tests.forms import genai as genai_form

Write = Callable[..., Path]


def outputs(path: Path, **given: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    opened = session(path, "cpu")
    names = [each.name for each in opened.get_outputs()]
    return dict(zip(names, opened.run(names, given), strict=True))


def error(value: np.ndarray[Any, Any], family: str, dtype: torch.dtype = torch.float32) -> float:
    """Of logits, against the model that lost its attention by hand."""
    expected = families.build(family, dtype=dtype)(families.example(family, dtype=dtype)).double()
    return float((torch.from_numpy(value).double() - expected).norm() / expected.norm())


def lengths(removal: Removal) -> list[int]:
    return [len(chain) for chain in removal.chains]


# -- exporters' files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, form", [("llama", "opset20"), ("llama", "opset23"), ("llama", "older"), ("gpt2", "opset20")]
)
def test_a_file_equals_the_model_by_hand(family: str, form: str, onnx_file: Write, tmp_path: Path) -> None:
    source = onnx_file(family, form, removed=())
    before = source.read_bytes()
    removal = fxfuse.remove_attention_onnx(source, tmp_path / "less.onnx", "1,2,4", provider="cpu")
    assert source.read_bytes() == before
    assert error(outputs(tmp_path / "less.onnx", input_ids=families.ids().numpy())["logits"], family) < 2e-6
    assert lengths(removal) == [3, 2]
    assert removal.chains_before == []
    assert [name.split(".")[2] for name in removal.removed] == ["1", "2", "4"]
    assert [name.split(".")[2] for name in removal.kept] == ["0", "3"]
    assert removal.bytes_after < removal.bytes_before
    assert removal.notes == []
    onnx.checker.check_model(onnx.load(tmp_path / "less.onnx"), full_check=True)
    again = fxfuse.remove_attention_onnx(tmp_path / "less.onnx", tmp_path / "two.onnx", [3], provider="cpu")
    assert lengths(again) == [5]


def test_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stock("llama", "fp16", tmp_path, monkeypatch)
    removal = fxfuse.remove_attention_onnx(source, tmp_path / "less.onnx", "1,2,4", provider="cpu")
    logits = outputs(tmp_path / "less.onnx", input_ids=families.ids().numpy())["logits"]
    assert error(logits, "llama", torch.float16) < 5e-3
    assert lengths(removal) == [3, 2]


def stock(family: str, form: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a model that has all of its attention."""

    def whole(name: str, **options: Any) -> Any:
        return families.build(name, removed=(), **options)

    monkeypatch.setattr(forms, "build", whole)
    monkeypatch.setattr(genai_form, "build", whole)
    return forms.write(family, form, folder)


def test_external_data_shrink(onnx_file: Write, tmp_path: Path) -> None:
    """The bytes of weights that went are not copied, and the others' are the same."""
    source = tmp_path / "in" / "model.onnx"
    source.parent.mkdir()
    model = onnx.load(onnx_file("llama", removed=()))
    onnx.save(model, source, save_as_external_data=True, location="model.data", size_threshold=1024)
    removal = fxfuse.remove_attention_onnx(source, tmp_path / "less.onnx", "1,2,4", provider="cpu")
    gone = removal.bytes_before - removal.bytes_after
    assert gone >= 3 * 4 * 3 * families.HIDDEN * families.HIDDEN
    stored = onnx.load(tmp_path / "less.onnx", load_external_data=False).graph.initializer
    held = [int(entry.value) for each in stored for entry in each.external_data if entry.key == "length"]
    assert removal.bytes_after - 1024 * 16 < sum(held) <= removal.bytes_after
    less = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "less.onnx").graph.initializer
    }
    for tensor in onnx.load(source).graph.initializer:
        if tensor.name in less:
            assert less[tensor.name].tobytes() == numpy_helper.to_array(tensor).tobytes()
    assert error(outputs(tmp_path / "less.onnx", input_ids=families.ids().numpy())["logits"], "llama") < 2e-6


# -- the cache -------------------------------------------------------------------------------------

CONFIG = {
    "model": {
        "type": "llama", "context_length": 64, "vocab_size": 128,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
        "decoder": {
            "session_options": {"provider_options": []}, "filename": "model.onnx", "head_size": 16,
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 5,
            "sliding_window": {"window_size": 4, "layers": [0, 1, 3]},
            "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                       "past_key_names": "past_key_values.%d.key",
                       "past_value_names": "past_key_values.%d.value"},
            "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                        "present_value_names": "present.%d.value"},
        },
    },
    "search": {"max_length": 64, "do_sample": False, "past_present_share_buffer": False},
}  # fmt: skip


@pytest.fixture
def genai_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with a cache, in a folder of its own with the builder's configuration."""
    pytest.importorskip("onnxruntime_genai")
    source = stock("llama", "genai fp32", tmp_path, monkeypatch)
    folder = tmp_path / "model"
    folder.mkdir()
    source.rename(folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(CONFIG))
    return folder / "model.onnx"


@pytest.mark.parametrize("again", [False, True])
def test_the_cache_and_its_configuration_follow(genai_model: Path, again: bool, tmp_path: Path) -> None:
    """GroupQueryAttention and Skip norms; decoding goes on from the cache as torch does without one."""
    out = tmp_path / "out" / "less.onnx"
    out.parent.mkdir()
    removal = fxfuse.remove_attention_onnx(genai_model, out, "1,2,4", renumber=again, provider="cpu")
    assert lengths(removal) == [3, 2]
    assert len(removal.inputs) == len(removal.outputs) == 6
    assert "past_key_values.1.key" in removal.inputs
    numbers = (0, 1) if again else (0, 3)
    model = onnx.load(out)
    cache = {f"past_key_values.{n}.{kind}" for n in numbers for kind in ("key", "value")}
    assert {each.name for each in model.graph.input} == {"input_ids", "attention_mask", *cache}
    assert [node.op_type for node in model.graph.node].count("SkipSimplifiedLayerNormalization") == 7
    assert removal.renamed.get("present.3.key") == ("present.1.key" if again else None)
    config = json.loads((out.parent / "genai_config.json").read_text())["model"]["decoder"]
    assert config["filename"] == "less.onnx"
    assert config["num_hidden_layers"] == (2 if again else 5)
    assert config["sliding_window"]["layers"] == list(numbers)
    assert removal.notes == ["genai_config.json was written beside the model"]
    _decode(out, numbers)


def _decode(path: Path, numbers: tuple[int, ...]) -> None:
    ids = families.ids(1, 6).numpy()
    empty = np.zeros((1, 2, 0, 16), np.float32)
    past = {f"past_key_values.{n}.{kind}": empty for n in numbers for kind in ("key", "value")}
    for end, start in ((5, 0), (6, 5)):
        found = outputs(path, input_ids=ids[:, start:end], attention_mask=np.ones((1, end), np.int64), **past)
        past = {f"past_key_values{name[7:]}": each for name, each in found.items() if "present" in name}
    expected = families.build("llama")(torch.from_numpy(ids))[:, -1]
    torch.testing.assert_close(torch.from_numpy(found["logits"])[:, -1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("again", [False, True])
def test_onnxruntime_genai_runs_it(genai_model: Path, again: bool, tmp_path: Path) -> None:
    """It finds the cache by its names, with gaps and without."""
    og = pytest.importorskip("onnxruntime_genai")
    config = json.loads((genai_model.parent / "genai_config.json").read_text())
    del config["model"]["decoder"]["sliding_window"]
    (genai_model.parent / "genai_config.json").write_text(json.dumps(config))
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    fxfuse.remove_attention_onnx(genai_model, out, "1,2,4", renumber=again, provider="cpu")
    model = og.Model(str(out.parent))
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=10, do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(np.array([[3, 5, 7, 9]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens, torch_model = [3, 5, 7, 9], families.build("llama")
    while len(tokens) < 10:
        tokens.append(int(torch_model(torch.tensor([tokens]))[0, -1].argmax()))
    assert list(generator.get_sequence(0)) == tokens


def test_a_configuration_beside_the_output(genai_model: Path) -> None:
    """Where the input's own stands in that folder, the output's has its name before it."""
    config = (genai_model.parent / "genai_config.json").read_text()
    removal = fxfuse.remove_attention_onnx(genai_model, None, [1], provider="cpu")
    assert removal.output == str(genai_model.parent / "model.less.onnx")
    assert (genai_model.parent / "genai_config.json").read_text() == config
    assert removal.notes == ["genai_config.json was written as model.less.onnx.genai_config.json"]


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    assert genai.read_config(tmp_path) is None
    for text in ("no JSON", "{}", "[]"):
        (tmp_path / "genai_config.json").write_text(text)
        with pytest.raises(InputError, match="is no configuration of onnxruntime-genai"):
            genai.read_config(tmp_path)


def test_head_sizes_that_a_file_leaves_open(genai_model: Path) -> None:
    model = onnx.load(genai_model)
    assert set(head_sizes(model).values()) == {16}
    sizes = {spec.name: spec.shape for spec in specs_of(model)}
    assert sizes["past_key_values.0.key"] == ("batch_size", 2, "past_sequence_length", 16)
    past = helper.make_tensor_value_info("past", TensorProto.FLOAT, ["b", 2, "t", "d"])
    new = helper.make_tensor_value_info("new", TensorProto.FLOAT, ["b", 2, "s", 8])
    node = helper.make_node("Concat", ["past", "new"], ["k"], axis=2)
    graph = helper.make_graph([node], "g", [past, new], [], value_info=[new])
    assert head_sizes(helper.make_model(graph)) == {"past": 8}


# -- taps, failures --------------------------------------------------------------------------------


def test_a_stream_that_is_returned(onnx_file: Write, tmp_path: Path) -> None:
    """The state behind an attention is an output: an Identity gives the state before it."""
    model = onnx.load(onnx_file("llama", removed=()))
    source = tmp_path / "tapped.onnx"
    out = next(node.output[0] for node in model.graph.node if _is_add_of(node, 1))
    model.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    onnx.save(model, source)
    fxfuse.remove_attention_onnx(source, tmp_path / "less.onnx", [1], provider="cpu")
    ids = families.ids().numpy()
    model = families.build("llama", removed=(1,))
    before: list[torch.Tensor] = []
    families.decoder_layers(model)[0].register_forward_hook(lambda *given: before.append(given[2]))
    expected = model(torch.from_numpy(ids))
    found = outputs(tmp_path / "less.onnx", input_ids=ids)
    np.testing.assert_allclose(found[out], before[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["logits"], expected.numpy(), rtol=1e-4, atol=1e-4)


def _is_add_of(node: onnx.NodeProto, layer: int) -> bool:
    """Whether a node is a residual add of a layer: of its own code, not of a module in it."""
    scopes = [entry.value for entry in node.metadata_props if entry.key == "namespace"]
    own = any(f"model.layers.{layer}: " in scope for scope in scopes)
    return node.op_type == "Add" and own and not any(f"model.layers.{layer}." in scope for scope in scopes)


def test_what_is_refused_leaves_nothing(onnx_file: Write, tmp_path: Path) -> None:
    source = onnx_file("llama", removed=())
    out = tmp_path / "less.onnx"
    with pytest.raises(InputError, match="There is no attention to remove in layer 9"):
        fxfuse.remove_attention_onnx(source, out, [9])
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        fxfuse.remove_attention_onnx(source, out, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["less.onnx"]
    fxfuse.remove_attention_onnx(source, out, [1], force=True, provider="cpu")
    assert out.stat().st_size > 4


def test_a_wrong_file_is_not_put_in_place(
    onnx_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_check, "_difference", lambda *_: 0.5)
    with pytest.raises(
        VerificationError, match="Without attention logits differs by 0.5 from .* so nothing was written"
    ):
        fxfuse.remove_attention_onnx(onnx_file("llama", removed=()), tmp_path / "less.onnx", [1])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_run_is_told(
    onnx_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError("No values can be drawn.")

    monkeypatch.setattr(onnx_check, "draw_inputs", refuse)
    out = tmp_path / "less.onnx"
    removal = fxfuse.remove_attention_onnx(onnx_file("llama", removed=()), out, [1])
    (note,) = removal.notes
    assert note.startswith("not verified, since the original model does not run on drawn inputs: No values")


def test_a_record_is_plain_data(onnx_file: Write, tmp_path: Path) -> None:
    removal = fxfuse.remove_attention_onnx(onnx_file("llama", removed=()), tmp_path / "o.onnx", [3, 4])
    assert json.loads(removal.to_json())["removed"] == list(removal.removed)
    assert removal.summary() == ("removed 2 attentions (model.layers.3-4.self_attn); chains of FFN blocks: 3")
    assert Removal("m").summary() == "no attention was removed"
    assert issubclass(InputError, FxfuseError)
