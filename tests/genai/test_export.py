"""What onnxruntime-genai loads and generates from an exported folder, against torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from fxfuse.errors import InputError
from fxfuse.genai.api import export_genai
from tests.genai.models import NAMES, WIDE, WIDTH, WORDS, decoder, generated, greedy

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai-cuda has no wheel for this Python")

PROMPT = [3, 5, 7, 9, 11]


def names_of(folder: Path) -> set[str]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {each.name for values in (model.graph.input, model.graph.output) for each in values}


def widths_of(folder: Path) -> list[int]:
    """Of the gate products, in order."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return [each.dims[1] for each in model.graph.initializer if "gate_proj" in each.name]


@pytest.mark.parametrize("family", NAMES)
def test_every_family_generates_what_torch_does(family: str, tmp_path: Path) -> None:
    """Five layers, three caches; the same tokens from a prompt, and logits to rounding."""
    model, out = decoder(family), tmp_path / "out"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_genai(model, out, provider="cpu")
    assert report.relative_error is not None
    assert report.relative_error < 1e-5
    assert (report.layers, report.caches) == (5, 3)
    assert report.widths == (WIDTH, WIDTH, WIDTH, WIDE, WIDTH) == tuple(widths_of(out))
    assert generated(out, PROMPT, 24) == greedy(model, PROMPT, 24)
    cache = {
        f"{side}.{n}.{kind}" for side in ("past_key_values", "present") for n in range(3) for kind in KINDS
    }
    assert names_of(out) == {"input_ids", "attention_mask", "logits", *cache}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


KINDS = ("key", "value")


def test_the_configuration(tmp_path: Path) -> None:
    model, out = decoder(), tmp_path / "out"
    model.generation_config.update(temperature=0.7, top_k=9, eos_token_id=[2, 4])
    export_genai(model, out, provider="cpu")
    found = json.loads((out / "genai_config.json").read_text())
    own, inner = found["model"], found["model"]["decoder"]
    assert (own["type"], own["vocab_size"], own["context_length"]) == ("llama", WORDS, 128)
    assert (own["bos_token_id"], own["eos_token_id"], own["pad_token_id"]) == (1, [2, 4], 0)
    assert (inner["num_hidden_layers"], inner["num_attention_heads"], inner["num_key_value_heads"]) == (
        3,
        4,
        2,
    )
    assert (inner["head_size"], inner["hidden_size"], inner["filename"]) == (16, 64, "model.onnx")
    assert inner["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert (found["search"]["temperature"], found["search"]["top_k"]) == (0.7, 9)
    assert "sliding_window" not in inner


@pytest.mark.parametrize(
    ("absent", "caches"),
    [
        ({"without": (0,)}, 4),  # the first norm has nothing to add
        ({"without": (0, 1, 3, 4)}, 1),
        ({"without": (4,), "without_ffn": (0, 4)}, 4),  # the last layer has nothing at all
        ({"without": (), "without_ffn": (4,)}, 5),
    ],
    ids=["first", "but one", "an FFN too", "last FFN"],
)
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_whatever_half_is_missing(family: str, absent: dict[str, Any], caches: int, tmp_path: Path) -> None:
    report = export_genai(decoder(family, widths={}, **absent), tmp_path / "out", provider="cpu")
    assert report.caches == caches
    assert report.relative_error is not None
    assert report.relative_error < 1e-5


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen2"])
def test_windows(family: str, tmp_path: Path) -> None:
    """What lies before the window is not seen; in Qwen2 the last layers have one. Caches are whole."""
    own = {"use_sliding_window": True, "max_window_layers": 2} if family == "qwen2" else {}
    model, out = decoder(family, sliding_window=6, **own), tmp_path / "out"
    export_genai(model, out, provider="cpu")
    found = [
        attribute.i
        for node in onnx.load(out / "model.onnx").graph.node
        for attribute in node.attribute
        if attribute.name == "local_window_size"
    ]
    assert found == ([-1, 6, 6] if family == "qwen2" else [6, 6, 6])
    assert generated(out, PROMPT, 40) == greedy(model, PROMPT, 40)


@pytest.mark.parametrize(("precision", "bound"), [("int8", 1e-1), ("int4", 5e-1)])
def test_smaller_weights(precision: str, bound: float, tmp_path: Path) -> None:
    report = export_genai(decoder(), tmp_path / "out", precision=precision, provider="cpu")
    assert report.relative_error is not None
    assert 0 < report.relative_error < bound
    assert len(generated(tmp_path / "out", PROMPT, 12)) <= 12
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert "MatMulNBits" in operators
    assert "GroupQueryAttention" in operators


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_bfloat16_model_with_tied_weights_is_written_in_float32(family: str, tmp_path: Path) -> None:
    """The file computes better than torch does: it is held within bfloat16's rounding."""
    model = decoder(family, dtype=torch.bfloat16, tie_word_embeddings=True)
    report = export_genai(model, tmp_path / "out", precision="fp32", provider="cpu")
    assert report.relative_error is not None
    assert report.relative_error < 3e-2
    names = {each.name for each in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert "model.embed_tokens.weight" not in names


@pytest.mark.parametrize(
    "rotation",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
    ids=lambda each: each["rope_type"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rotations(family: str, rotation: dict[str, Any], tmp_path: Path) -> None:
    model = decoder(family, rope_parameters={"rope_theta": 10000.0, **rotation})
    report = export_genai(model, tmp_path / "out", provider="cpu")
    assert report.relative_error is not None
    assert report.relative_error < 1e-5


def test_a_rotation_that_depends_on_the_length(tmp_path: Path) -> None:
    model = decoder(rope_parameters={"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(InputError, match="rotates positions by dynamic scaling, .* do not know for llama"):
        export_genai(model, tmp_path / "out", provider="cpu")
    assert not list(tmp_path.iterdir())
