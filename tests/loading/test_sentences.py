"""What a user is told when a checkpoint cannot be loaded as asked, and placing on devices."""

from __future__ import annotations

import importlib.util
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxfuse
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.tensors import Tensors
from fxfuse.errors import InputError
from fxfuse.loading.building import build
from fxfuse.loading.devices import device_in
from fxfuse.loading.filling import fill
from tests.loading import small
from tests.loading.test_families import logits


def told(folder: Path, **words: Any) -> str:
    with pytest.raises(InputError) as caught:
        fxfuse.load_pretrained(folder, **words)
    return str(caught.value)


@pytest.mark.parametrize("asked", ["float12", "int8", torch.int32, "nn", 7])
def test_no_type_of_weights(asked: Any, tmp_path: Path) -> None:
    small.make(tmp_path)
    assert told(tmp_path, dtype=asked) == (
        f"Weights cannot be loaded as {asked}: give dtype= as float32, float16, bfloat16 or float64."
    )


@pytest.mark.parametrize("asked", ["gpu", "cuda:99", {"": "gpu"}, 99])
def test_no_device(asked: Any, tmp_path: Path) -> None:
    small.make(tmp_path)
    device = asked[""] if isinstance(asked, dict) else asked
    found = told(tmp_path, device_map=asked)
    assert found.startswith(f"There is no device {device!r} here (")
    assert found.endswith("): name another in device_map.")


def test_weights_on_disk(tmp_path: Path) -> None:
    small.make(tmp_path)
    assert told(tmp_path, device_map={"model": "disk", "": "cpu"}) == (
        "Weights are not left on disk while a model runs: name a device, or 'cpu' for what fits no other."
    )


def test_a_map_with_a_hole(tmp_path: Path) -> None:
    small.make(tmp_path)
    assert told(tmp_path, device_map={"model": "cpu"}) == (
        "device_map says nothing of lm_head.weight: name a module that holds it, or '' for the rest."
    )


def test_no_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.make(tmp_path)
    original = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return None if name == "accelerate" else original(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    expected = (
        "A model is spread over several devices by the package accelerate: install it with pip install "
        "accelerate, or name one device."
    )
    assert told(tmp_path, device_map="auto") == expected
    assert told(tmp_path, device_map={"model": "cpu", "lm_head": "meta"}) == expected


@pytest.mark.parametrize("found", [None, types.SimpleNamespace(__version__="4.57.1")])
def test_no_transformers_or_an_old_one(found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.make(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", found)
    assert told(tmp_path) == (
        "Checkpoints are loaded as models of transformers 5 or newer: install it with pip install "
        "'fxfuse[checkpoints]'."
    )


def test_a_value_that_transformers_does_not_take(tmp_path: Path) -> None:
    made = small.make(tmp_path)
    made.configure(initializer_range="small")
    found = told(tmp_path)
    assert found.startswith(f"transformers does not take the config.json of {tmp_path} (")
    assert found.endswith("): correct it.")
    assert "initializer_range" in found


def test_tensors_that_do_not_fit_the_model(tmp_path: Path) -> None:
    """`open_checkpoint` tells of these before; here another file is read into a model."""
    small.make(tmp_path)
    model = build(open_checkpoint(tmp_path), torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    on_cpu = partial(device_in, {"": torch.device("cpu")})
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: torch.zeros(8, small.HIDDEN)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        fill(model, Tensors(tmp_path), on_cpu)
    assert str(caught.value) == (
        f"{name} in {tmp_path / 'model.safetensors'} has the shape [8, 64] where the config asks for "
        "[256, 64]: correct the config."
    )
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        fill(model, Tensors(tmp_path), on_cpu)
    assert str(caught.value) == f"{tmp_path} holds no {name}: copy the checkpoint anew."


@pytest.mark.parametrize(
    "device_map", ["cpu", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}]
)
def test_one_device(device_map: Any, tmp_path: Path) -> None:
    made = small.make(tmp_path)
    model = fxfuse.load_pretrained(tmp_path, device_map=device_map)
    assert {each.device.type for each in (*model.parameters(), *model.buffers())} == {"cpu"}
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)


@pytest.mark.parametrize("device_map", ["auto", "sequential"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, the model goes there")
def test_spread_over_the_devices_that_are_there(device_map: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    made = small.make(tmp_path)
    model = fxfuse.load_pretrained(tmp_path, device_map=device_map)
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)
