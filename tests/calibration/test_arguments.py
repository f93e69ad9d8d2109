"""The arguments for calibration data, as commands share them."""

import argparse
import subprocess
import sys

import numpy as np
import pytest

from fxfuse.cli.data import add_arguments, memory, read
from fxfuse.errors import InputError
from fxfuse.specs import InputSpec

IDS = InputSpec("input_ids", np.dtype(np.int64), (2, 16))


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def data(tmp_path) -> str:
    np.save(tmp_path / "ids.npy", np.arange(100_000))
    return str(tmp_path / "ids.npy")


def test_defaults(data):
    found = read(options("--data", data))
    assert found.batches[0]["input_ids"].shape == (8, 256)
    assert found.tokens + found.held_out_tokens == 65536
    assert options("--data", data).memory == 2 << 30


def test_every_argument_arrives(data):
    words = "--context 50 --tokens 1000 --batch-size 3 --held-out 0.5 --seed 7"
    found = read(options("--data", data, *words.split()))
    assert found.batches[0]["input_ids"].shape == (3, 50)
    assert (found.tokens, found.held_out_tokens, found.seed) == (500, 500, 7)
    with pytest.raises(InputError, match="outside the model's vocabulary of 100"):
        read(options("--data", data), vocab_size=100)


def test_text_comes_with_a_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(200)))
    found = read(options("--data", str(tmp_path / "a.txt"), "--tokenizer", "bytes", "--context", "20"))
    assert found.tokens == 160


def test_sizes_that_the_model_fixes_are_the_defaults_and_its_inputs_are_filled_in(data):
    mask = InputSpec("attention_mask", np.dtype(np.int64), (2, 16))
    found = read(options("--data", data), specs=[IDS, mask])
    assert found.fit[0]["attention_mask"].shape == (2, 16)
    with pytest.raises(InputError, match="the size 8 at axis 1 where the model expects 16"):
        read(options("--data", data, "--context", "8"), specs=[IDS])


def test_data_that_are_not_given_are_asked_for():
    with pytest.raises(InputError, match="Calibration data are needed: give token ids or text with --data"):
        read(options())


@pytest.mark.parametrize(
    "text, size",
    [
        ("0", 0),
        ("500", 500),
        ("500MB", 500 * 10**6),
        ("1.5g", 1_500_000_000),
        ("2GiB", 2 << 30),
        ("4 KiB", 4096),
    ],
)
def test_sizes(text, size):
    assert memory(text) == size


@pytest.mark.parametrize(
    "words", ["--memory much", "--memory -1", "--memory 5ib", "--context 0", "--tokens 1e4"]
)
def test_arguments_that_are_no_numbers_are_told(words):
    with pytest.raises(argparse.ArgumentError, match="is no (size|number)"):
        options(*words.replace(" ", "=").split())


def test_the_arguments_do_not_wait_for_torch():
    code = "import sys, fxfuse.cli.data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
