"""Mistakes with kernels, their products, their loss and the folders that keep them."""

import jax
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax.ntk import candidate, cost, gram, velocity
from lensllm_jax.ntk.readout import Projection
from lensllm_jax.ntk.store import SETTINGS, TileStore

EYE, ONES = np.eye(2, dtype=np.float32), np.ones(2, np.float32)
TILE = gram.Tile(slice(0, 2), slice(0, 2))
TIME = {"learning_rate": 0.1, "steps": 1.0}
IDS = np.array([[1, 2, 3]])
BATCH = {"input_ids": IDS, "attention_mask": IDS * 0 + 1, "labels": IDS}


class Model:
    """A table of logits, one row a token."""

    params = {"table": np.ones((5, 5), np.float32)}
    is_encoder_decoder = False

    def apply_fn(self, params, batch):
        return jax.numpy.asarray(params["table"])[batch["input_ids"]]


def linear(params, x):
    return x @ params


def kernel(x1=EYE, x2=None, f=linear, params=ONES, **settings):
    return lens.empirical_ntk(f, params, x1, x2, **settings)


def product(v=ONES, **settings):
    return lens.ntk_matvec(linear, ONES, EYE, v, **settings)


def matrix_free(residual=ONES, **settings):
    return lens.ntk_loss_matrix_free(linear, ONES, EYE, residual, **{**TIME, **settings})


def kernel_loss(theta=EYE, residual=ONES, **settings):
    return lens.ntk_loss(theta, residual, **{**TIME, **settings})


def on_test(cross=EYE, residual=ONES):
    return lens.ntk_test_residual(cross, EYE, residual, ONES, **TIME)


def of_candidate(changes=(), **settings):
    return lens.candidate_ntk(Model(), {**BATCH, **dict(changes)}, **settings)


def of_broken_outputs():
    """The kernel is finite, the outputs are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, "empirical_ntk", lambda *_, **__: EYE)
        patch.setattr(candidate, "_jitted", lambda *_: np.array([np.nan]))
        return of_candidate()


def assembled_with_nan():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "assemble", lambda *_, **__: EYE * np.nan)
        return kernel()


def cost_without_an_account():
    """XLA has no backend here that keeps its account to itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Compiled, "memory_analysis", lambda _: None)
        return cost.ntk_cost(linear, ONES, EYE, method="jacobian_contraction", timed=False)


def velocities(steps, num_states=2):
    """Of a kernel that is known at every state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(velocity, "empirical_ntk", lambda *_, **__: EYE)
        return velocity.kernel_velocity(linear, [ONES] * num_states, EYE, steps=steps)


def written(path, content="x"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def stored(folder):
    return TileStore.open(folder, {"method": "structured"})


# the message, and what brings it about in an empty folder
MISTAKES = [
    (
        (
            "`method` must be one of jacobian_contraction, ntk_vector_products, structured, got "
            "'fast'"
        ),
        lambda tmp: kernel(method="fast"),
    ),
    (
        "`output_reduction` must be one of mean, none, sum, got 'max'",
        lambda tmp: kernel(output_reduction="max"),
    ),
    ("`block_size` must be positive and finite, got 0", lambda tmp: kernel(block_size=0)),
    (
        (
            '`memory_budget` must come without `block_size` and with method "structured", got 1 and'
            " 'structured'"
        ),
        lambda tmp: kernel(block_size=1, memory_budget=1e9),
    ),
    ("`memory_budget` must be positive and finite, got 0.0", lambda tmp: kernel(memory_budget=0.0)),
    (
        (
            "`memory_budget` must be at least ... bytes (one example a block), got 1: shorten the "
            "examples or take a smaller model"
        ),
        lambda tmp: kernel(memory_budget=1.0),
    ),
    (
        (
            "`devices` must be left out for method 'ntk_vector_products', got 1: only "
            '"structured" shares its examples between devices'
        ),
        lambda tmp: kernel(method="ntk_vector_products", devices=jax.devices()),
    ),
    ("`devices` must name at least one device, got none", lambda tmp: kernel(devices=[])),
    (
        (
            "`x1` must hold arrays with one common leading axis of examples, got shapes [(2, 2), "
            "(1, 2)]"
        ),
        lambda tmp: kernel({"a": EYE, "b": EYE[:1]}),
    ),
    (
        "`x2` must be a pytree like `x1`, PyTreeDef(*), got PyTreeDef({'a': *})",
        lambda tmp: kernel(x2={"a": EYE}),
    ),
    (
        (
            "`f(params, x)` must be one floating array of shape (2,) or (2, k), got "
            "ShapeDtypeStruct(shape=(2, 1, 1), dtype=float32): reduce a language model's logits "
            "with a read-out first"
        ),
        lambda tmp: kernel(f=lambda w, x: (x @ w)[:, None, None]),
    ),
    ("`params` must hold at least one array, got an empty pytree", lambda tmp: kernel(params={})),
    (
        "`params` must hold floating arrays, got int32 at : close over what is no parameter",
        lambda tmp: kernel(params=np.ones(2, int)),
    ),
    (
        "`theta (the computed kernel)` must be finite, got nan at index (0, 0)",
        lambda tmp: assembled_with_nan(),
    ),
    (
        (
            "the gradient in parameter ... must be finite, got NaN or infinity: look at the "
            "weights and at what enters that layer, or compute in float64"
        ),
        lambda tmp: kernel(f=lambda w, x: jax.numpy.sqrt(x @ w), params=ONES * 0),
    ),
    (
        "`output_reduction` must be one of mean, none, sum, got 'max'",
        lambda tmp: lens.parameter_group_ntk(
            linear, ONES, EYE, group_of=str, output_reduction="max"
        ),
    ),
    ("`readout` must be one of ..., got 'logits'", lambda tmp: of_candidate(readout="logits")),
    (
        (
            "`batch` must have the keys attention_mask, input_ids, labels, got none named "
            "attention_mask, labels"
        ),
        lambda tmp: lens.candidate_ntk(Model(), {"input_ids": IDS}),
    ),
    (
        "`batch['labels']` must be integers (b, s), got float64 (1, 3)",
        lambda tmp: of_candidate({"labels": IDS * 1.0}),
    ),
    (
        "`batch['labels']` must have shape (1, 3), got (1, 2)",
        lambda tmp: of_candidate({"labels": IDS[:, :2]}),
    ),
    (
        "`batch['labels']` must be tokens below 5 (the vocabulary) or -100, got 5",
        lambda tmp: of_candidate({"labels": IDS + 2}),
    ),
    (
        (
            "`batch['labels']` must hold a target token in every example, got none in example 0: "
            "drop it, or truncate the input less"
        ),
        lambda tmp: of_candidate({"labels": IDS * 0 - 100}),
    ),
    (
        (
            "`label_tokens` must name the classes' tokens for readout 'label_logits' and stay empty"
            " for the others, got (3,) for 'target_logprob'"
        ),
        lambda tmp: of_candidate(label_tokens=[3]),
    ),
    (
        (
            "`projection` must stay out of every readout but 'projected_logits', got "
            "'target_logprob'"
        ),
        lambda tmp: of_candidate(projection=Projection()),
    ),
    ("`outputs` must be finite, got nan at index (0, 0)", lambda tmp: of_broken_outputs()),
    (
        "`batch_shape` must be positive and finite, got 0",
        lambda tmp: lens.estimate_ntk_cost(Model(), (0, 3)),
    ),
    (
        "`readout` must be one of ..., got 'logits'",
        lambda tmp: lens.estimate_ntk_cost(Model(), (1, 3), readout="logits"),
    ),
    (
        (
            "`method` must be one of jacobian_contraction, ntk_vector_products, structured, got "
            "'fast'"
        ),
        lambda tmp: cost.ntk_cost(linear, ONES, EYE, method="fast", timed=False),
    ),
    (
        "`theta (the computed kernel)` must be finite, got nan at index (0, 0)",
        lambda tmp: cost.ntk_cost(
            lambda w, x: jax.numpy.sqrt(x @ w), ONES * 0, EYE, method="jacobian_contraction"
        ),
    ),
    (
        (
            "`method` must be \"structured\" for a cost on cpu, got 'jacobian_contraction': the "
            "compiler says nothing of its memory there"
        ),
        lambda tmp: cost_without_an_account(),
    ),
    ("`num_projections` must be positive and finite, got 0", lambda tmp: Projection(0)),
    ("`seed` must be zero or positive and finite, got -1", lambda tmp: Projection(seed=-1)),
    (
        "`distribution` must be one of gaussian, rademacher, got 'uniform'",
        lambda tmp: Projection(distribution="uniform"),
    ),
    (
        "`theta` must have shape (n, m) or (n, m, k, k), got (2, 2, 2)",
        lambda tmp: kernel_loss(theta=np.ones((2, 2, 2))),
    ),
    (
        "`theta (flattened)` must have shape (1, 1), got (1, 2)",
        lambda tmp: kernel_loss(theta=EYE[:1]),
    ),
    (
        (
            "`theta` must be positive semi-definite (smallest eigenvalue >= -2.4e-06), got "
            "-1.0e+00: a kernel of one function on one set of examples always is"
        ),
        lambda tmp: kernel_loss(theta=-EYE),
    ),
    (
        "`residual` must be finite, got inf at index (0,)",
        lambda tmp: kernel_loss(residual=ONES * np.inf),
    ),
    (
        "`residual (flattened)` must have shape (2,), got (3,)",
        lambda tmp: kernel_loss(residual=np.ones(3)),
    ),
    (
        "`learning_rate` must be positive and finite, got 0.0",
        lambda tmp: kernel_loss(learning_rate=0.0),
    ),
    ("`steps` must be finite, got nan at index ()", lambda tmp: kernel_loss(steps=np.nan)),
    ("`steps` must be zero or positive, got -1.0", lambda tmp: kernel_loss(steps=-1.0)),
    (
        "`theta_test_train` must be finite, got nan at index (0, 0)",
        lambda tmp: on_test(cross=EYE * np.nan),
    ),
    (
        "`theta_test_train (flattened)` must have shape (2, 2), got (1, 2)",
        lambda tmp: on_test(cross=EYE[:1]),
    ),
    (
        "`test_residual` must be finite, got inf at index (0,)",
        lambda tmp: on_test(residual=ONES * np.inf),
    ),
    ("`block_size` must be positive and finite, got 0", lambda tmp: product(block_size=0)),
    ("`v` must be finite, got nan at index (0,)", lambda tmp: product(v=ONES * np.nan)),
    (
        "`v` must have shape (2,), that of the outputs, or one more leading axis, got (3,)",
        lambda tmp: product(v=np.ones(3)),
    ),
    ("`num_matvecs` must be positive and finite, got 0", lambda tmp: matrix_free(num_matvecs=0)),
    (
        "`residual` must be finite, got inf at index (0,)",
        lambda tmp: matrix_free(residual=ONES * np.inf),
    ),
    ("`residual` must have shape (2,), got (3,)", lambda tmp: matrix_free(residual=np.ones(3))),
    ("`steps` must be finite, got inf at index (1,)", lambda tmp: velocities([0, np.inf])),
    ("`steps` must be two or more ascending numbers, got [1, 1]", lambda tmp: velocities([1, 1])),
    (
        "`params_sequence` must hold one state for each of the 2 `steps`, got 3",
        lambda tmp: velocities([0, 1], num_states=3),
    ),
    (
        "`theta` must be finite, got nan at index (0, 0)",
        lambda tmp: velocity.relative_change(EYE * np.nan, EYE),
    ),
    (
        "`theta` must have shape (1, 2), got (2, 2)",
        lambda tmp: velocity.relative_change(EYE, EYE[:1]),
    ),
    (
        "`theta_0` must not be zero, got a kernel without direction",
        lambda tmp: velocity.relative_change(EYE, EYE * 0),
    ),
    (
        "`store` must be a folder, got the file DIR/tiles",
        lambda tmp: stored(written(tmp / "tiles")),
    ),
    (
        (
            "`store` must be empty or hold a kernel's tiles, got DIR with notes.txt: name another "
            "folder"
        ),
        lambda tmp: stored(written(tmp / "notes.txt").parent),
    ),
    (
        (
            "`store` must hold a settings.json of ours, got one that does not read in DIR: name "
            "another folder"
        ),
        lambda tmp: stored(written(tmp / SETTINGS, "[").parent),
    ),
    (
        (
            "`store` must hold tiles of this kernel, got DIR with method='other' there, "
            "'structured' now: name another folder"
        ),
        lambda tmp: stored(written(tmp / SETTINGS, '{"method": "other"}').parent),
    ),
    (
        "`store` must hold tile_0_0, got none that is whole in DIR: fill it",
        lambda tmp: stored(tmp).read(TILE),
    ),
    (
        "`theta (tile_0_0)` must be finite, got nan at index (0, 0)",
        lambda tmp: stored(tmp).fill([TILE], lambda tile: EYE * np.nan),
    ),
]
