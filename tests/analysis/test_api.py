"""`analyze` on a model in every form that a user may have it in, its JSON, and what it refuses."""

import functools
import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import fx

import fxfuse
from fxfuse.analysis.reading import read_analysis
from fxfuse.analysis.table import draw
from fxfuse.calibration import Calibration
from fxfuse.cli import main
from fxfuse.errors import InputError
from fxfuse.frontends.programs import save_program
from fxfuse.frontends.torch_model import export_module
from fxfuse.table import plain
from tests import families
from tests.analysis.hand import CHAINS, NAMES, VOCAB, forward, kl, tiny, windows
from tests.small_onnx import Small, save

IDS = windows(20, 5)
OPTIONS = {"context": 12, "batch_size": 4}


@functools.cache
def program():
    return export_module(tiny(), {"input_ids": IDS[:4]})


@functools.cache
def analysis() -> fxfuse.Analysis:
    return fxfuse.analyze(program(), IDS, **OPTIONS)


def assert_same(found: fxfuse.Analysis, expected: fxfuse.Analysis, relative: float = 1e-3) -> None:
    """Hold all figures of two analyses against each other."""
    assert [each.blocks for each in found.chains] == [each.blocks for each in expected.chains]
    assert len(found.segments) == len(expected.segments)
    for one, other in zip(found.segments, expected.segments, strict=True):
        for name in (
            "drift",
            "relative_error",
            "cosine_distance",
            "dependency",
            "kl",
            "kl_error",
            "predicted_kl",
        ):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=relative, abs=1e-7), name
    for one, other in zip(found.attention, expected.attention, strict=True):
        assert (one.name, one.cosine) == (other.name, pytest.approx(other.cosine, rel=relative))
        assert (one.kl, one.kl_error) == pytest.approx((other.kl, other.kl_error), rel=relative, abs=1e-7)
    ours, theirs = found.dependency, expected.dependency
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert np.allclose(ours.matrix, theirs.matrix, rtol=relative, atol=1e-6)


# What an analysis holds


def test_facts():
    found = analysis()
    assert found.model == "ExportedProgram"
    assert (found.tokens, found.held_out_tokens, found.seed) == (192, 48, 0)
    assert [list(each.blocks) for each in found.chains] == NAMES
    assert found.chains[1].intermediate_sizes == (64, 72)
    assert found.chains[1].weight_bytes == (3 * 32 * 64 * 4, 3 * 32 * 72 * 4)
    assert found.id.hidden_size == 32
    assert found.id.blocks == tuple((f"layers.{i}.mlp", 24 + 8 * i) for i in range(7))
    assert [name for _, name in found.updates] == list(forward(tiny(), IDS[:1]).added)
    assert found.notes == []
    assert found.versions["torch"] == torch.__version__
    assert found.seconds > 0


def test_every_segment_is_there_once_with_all_its_figures():
    found = analysis()
    expected = {(c, a, b) for c, chain in enumerate(CHAINS) for a, b in combinations(range(len(chain)), 2)}
    assert {(each.chain, each.first, each.last) for each in found.segments} == expected
    assert len(found.segments) == len(expected)
    for each in found.segments:
        assert each.kl is not None
        assert each.kl_error is not None
        assert 0 < each.kl_error < each.kl < 1
        assert each.predicted_kl == pytest.approx(each.kl, rel=2)
        assert each.loss == each.kl


def test_kl_is_that_of_the_part_held_out():
    data = Calibration.of(IDS, **OPTIONS)
    held = torch.cat([batch["input_ids"] for batch in data.held_out])
    original = forward(tiny(), held).logits
    for each in analysis().segments:
        layers = CHAINS[each.chain][each.first : each.last + 1]
        expected, error = kl(original, forward(tiny(), held, groups=[layers]).logits)
        assert (each.kl, each.kl_error) == pytest.approx((expected, error), rel=1e-3)


def test_dependency_of_a_segment_is_the_sum_over_its_pairs():
    found = analysis()
    assert found.dependency is not None
    for each in found.segments:
        places = [
            found.dependency.names.index(name) for name in NAMES[each.chain][each.first : each.last + 1]
        ]
        expected = sum(found.dependency.matrix[i][j] for i, j in combinations(places, 2))
        assert each.dependency == pytest.approx(expected)


# Every form of a model


def test_a_module_is_exported():
    assert_same(fxfuse.analyze(tiny(), IDS, **OPTIONS), analysis())


def test_a_graph_module():
    module = program().module()
    assert isinstance(module, fx.GraphModule)
    assert_same(fxfuse.analyze(module, IDS, **OPTIONS), analysis())


def test_a_program_file(tmp_path):
    save_program(program(), tmp_path / "tiny.pt2")
    found = fxfuse.analyze(tmp_path / "tiny.pt2", IDS, segments=None, dependency=False, **OPTIONS)
    assert found.model == str(tmp_path / "tiny.pt2")
    assert [each.drift for each in found.segments] == pytest.approx(
        [each.drift for each in analysis().segments]
    )


def test_a_function_that_makes_a_model(tmp_path):
    maker = tmp_path / "made_for_analysis.py"
    maker.write_text(
        "from tests.analysis.hand import tiny, windows\n\ndef make():\n    return tiny(), (windows(1),)\n"
    )
    found = fxfuse.analyze(
        f"{maker}:make", IDS, segments="none", dependency=False, attention=False, **OPTIONS
    )
    assert [each.cosine for each in found.attention] == pytest.approx(
        [a.cosine for a in analysis().attention]
    )


def test_an_onnx_file(onnx_path):
    found = fxfuse.analyze(onnx_path, IDS, provider="cpu", **OPTIONS)
    assert_same(found, analysis())
    assert found.id == analysis().id


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3_moe"])
def test_decoders_of_transformers(family):
    found = fxfuse.analyze(families.build(family), windows(8, context=10), batch_size=4, context=10)
    assert [len(each.blocks) for each in found.chains] == list(families.FAMILIES[family].chains)
    assert all(each.kl is not None and 0 <= each.kl < 1 for each in found.segments)
    assert len(found.attention) == 2


def test_a_file_that_fixes_its_sizes(onnx_file):
    """Windows are cut as the file takes them, and too few for a whole batch are left out."""
    path = onnx_file("llama")
    found = fxfuse.analyze(
        path, windows(1, context=7 * 13)[0], provider="cpu", held_out=0.3, dependency=False
    )
    assert (found.tokens, found.held_out_tokens) == (7 * 8, 7 * 4)
    assert found.segments[0].kl is not None


# What is asked for


def test_pairs_are_measured_and_the_rest_is_predicted():
    found = fxfuse.analyze(program(), IDS, segments="pairs", dependency=False, attention=False, **OPTIONS)
    measured = [(each.chain, each.first, each.last) for each in found.segments if each.kl is not None]
    assert measured == [(0, 0, 1), (0, 0, 3), (0, 1, 2), (0, 2, 3), (1, 0, 1)]
    assert all(each.predicted_kl is not None for each in found.segments)
    assert all(each.loss == (each.kl or each.predicted_kl) for each in found.segments)
    assert (found.dependency, found.segments[0].dependency) == (None, None)
    assert all(each.kl is None and each.cosine > 0 for each in found.attention)


def test_nothing_measured_at_the_logits():
    found = fxfuse.analyze(program(), IDS, segments="none", dependency=False, attention=False, **OPTIONS)
    assert all(each.kl is None and each.predicted_kl is None for each in found.segments)
    assert found.segments[0].drift == pytest.approx(analysis().segments[0].drift)
    assert math.isinf(found.segments[0].loss)


def test_a_model_without_logits():
    pixels = {"pixel_values": torch.randn(8, 3, 32, 32)}
    found = fxfuse.analyze(families.build("vit"), pixels, batch_size=4)
    assert found.notes == ["no KL was measured: no output of the model looks like logits"]
    assert all(each.kl is None and each.drift > 0 for each in found.segments)
    assert found.dependency is not None


def test_a_model_without_chains():
    found = fxfuse.analyze(
        families.build("llama", removed=()), windows(8, context=10), batch_size=4, context=10
    )
    assert (found.chains, found.segments) == ([], [])
    assert [each.kl is not None for each in found.attention] == [True] * 5
    assert len(found.id.blocks) == 5


def test_progress_tells_every_step():
    steps: list[str] = []
    fxfuse.analyze(program(), IDS, progress=steps.append, **OPTIONS)
    told = {step.split(":")[0] for step in steps}
    assert told >= {
        "reading the data", "reading the model",
        "running the model on the data to fit on", "running the model on the data held out",
        "measuring local errors", "measuring segments", "leaving out attention", "measuring dependencies",
    }  # fmt: skip


# What is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"segments": "some"}, "segments must be one of auto, all, pairs, none, not 'some'"),
        ({"kl_tokens": 0}, "kl_tokens must be 1 or more, or None for all, not 0"),
        ({"memory": -1}, "memory bound must be 0 bytes or more"),
    ],
)
def test_options_that_are_none(options, told):
    with pytest.raises(InputError, match=told):
        fxfuse.analyze(program(), IDS, **OPTIONS, **options)


@pytest.mark.parametrize("form", ["program", "onnx"])
def test_tokens_outside_the_vocabulary(form, onnx_path):
    ids = IDS.clone()
    ids[3, 4] = VOCAB
    model = program() if form == "program" else onnx_path
    with pytest.raises(InputError, match=f"token id {VOCAB} .* outside the model's vocabulary of {VOCAB}"):
        fxfuse.analyze(model, ids, provider="cpu", **OPTIONS)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("no_such.onnx", "There is no model file no_such.onnx"),
        ("no_such.pt2", "There is no model file no_such.pt2"),
        (
            "no_such",
            "no_such is no model: give an .onnx file, a .pt2 file of torch.export, or module:function",
        ),
        ("no_such_module:make", "no_such_module cannot be imported"),
    ],
)
def test_models_that_are_none(model, told):
    with pytest.raises(InputError, match=told):
        fxfuse.analyze(model, IDS, **OPTIONS)


def test_a_program_of_other_sizes():
    with torch.no_grad():
        fixed = torch.export.export(tiny(), (IDS[:2],), strict=False)
    with pytest.raises(
        InputError, match=r"takes input_ids of the shape \[2, 12\] and the data come as \[4, 12\]"
    ):
        fxfuse.analyze(fixed, IDS, **OPTIONS)
    found = fxfuse.analyze(
        fixed, IDS, segments=None, dependency=False, attention=False, batch_size=2, context=12
    )
    assert found.segments[0].drift == pytest.approx(analysis().segments[0].drift)


def test_too_few_windows_for_a_file_that_fixes_them(onnx_file):
    with pytest.raises(InputError, match="takes 2 windows at a time, and the data give fewer"):
        fxfuse.analyze(onnx_file("llama"), windows(1, context=7 * 3)[0], provider="cpu")


# JSON


def test_json_round_trip(tmp_path):
    path = tmp_path / "analysis.json"
    path.write_text(analysis().to_json())
    for found in (read_analysis(path), fxfuse.Analysis.from_json(path.read_text())):
        assert found == analysis()
        assert isinstance(found.segments[0].chain, int)


def edited(**changes) -> str:
    data = json.loads(analysis().to_json()) | changes
    return json.dumps({name: value for name, value in data.items() if value != "gone"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no analysis: it is not JSON; make one with fxfuse analyze"),
        ("[1]", "is no analysis: it says no kind"),
        ("{}", "is no analysis: it says no kind"),
        ('{"kind": "fxfuse plan"}', "is no analysis: it is of the kind 'fxfuse plan'"),
        (edited(format=2), "is an analysis of format 2, and this fxfuse reads format 1"),
        (edited(id="gone"), "cannot be used as an analysis: 'id' is missing"),
        (edited(colour=1), "it holds 'colour', which is no part of one"),
        (edited(segments=[{"chain": 0}]), "missing 5 required positional arguments"),
        (edited(segments=[{"chain": 0, "size": 3}]), "Segment has no field 'size'"),
        (edited(segments=[{"chain": "a"}]), "chain of a Segment must be a number, not 'a'"),
        (edited(chains=[]), "it has a segment 0 to 1 of chain 0, which is not there"),
        (edited(attention=3), "cannot be used as an analysis: 'int' object is not iterable"),
    ],
)
def test_files_that_are_no_analysis(tmp_path, text, told):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_analysis(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_places_that_hold_no_analysis(tmp_path):
    with pytest.raises(InputError, match="There is no analysis .*: check the path, or make one"):
        read_analysis(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_analysis(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="it is no text"):
        read_analysis(tmp_path / "a.json")


# The screen


def test_table():
    text = plain(draw(analysis()), 110)
    assert "ExportedProgram: chains of 4 + 2 FFN blocks" in text
    assert "layers.1-4.mlp: KL in nats at the logits of each group alone fused, ±" in text
    assert "first block   2 blocks  3 blocks  4 blocks" in text
    assert "rank correlation with the measured KL: predicted KL" in text
    assert "least is lost without layers." in text
    assert "192 tokens to fit on, 48 held out, of" in text
    assert "~" not in text


def test_table_of_predictions_and_of_drift():
    options = {"dependency": False, "attention": False, **OPTIONS}
    text = plain(draw(fxfuse.analyze(program(), IDS, segments="pairs", **options)), 110)
    assert "; ~ is predicted" in text
    assert "  ~0.0" in text
    text = plain(draw(fxfuse.analyze(program(), IDS, segments="none", **options)), 110)
    assert "input drift of each group, which ranks them; no KL was measured" in text
    assert "most alike before and after: layers." in text


def test_command_line(tmp_path, onnx_path, capsys):
    np.save(tmp_path / "ids.npy", IDS.numpy())
    words = ["analyze", str(onnx_path), "--data", str(tmp_path / "ids.npy"), "--provider", "cpu"]
    words += ["--context", "12", "--batch-size", "4", "-o", str(tmp_path / "a.json")]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())  # a long folder's name folds the line
    assert "chains of 4 + 2 FFN blocks" in out
    found = read_analysis(tmp_path / "a.json")
    assert_same(found, analysis())
    assert found.command == " ".join(["fxfuse", *words])
    assert found.source == str(tmp_path / "ids.npy")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: --data"),
        (["--data", "no.npy"], "no.npy"),
        (["--data", "ids.npy", "-o", "ids.npy"], "The analysis would overwrite ids.npy"),
        (["--data", "ids.npy", "--segments", "few"], "invalid choice: 'few'"),
        (["--data", "ids.npy", "--kl-tokens", "-1"], "--kl-tokens must be 1 or more"),
    ],
)
def test_command_line_refuses(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    np.save("ids.npy", windows(8).numpy() % 32)
    save(tmp_path / "m.onnx", Small().model())
    assert main(["analyze", "m.onnx", *words]) == 2
    assert told in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ids.npy", "m.onnx"]
