"""A saved folder is a candidate again, or is not there at all."""

import jax
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import CONFIG
from lensllm_jax.checkpoints.folder import INDEX, SINGLE


@pytest.fixture(scope="module")
def candidate():
    return lens.load_candidate("zoo/opt-xs")


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_saving_and_loading_gives_the_same_parameters_back(candidate, tmp_path):
    candidate.save(tmp_path / "saved")
    assert same(load_folder(tmp_path / "saved").params, candidate.params)


def test_a_saved_candidate_has_its_tokenizer(candidate, tmp_path):
    candidate.save(tmp_path)
    back = load_folder(tmp_path)
    text = "In the beginning"
    assert back.tokenizer(text)["input_ids"] == candidate.tokenizer(text)["input_ids"]
    assert back.tokenizer.eos_token_id == candidate.tokenizer.eos_token_id


def test_a_saved_candidate_can_be_saved_over(candidate, tmp_path):
    candidate.save(tmp_path)
    doubled = jax.tree.map(lambda leaf: leaf * 2, candidate.params)
    load_folder(tmp_path).save(tmp_path, params=doubled)
    assert same(load_folder(tmp_path).params, doubled)
    assert not list(tmp_path.glob(".*"))


def test_whoever_may_read_a_saved_config_may_read_its_weights(candidate, tmp_path):
    candidate.save(tmp_path)
    modes = {(tmp_path / name).stat().st_mode for name in (CONFIG, SINGLE)}
    assert len(modes) == 1


def test_a_value_that_the_type_does_not_hold_is_named_and_nothing_is_written(candidate, tmp_path):
    params = jax.tree.map(np.array, candidate.params)
    params["blocks"]["feed_forward"]["up"]["bias"][1, 3] = 1e5
    candidate.save(tmp_path / "wide", params=params)  # float32 holds it
    name = r"model\.decoder\.layers\.1\.fc1\.bias"
    with pytest.raises(checks.UserError, match=rf"float16.*{name} of magnitude 1e\+05"):
        candidate.save(tmp_path / "narrow", params=params, dtype="float16")
    params["blocks"]["feed_forward"]["up"]["bias"][1, 3] = np.nan
    with pytest.raises(checks.UserError, match=f"{name} of magnitude nan"):
        candidate.save(tmp_path / "narrow", params=params)
    assert not (tmp_path / "narrow").exists()


def test_a_saved_candidate_is_what_loads_where_an_index_was(candidate, tmp_path):
    (tmp_path / INDEX).write_text("{}")
    candidate.save(tmp_path)
    assert same(load_folder(tmp_path).params, candidate.params)


def test_a_file_from_outside_the_checkpoint_is_not_copied(candidate, tmp_path):
    candidate.save(tmp_path / "a")
    (tmp_path / "secret").write_text("one two")
    (tmp_path / "a" / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(checks.UserError, match=r"vocab\.txt.*a link out of it"):
        load_folder(tmp_path / "a").save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    (tmp_path / "a" / "vocab.txt").unlink()
    (tmp_path / "a" / "here").write_text("one two")
    (tmp_path / "a" / "vocab.txt").symlink_to("here")  # the control: a link within it
    load_folder(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "b" / "vocab.txt").read_text() == "one two"
