"""Every name, type, shape and value of a pytree counts in its fingerprint, and nothing else."""

import jax.numpy as jnp
import numpy as np

from lensllm_jax.fingerprint import fingerprint, named_arrays


def test_names_types_shapes_and_values_count():
    trees = [
        {"w": np.zeros(2)},
        {"v": np.zeros(2)},
        {"w": np.zeros(2, np.float32)},
        {"w": np.zeros((2, 1))},
        {"w": np.array([0.0, 1.0])},
        {"w": np.array([0.0, -0.0])},
        [np.zeros(2)],
        {"w": np.zeros(1), "x": np.zeros(1)},
        ["text", {"w": np.zeros(2)}],
        ["texts", {"w": np.zeros(2)}],
        np.zeros(()),
        np.zeros(1),
    ]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)


def test_device_layout_and_order_of_keys_do_not_count():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"a": values, "b": np.ones(1)}
    same = {"b": np.ones(1), "a": jnp.asarray(values)}
    assert fingerprint(tree) == fingerprint(same)
    assert fingerprint(tree) == fingerprint({**tree, "a": np.asfortranarray(values)})


def test_arrays_are_named_by_their_paths_in_the_order_of_the_leaves():
    assert list(named_arrays({"b": np.ones(1), "a": (np.ones(2), 3)})) == [
        "['a'][0]", "['a'][1]", "['b']",
    ]  # fmt: skip
