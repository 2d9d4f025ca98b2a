"""The sentence that a selection ends in."""

import dataclasses

import pytest

from lensllm_jax.selection.answer import Answer, Model, NextStep

SURE = Answer(
    candidate="b", target_size=51200, probability=0.93, expected_regret=0.00014,
    predicted_loss=1.0, unit="nats per byte", cost=0.031, next_best=("a", 0.05),
)  # fmt: skip


def test_an_unclear_answer_says_so_and_what_to_run_next():
    step = NextStep("a", 6400, 0.012)
    unsure = dataclasses.replace(SURE, probability=0.4, next_best=("a", 0.35), next_step=step)
    assert str(unsure).startswith(
        "The data cannot tell: at 51,200 records b is the best bet, with P = 0.40; expected to"
    )
    assert str(unsure).endswith(
        "To tell more, fine-tune a on 6,400 records, for 1.2 % of tuning all."
    )
    likely = dataclasses.replace(unsure, probability=0.72)
    assert str(likely).startswith("Fine-tune b")
    assert "To tell more, fine-tune a" in str(likely)
    assert "To tell more" not in str(dataclasses.replace(SURE, next_step=step))


@pytest.mark.parametrize(
    ("regret", "cost", "shown"),
    [
        (0.0000014, 0.00031, ("0.00002 nats per byte (0.002 %)", "Cost 0.031 % of")),
        (0.0161, 1.0, ("0.2 nats per byte (23 %)", "Cost 100 % of")),
        (0.7, 1.25, ("10 nats per byte (1000 %)", "Cost 125 % of")),
    ],
)
def test_numbers_have_no_exponent(regret, cost, shown):
    said = str(dataclasses.replace(SURE, expected_regret=regret, cost=cost))
    assert all(part in said for part in shown)


def test_near_certainty_is_no_reason_to_say_less_of_what_a_mistake_costs():
    sure = dataclasses.replace(SURE, probability=0.999, expected_regret=0.0001)
    assert sure.relative_loss_if_wrong == pytest.approx(0.1)
    certain = dataclasses.replace(SURE, probability=1.0, expected_regret=0.0)
    assert "expected to lose" not in str(certain)
    assert certain.as_dict()["loss_if_wrong"] is None


def test_a_failure_of_the_pick_is_said():
    assert "failed" not in str(SURE)
    failed = dataclasses.replace(SURE, failure="no memory")
    assert " A fine-tune of it failed: no memory. " in str(failed)


def test_the_law_is_named_by_what_it_read_and_picks():
    assert "LensLLM" not in str(SURE)
    other = dataclasses.replace(SURE, law_picks="a")
    assert str(other).endswith("LensLLM (Eq 10, no kernel) picks a.")


def test_a_pick_of_the_law_is_said_to_be_one_and_whom_the_posterior_believes_more():
    law = dataclasses.replace(
        SURE, probability=0.03, next_best=("a", 0.29), law_picks="b", reads_kernel=True, by_law=True
    )
    assert str(law).startswith(
        "LensLLM (Eq 10, exact kernel) picks b: best at 51,200 records with P = 0.03; expected"
    )
    assert "likelier the best a (0.29)." in str(law)
    assert "agrees" not in str(law)
    assert "likelier" not in str(SURE)


def test_a_saved_model_is_named_with_its_size():
    saved = dataclasses.replace(SURE, model=Model("out/model", 6400))
    assert str(saved) == f"{SURE} b, fine-tuned on 6,400 records, is in out/model."
    assert saved.as_dict()["model"] == {"folder": "out/model", "size": 6400}
    assert SURE.as_dict()["model"] is None


def test_what_is_not_known_is_null():
    unknown = dataclasses.replace(SURE, cost=None, predicted_loss=float("nan"))
    assert (unknown.as_dict()["predicted_loss"], unknown.as_dict()["cost"]) == (None, None)
    assert "Cost" not in str(unknown)
