"""The model of a step under tensor parallel, and the part of the page that shows it."""

from typing import Any

import pytest

from tools.bench_parallel import main
from tools.benchmark.side_pages import side_pages
from tools.benchmark.step_model import PUBLISHED, latency_at


def test_what_the_published_figures_say() -> None:
    assert PUBLISHED.saved_us == pytest.approx(1677, abs=1)
    assert PUBLISHED.per_part_us == pytest.approx(37.3, abs=0.1)
    assert PUBLISHED.message == 32768


def test_the_step_before_fusing_foretells_the_one_after() -> None:
    expected = PUBLISHED.tokens_per_second(PUBLISHED.expected_per_part_us, 0.0)
    assert expected == pytest.approx(PUBLISHED.fused, rel=0.025)


def test_the_model_gives_back_the_published_rate_from_its_own_latency() -> None:
    latency = PUBLISHED.all_reduce_us(own_us=17.4)
    assert PUBLISHED.tokens_per_second(17.4, latency) == pytest.approx(PUBLISHED.fused)


def test_parts_that_cost_nothing_give_the_rate_before() -> None:
    assert PUBLISHED.tokens_per_second(0.0, 0.0) == pytest.approx(PUBLISHED.removed_attention)


@pytest.mark.parametrize("message, us", [(512, 10.0), (1024, 10.0), (2560, 15.0), (4096, 20.0), (8192, 40.0)])
def test_a_latency_between_measured_sizes(message: int, us: float) -> None:
    assert latency_at(message, {1024: 10.0, 4096: 20.0}) == us


def _record() -> dict[str, Any]:
    model = {
        "form": "eager", "hidden": 256, "width": 704, "layers": 16, "removed": 12, "ranks": 2, "weights": 1,
        "message": 1024,
        "sequential": {"whole": 5000.0, "bare": 2000.0}, "fused": {"whole": 1400.0, "bare": 800.0},
        "ratio": 3.5, "ratios": [3.4, 3.5, 3.6],
    }  # fmt: skip
    machine = {"gpu": None, "cpu": "A processor", "cores": 2}
    return {
        "kind": "parallel", "machine": machine, "versions": {"torch": "2"}, "dtype": "float32", "rounds": 3,
        "all_reduce_us": {"2": {"1024": 150.0, "4096": 160.0}},
        "models": [model, {**model, "ranks": 1}],
    }  # fmt: skip


def test_the_page_holds_what_was_saved_beside_what_was_expected() -> None:
    (part,) = side_pages([_record()])
    assert "| 256 | eager | 2 | 5,000 µs | 1,400 µs | 3.50 [3.40 to 3.60] | 2,000 µs | 800 µs | 3,6" in part
    assert part.count("3,000 µs |\n") == 1  # two ranks: all-reduces beside
    assert "| 256 | eager | 1 |" in part
    assert part.count("1,200 µs |\n") == 1  # one rank: what the parts cost by themselves
    assert "| 1 KB | 150 µs |" in part
    assert "37.3 µs each" in part


def test_a_model_that_is_none() -> None:
    with pytest.raises(SystemExit):
        main(["--models", "3"])
