"""The residual stream before and after, from whatever is known."""

from dataclasses import replace

from fxfuse.page.steps import Link, Stream, stream_of
from tests.page import sample


def kinds(steps) -> str:
    """A letter a step: attention, ffn, group, gap (_), other."""
    return "".join("_" if step.kind == "gap" else step.kind[0] for step in steps)


def test_attention_that_was_removed_before_is_a_gap():
    found = sample.analysis(5, (range(2, 4),))
    stream = stream_of(found, None, None)
    assert kinds(stream.before) == "afaf_f_faf"
    assert stream.after == stream.before
    assert stream.links == ()
    assert Stream.depth(stream.before) == 8


def test_a_planned_group_is_one_step_as_wide_as_its_blocks():
    found = sample.analysis(5, (range(2, 4),))
    stream = stream_of(found, sample.plan(found, ((2, 1),)), None)
    assert kinds(stream.after) == "afag_faf"
    assert stream.links == (Link(3, 5, 3),)
    assert stream.after[3].width == 1024
    assert stream.after[3].members == ("model.layers.1.mlp", "model.layers.2.mlp")


def test_the_report_goes_before_the_plan():
    found = sample.analysis(5, (range(2, 4),))
    told = sample.report(found, sample.plan(found, ((3,),)))
    stream = stream_of(found, sample.plan(found, ((2, 1),)), told)
    assert kinds(stream.after) == "afagaf"


def test_attention_removed_on_the_way_is_a_gap_only_after():
    """The analysis is of the stock model; the chains of the report show what went away."""
    stock = sample.analysis(5, ())
    found = sample.analysis(5, (range(2, 4),))
    told = sample.report(found, sample.plan(found, ((2, 1),)))
    stream = stream_of(stock, None, told)
    assert kinds(stream.before) == "afafafafaf"
    assert kinds(stream.after) == "afag_faf"
    assert stream.after[4].name == "model.layers.3.self_attn removed"


def test_without_an_analysis_only_ffns_are_known():
    found = sample.analysis(5, (range(2, 4),))
    planned = sample.plan(found, ((2, 1),))
    stream = stream_of(None, planned, None)
    assert kinds(stream.before) == "fffff"
    assert kinds(stream.after) == "fgff"
    only_report = stream_of(None, None, sample.report(found, planned))
    assert kinds(only_report.before) == "fff"
    assert stream_of(None, None, None) is None


def test_groups_of_another_model_are_not_drawn():
    found = sample.analysis(5, (range(2, 4),))
    planned = sample.plan(found, ((2, 1),))
    strange = replace(planned.groups[0], blocks=("else.0.mlp", "else.1.mlp"))
    planned.groups = (strange,)
    assert stream_of(found, planned, None).links == ()
