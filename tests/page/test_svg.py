"""SVG as text: escaped, rounded, valid."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from fxfuse.analysis.records import Dependency
from fxfuse.page.heatmap import draw_heatmap
from fxfuse.page.names import layer_marks, lengths_text, numbers_of, run_label, short_names
from fxfuse.page.svg import drawing, element, label, path, shorten

SVG = "{http://www.w3.org/2000/svg}"


def test_text_and_attributes_are_escaped():
    assert label(1, 2, "<b> & \x1b") == '<text x="1" y="2">&lt;b&gt; &amp; \\x1b</text>'
    assert element("rect", class_='"x"', fill=None) == '<rect class="&quot;x&quot;"/>'


def test_numbers_are_rounded():
    assert element("rect", x=1 / 3, y=2.0, width=-0.001, rx=10.50) == (
        '<rect x="0.33" y="2" width="0" rx="10.5"/>'
    )
    assert path([(0.5, 1.0), (10.0, 100.0)], closed=True) == '<path d="M0.5 1L10 100Z"/>'


def test_a_drawing_is_valid_and_told_to_those_who_do_not_see_it():
    root = ET.fromstring(drawing("one", 10, 20, "A & B", "what <it> shows", [label(0, 0, "x")]))
    assert root.attrib["viewBox"] == "0 0 10 20"
    assert root.attrib["role"] == "img"
    ids = root.attrib["aria-labelledby"].split()
    assert [child.attrib["id"] for child in root[:2]] == ids
    assert [child.text for child in root[:2]] == ["A & B", "what <it> shows"]


def test_long_names_lose_their_middle():
    assert shorten("model.layers.10.mlp", 10) == "mod…10.mlp"
    assert len(shorten("x" * 99, 10)) == 10
    assert shorten("short", 10) == "short"
    assert shorten("a\x00b", 10) == "a\\x00b"


def test_shared_parts_of_names_go_away():
    assert short_names(["model.layers.0.mlp", "model.layers.1.mlp"]) == ["layers.0.mlp", "layers.1.mlp"]
    assert short_names(["a.b.mlp", "a.c.mlp"]) == ["b.mlp", "c.mlp"]
    assert short_names(["only.one"]) == ["only.one"]


def test_numbers_stand_for_names():
    assert numbers_of(["layers.4.mlp", "layers.5.mlp"]) == ["4", "5"]
    assert numbers_of(["layers.4.mlp", "head"]) == ["1", "2"]
    assert layer_marks(["l.4.attn", "l.4.mlp"], ["attention", "ffn"]) == [None, "4"]
    assert layer_marks(["a", "b"], ["attention", "ffn"]) == ["1", "2"]


def test_runs_and_lengths():
    assert run_label(["l.4.mlp", "l.5.mlp", "l.6.mlp"]) == "4–6"
    assert run_label(["l.4.mlp"]) == "4"
    assert run_label(["first", "second"]) == "first and second"
    assert lengths_text([(3, 2, 2), (4,)]) == "3+2+2, 4"
    assert lengths_text([(2,) * 10 + (1,)]) == "10×2+1"
    assert lengths_text([(1, 1), (1,)]) == "not fused"


def test_every_chart_is_valid_xml_with_labels():
    from fxfuse.page.sections import build_page
    from fxfuse.page.summary import Parts
    from tests.page import sample

    for given in (sample.demo(), sample.huge(), sample.hostile()):
        parts = Parts(given["analysis"], given["plan"], given["report"])
        for chart in build_page(parts).charts:
            for svg in (chart.wide, chart.narrow):
                root = ET.fromstring(svg)
                assert root.find(f"{SVG}title").text
                assert root.find(f"{SVG}desc").text
                assert "nan" not in svg.lower().replace("nanite", "")
                assert "inf" not in [value for each in root.iter() for value in each.attrib.values()]


def matrix(low: float, high: float) -> Dependency:
    """Values that grow from low to high by the same factor."""
    names = tuple(f"l.{n}.mlp" for n in range(10))
    steps = iter(np.geomspace(low, high, 45).tolist())
    rows = tuple(tuple(next(steps) if j > i else 0.0 for j in range(10)) for i in range(10))
    return Dependency(names, ("ffn",) * 10, rows)


@pytest.mark.parametrize(
    "low, high, bounds",
    [
        (0.1, 0.4, ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4"]),
        (1e-4, 0.6, ["0", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
        (1e-6, 2e-4, ["0", "10⁻⁶", "2·10⁻⁶", "5·10⁻⁶", "10⁻⁵", "2·10⁻⁵", "5·10⁻⁵", "10⁻⁴", "2·10⁻⁴"]),
    ],
)
def test_classes_of_the_heatmap_begin_at_round_values(low, high, bounds):
    root = ET.fromstring(draw_heatmap(matrix(low, high)))
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert texts[-10:-1] == bounds
    shown = {each.attrib["class"] for each in root.iter(f"{SVG}path") if "cell" in each.attrib["class"]}
    assert len(shown) > 5
    cells = sum(
        each.attrib["d"].count("M") for each in root.iter(f"{SVG}path") if "cell" in each.attrib["class"]
    )
    assert cells == 45


def test_only_values_above_the_diagonal_are_drawn():
    """x of a cell is never left of the diagonal at its y."""
    root = ET.fromstring(draw_heatmap(matrix(0.1, 0.4)))
    tips = [
        each.find(f"{SVG}title").text for each in root.iter(f"{SVG}g") if each.find(f"{SVG}title") is not None
    ]
    assert len(tips) == 45
    assert tips[0].startswith("l.1.mlp without l.0.mlp: 0.1")


def test_a_matrix_of_zeros_is_drawn():
    zeros = replace(matrix(0.1, 0.4), matrix=((0.0,) * 10,) * 10)
    ET.fromstring(draw_heatmap(zeros, [zeros.names[2:5], ("unknown",)], narrow=True))
