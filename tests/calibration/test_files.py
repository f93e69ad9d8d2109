"""Files: ids in .npy, .npz and .safetensors, text and JSON lines with every kind of tokenizer."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fxfuse.calibration import Calibration
from fxfuse.errors import InputError

IDS = np.arange(60).reshape(20, 3)
WORDS = ["<s>", "</s>", "?", *(f"w{index}" for index in range(200))]


def rows(found: Calibration, name: str = "input_ids") -> list[list[int]]:
    return sorted(row.tolist() for batch in found.batches for row in batch[name])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """w0 is token 3; a text of its own starts with <s>, 0, and documents end with </s>, 1."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="?")


def words(start: int, end: int) -> str:
    return " ".join(f"w{index}" for index in range(start, end))


# -- arrays ----------------------------------------------------------------------------------------


def write_npy(path, **arrays):
    np.save(path, *arrays.values())


def write_npz(path, **arrays):
    np.savez(path, **arrays)


def write_safetensors(path, **arrays):
    save_file({name: torch.tensor(array) for name, array in arrays.items()}, path)


WRITERS = {".npy": write_npy, ".npz": write_npz, ".safetensors": write_safetensors}


@pytest.mark.parametrize("name", ["arr_0", "input_ids", "tokens"])
@pytest.mark.parametrize("ending", WRITERS)
def test_one_array_is_one_of_ids(tmp_path, ending, name):
    path = tmp_path / f"data{ending}"
    for array in (IDS, IDS.ravel()):
        WRITERS[ending](path, **{name: array})
        found = Calibration.of(str(path), context=3)
        assert rows(found) == IDS.tolist()
        assert found.source == str(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_several_arrays_are_inputs_by_name(tmp_path, ending):
    path = tmp_path / f"data{ending}"
    WRITERS[ending](path, input_ids=IDS, position_ids=IDS + 100, labels=IDS)
    found = Calibration.of(path)
    assert list(found.fit[0]) == ["input_ids", "position_ids"]
    assert rows(found, "position_ids") == (IDS + 100).tolist()
    assert found.notes == ("'labels' was left out: no labels are needed.",)


def test_floats_are_a_models_inputs_under_their_name(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=values)
    assert list(Calibration.of(tmp_path / "a.npz").fit[0]) == ["x"]
    np.savez(tmp_path / "b.npz", values)
    assert list(Calibration.of(tmp_path / "b.npz").fit[0]) == ["0"]
    save_file({"x": torch.tensor(values).bfloat16()}, tmp_path / "c.safetensors")
    assert Calibration.of(tmp_path / "c.safetensors").fit[0]["x"].dtype == torch.bfloat16


def test_a_large_stream_is_never_read_whole(tmp_path):
    path = tmp_path / "large.npy"
    stream = np.lib.format.open_memmap(path, "w+", np.uint16, (1 << 31,))  # 4 GiB that nobody wrote
    stream[-1000:] = np.arange(1000)
    del stream
    with pytest.raises(InputError, match="holds one window where two different ones are needed"):
        Calibration.of(path, max_tokens=5120)


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.py", "README"])
def test_text_as_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(100)))
    found = Calibration.of(tmp_path / name, tokenizer="bytes", context=10)
    assert rows(found) == np.arange(100).reshape(10, 10).tolist()


def test_bytes_need_not_be_text_in_a_txt_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(250)))
    assert rows(Calibration.of(tmp_path / "a.txt", tokenizer="bytes", context=10))[-1][-1] == 249


def test_text_with_a_tokenizer_of_transformers_starts_each_window_as_the_model_expects(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 40))
    found = Calibration.of(path, tokenizer=tokenizer, context=11)
    assert rows(found) == [[0, *range(start, start + 10)] for start in range(3, 43, 10)]


def test_a_tokenizer_is_loaded_from_its_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text(words(0, 40))
    for given in (tmp_path / "tokenizer", str(tmp_path / "tokenizer")):
        found = Calibration.of(tmp_path / "a.txt", tokenizer=given, context=11)
        assert rows(found)[0][:3] == [0, 3, 4]


def test_a_function_is_a_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3 4 5 6 7 8")
    found = Calibration.of(tmp_path / "a.txt", tokenizer=lambda text: list(map(int, text.split())), context=2)
    assert rows(found) == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_a_long_text_is_read_no_further_than_needed(tmp_path):
    path, seen = tmp_path / "a.txt", []
    path.write_text("".join(f"{index:09}\n" for index in range(200_000)))

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [int(line) for line in text.splitlines()]

    found = Calibration.of(path, tokenizer=encode, context=100, max_tokens=1000)
    assert len(seen) == 1
    assert sorted(token for row in rows(found) for token in row) == list(range(1000))
    seen.clear()
    found = Calibration.of(path, tokenizer=encode, context=100)
    assert len(seen) > 5
    assert found.tokens + found.held_out_tokens == 200_000


# -- JSON lines ------------------------------------------------------------------------------------


def lines(path, *entries):
    path.write_text("".join(f"{json.dumps(entry)}\n\n" for entry in entries))
    return path


PARTS = [{"type": "text", "text": "w4"}, {"type": "image"}, {"type": "text", "text": " w5"}]


@pytest.mark.parametrize(
    "entries",
    [
        [{"text": words(0, 3)}, {"text": words(3, 6)}],
        [{"content": words(0, 3)}, {"id": 7, "content": words(3, 6)}],
        [{"messages": [{"role": "user", "content": "w0 w1"}, {"content": "w2"}]}, {"text": words(3, 6)}],
        [{"text": words(0, 3)}, {"messages": [{"content": "w3"}, {"content": PARTS}]}],
        [words(0, 3), words(3, 6)],
    ],
)
def test_every_document_of_json_lines_ends_as_the_tokenizer_says(tmp_path, tokenizer, entries):
    path = lines(tmp_path / "a.jsonl", *entries)
    found = Calibration.of(path, tokenizer=tokenizer, context=5)
    assert rows(found) == [[0, 3, 4, 5, 1], [0, 6, 7, 8, 1]]
    (tmp_path / "b.json").write_text(f" {json.dumps(entries)}")
    assert rows(Calibration.of(tmp_path / "b.json", tokenizer=tokenizer, context=5)) == rows(found)
    assert rows(Calibration.of(iter(entries), tokenizer=tokenizer, context=5)) == rows(found)


def test_messages_take_the_models_own_template(tmp_path, tokenizer):
    path = lines(tmp_path / "a.jsonl", *[{"messages": [{"role": "w9", "content": "w1"}]}] * 2)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="holds one window"):  # the two are the same
        Calibration.of(path, tokenizer=tokenizer, context=3)
    assert rows(Calibration.of(path, tokenizer=tokenizer, context=2)) == [[1, 12], [4, 1], [12, 4]]


def test_ids_in_json_lines_need_no_tokenizer(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3]}, {"input_ids": [4]}, {"input_ids": [5, 6]})
    assert rows(Calibration.of(path, context=2)) == [[1, 2], [3, 4], [5, 6]]


def test_json_lines_with_bytes_end_each_document_with_a_zero(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "abc"}, {"text": "def"})
    assert rows(Calibration.of(path, tokenizer="bytes", context=4)) == [[97, 98, 99, 0], [100, 101, 102, 0]]


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("gone.npz", None, "There is no calibration file .*gone.npz: check the path"),
        ("a.npz", b"", "The calibration file .*a.npz is empty"),
        ("a.npz", b"no archive", "a.npz is no .npz file: write it with numpy.savez"),
        ("a.npy", b"no array", "a.npy is no .npy file of numbers: write it with numpy.save"),
        ("a.safetensors", b"no tensors", "a.safetensors is no .safetensors file: write it with safetensors"),
        ("a.parquet", b"PAR1\xff\xfe", "a.parquet is of no known type: give .npy, .npz or .safetensors with"),
        ("a.txt", b"text", 'Text needs a tokenizer: give one of transformers, its folder, or "bytes"'),
        ("a.jsonl", b'{"text": "a"}', "Text needs a tokenizer"),
        ("a.jsonl", b'{"text": "a"}\nno', r"Line 2 of .*a.jsonl is no JSON \(Expecting value\): write one"),
        ("a.json", b"[1, 2", "a.json is no JSON"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl is no text in UTF-8: write JSON lines"),
        ("a.jsonl", b'{"words": "a"}', 'Line 1 of .* has no "text", "content", "messages" or "input_ids"'),
        ("a.jsonl", b"7", 'Line 1 of .* has no "text"'),
        ("a.json", b'[{"text": "a"}, 7]', 'Element 2 of .* has no "text"'),
        ("a.jsonl", b'{"text": 7}', 'Line 1 of .* has "text" that is no text'),
        (
            "a.jsonl",
            b'{"input_ids": [0.5]}',
            'Line 1 of .* has "input_ids" that are no list of whole numbers',
        ),
        ("a.jsonl", b'{"messages": ["hi"]}', 'Line 1 of .* has "messages" that are no list of turns'),
        ("a.jsonl", b"\n\n", "a.jsonl is empty: give at least two windows of token ids"),
        ("a.jsonl", b'{"input_ids": [1]}', "a.jsonl holds 1 tokens, too few for two windows of 256"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_sentence(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        Calibration.of(tmp_path / name, tokenizer=None if "tokenizer" in reason else "bytes")


def test_a_folder_and_an_archive_under_another_name_are_told(tmp_path):
    with pytest.raises(InputError, match="is a folder: give a file in it"):
        Calibration.of(tmp_path)
    np.savez(tmp_path / "a.npz", IDS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(InputError, match="a.npy is an .npz archive: name it so"):
        Calibration.of(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "tokenizer, reason",
    [
        (7, 'A tokenizer must be one of transformers, a function from text to token ids or "bytes", not int'),
        ("gone/folder/of/none", "The tokenizer gone/folder/of/none cannot be loaded .*: give its folder"),
        (__file__, "The tokenizer .*test_files.py is a file: give the folder that it lies in"),
        (lambda text: text, "The tokenizer must give a list of token ids for a text"),
        (lambda text: [[1], [2, 3]], "The tokenizer must give a list of token ids for a text"),
    ],
)
def test_a_tokenizer_that_is_none_is_told(tmp_path, tokenizer, reason):
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(InputError, match=reason):
        Calibration.of(tmp_path / "a.txt", tokenizer=tokenizer)


def test_text_that_is_not_in_utf8_is_told(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"The text is not in UTF-8 \(byte 0xe9\): convert it"):
        Calibration.of(tmp_path / "a.txt", tokenizer=tokenizer)


@pytest.mark.parametrize("package, name", [("transformers", "a.txt"), ("safetensors", "a.safetensors")])
def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_text("some text")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=f"needs the package {package}: install it with pip install {package}"
    ):
        Calibration.of(tmp_path / name, tokenizer="some/folder")
