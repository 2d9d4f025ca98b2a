"""A task keeps its splits apart, and says what it left out."""

import itertools

import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import (
    Example,
    build_task,
    fingerprint,
    keys_of_both,
    normalised,
)


def texts(*targets):
    return [Example("", target) for target in targets]


def small_task(**overrides):
    splits = {"train": texts("one", "two"), "validation": texts("three"), "test": texts("four")}
    return build_task("small", "a toy", **{**splits, **overrides})


def shared_texts(task):
    """Normalised targets that stand in more than one split, by brute force."""
    splits = [{normalised(e.target) for e in s} for s in (task.train, task.validation, task.test)]
    return set().union(*(a & b for a, b in itertools.combinations(splits, 2)))


def test_a_repeated_text_stays_only_in_the_split_nearest_to_test():
    task = small_task(
        train=texts("Four!", "three", "one", "ONE"), validation=texts("four", "three")
    )
    assert [e.target for e in task.train] == ["one"]
    assert shared_texts(task) == set()
    assert task.removed == {
        "train_repeats_test": 1,
        "train_repeats_train": 1,
        "train_repeats_validation": 1,
        "validation_repeats_test": 1,
    }


def test_the_leak_test_itself_sees_a_leak():
    leaky = small_task()
    object.__setattr__(leaky, "train", leaky.train + texts_tuple("Four."))
    assert shared_texts(leaky) == {"four"}


def texts_tuple(*targets):
    return tuple(texts(*targets))


def test_empty_targets_are_left_out_and_counted():
    task = small_task(train=texts("one", "", " \n "))
    assert (len(task.train), task.removed) == (1, {"empty": 2})


def test_labels_may_repeat_under_different_prompts():
    reviews = [Example("good film", "positive"), Example("great film", "positive")]
    assert len(small_task(train=reviews).train) == 2
    assert len(small_task(train=reviews, keys=keys_of_both).train) == 1


def test_a_prompt_never_counts_as_the_repeat_of_a_target():
    task = small_task(train=[Example("four", "five"), Example("six", "four")], keys=keys_of_both)
    assert [e.target for e in task.train] == ["five"]


def test_targets_without_a_word_are_compared_as_they_stand():
    assert len(small_task(train=texts("+", "-", "+")).train) == 2


def test_a_split_larger_than_its_size_is_cut_and_counted():
    task = small_task(sizes={"train": 1})
    assert (len(task.train), task.removed) == (1, {"train_over_size": 1})


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_records_is_refused_by_name(split):
    with pytest.raises(UserError, match=f"`{split}` must hold at least one record"):
        small_task(**{split: texts("")})


def test_fingerprint_sees_every_character_every_field_and_the_order():
    a, b = Example("p", "a"), Example("p", "b")
    different = [
        fingerprint([a, b], []),
        fingerprint([b, a], []),
        fingerprint([a], [b]),
        fingerprint([a], []),
        fingerprint([Example("pa", ""), b], []),
        fingerprint([Example("", "pa"), b], []),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint([a, b], []) == fingerprint((Example("p", "a"), b), ())
