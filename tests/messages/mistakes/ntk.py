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


def on_test(cross=EYE, residual=ONES, **settings):
    return lens.ntk_test_residual(cross, EYE, residual, ONES, **{**TIME, **settings})


def of_candidate(changes=(), **settings):
    return lens.candidate_ntk(Model(), {**BATCH, **dict(changes)}, **settings)


def of_broken_outputs():
    """The kernel is finite, the outputs are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, "empirical_ntk", lambda *_, **__: EYE)
        patch.setattr(candidate, "_jitted", lambda *_: np.array([np.nan]))
        return of_candidate()


def overflowing_sum():
    """Each parameter's part of the kernel is finite, their sum is not."""
    params = {"a": ONES, "b": ONES}
    return kernel(f=lambda p, x: (x @ p["a"] + x @ p["b"]) * 1.7e19, params=params)


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


def tile_of_a_folder(path):
    store = stored(path)
    (path / f"tile_0_0_{'0' * 64}.npy").mkdir()
    return store.read(TILE)


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("method", "one of ... got 'fast'", lambda tmp: kernel(method="fast")),
    ("output_reduction", "one of ... got 'max'", lambda tmp: kernel(output_reduction="max")),
    ("block_size", "positive ... got 0", lambda tmp: kernel(block_size=0)),
    ("map_tiles", "come with `store` ... without", lambda tmp: kernel(map_tiles=map)),
    ("residuals", "one of ... got 'some'", lambda tmp: kernel(residuals="some")),
    (
        "parameters",
        "globs ... paths such as 'table' ... got 'head*'",
        lambda tmp: of_candidate(parameters="head*"),
    ),
    (
        "memory_budget",
        "come without `block_size` ... got 1 and 'structured'",
        lambda tmp: kernel(block_size=1, memory_budget=1e9),
    ),
    ("memory_budget", "positive ... got 0.0", lambda tmp: kernel(memory_budget=0.0)),
    ("memory_budget", "at least ... got 1", lambda tmp: kernel(memory_budget=1.0)),
    (
        "devices",
        "left out for method ... got 1",
        lambda tmp: kernel(method="ntk_vector_products", devices=jax.devices()),
    ),
    ("devices", "name at least one ... got none", lambda tmp: kernel(devices=[])),
    (
        "x1",
        "hold arrays with one ... got shapes",
        lambda tmp: kernel({"a": EYE, "b": EYE[:1]}),
    ),
    ("devices", "list of JAX devices ... got 'cpu'", lambda tmp: kernel(devices="cpu")),
    ("block_size", "positive whole number ... got 0.5", lambda tmp: kernel(block_size=0.5)),
    ("x1", "examples of one shape ... got a list", lambda tmp: kernel([[1.0], [1.0, 2.0]])),
    ("x1", "hold arrays ... got str at ['a']", lambda tmp: kernel({"a": "text", "b": EYE})),
    (
        "params",
        "hold arrays ... got function at ['act']",
        lambda tmp: kernel(params={"w": ONES, "act": linear}),
    ),
    (
        "params",
        "hold numbers ... got what jax.jit",
        lambda tmp: jax.jit(lambda w: kernel(params=w))(ONES),
    ),
    ("params", "hold numbers ... got", lambda tmp: jax.jit(lambda v: product(v=v))(ONES)),
    ("store", "the path of a folder, got 3", lambda tmp: kernel(store=3)),
    (
        "f(params, x2)",
        "as many outputs ... got 1",
        lambda tmp: kernel(x2=EYE[:, :1], f=lambda w, x: x),
    ),
    (
        "f(params, x1)",
        "one row for one example ... got (2,)",
        lambda tmp: kernel(f=lambda w, x: x @ w - ONES),
    ),
    (
        "f(params, x1)",
        "each row from its own example alone ... got 0.5",
        lambda tmp: kernel(f=lambda w, x: x @ w / len(x)),
    ),
    (
        "f(params, x2)",
        "run on shapes alone ... got an error (dot_general",
        lambda tmp: kernel(x2=EYE[:, :1]),
    ),
    ("x2", "pytree like `x1` ... got PyTreeDef", lambda tmp: kernel(x2={"a": EYE})),
    (
        "f(params, x)",
        "one floating array ... got ShapeDtypeStruct(shape=(2, 1, 1)",
        lambda tmp: kernel(f=lambda w, x: (x @ w)[:, None, None]),
    ),
    ("params", "hold at least one ... got an empty pytree", lambda tmp: kernel(params={})),
    ("params", "hold floating arrays ... got int32", lambda tmp: kernel(params=np.ones(2, int))),
    (
        "theta (the computed kernel)",
        "finite ... got inf at index (0, 0)",
        lambda tmp: overflowing_sum(),
    ),
    (
        "the gradient in parameter",
        "finite ... got NaN or infinity",
        lambda tmp: kernel(f=lambda w, x: jax.numpy.sqrt(x @ w), params=ONES * 0),
    ),
    (
        "output_reduction",
        "one of ... got 'max'",
        lambda tmp: lens.parameter_group_ntk(
            linear, ONES, EYE, group_of=str, output_reduction="max"
        ),
    ),
    ("readout", "one of ... got 'logits'", lambda tmp: of_candidate(readout="logits")),
    (
        "batch",
        "have the keys attention_mask ... got none named attention_mask",
        lambda tmp: lens.candidate_ntk(Model(), {"input_ids": IDS}),
    ),
    (
        "batch['input_ids']",
        "tokens from 0 to 4 ... got 5 at (0, 2)",
        lambda tmp: of_candidate({"input_ids": IDS + 2}),
    ),
    (
        "batch['attention_mask']",
        "integers ... at least one, got int64 (0, 3)",
        lambda tmp: of_candidate({name: array[:0] for name, array in BATCH.items()}),
    ),
    (
        "batch['input_ids']",
        "integers ... got <class 'list'> (1, 3)",
        lambda tmp: of_candidate({"input_ids": IDS.tolist()}),
    ),
    (
        "batch['labels']",
        "integers ... got float64 (1, 3)",
        lambda tmp: of_candidate({"labels": IDS * 1.0}),
    ),
    (
        "batch['labels']",
        "have shape ... got (1, 2)",
        lambda tmp: of_candidate({"labels": IDS[:, :2]}),
    ),
    (
        "batch['text']",
        "numbers, got <U1: leave it out",
        lambda tmp: of_candidate({"text": np.array(["a"])}),
    ),
    ("batch['labels']", "tokens below 5 ... got 5", lambda tmp: of_candidate({"labels": IDS + 2})),
    (
        "batch['labels']",
        "hold a target token ... got none in example 0",
        lambda tmp: of_candidate({"labels": IDS * 0 - 100}),
    ),
    (
        "label_tokens",
        "name the classes' tokens ... got (3,) for 'target_logprob'",
        lambda tmp: of_candidate(label_tokens=[3]),
    ),
    (
        "projection",
        "stay out of every ... got 'target_logprob'",
        lambda tmp: of_candidate(projection=Projection()),
    ),
    ("outputs", "finite ... got nan at index (0, 0)", lambda tmp: of_broken_outputs()),
    (
        "block_size",
        "left out ... 'jacobian_contraction', got 2",
        lambda tmp: lens.estimate_ntk_cost(
            Model(), (3, 3), block_size=2, method="jacobian_contraction"
        ),
    ),
    (
        "block_size",
        "positive ... got 0",
        lambda tmp: cost.ntk_cost(linear, ONES, EYE, block_size=0, timed=False),
    ),
    ("batch_shape", "positive ... got 0", lambda tmp: lens.estimate_ntk_cost(Model(), (0, 3))),
    (
        "readout",
        "one of ... got 'logits'",
        lambda tmp: lens.estimate_ntk_cost(Model(), (1, 3), readout="logits"),
    ),
    (
        "method",
        "one of ... got 'fast'",
        lambda tmp: cost.ntk_cost(linear, ONES, EYE, method="fast", timed=False),
    ),
    (
        "theta (the computed kernel)",
        "finite ... got nan at index (0, 0)",
        lambda tmp: cost.ntk_cost(
            lambda w, x: jax.numpy.sqrt(x @ w), ONES * 0, EYE, method="jacobian_contraction"
        ),
    ),
    (
        "params['w']",
        "finite ... got nan at index (1,)",
        lambda tmp: cost.ntk_cost(
            lambda params, x: x @ params["w"], {"w": np.array([1.0, np.nan])}, EYE
        ),
    ),
    (
        "method",
        "\"structured\" for a cost ... got 'jacobian_contraction'",
        lambda tmp: cost_without_an_account(),
    ),
    ("num_projections", "positive ... got 0", lambda tmp: Projection(0)),
    ("seed", "zero or positive ... got -1", lambda tmp: Projection(seed=-1)),
    ("distribution", "one of ... got 'uniform'", lambda tmp: Projection(distribution="uniform")),
    ("theta", "have shape ... got (2, 2, 2)", lambda tmp: kernel_loss(theta=np.ones((2, 2, 2)))),
    ("theta (flattened)", "have shape ... got (1, 2)", lambda tmp: kernel_loss(theta=EYE[:1])),
    ("theta", "positive semi-definite ... got -1.0e+00", lambda tmp: kernel_loss(theta=-EYE)),
    (
        "residual",
        "finite ... got inf at index (0,)",
        lambda tmp: kernel_loss(residual=ONES * np.inf),
    ),
    (
        "residual (flattened)",
        "have shape ... got (3,)",
        lambda tmp: kernel_loss(residual=np.ones(3)),
    ),
    ("residual", "real numbers, got complex64", lambda tmp: kernel_loss(residual=ONES * 1j)),
    ("theta", "real numbers, got complex64", lambda tmp: kernel_loss(theta=EYE * 1j)),
    ("theta", "have shape ... got (0, 0)", lambda tmp: kernel_loss(np.zeros((0, 0)), ONES[:0])),
    (
        "residual",
        "real numbers, got DynamicJaxprTracer",
        lambda tmp: jax.jit(lambda r: kernel_loss(residual=r))(ONES),
    ),
    ("steps", "real numbers, got <U3", lambda tmp: kernel_loss(steps="ten")),
    ("learning_rate", "positive ... got [0.1]", lambda tmp: kernel_loss(learning_rate=[0.1])),
    ("theta_test_train", "real numbers, got object", lambda tmp: on_test(cross=[[None] * 2] * 2)),
    ("test_residual", "real numbers, got complex64", lambda tmp: on_test(residual=ONES * 1j)),
    (
        "residual",
        "have shape (2, 1), got (1, 2)",
        lambda tmp: kernel_loss(residual=ONES[None]),
    ),
    ("learning_rate", "positive ... got 0.0", lambda tmp: kernel_loss(learning_rate=0.0)),
    ("learning_rate", "positive ... got 0.0", lambda tmp: on_test(learning_rate=0.0)),
    ("steps", "finite ... got nan at index ()", lambda tmp: kernel_loss(steps=np.nan)),
    ("steps", "zero or positive ... got -1.0", lambda tmp: kernel_loss(steps=-1.0)),
    (
        "theta_test_train",
        "finite ... got nan at index (0, 0)",
        lambda tmp: on_test(cross=EYE * np.nan),
    ),
    (
        "theta_test_train (flattened)",
        "have shape ... got (1, 2)",
        lambda tmp: on_test(cross=EYE[:1]),
    ),
    (
        "test_residual",
        "finite ... got inf at index (0,)",
        lambda tmp: on_test(residual=ONES * np.inf),
    ),
    ("block_size", "positive ... got 0", lambda tmp: product(block_size=0)),
    ("v", "finite ... got nan at index (0,)", lambda tmp: product(v=ONES * np.nan)),
    ("v", "real numbers, got complex64", lambda tmp: product(v=ONES * 1j)),
    ("v", "have shape ... got (3,)", lambda tmp: product(v=np.ones(3))),
    ("num_matvecs", "positive ... got 0", lambda tmp: matrix_free(num_matvecs=0)),
    (
        "residual",
        "finite ... got inf at index (0,)",
        lambda tmp: matrix_free(residual=ONES * np.inf),
    ),
    ("residual", "real numbers, got <U1", lambda tmp: matrix_free(residual=["a", "b"])),
    ("residual", "have shape ... got (3,)", lambda tmp: matrix_free(residual=np.ones(3))),
    ("steps", "finite ... got inf at index (1,)", lambda tmp: velocities([0, np.inf])),
    ("steps", "real numbers, got complex128", lambda tmp: velocities([0, 1j])),
    ("steps", "two or more ascending ... got [1, 1]", lambda tmp: velocities([1, 1])),
    ("params_sequence", "hold one state ... got 3", lambda tmp: velocities([0, 1], num_states=3)),
    (
        "theta",
        "finite ... got nan at index (0, 0)",
        lambda tmp: velocity.relative_change(EYE * np.nan, EYE),
    ),
    (
        "theta",
        "real numbers, got complex64",
        lambda tmp: velocity.relative_change(EYE * 1j, EYE),
    ),
    ("theta", "have shape ... got (2, 2)", lambda tmp: velocity.relative_change(EYE, EYE[:1])),
    (
        "theta_0",
        "not be zero ... got a kernel without direction",
        lambda tmp: velocity.relative_change(EYE, EYE * 0),
    ),
    ("store", "folder ... got the file tiles", lambda tmp: stored(written(tmp / "tiles"))),
    ("store", "empty or hold", lambda tmp: stored(written(tmp / "notes.txt").parent)),
    (
        "store",
        "hold a settings.json ... got one that does not read",
        lambda tmp: stored(written(tmp / SETTINGS, "[").parent),
    ),
    (
        "store",
        "these settings",
        lambda tmp: stored(written(tmp / SETTINGS, '{"settings": {"method": "other"}}').parent),
    ),
    (
        "store",
        "hold files, got the folder ... remove it",
        tile_of_a_folder,
    ),
    ("store", "hold tile_0_0 ... got none that is whole", lambda tmp: stored(tmp).read(TILE)),
    (
        "store",
        "tiles of one kind ... got float32 (1, 2) for tile_0_0",
        lambda tmp: stored(tmp).fill([TILE], lambda tile: EYE[:1]),
    ),
    (
        "store",
        "left out ... got one with pure_callback",
        lambda tmp: kernel(
            f=lambda w, x: x @ w * jax.pure_callback(lambda: ONES[0], ONES[0]), store=tmp
        ),
    ),
    (
        "theta (tile_0_0)",
        "finite ... got nan at index (0, 0)",
        lambda tmp: stored(tmp).fill([TILE], lambda tile: EYE * np.nan),
    ),
]
