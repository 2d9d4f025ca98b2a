"""A task keeps its splits apart, and says what it left out."""

import itertools

import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import (
    Example,
    Task,
    build_task,
    fingerprint,
    loose_keys,
    loose_keys_of_both,
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
        train=texts("Four!", "three", "one", "ONE"),
        validation=texts("four", "three"),
        keys=loose_keys,
    )
    assert [e.target for e in task.train] == ["one"]
    assert shared_texts(task) == set()
    assert task.removed == {
        "train_repeats_test": 1,
        "train_repeats_train": 1,
        "train_repeats_validation": 1,
        "validation_repeats_test": 1,
    }


def test_fewer_test_records_are_the_first_ones_of_another_task():
    task = small_task(test=texts("four", "five", "six"))
    few = task.with_test_examples(2)
    assert few.test == task.test[:2]
    assert (few.train, few.validation) == (task.train, task.validation)
    assert dict(few.removed) == {"test_not_evaluated": 1}
    assert few.fingerprint == fingerprint(task.train, task.validation, few.test) != task.fingerprint
    assert task.with_test_examples(3) == task


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
    assert len(small_task(train=reviews, keys=loose_keys_of_both).train) == 1


def test_a_prompt_never_counts_as_the_repeat_of_a_target():
    task = small_task(
        train=[Example("four", "five"), Example("six", "four")], keys=loose_keys_of_both
    )
    assert [e.target for e in task.train] == ["five"]


def test_targets_without_a_word_are_compared_as_they_stand():
    assert len(small_task(train=texts("+", "-", "+"), keys=loose_keys).train) == 2


# pairs of records, and whether the second repeats the first
PAIRS = [
    (("1 + 1 =", "2"), ("1 - 1 =", "2"), False),
    (("if x < a:", "yes"), ("if x >= a:", "yes"), False),
    (("mood? \U0001f600", "a"), ("mood? \U0001f622", "a"), False),
    (("\u0915\u093f", "a"), ("\u0915\u0940", "a"), False),  # vowel signs of Hindi
    (("resume", "a"), ("r\u00e9sum\u00e9", "a"), False),
    (("US", "a"), ("us", "a"), False),
    (("Tell a story.", "Once."), ("Tell a story.", "Twice."), False),
    (("", "a b"), ("a", "b"), False),
    (("a", "b"), ("a", "b"), True),
    (("caf\u00e9", "a"), ("cafe\u0301", "a"), True),  # the same after normal form C
    (("a  b\n", "c"), (" a\tb", "c "), True),
]


@pytest.mark.parametrize(("first", "second", "repeats"), PAIRS)
def test_only_true_repeats_are_left_out(first, second, repeats):
    task = small_task(train=[Example(*first), Example(*second)])
    assert len(task.train) == 2 - repeats
    assert task.removed == ({"train_repeats_train": 1} if repeats else {})


def test_a_task_of_records_is_that_of_a_list_a_frame_and_a_dataset():
    import datasets
    import pandas

    records = [{"prompt": f"question {i}", "target": f"answer {i}"} for i in range(60)]
    tables = [pandas.DataFrame(records), datasets.Dataset.from_list(records), iter(records)]
    task = Task.from_records(records, name="questions")
    assert {Task.from_records(table).fingerprint for table in tables} == {task.fingerprint}
    assert repr(task) == "<Task 'questions': 51 train, 3 validation, 6 test, 0 left out>"
    changed = [*records[:-1], {"prompt": "question", "target": "no"}]
    assert Task.from_records(changed).fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"train": []}, "list of dicts, a DataFrame .* got dict of train, pass one split"),
        ("text", "got str"),
        (3, "got int"),
        ([["a", "b"]] * 30, "must hold dicts, got list in record 1"),
        ([{"prompt": "a", "target": "b"}] * 19, "at least 20 records to be split, got 19"),
    ],
)
def test_what_holds_no_records_is_refused(records, message):
    with pytest.raises(UserError, match=message):
        Task.from_records(records)


def test_a_task_shows_itself_in_one_line():
    task = small_task(train=texts(*(f"{i} " * 1000 for i in range(100)), ""))
    assert repr(task) == "<Task 'small': 100 train, 1 validation, 1 test, 1 left out>"


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
