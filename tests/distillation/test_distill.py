"""Distillation lowers the held-out KL, for every kind of model, and changes nothing else."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import LlamaConfig, LlamaForCausalLM

import fxfuse
from fxfuse import distill
from fxfuse.calibration import Calibration
from fxfuse.frontends.torch_model import export_module
from tests.distillation import tiny

SHORT = {"steps": 12, "batch_size": 10, "learning_rate": 5e-3}


def logits(model: nn.Module | ExportedProgram) -> Tensor:
    runnable = model.module() if isinstance(model, ExportedProgram) else model
    with torch.no_grad():
        return runnable(**tiny.data().held_out[0])


def weights(model: nn.Module | ExportedProgram) -> dict[str, Tensor]:
    found = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


STUDENTS = {
    "module": tiny.student,
    "graph": lambda: copy.deepcopy(tiny.exported().module()),
    "program": tiny.exported,
    "fused": tiny.fused,
}


# -- what comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_student_comes_nearer_and_stays_of_its_kind(kind):
    student, teacher = STUDENTS[kind](), tiny.teacher()
    before, original = weights(student), weights(teacher)
    result = distill(student, teacher, tiny.data(), **SHORT)
    assert 0 < result.end.kl < 0.8 * result.start.kl
    assert result.start.standard_error > 0
    assert result.notes == ()
    assert (result.steps, result.resumed_at) == (12, None)
    assert type(result.model).__name__ == type(student).__name__
    assert same(weights(student), before)
    assert same(weights(teacher), original)
    after = weights(result.model)
    assert {name: each.shape for name, each in after.items()} == {
        name: each.shape for name, each in before.items()
    }
    assert not any(torch.equal(after[name], before[name]) for name in before)
    moved = float((logits(result.model) - logits(teacher)).norm())
    assert moved < float((logits(student) - logits(teacher)).norm())


@pytest.mark.parametrize("kind", ["program", "fused"])
def test_a_program_keeps_its_graph_and_is_saved(kind, tmp_path):
    student = STUDENTS[kind]()
    result = distill(student, tiny.teacher(), tiny.data(), **SHORT)
    assert [str(node.target) for node in result.model.graph.nodes] == [
        str(node.target) for node in student.graph.nodes
    ]
    assert result.model.graph_signature == student.graph_signature
    torch.export.save(result.model, tmp_path / "m.pt2")
    again = torch.export.load(tmp_path / "m.pt2")
    assert torch.equal(logits(again), logits(result.model))
    ids = torch.zeros(3, 5, dtype=torch.long)
    assert again.module()(input_ids=ids).shape == (3, 5, tiny.VOCABULARY)


def test_wide_weights_that_fxfuse_attached_learn():
    wide = [name for name in tiny.fused().state_dict if name.startswith("fxfuse_")]
    assert wide
    assert not any(tiny.fused().state_dict[name].requires_grad for name in wide)
    result = distill(tiny.fused(), tiny.teacher(), tiny.data(), trainable="^fxfuse_", **SHORT)
    before, after = weights(tiny.fused()), weights(result.model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(wide)
    assert not any(result.model.state_dict[name].requires_grad for name in wide)


def test_a_distilled_program_is_fused():
    result = distill(tiny.exported(), tiny.teacher(), tiny.data(), **SHORT)
    _, report = fxfuse.fuse(result.model, (tiny.data().fit[0]["input_ids"],), min_sqnr=None)
    assert report.groups


# -- what learns -----------------------------------------------------------------------------------


def test_frozen_parameters_stay():
    student = tiny.student()
    student.embed_tokens.weight.requires_grad_(False)
    result = distill(student, tiny.teacher(), tiny.data(), **SHORT)
    assert torch.equal(result.model.embed_tokens.weight, student.embed_tokens.weight)
    assert not result.model.embed_tokens.weight.requires_grad
    assert not torch.equal(result.model.lm_head.weight, student.lm_head.weight)


def test_trainable_chooses_by_name():
    student = tiny.student()
    result = distill(student, tiny.teacher(), tiny.data(), trainable=r"layers\.1\.mlp", **SHORT)
    before, after = weights(student), weights(result.model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {f"layers.1.mlp.{each}_proj.weight" for each in ("gate", "up", "down")}


@pytest.mark.parametrize("through_file", [False, True])
def test_tied_weights_stay_tied(through_file, tmp_path):
    student = tiny.student()
    student.lm_head.weight = student.embed_tokens.weight
    program = export_module(student, tiny.data().fit[0])
    if through_file:
        torch.export.save(program, tmp_path / "m.pt2")
        program = torch.export.load(tmp_path / "m.pt2")
    state = distill(program, tiny.teacher(), tiny.data(), **SHORT).model.state_dict
    assert state["lm_head.weight"].data_ptr() == state["embed_tokens.weight"].data_ptr()
    assert not torch.equal(state["lm_head.weight"], student.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_low_precision_learn_in_float32(dtype):
    student, teacher = tiny.student().to(dtype), tiny.teacher()
    result = distill(student, teacher, tiny.data(), **{**SHORT, "learning_rate": 1e-3, "steps": 40})
    assert result.end.kl < 0.9 * result.start.kl
    assert {each.dtype for each in result.model.parameters()} == {dtype}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_and_precisions(optimizer, precision):
    recipe = {"steps": 12, "batch_size": 10, "optimizer": optimizer, "precision": precision}
    result = distill(tiny.exported(), tiny.teacher(), tiny.data(), **recipe)
    assert result.end.kl < 0.9 * result.start.kl


# -- the loss --------------------------------------------------------------------------------------


def test_labels_are_learned_where_asked():
    ids = torch.arange(tiny.CONTEXT * 60).reshape(60, -1) % 8  # a text that a model can know
    text = Calibration(({"input_ids": ids[:50]},), ({"input_ids": ids[50:]},), "", 0, ())

    def label_loss(model: nn.Module) -> float:
        with torch.no_grad():
            found = model(ids[:, :-1])
        return float(nn.functional.cross_entropy(found.transpose(1, 2), ids[:, 1:]))

    alone, with_labels = (
        distill(tiny.student(), tiny.teacher(), text, label_weight=weight, **SHORT).model
        for weight in (0, 0.1)
    )
    assert label_loss(with_labels) < label_loss(alone) - 0.1


def test_a_temperature_is_divided_by():
    result = distill(tiny.student(), tiny.teacher(), tiny.data(), temperature=2.0, **SHORT)
    assert result.end.kl < 0.8 * result.start.kl


def test_hidden_tokens_count_for_nothing():
    """The same windows with padding of any content: the same weights come out."""

    def padded(fill: int) -> Calibration:
        def pad(ids: Tensor) -> dict[str, Tensor]:
            mask = torch.ones(len(ids), tiny.CONTEXT + 4, dtype=torch.long)
            mask[:, tiny.CONTEXT :] = 0
            filled = torch.full((len(ids), 4), fill)
            return {"input_ids": torch.cat([ids, filled], 1), "attention_mask": mask}

        fit, held_out = (
            [pad(each["input_ids"]) for each in part] for part in (tiny.data().fit, tiny.data().held_out)
        )
        return Calibration(tuple(fit), tuple(held_out), "", 0, ())

    one, other = (
        distill(_Masked(tiny.student()), _Masked(tiny.teacher()), padded(fill), **SHORT) for fill in (0, 7)
    )
    assert one.end == other.end
    assert same(weights(one.model), weights(other.model))
    assert one.end.tokens == tiny.data().held_out_tokens


class _Masked(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"hidden": attention_mask[..., None].float(), "logits": self.model(input_ids)}


class _Tuple(nn.Module):
    """Its hidden states, wider than its vocabulary, come first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.table, self.model = nn.Embedding(tiny.VOCABULARY, 50), model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.table(input_ids), self.model(input_ids)


@pytest.mark.parametrize("exported", [False, True])
def test_logits_are_told_from_hidden_states(exported):
    student, teacher = _Tuple(tiny.student()).eval(), _Tuple(tiny.teacher()).eval()
    student = export_module(student, tiny.data().fit[0]) if exported else student
    result = distill(student, teacher, tiny.data(), trainable="model", **SHORT)
    assert result.end.kl < 0.8 * result.start.kl


def test_a_model_of_transformers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    teacher = LlamaForCausalLM(LlamaConfig(vocab_size=tiny.VOCABULARY, initializer_range=0.3, **sizes))
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.model.layers[1].mlp.down_proj.weight.zero_()
    result = distill(student, teacher, tiny.data(), **SHORT)
    assert result.end.kl < 0.8 * result.start.kl
    assert result.model.config.use_cache
    assert result.model.training == student.training


# -- never worse -----------------------------------------------------------------------------------


def test_a_student_that_gets_worse_is_given_back_as_it_was():
    student = tiny.student()
    result = distill(student, tiny.teacher(), tiny.data(), **{**SHORT, "learning_rate": 1.0})
    assert result.end == result.start
    assert same(weights(result.model), weights(student))
    assert "given back as it was" in result.notes[0]


def test_the_best_state_on_the_way_is_kept():
    """At first it learns; then the rate is far too high."""
    recipe = {"steps": 40, "batch_size": 10, "learning_rate": 0.2, "warmup": 0.9, "judge_every": 1}
    result = distill(tiny.student(), tiny.teacher(), tiny.data(), **recipe)
    assert result.end.kl < result.start.kl
    assert "The weights are those of step" in " ".join(result.notes)


def test_many_passes_are_noted():
    result = distill(tiny.student(), tiny.teacher(), tiny.data(20), steps=12, batch_size=10)
    assert "gone through 12 times" in result.notes[0]


def test_two_shares_learn_what_one_does():
    """The mean of a batch does not depend on how it is divided."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(distill(tiny.student(), tiny.teacher(), tiny.data(), precision="fp32", **SHORT))
        finally:
            torch.set_num_threads(1)
    assert math.isclose(found[0].end.kl, found[1].end.kl, rel_tol=1e-3)


def test_a_graph_of_fixed_rows_learns_in_pieces():
    fixed = torch.export.export(tiny.student(), (tiny.data().fit[0]["input_ids"][:5],))
    pieces = distill(fixed, tiny.teacher(), tiny.data(), precision="fp32", **SHORT)
    whole = distill(tiny.exported(), tiny.teacher(), tiny.data(), precision="fp32", **SHORT)
    assert math.isclose(pieces.end.kl, whole.end.kl, rel_tol=1e-3)


def test_every_step_is_told():
    told: list[str] = []
    distill(tiny.student(), tiny.teacher(), tiny.data(), progress=told.append, **SHORT)
    assert any("distilling, KL 0." in each and "12 of 12" in each for each in told)
    assert any("judging on held-out windows" in each for each in told)
