"""What cannot be distilled is told in one sentence."""

import re

import pytest
import torch
from torch import nn

from fxfuse import FxfuseError, InputError, distill
from fxfuse.calibration import Calibration
from tests.distillation import tiny

SHORT = {"steps": 3, "batch_size": 10}


def told(sentence: str, **given: object) -> None:
    student, teacher, data = (
        given.pop(name, made())
        for name, made in (("student", tiny.student), ("teacher", tiny.teacher), ("data", tiny.data))
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        distill(student, teacher, data, **{**SHORT, **given})


class Fixed(nn.Module):
    """Gives the same whatever it is asked."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, *inputs):
        return self.output(*inputs)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("steps", 0, "steps must be a whole number above 0, not 0."),
        ("batch_size", 2.5, "batch_size must be a whole number above 0, not 2.5."),
        ("judge_every", True, "judge_every must be a whole number above 0, not True."),
        ("every", 0, "every must be a whole number of steps above 0, not 0."),
        ("learning_rate", -1.0, "learning_rate must be above 0, not -1.0."),
        ("temperature", float("nan"), "temperature must be above 0, not nan."),
        ("label_weight", -0.1, "label_weight must be 0 or more, not -0.1."),
        ("warmup", 1, "warmup must be a share of the steps from 0 to below 1, not 1."),
        ("optimizer", "sgd", "optimizer must be one of adamw, muon, not 'sgd'."),
        ("precision", "int8", "precision must be one of auto, bf16, fp32, not 'int8'."),
        ("trainable", "(", "trainable is no regular expression"),
        (
            "trainable",
            "nowhere",
            "No parameter that could learn matches trainable 'nowhere': the student has embed_",
        ),
        ("rate", 1, "There is no option rate: choose from steps, batch_size,"),
        ("resume", True, "To resume, name the folder that holds the checkpoint."),
    ],
)
def test_options(name, value, sentence):
    told(sentence, **{name: value})


def test_vocabularies_that_differ():
    told("The teacher's vocabulary has 50 tokens and the student's 40", teacher=tiny.teacher(vocab_size=50))


def test_tokens_outside_the_vocabulary():
    ids = torch.full((20, tiny.CONTEXT), 40)
    outside = Calibration(({"input_ids": ids},), ({"input_ids": ids},), "text.npy", 0, ())
    told(
        "text.npy: token id 40 (in batch 0 to fit on, at [0, 0]) is outside the model's vocabulary of 40",
        data=outside,
    )


def test_too_little_data():
    told(
        "The data hold 10 windows to learn from, fewer than a batch_size of 20",
        batch_size=20,
        data=tiny.data(20),
    )


def test_nothing_held_out():
    told(
        "The data hold no window to judge by",
        data=Calibration(tiny.data().fit, (), "", 0, ()),
    )


def test_all_frozen():
    told("No parameter of the student requires grad", student=tiny.student().requires_grad_(False))


def test_no_torch_model():
    told("The student must be an nn.Module, a GraphModule or an ExportedProgram, not str.", student="m.onnx")


def test_a_model_that_cannot_be_copied():
    student = tiny.student()
    student.held = (each for each in ())
    told("The student cannot be copied (cannot pickle 'generator' object)", student=student)


def test_no_logits():
    told("No output of the teacher looks like logits of every token", teacher=Fixed(lambda ids: ids))


def test_logits_of_other_tokens():
    told(
        "The teacher gives logits [10, 11, 40] and the student [10, 12, 40]",
        teacher=Fixed(lambda ids: tiny.teacher()(ids)[:, 1:]),
    )


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_nan(role):
    model = getattr(tiny, role)()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    told(f"The {role} gives NaN on held-out windows", **{role: model})


def test_logits_that_hang_on_nothing():
    told(
        "No gradient reaches the student's parameters", student=Fixed(lambda ids: torch.randn(*ids.shape, 40))
    )


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("ids", "The student takes 1 inputs (input_ids) but the data hold ids, more: give the same."),
        ("input_ids", "The student takes no input 'more': name the data as one of input_ids."),
    ],
)
def test_data_of_other_names(name, sentence):
    batch = {name: tiny.data().fit[0]["input_ids"], "more": torch.zeros(10, 1)}
    teacher = Fixed(lambda *inputs: torch.zeros(10, tiny.CONTEXT, 40))
    told(sentence, student=tiny.exported(), teacher=teacher, data=Calibration((batch,), (batch,), "", 0, ()))


def test_a_model_that_does_not_run():
    told("The student does not run on the data", student=nn.Bilinear(3, 4, 5))


def test_a_graph_of_another_size():
    rows = tiny.data().fit[0]["input_ids"]
    fixed = torch.export.export(tiny.student(), (rows[:3, :5],))
    told("The student takes input_ids of [3, 5] only and the data are", student=fixed)
    fixed = torch.export.export(tiny.student(), (rows[:3],))
    told(
        "The graphs run on 3 windows at a time: choose a batch_size that is a multiple of it.", student=fixed
    )
    other = torch.export.export(tiny.teacher(), (rows[:4],))
    told("The teacher runs on 4 windows at a time and the student on 3", student=fixed, teacher=other)


def test_labels_without_ids():
    def renamed(batch):
        return {"tokens": batch["input_ids"], "places": batch["input_ids"]}

    class Two(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens, places):
            return self.model(tokens)

    data = Calibration(
        tuple(map(renamed, tiny.data().fit)), tuple(map(renamed, tiny.data().held_out)), "", 0, ()
    )
    told(
        "label_weight needs the token ids: call them input_ids in the data",
        student=Two(tiny.student()), teacher=Two(tiny.teacher()), data=data, label_weight=0.5,
    )  # fmt: skip


class Exploding(nn.Module):
    """Its gradient is not finite, though its logits are."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.student()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids):
        return self.model(input_ids) + self.weight.sqrt()


def test_a_loss_that_is_not_finite_is_told_with_its_step(tmp_path):
    student = Exploding()
    before = {name: each.clone() for name, each in student.state_dict().items()}
    with pytest.raises(
        FxfuseError, match="is not finite at step 1, so no model was written: lower the learning rate"
    ):
        distill(student, tiny.teacher(), tiny.data(), folder=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(each, before[name]) for name, each in student.state_dict().items())
