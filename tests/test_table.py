"""The table reads well at any width and shows names as they are."""

import pytest

from fxfuse.passes.records import Miss
from fxfuse.report import BlockReport, ChainReport, GroupReport, Report, Size
from fxfuse.table import render


def names(*layers: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{layer}.mlp" for layer in layers)


def chain(*layers: int) -> ChainReport:
    blocks = tuple(BlockReport(name, "RMSNorm", "silu", True, 64, 112) for name in names(*layers))
    return ChainReport(len(blocks), blocks)


def group(*layers: int) -> GroupReport:
    return GroupReport(names(*layers), 112 * len(layers), 2.5e-7, 21.37, 0.998765, 0.01, 2e-7)


@pytest.fixture
def report() -> Report:
    return Report(
        model="model.onnx",
        output="model.fused.onnx",
        inputs="random",
        chains=[chain(0, 1, 2), chain(5, 6)],
        groups=[group(0, 1, 2), group(5, 6)],
        misses=[Miss(name, "left out: --exclude '3' matches it") for name in names(3, 8, 9)],
        end_to_end={
            "output": "logits",
            "tokens": 64,
            "relative_error": 0.0123,
            "kl": 0.00123,
            "top1_agreement": 0.96875,
        },
        before=Size(1234, 5, 400, 1_000_000, 4_000_000),
        after=Size(1100, 2, 300, 999_000, 3_990_000),
        seconds=1.26,
    )


def test_the_whole_table(report):
    assert render(report).splitlines() == [
        "model.onnx: found chains of 3 + 2 FFN blocks; fused 5 into 2 wide FFNs",
        "",
        "                                      before      after   change",
        "nodes                                  1,234      1,100  -10.9 %",
        "FFN blocks                                 5          2  -60.0 %",
        "depth (nodes on the longest path)        400        300  -25.0 %",
        "parameters                         1,000,000    999,000   -0.1 %",
        "file size (bytes)                  4,000,000  3,990,000   -0.2 %",
        "",
        "group                 blocks  width  rewrite error  SQNR dB   cosine",
        "model.layers.0-2.mlp       3    336        2.5e-07     21.4  0.99877",
        "model.layers.5-6.mlp       2    224        2.5e-07     21.4  0.99877",
        "",
        "end to end (logits, 64 tokens): KL 1.23e-03 nats/token, top-1 agreement 96.9 %, "
        "relative error 1.23e-02",
        "",
        "where                   why not more",
        "model.layers.3,8-9.mlp  left out: --exclude '3' matches it",
        "",
        "note: figures are on random inputs: give real ones with --inputs to judge quality",
        "output: model.fused.onnx (1.3 s)",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_asked_and_no_figure_is_cut_at_60(report, width):
    text = render(report, width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 60:
        assert "…" not in text
        assert all(figure in text for figure in ("2.5e-07", "21.4", "0.99877", "1,000,000"))


def test_names_with_brackets_are_not_taken_for_markup(report):
    report.model = "run [bold]/[/x].onnx"
    report.misses = [Miss("block[a]", "shape is [batch, 64] :smile: [/foo]")]
    text = render(report)
    assert "run [bold]/[/x].onnx" in text
    assert "block[a]" in text
    assert "shape is [batch, 64] :smile: [/foo]" in text


def test_names_cannot_drive_the_terminal(report):
    report.misses = [Miss("evil\x1b]0;title\x07", "a\nb")]
    text = render(report)
    assert "\x1b" not in text
    assert r"evil\x1b]0;title\x07" in text


def test_places_that_share_a_reason_share_a_row(report):
    report.misses = [Miss(name, "why") for name in names(0, 2, 4)]
    rows = [line for line in render(report).splitlines() if line.endswith("why")]
    assert rows == ["model.layers.0,2,4.mlp  why"]


def test_a_long_path_keeps_every_character(report):
    report.model = "/".join(["folder"] * 30) + "/model.onnx"
    assert report.model in render(report, 60).replace("\n", "")


@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        (
            {"chains": [], "groups": []},
            "model.onnx: no chain of FFN blocks found",
            "nothing was written (1.3 s)",
        ),
        (
            {"groups": [], "chains": [chain(0, 1)]},
            "model.onnx: found a chain of 2 FFN blocks; fused none",
            "nothing was written (1.3 s)",
        ),
        (
            {"groups": [group(0, 1)], "chains": [chain(0, 1)], "output": None},
            "model.onnx: found a chain of 2 FFN blocks; fused 2 into 1 wide FFN",
            "1.3 s",
        ),
    ],
)
def test_headline_and_ending(report, changes, first, last):
    report.output = None
    for name, value in changes.items():
        setattr(report, name, value)
    lines = render(report).splitlines()
    assert (lines[0], lines[-1]) == (first, last)


def test_a_dry_run_says_what_was_not_written(report):
    assert render(report, dry_run=True).endswith("dry run: model.fused.onnx was not written (1.3 s)")


def test_given_inputs_carry_no_note(report):
    report.inputs = "given"
    assert "random" not in render(report)


def test_a_model_without_comparable_output_says_so(report):
    report.end_to_end = {}
    assert "end to end: the model has no output of floating-point numbers to compare" in render(report)


def test_an_output_that_is_no_logits_has_no_kl(report):
    report.end_to_end |= {"kl": None, "top1_agreement": None}
    assert "end to end (logits, 64 tokens): relative error 1.23e-02" in render(report)


def test_sizes_without_files(report):
    report.before, report.after = Size(0, 2, 0, 0), Size(1, 1, 1, 1)
    assert "file size" not in render(report)


def test_str_of_a_report_is_the_table(report):
    assert str(report) == render(report)
