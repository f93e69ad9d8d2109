"""The parts of tools/bench.py: what it times, its judge, its clock and its processes."""

import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fxfuse.timing.workers import Failure
from tools.benchmark.cases import Case, Settings
from tools.benchmark.ceilings import open_meter
from tools.benchmark.crew import Crew
from tools.benchmark.entries import Entry, entries
from tools.benchmark.hosting import LEAST, time_calls
from tools.benchmark.machine import slug
from tools.benchmark.norm_checks import NORMS, open_prober
from tools.benchmark.references import Reference, answers, layers_of
from tools.benchmark.subjects import Wide, build, draw_input, size_of, without_ffns

# Subjects and references


@pytest.mark.parametrize("answer", [np.full(4, np.nan), np.zeros(4), np.full(4, 2.0)])
def test_nan_zeros_and_wrong_answers_are_not_timed(tmp_path: Path, answer: np.ndarray):
    ones = np.ones(4)
    path = tmp_path / "1.npz"
    np.savez(path, input=ones, sequential=2 * ones, parallel=ones)
    reference = Reference(path)
    assert reference.check(ones + 1e-6, "parallel", "float32") == pytest.approx(1e-6)
    with pytest.raises(ValueError, match="wrong answer"):
        reference.check(answer, "parallel", "float32")


def test_references_are_the_chain_in_float64_and_its_parallel_sum():
    """That the two differ lets the check tell whether anything was fused."""
    model = build("chain-256x4")
    x = draw_input(model, 4)
    (found,) = answers(model, [x])
    with torch.no_grad():
        exact = build("chain-256x4").double()
        ffns = [layer.mlp(layer.post_attention_layernorm(x.double())) for layer in exact.layers]
        torch.testing.assert_close(found["sequential"], exact(x.double()))
        torch.testing.assert_close(found["parallel"], x.double() + torch.stack(ffns).sum(0))
        torch.testing.assert_close(Wide(exact).double()(x.double()), found["parallel"])
    difference = (found["parallel"] - found["sequential"]).norm() / found["sequential"].norm()
    assert difference > 10 * Reference.TOLERANCE["float32"]


def test_references_of_parts_of_a_chain():
    model = build("chain-256x4").double()
    x = draw_input(model, 4).double()
    blocks = [["layers.1.mlp", "layers.2.mlp"]]
    groups = layers_of([SimpleNamespace(blocks=each) for each in blocks])
    assert groups == [[1, 2]]
    (found,) = answers(model, [x], groups)
    first, second, third, last = (
        lambda y, layer=layer: layer.mlp(layer.post_attention_layernorm(y)) for layer in model.layers
    )
    with torch.no_grad():
        start = x + first(x)
        wide = start + second(start) + third(start)
        torch.testing.assert_close(found["parallel"], wide + last(wide))
    with pytest.raises(ValueError, match="names no layer"):
        layers_of([SimpleNamespace(blocks=["mlp"])])


def test_references_of_a_whole_model_and_of_the_same_without_ffns():
    model = build("demo")
    x = draw_input(model, 5)
    (found,) = answers(model, [x])
    size = size_of(model)
    assert 0 < size.in_chains < size.weights
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), found["sequential"], rtol=1e-3, atol=1e-3)
        bound = without_ffns(model)
        torch.testing.assert_close(bound(x).double(), found["bound"], rtol=1e-3, atol=1e-3)
    left = sum(part.weight.numel() for part in bound.modules() if isinstance(part, torch.nn.Linear))
    assert left == size.weights - size.in_chains


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_name_gives_the_same_weights_in_the_type(dtype: torch.dtype):
    one, other = (build("chain-256x2", "cpu", dtype).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {tensor.dtype for tensor in one.values()} == {dtype}


def test_a_device_name_becomes_a_file_name():
    assert slug("Intel(R) Xeon(R) CPU @ 2.20GHz 8 cores") == "intel-xeon-cpu-2-20ghz-8-cores"
    assert slug("../") == "unknown"


# The clock


def test_a_round_has_a_least_number_of_calls_and_counts_no_warm_up():
    calls: list[str] = []
    times = time_calls(lambda: calls.append("call"), lambda: calls.append("wait"), 0.0)
    assert len(times) == LEAST
    assert calls == ["call", "wait"] * (LEAST + 1)


def test_queued_calls_are_waited_for_once():
    calls: list[str] = []
    times = time_calls(lambda: calls.append("call"), lambda: calls.append("wait"), 0.0, queued=True)
    assert len(times) == LEAST
    assert calls.count("wait") == LEAST + 1
    assert calls.count("call") > calls.count("wait")


def test_ceilings_are_measured():
    found = open_meter("cpu", 1, small=True).measure()
    assert not found.failures
    assert found.bandwidth == max(found.bandwidths.values()) > 0
    assert set(found.rates) == {"float32", "int8"}


def test_norms_of_large_values_hold_on_the_cpu():
    found = open_prober("cpu").probe()
    assert {one["norm"] for one in found} == set(NORMS)
    assert {one["verdict"] for one in found} == {"good"}


# Processes


def test_a_process_says_why_it_fails_and_another_takes_the_place_of_one_that_ends(tmp_path: Path):
    case, settings = Case("chain-256", 1), Settings(chosen=False)
    (entry,) = (each for each in entries(case, settings) if each.name == "onnx")
    with Crew(settings) as crew:
        crew.ask("onnx", "open", entry, case.model, case.dtype, tmp_path)
        with pytest.raises(Failure, match="FileNotFoundError"):
            crew.ask("onnx", "prepare", entry, 1)
        crew._workers["onnx"].stop()
        with pytest.raises(Failure, match="process ended"):
            crew.ask("onnx", "memory")
        assert not crew.has("onnx")
        assert crew.ask_all({"onnx": [("memory", ()), ("nothing", ())]})["onnx"][0] > 0


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that sleeps while it is imported stands for a compiler that never ends."""
    (tmp_path / "onnxruntime_sleeps.py").write_text(
        textwrap.dedent("""
        import time
        class Held:
            def slow(self): time.sleep(60)
        def open(*_): return Held()
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tools.benchmark.crew.HOST", "onnxruntime_sleeps:open")
    with Crew(Settings()) as crew:
        with pytest.raises(Failure, match="longer than 1 s"):
            crew.ask("sleeper", "slow", patience=1.0)
        assert not crew.has("sleeper")
    assert str(tmp_path) in sys.path


def test_an_entry_names_the_file_that_it_reads():
    assert Entry("a", "", "onnx", "fused", weights="int4").file == "fused-int4.onnx"
    assert Entry("a", "", "onnx", "plain").file == "plain.onnx"


def test_the_page_has_a_part_for_each_other_script() -> None:
    from tools.benchmark.side_pages import side_pages

    machine = {"gpu": None, "cpu": "A processor", "cores": 2}
    ratio = {"median": 1.5, "least": 1.4, "greatest": 1.6}
    corner = {"file_bytes": 1e6, "loss": {"relative_error": 0.1, "relative_error_to_float": 0.05}}
    corners = {
        "kind": "corners", "machine": machine, "versions": {"torch": "2"}, "forms": ["fused-int4"],
        "models": [
            {
                "model": "chain-256", "loss_on": "tokens", "forms": {"fused-int4": corner},
                "points": [{"tokens": 1, "ratios": {"fused-int4": ratio}}],
            }
        ],
    }  # fmt: skip
    (part,) = side_pages([{"kind": "another"}, corners])
    assert "| fused-int4 | 1.0 MB | 1.50 [1.40 to 1.60] | 0.100 | 0.050 |" in part
    assert "faster, 1 token |" in part
