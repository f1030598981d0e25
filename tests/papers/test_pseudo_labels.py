"""ResNet-RS with pseudo-labels: from a few labels to a page, and what cannot be done is said."""

from dataclasses import replace

import pytest

from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers import resnet_rs
from paperworks.papers._pseudo_labels import recipe
from paperworks.training import TrainConfig


def test_a_student_learns_what_its_teacher_labels(jpeg_folder, tmp_path):
    built = resnet_rs.paper.recipes["pseudo"](data=str(jpeg_folder), keep=9, least=0.0).config
    small = {**built.teacher.network.arguments, "channels": [4, 6, 8, 10], "stem_width": 4}
    own = replace(
        built.teacher,
        network=replace(built.teacher.network, arguments=small),
        training=TrainConfig(4, 8, ema=0.9, eval_every=2),
    )
    made = recipe(replace(built, teacher=own, student=own))
    run = Run.open(tmp_path / "run", slug="resnet-rs", recipe="pseudo", arguments={}, config=made.config, command="x")
    run.execute(made, say=lambda _: None)
    numbers, student = run.result("pseudo"), run.result("student")
    assert numbers["labelled"] == 9 and numbers["believed"] == numbers["unlabelled"] > 0
    assert student["images"] == 9 + numbers["believed"] > run.result("teacher")["images"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Teacher and student" in page and "surest labels" in page


def test_something_must_be_without_labels():
    with pytest.raises(InputError, match="nothing is left without labels"):
        resnet_rs.paper.recipes["pseudo"](keep=0)
