"""tools/bench.py: whose turn it is, what is written, and one short run from end to end."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxfuse.timing.rounds import Timing
from fxfuse.timing.workers import LEAST_CALLS, Failure, Worker
from tools.benchmark import contest, results
from tools.benchmark.cases import CASES, PAIRS, QUICK, Case, Settings, contestants_on, dtype_of
from tools.benchmark.contest import Result, measure
from tools.benchmark.hosting import FACTORY
from tools.benchmark.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
MACHINE = Machine("CPU 9", 2, 8.0, None, "Linux", 0.1)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


# Turns


class FakeWorker:
    """Notes each request; the contestant named in `failing` fails at that request."""

    log: list[tuple[str, str]] = []
    failing = ("", "")

    def __init__(self, _: str, name: str, *__: object) -> None:
        self.name = name

    def ask(self, request: str, *_: object) -> object:
        self.log.append((request, self.name))
        if self.failing == (self.name, request):
            raise Failure("no memory")
        return {"prepare": (1e-7, [8] if "fxfuse" in self.name else []), "round": [1e-3]}.get(request)

    def dismiss(self) -> None:
        pass

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(contest, "Worker", FakeWorker)
    monkeypatch.setattr(contest, "_write_files", lambda *_: [8])
    monkeypatch.setattr(FakeWorker, "log", [])
    return FakeWorker


def test_contestants_take_turns_and_the_order_turns_round(workers: type[FakeWorker]):
    (result,) = measure([Case("chain-256", 1)], Settings(rounds=3, pause=0.0))
    names = contestants_on("cpu")
    turns = [name for request, name in workers.log if request == "round"]
    assert turns == [*names, *reversed(names), *names]
    assert {title: ratio.rounds for title, ratio in result.ratios.items()} == {
        "torch.compile": (1.0, 1.0, 1.0),
        "ONNX Runtime": (1.0, 1.0, 1.0),
    }
    assert result.groups == {"onnx-fused": [8], "fxfuse": [8]}


@pytest.mark.parametrize("request_", ["open", "prepare", "round"])
def test_a_contestant_that_fails_is_told_and_the_others_go_on(
    workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch, request_: str
):
    monkeypatch.setattr(workers, "failing", ("fxfuse", request_))
    settings = Settings(rounds=2, pause=0.0)
    found = list(measure([Case("chain-256", 1), Case("chain-256", 8)], settings))
    for result in found:
        assert result.failures == {"fxfuse": "no memory"}
        assert set(result.timings) == set(contestants_on("cpu")) - {"fxfuse"}
        assert set(result.ratios) == {"ONNX Runtime"}
    json.dumps(results.to_dict(found, settings, MACHINE), allow_nan=False)
    console = Console(width=110, file=io.StringIO())
    console.print(results.draw(found, settings, MACHINE))
    assert "failed: chain-256/8, torch.compile, fxfuse: no memory" in console.file.getvalue()


def test_a_process_says_why_it_fails_and_serves_on(tmp_path: Path):
    with Worker(FACTORY, "onnx", "chain-256", tmp_path, Settings()) as worker:
        for _ in range(2):
            with pytest.raises(Failure, match="InputError: There is no model file"):
                worker.ask("open")
        worker._process.kill()
        with pytest.raises(Failure, match="exit code -9"):
            worker.ask("open")


# What is run and what is written


def test_cases_of_a_model_stand_together_and_pairs_share_a_type():
    models = [case.model for case in CASES]
    assert [model for i, model in enumerate(models) if model not in models[:i]] == [
        "demo",
        "chain-256",
        "chain-1024",
    ]
    assert set(QUICK) <= set(CASES)
    for pair in PAIRS:
        assert dtype_of(pair.unfused, "cuda") == dtype_of(pair.fused, "cuda")
    assert {name for pair in PAIRS for name in (pair.unfused, pair.fused)} < set(contestants_on("cuda"))


def test_an_older_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "new" / "cpu.json"
    result = Result(QUICK[0], {name: Timing.of([[1e-3]]) for name in contestants_on("cpu")})
    for _ in range(2):
        results.write(results.to_dict([result], Settings(rounds=1), MACHINE), path)
    assert [each.name for each in path.parent.iterdir()] == ["cpu.json"]
    assert json.loads(path.read_text())["schema"] == results.SCHEMA


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--cases", "demo/7"), "no case matches"),
        (("--cases", "("), "not a regular expression"),
        (("--rounds", "0"), "less than 1"),
        pytest.param(
            ("--device", "cuda"),
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_cannot_be_run_is_told_at_once(tmp_path: Path, arguments: tuple[str, ...], message: str):
    done = run_bench(*arguments, "--output", str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_short_run_measures_checks_and_writes(tmp_path: Path):
    done = run_bench("--quick", "--cases", "chain-256/8", "--threads", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chain-256/8" in done.stdout
    assert "above 1 the fused form is faster" in " ".join(done.stdout.split())
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert content["settings"] == {**content["settings"], "device": "cpu", "threads": 1, "rounds": 2}
    assert content["machine"]["cores"] >= 1
    assert {"torch", "onnxruntime", "fxfuse"} <= {name.removesuffix("-gpu") for name in content["versions"]}
    (case,) = content["cases"]
    names = set(contestants_on("cpu"))
    assert (case["name"], case["failures"]) == ("chain-256/8", {})
    assert set(content["contestants"]) == set(case["timings"]) == set(case["relative_errors"]) == names
    assert case["fused_groups"] == {"fxfuse": [8], "onnx-fused": [8]}
    assert set(case["ratios"]) == {"torch.compile", "ONNX Runtime"}
    for timing in case["timings"].values():
        assert 0 < timing["p10_us"] <= timing["p50_us"] <= timing["p90_us"]
        assert len(timing["round_p50_us"]) == 2
        assert timing["calls"] >= 2 * LEAST_CALLS
    for ratio in case["ratios"].values():
        assert ratio["least"] <= ratio["median"] <= ratio["greatest"]
