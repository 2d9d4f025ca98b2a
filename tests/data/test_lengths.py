"""One cut gives a task of a given average input length."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.lengths import input_lengths, longest_kept_for_mean, with_mean_length
from lensllm_jax.data.task import Example, build_task

lengths = st.lists(st.integers(1, 100), min_size=1, max_size=30).map(np.array)


@given(lengths, st.floats(1, 100))
def test_the_mean_reaches_what_was_asked_and_one_more_record_would_pass_it(values, mean):
    assume(values.min() <= mean <= values.max())
    kept = longest_kept_for_mean(values, mean=mean)
    above = values.mean() > mean
    assert (values[kept].mean() <= mean) == above or values[kept].mean() == mean
    if not kept.all():
        # Every record that went is on the far side of every record that stayed.
        assert (
            values[~kept].min() >= values[kept].max()
            if above
            else (values[~kept].max() <= values[kept].min())
        )
        nearest = values[~kept].min() if above else values[~kept].max()
        next_mean = np.append(values[kept], nearest).mean()
        assert next_mean > mean if above else next_mean < mean


def test_a_mean_that_holds_already_leaves_everything():
    assert longest_kept_for_mean(np.array([18, 20, 22]), mean=20.0).all()


@pytest.mark.parametrize("values", [[], [30, 40], [1, 2]])
def test_a_mean_that_no_cut_can_give_is_refused(values):
    with pytest.raises(UserError, match="`mean` must lie within the lengths of the records"):
        longest_kept_for_mean(np.array(values, int), mean=20.0)


def test_the_input_is_the_prompt_or_else_the_text(opt_like):
    examples = [Example("a b c", "d"), Example("", "a b")]
    assert input_lengths(examples, opt_like).tolist() == [3, 2]


def test_every_split_of_a_task_gets_the_average(opt_like):
    def split(first, num_words):
        words = [f"w{first + i}" for i in range(len(num_words))]
        return [
            Example(" ".join([w] + ["a"] * (n - 1)), "x")
            for w, n in zip(words, num_words, strict=True)
        ]

    task = build_task(
        "t", "", train=split(0, [2, 4, 6, 8, 10]), validation=split(10, [1, 4, 5]),
        test=split(20, [4, 4]),
    )  # fmt: skip
    cut = with_mean_length(task, opt_like, mean=4.0)
    lengths = {
        s: input_lengths(getattr(cut, s), opt_like).tolist() for s in ("train", "validation")
    }
    assert lengths == {"train": [2, 4, 6], "validation": [4, 5]}
    assert cut.test == task.test
    assert dict(cut.removed) == {"train_mean_length": 2, "validation_mean_length": 1}
    assert cut.fingerprint != task.fingerprint
    with pytest.raises(UserError, match=r"`mean_length` must be 1 to 5 tokens .*validation"):
        with_mean_length(task, opt_like, mean=7.0)
