"""tools/bench.py: whose turn it is, what is written and drawn, and one short run from end to end."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxfuse.timing.rounds import Timing
from fxfuse.timing.workers import Failure
from tools import bench, performance
from tools.benchmark import contest, results, turns
from tools.benchmark.bars import bars
from tools.benchmark.cases import QUICK, Case, Settings, cases_on, shape_of
from tools.benchmark.ceilings import Ceilings
from tools.benchmark.contest import Clock, Result, measure
from tools.benchmark.entries import Pair, entries, pairs, ratio_of
from tools.benchmark.files import Written
from tools.benchmark.machine import Machine
from tools.benchmark.memory import fitting
from tools.benchmark.results import Run
from tools.benchmark.subjects import Size

ROOT = Path(__file__).resolve().parent.parent
MACHINE = Machine("CPU 9", 2, 8.0, None, "Linux", 0.1)
CEILINGS = Ceilings({"sum": 10.0}, 10.0, "sum", {"float32": 0.1, "float16": 1.0, "int8": 0.2}, 1.0)
CASE = Case("chain-256", 1)
ROUTES = (("ONNX Runtime", ""), ("fp32 unfused /", " fused"))
QUIET = Settings(rounds=3, pause=0.0, chosen=False)
ON_CUDA = Settings("cuda", rounds=2, pause=0.0, chosen=False)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


# Turns


class FakeCrew:
    """Notes each request; the contestant named in `failing` fails at that request."""

    log: list[tuple[str, str]] = []
    failing = ("", "")

    def __init__(self, settings: Settings) -> None:
        pass

    def ask(self, process: str, request: str, *arguments: object, patience: float | None = None) -> object:
        name = getattr(arguments[0], "name", process) if arguments else process
        self.log.append((request, name))
        if self.failing == (name, request):
            raise Failure("no memory")
        groups = [8] if name.startswith("fxfuse") else []
        return {"prepare": (1e-7, groups, [], 0.1), "time": [1e-3], "waited": 1e-3}.get(request)

    def ask_all(self, requests: dict, **_: object) -> dict[str, list[object]]:
        def one(process: str, request: str, arguments: tuple[object, ...]) -> object:
            try:
                return self.ask(process, request, *arguments)
            except Failure as failure:
                return failure

        return {process: [one(process, *each) for each in same] for process, same in requests.items()}

    def has(self, process: str) -> bool:
        return True

    def start(self, processes: list[str]) -> None:
        pass

    def close(self) -> None:
        self.log.append(("close", ""))

    def __enter__(self) -> "FakeCrew":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> type[FakeCrew]:
    written = Written(Size(4_325_376, 4_325_376), {"fused.onnx": [8]})
    monkeypatch.setattr(contest, "Crew", FakeCrew)
    monkeypatch.setattr(contest, "_write", lambda *_: written)
    monkeypatch.setattr(turns, "available", lambda _: 100.0)
    monkeypatch.setattr(FakeCrew, "log", [])
    return FakeCrew


def test_contestants_take_turns_and_the_order_turns_round(crew: type[FakeCrew]):
    (result,) = measure([CASE], QUIET)
    names = [entry.name for entry in entries(CASE, QUIET)]
    turns = [name for request, name in crew.log if request == "time"]
    assert turns == [*names, *reversed(names), *names]
    titles = ["torch.compile", "ONNX Runtime"]
    titles += [f"{start} {kind}{end}" for kind in ("int8", "int4") for start, end in ROUTES]
    assert {t: ratio.rounds for t, ratio in result.ratios.items()} == dict.fromkeys(titles, (1.0,) * 3)
    assert result.groups == {"onnx-fused": [8], "fxfuse": [8]}


def test_a_second_seating_opens_new_processes_in_the_opposite_order(crew: type[FakeCrew]):
    cases = [CASE, Case("chain-256", 8)]
    found = list(measure(cases, replace(QUIET, rounds=1, seatings=2)))
    assert [result.case for result in found] == cases
    names = [entry.name for entry in entries(CASE, QUIET)]
    assert [name for request, name in crew.log if request == "open"] == [*names, *reversed(names)]
    assert [request for request, _ in crew.log].count("close") == 2
    for result in found:
        assert {len(timing.round_p50_us) for timing in result.timings.values()} == {2}


@pytest.mark.parametrize("request_", ["open", "prepare", "time"])
def test_a_contestant_that_fails_is_told_and_the_others_go_on(
    crew: type[FakeCrew], monkeypatch: pytest.MonkeyPatch, request_: str
):
    monkeypatch.setattr(crew, "failing", ("fxfuse", request_))
    found = list(measure([CASE, Case("chain-256", 8)], QUIET))
    names = {entry.name for entry in entries(CASE, QUIET)}
    for result in found:
        assert result.failures == {"fxfuse": "no memory"}
        assert set(result.timings) == names - {"fxfuse"}
        assert "torch.compile" not in result.ratios
    run = Run(MACHINE, QUIET, CEILINGS, found)
    json.dumps(results.to_dict(run), allow_nan=False)
    console = Console(width=120, file=io.StringIO())
    console.print(results.draw(run))
    assert "failed: chain-256/8, fxfuse: no memory" in console.file.getvalue()


def test_what_there_is_no_time_for_is_told(crew: type[FakeCrew]):
    found = list(measure(list(QUICK), QUIET, clock=Clock(0.0)))
    assert [result.not_measured for result in found] == ["the time was over"] * 2
    assert not crew.log


def test_on_cuda_the_tokens_that_matter_most_come_first(crew: type[FakeCrew]):
    cases = [
        Case(model, tokens, "float16") for model in ("chain-1024", "chain-2048") for tokens in (1, 8, 32)
    ]
    found = [str(result.case) for result in measure(cases, ON_CUDA)]
    assert found == [
        "chain-1024/1/float16", "chain-1024/32/float16", "chain-2048/1/float16", "chain-2048/32/float16",
        "chain-1024/8/float16", "chain-2048/8/float16",
    ]  # fmt: skip


# Who takes part


@pytest.mark.parametrize("settings", [QUIET, ON_CUDA, Settings(), Settings("cuda", checks=True)])
@pytest.mark.parametrize("model", ["chain-256", "demo", "decoder-1b"])
def test_every_ratio_is_of_contestants_that_are_there(settings: Settings, model: str):
    found = entries(Case(model, 1, "float16"), settings)
    names = [entry.name for entry in found]
    assert len(names) == len(set(names))
    for pair in pairs(found):
        assert set(pair.unfused) | set(pair.fused) <= set(names)
    for entry in found:
        assert entry.process in names
        assert names.index(entry.process) <= names.index(entry.name)


def test_contestants_can_be_picked_and_keep_what_holds_them():
    picked = entries(CASE, Settings("cuda", only="fxfuse-replay|^eager"))
    assert [entry.name for entry in picked] == ["fxfuse", "fxfuse-replay", "eager"]


def test_the_best_of_a_side_is_the_one_with_the_least_median():
    timings = {
        "onnx": Timing.of([[2e-6], [3e-6]]),
        "onnx-optimizer": Timing.of([[5e-6], [1e-6]]),
        "onnx-fused": Timing.of([[1e-6], [1e-6]]),
    }
    ratio = ratio_of(Pair("", ("onnx", "onnx-optimizer", "gone"), ("onnx-fused",)), timings)
    assert ratio is not None
    assert ratio.rounds == pytest.approx((2.0, 3.0))
    assert ratio_of(Pair("", ("onnx",), ("gone",)), timings) is None


def test_names_of_models_say_their_shapes():
    assert shape_of("decoder-8b") is None
    found = [shape_of(name) for name in ("chain-256", "chain-4096-11008x2", "shard-16384")]
    assert [(s.hidden, s.width, s.blocks) for s in found if s] == [
        (256, 704, 8), (4096, 11008, 2), (16384, 6656, 8)
    ]  # fmt: skip
    for device in ("cpu", "cuda"):
        known = cases_on(device)
        assert len(set(known)) == len(known)


def test_what_does_not_fit_in_memory_is_left_out_the_least_important_first():
    found = entries(CASE, QUIET)
    size = Size(10**9, 10**9)
    kept, dropped = fitting(found, CASE, size, QUIET, room=12.0)
    assert [entry.name for entry in kept][:2] == ["onnx", "onnx-fused"]
    assert {entry.name for entry in dropped} >= {"fxfuse", "eager"}
    assert all("not measured" in why for why in dropped.values())
    assert not fitting(found, CASE, size, QUIET, room=float("inf"))[1]


# What is written and drawn


def test_the_floor_is_the_larger_of_reading_and_computing():
    one = CEILINGS.floor(10**6, 1, "float32")
    many = CEILINGS.floor(10**6, 128, "float32")
    assert one is not None
    assert many is not None
    assert (one.us, one.binds, one.in_cache) == (pytest.approx(400.0), "bandwidth", False)
    assert (many.us, many.binds) == (pytest.approx(2560.0), "products")
    assert CEILINGS.floor(10**5, 1, "float32").in_cache
    assert Ceilings().floor(10**6, 1, "float32") is None
    again = CEILINGS.best(Ceilings({"sum": 9.0, "gemv": 12.0}, 12.0, "gemv", {"float32": 0.2}))
    assert (again.of, again.bandwidth, again.rates["float32"], again.rates["int8"]) == (
        "gemv",
        12.0,
        0.2,
        0.2,
    )


def test_the_page_draws_every_run_and_tells_what_is_missing(tmp_path: Path):
    settings = Settings(rounds=1, chosen=False)
    found = []
    for case in (*QUICK, Case("demo", 1)):
        names = entries(case, settings)
        result = Result(case, names, Size(10**6, 10**6), {e.name: Timing.of([[1e-3]]) for e in names})
        result.relative_errors = {e.name: 1e-7 for e in names}
        found.append(result)
    found[0].failures = {"onnx-int8": "no kernel"}
    found.append(Result(Case("chain-1024", 1), not_measured="the time was over"))
    content = results.to_dict(Run(MACHINE, settings, CEILINGS, found))
    results.write(content, tmp_path / "runs" / "cpu.json")
    results.write({"schema": 2, "of": "another benchmark"}, tmp_path / "runs" / "other.json")
    assert performance.main(["--from", str(tmp_path / "runs"), "--to", str(tmp_path)]) == 0
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    for text in (
        "## CPU 9, 2 cores", "8 FFNs, hidden 256", "the time was over (chain-1024/1)", "failed: no kernel",
        "Not measured yet: `python tools/bench.py --device cuda`", "without the FFNs",
    ):  # fmt: skip
        assert text in page
    drawn = {path.name for path in (tmp_path / "performance").iterdir()}
    assert drawn == {part.split(")")[0] for part in page.split("](performance/")[1:]}
    assert len(drawn) == 3


def test_bars_are_held_against_what_was_measured():
    def case(model: str, tokens: int, **ratios: float) -> dict[str, object]:
        kept = {name.replace("_", ", "): {"median": ratio} for name, ratio in ratios.items()}
        name = f"{model}/{tokens}"
        return {"name": name, "model": model, "tokens": tokens, "timings": {"onnx": {}}, "ratios": kept}

    cases = [
        case("chain-256", 1, **{"torch.compile": 1.2, "torch.compile_chosen": 1.4}),
        case("chain-1024", 8, **{"ONNX Runtime_chosen": 0.9}),
    ]
    found = {text: (measured, reached) for text, measured, reached in bars({"device": "cpu", "cases": cases})}
    name = "torch.compile over inductor, 8 FFNs, hidden 256, one token: at least 1.30"
    assert found[name] == ("1.40", "yes")
    measured, reached = found["never under 0.98 anywhere"]
    assert (measured, reached) == ("0.90 (chain-1024/8, ONNX Runtime, chosen); 2 ratios, 1 under", "no")
    assert sum(reached == "not measured" for _, reached in found.values()) == len(found) - 2


def test_there_is_no_page_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert performance.main(["--from", str(tmp_path), "--to", str(tmp_path)]) == 1
    assert "run it first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--cases", "demo/7"), "no case matches"),
        (("--cases", "("), "not a regular expression"),
        pytest.param(
            ("--device", "cuda"),
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_cannot_be_run_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
):
    try:
        code = bench.main([*arguments, "--output", str(tmp_path)])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_short_run_measures_checks_and_writes(tmp_path: Path):
    done = run_bench(
        "--quick", "--cases", "chain-256x2/1$", "--contestants", "^(onnx|onnx-fused|onnx-fused-int4)$",
        "--threads", "1", "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "above 1 the fused form is faster" in " ".join(done.stdout.split())
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert content["schema"] == results.SCHEMA
    assert content["ceilings"]["bandwidth"] > 0
    assert {"torch", "onnxruntime", "fxfuse"} <= {name.removesuffix("-gpu") for name in content["versions"]}
    (case,) = content["cases"]
    names = {"onnx", "onnx-fused", "onnx-fused-int4"}
    assert (case["name"], case["failures"]) == ("chain-256x2/1", {})
    assert set(content["contestants"]) == set(case["timings"]) == set(case["relative_errors"]) == names
    assert case["fused_groups"] == {"onnx-fused": [2]}
    assert set(case["ratios"]) == {"ONNX Runtime", "fp32 unfused / int4 fused"}
    for timing in case["timings"].values():
        assert 0 < timing["p10_us"] <= timing["p50_us"] <= timing["p90_us"]
        assert len(timing["round_p50_us"]) == 2
        assert timing["share"] > 0
