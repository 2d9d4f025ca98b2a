"""Hessian forms against explicit Hessians and their eigendecompositions, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.models import registry
from lensllm_jax.theory import hessian
from lensllm_jax.theory.blocks import Block, displacement, squared_norms, weight_blocks
from lensllm_jax.theory.hessian import (
    batch_means,
    block_forms,
    gradient_variance,
    hessian_trace,
    joint_forms,
)
from tests import oracles
from tests.memory import temporary_bytes
from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.tiny import tiny_candidate
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close

FAMILIES = {
    "gpt2": r"blocks/.*(query/kernel|attention_norm/scale)",
    "opt-350m-form": "query/kernel",
    "llama-tied-grouped": "query/kernel",
    "gemma2": "query/kernel",
    "pythia": "query/kernel",
    "qwen2": "query/kernel",
    "qwen3": "query/kernel",
    "gemma3": "query/kernel",
    "phi": "query/kernel",
    "phi3": "query/kernel",
    "t5": "decoder/.*cross_attention/query/kernel",
    "mt5": "encoder/.*query/kernel",
    "umt5": "encoder/.*query/kernel",
    "bart": "decoder/.*cross_attention/query/kernel",
    "mistral": "query/kernel",
    "gemma": "query/kernel",
    "gpt-neo": "query/kernel",
    "smollm3": "query/kernel",
    "olmo2": "query/kernel",
    "stablelm": "query/kernel",
}


def example_loss(candidate):
    """Mean cross entropy of one example's target tokens."""

    def loss(params, one):
        example = {name: values[None] for name, values in one.items()}
        logits, labels = candidate.apply_fn(params, example)[0], one["labels"]
        if not candidate.is_encoder_decoder:
            logits, labels = logits[:-1], labels[1:]
        picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), jnp.maximum(labels, 0)]
        return -(picked * (labels >= 0)).sum() / jnp.maximum((labels >= 0).sum(), 1)

    return loss


@functools.cache
def case(variant):
    """A tiny candidate, its loss, its weights moved at random, and three examples."""
    candidate = tiny_candidate({**VARIANTS, **ENCODER_DECODERS}[variant])
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda w: jnp.asarray(rng.normal(0, 0.1, w.shape)), candidate.params)
    examples = seq2seq_batch() if candidate.is_encoder_decoder else batch()
    return candidate, example_loss(candidate), moved, examples


def toy(seed=0, size=7):
    """A quadratic loss with a known Hessian for each example."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((4, size, size))
    hessians = roots + roots.transpose(0, 2, 1)

    def loss(params, hessian):
        w = jnp.concatenate([params["a"].ravel(), params["b"]])
        return 0.5 * w @ hessian @ w

    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(size - 4)}
    moved = {"a": jnp.asarray(rng.normal(size=(2, 2))), "b": jnp.asarray(rng.normal(size=size - 4))}
    return loss, params, moved, hessians


@pytest.mark.parametrize(
    "variant",
    [v if v == "gpt2" else pytest.param(v, marks=pytest.mark.float64) for v in FAMILIES],
)
def test_forms_of_every_family_equal_the_eigendecomposition(variant, x64):
    candidate, loss, moved, examples = case(variant)
    params = candidate.params
    blocks = weight_blocks(params, stacked=("blocks",), only=FAMILIES[variant])
    blocks = [b for b in blocks if b.layer == 1]  # neither the first nor the last layer
    assert blocks
    forms_of_blocks = block_forms(loss, params, moved, examples, blocks, num_matvecs=24)
    for block, forms in zip(blocks, forms_of_blocks, strict=True):
        v = np.ravel(block.take(moved))
        hessians = oracles.block_hessians(
            lambda w, one, b=block: loss(b.put(params, w), one), block.take(params), examples
        )
        scale = np.linalg.norm(hessians, 2, axis=(1, 2)) * (v @ v)
        assert np.all(abs(forms.plain - [v @ h @ v for h in hessians]) <= 1e-10 * scale)
        # 24 products for 144 weights: the quadrature's own estimate must cover its error
        expected = [oracles.positive_part_form(h, v) for h in hessians]
        assert np.all(abs(forms.positive - expected) <= 3 * forms.error + 1e-10 * scale)
        assert np.all(forms.error <= 1e-2 * scale)


def test_no_family_is_left_out():
    configs = {**VARIANTS, **ENCODER_DECODERS}
    assert {configs[variant]["model_type"] for variant in FAMILIES} == set(registry.FAMILIES)


@pytest.mark.float64
def test_the_other_forms_of_a_model_equal_those_of_its_dense_hessian(x64):
    """Two blocks that cross: their joint Hessian, written out, is the oracle of each form."""
    candidate, loss, moved, examples = case("gpt2")
    params = candidate.params
    blocks = weight_blocks(params, stacked=("blocks",), only=r"blocks/.*norm/(scale|bias)")
    blocks = [block for block in blocks if block.layer == 1]
    widths = [block.take(params).size for block in blocks]
    ends = np.cumsum(widths)[:-1]
    start = jnp.concatenate([block.take(params).ravel() for block in blocks])
    v = np.concatenate([np.ravel(block.take(moved)) for block in blocks])

    def of_flat(flat, one):
        tree = params
        for block, part in zip(blocks, jnp.split(flat, ends), strict=True):
            tree = block.put(tree, part.reshape(block.take(params).shape))
        return loss(tree, one)

    hessians = oracles.block_hessians(of_flat, start, examples)
    products = np.stack([v * (hessian @ v) for hessian in hessians])
    expected = np.stack([part.sum(1) for part in np.split(products, ends, axis=1)], axis=1)
    assert_close(joint_forms(loss, params, moved, examples, blocks), expected, np.float64)
    gradients = np.asarray(jax.vmap(jax.grad(of_flat), in_axes=(None, 0))(start, examples))
    variance = gradient_variance(loss, params, examples, blocks)
    assert_close(variance, np.cov(gradients.T).trace(), np.float64)
    trace = hessian_trace(loss, params, examples, blocks, num_probes=256, level=0.999)
    exact = np.trace(hessians.mean(0))
    assert trace.low <= exact <= trace.high
    assert trace.high - trace.low < 0.5 * abs(exact)


@pytest.mark.parametrize("size", [5, 7, 12])
def test_a_block_with_as_many_products_as_weights_is_exact(size, x64):
    loss, params, moved, hessians = toy(size=size)
    for forms, part in zip(
        block_forms(loss, params, moved, hessians, weight_blocks(params)),
        (slice(0, 4), slice(4, size)),
        strict=True,
    ):
        v = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])[part]
        expected = [oracles.positive_part_form(h[part, part], v) for h in hessians]
        assert_close(forms.positive, expected, np.float64)
        assert_close(forms.plain, [v @ h[part, part] @ v for h in hessians], np.float64)
        assert forms.h == forms.positive.max()
        assert np.all(forms.error < 1e-10)
        assert np.all(forms.positive >= forms.plain)
        # Eq 29: no form exceeds the squared length times the trace of the positive part
        traces = [np.linalg.eigvalsh(h[part, part]).clip(0.0).sum() for h in hessians]
        assert np.all(forms.positive <= v @ v * np.array(traces) * (1 + 1e-12))


def test_more_products_lower_the_error_and_the_estimate_follows(x64):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    hessian = (basis * np.linspace(-1.0, 3.0, 200)) @ basis.T
    params, moved = {"w": jnp.zeros(200)}, {"w": jnp.asarray(rng.standard_normal(200))}
    expected = oracles.positive_part_form(hessian, np.asarray(moved["w"]))
    errors, estimates = [], []
    for m in (4, 16, 64):
        (forms,) = block_forms(
            lambda p, h: 0.5 * p["w"] @ h @ p["w"],
            params, moved, hessian[None], weight_blocks(params), num_matvecs=m,
        )  # fmt: skip
        errors.append(abs(forms.positive[0] - expected))
        estimates.append(forms.error[0])
    assert errors[2] < errors[0] / 10
    assert estimates[0] > estimates[1] > estimates[2]


def test_an_exhausted_krylov_space_gives_exact_forms_and_no_noise():
    # one eigenvector: after one product nothing is left, in float32 too
    params, moved = {"w": jnp.zeros(6)}, {"w": jnp.array([0.0, 0.0, 2.0, 0.0, 0.0, 0.0])}
    hessians = np.array([np.diag([1.0, 2, 3, 4, 5, 6]), -np.eye(6), np.zeros((6, 6))])
    (forms,) = block_forms(
        lambda p, h: 0.5 * p["w"] @ h @ p["w"], params, moved, hessians, weight_blocks(params)
    )
    assert_close(forms.positive, [12.0, 0.0, 0.0], rel=1e-6)  # float32
    assert_close(forms.plain, [12.0, -4.0, 0.0], rel=1e-6)  # float32


def test_joint_forms_hold_the_cross_terms_that_block_forms_leave_out(x64):
    loss, params, moved, hessians = toy()
    blocks = weight_blocks(params)
    v = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])
    joint = joint_forms(loss, params, moved, hessians, blocks)
    for part, column in zip((slice(0, 4), slice(4, 7)), joint.T, strict=True):
        assert_close(column, [v[part] @ h[part] @ v for h in hessians], np.float64)
    assert_close(joint.sum(1), [v @ h @ v for h in hessians], np.float64)
    plain = [forms.plain for forms in block_forms(loss, params, moved, hessians, blocks)]
    assert not np.allclose(joint.T, plain)
    # a block alone has no cross terms
    alone = joint_forms(loss, params, moved, hessians, blocks[:1])
    assert_close(alone[:, 0], plain[0], np.float64)


def test_batch_means_are_the_forms_of_the_batches_mean_loss(x64):
    loss, params, moved, hessians = toy()
    blocks = weight_blocks(params)
    joint = joint_forms(loss, params, moved, hessians, blocks)
    means = batch_means(joint, batch_size=2)
    expected = joint_forms(loss, params, moved, hessians.reshape(2, 2, 7, 7).mean(1), blocks)
    assert_close(means, expected, np.float64)
    assert np.all(means.max(0) <= joint.max(0))
    with pytest.raises(checks.UserError, match="at most 4"):
        batch_means(joint, batch_size=5)


def test_traces_lie_in_their_intervals_as_often_as_they_say(x64):
    loss, params, _, hessians = toy()
    truth = np.trace(hessians.mean(0))
    traces = [
        hessian_trace(loss, params, hessians, weight_blocks(params), seed=seed, num_probes=16)
        for seed in range(60)
    ]
    # 60 draws at 0.9: a standard error of 0.04
    assert np.mean([t.low <= truth <= t.high for t in traces]) > 0.8
    one = hessian_trace(loss, params, hessians, weight_blocks(params)[1:], num_probes=400)
    assert one.low <= np.trace(hessians.mean(0)[4:, 4:]) <= one.high


def test_a_diagonal_hessian_has_its_trace_without_error(x64):
    params = {"w": jnp.zeros(4)}
    trace = hessian_trace(
        lambda p, d: 0.5 * jnp.sum(d * p["w"] ** 2),
        params, np.array([[1.0, 2.0, 3.0, 4.0]]), weight_blocks(params), num_probes=3,
    )  # fmt: skip
    assert_close([trace.low, trace.value, trace.high], [10.0] * 3, np.float64)


def test_gradient_variance_is_the_trace_of_the_covariance(x64):
    loss, params, moved, hessians = toy()
    blocks = weight_blocks(params)
    v = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])
    gradients = np.stack([h @ v for h in hessians])
    expected = np.cov(gradients.T).trace()
    assert_close(gradient_variance(loss, moved, hessians, blocks), expected, np.float64)
    part = np.cov(gradients[:, :4].T).trace()
    assert_close(gradient_variance(loss, moved, hessians, blocks[:1]), part, np.float64)


def test_memory_budget_changes_nothing_but_memory(x64, monkeypatch):
    loss, params, moved, hessians = toy()
    blocks = weight_blocks(params)
    lanczos, chunks = hessian._lanczos, []
    monkeypatch.setattr(hessian, "_lanczos", lambda *a: (chunks.append(a[-1]), lanczos(*a))[1])
    wide = block_forms(loss, params, moved, hessians, blocks)
    least = hessian.least_bytes(params, blocks, num_matvecs=hessian.NUM_MATVECS)
    assert least == 2 * 8 * 4 * 8  # examples, vectors, float64 weights of the larger block
    narrow = block_forms(loss, params, moved, hessians, blocks, max_bytes=least)
    for a, b in zip(wide, narrow, strict=True):
        assert_close(a.positive, b.positive, np.float64)
    assert chunks == [4, 4, 2, 2]  # of four examples
    # eight vectors of four float64 each per example; three at once would leave one, next to them
    for room, expected in ((4, 4), (3, 2)):
        block_forms(loss, params, moved, hessians, blocks[:1], max_bytes=room * 8 * 4 * 8)
        assert chunks[-1] == expected
    with pytest.raises(checks.UserError, match="`max_bytes` must be 512 or more for 16 products"):
        block_forms(loss, params, moved, hessians, blocks, max_bytes=least - 1)


@pytest.mark.parametrize("at_once", [2, 5])
def test_the_compiled_program_keeps_to_the_memory_budget(at_once):
    """Its own account of what it needs besides its input, with vectors that dwarf the rest."""
    size, depth, num = 4096, 6, 10
    params, examples = {"w": jnp.zeros(size)}, jnp.ones((num, 1))
    budget = at_once * (depth + hessian._NUM_WORKING) * size * params["w"].dtype.itemsize
    assert hessian._at_once(num, at_once) == at_once

    def loss(p, x):
        return jnp.sum(jnp.cos(p["w"]) * x)

    def temporary(k):
        def lanczos(params, vector, examples):
            return hessian._lanczos(loss, params, vector, examples, Block("", 0, None), depth, k)

        return temporary_bytes(lanczos, params, params["w"], examples)

    assert temporary(at_once) <= budget < temporary(num)


def test_a_block_that_did_not_move_has_no_form():
    loss, params, moved, hessians = toy()
    still = {**moved, "a": jnp.zeros((2, 2))}
    forms = block_forms(loss, params, still, hessians, weight_blocks(params))
    assert forms[0].h == 0.0
    assert forms[1].h > 0.0


def test_displacement_is_the_difference_and_names_what_does_not_match():
    old, new = {"a": np.zeros((2, 3)), "b": np.ones(2)}, {"a": np.ones((2, 3)), "b": np.ones(2)}
    moved = displacement(new, old)
    assert squared_norms(moved, weight_blocks(moved)).tolist() == [6.0, 0.0]
    with pytest.raises(checks.UserError, match=r"equal shapes, got \(2, 3\) and \(3, 2\) at"):
        displacement(new, {**old, "a": np.zeros((3, 2))})
    with pytest.raises(checks.UserError, match=r"\['b'\] in fine_tuned only"):
        displacement(new, {"a": old["a"]})


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (lambda *a: joint_forms(a[0], a[1], a[1], *a[2:]), r"v\^T \(H v\), by example and block"),
        (lambda *a: hessian_trace(*a, num_probes=2), r"z\^T H z, by probe"),
        (gradient_variance, "variance of the gradient"),
    ],
    ids=["joint", "trace", "variance"],
)
def test_every_other_form_names_curvature_that_is_not_finite(form, what):
    params = {"w": jnp.ones(3)}
    with pytest.raises(checks.UserError, match=f"`{what}` must be finite"):
        form(
            lambda p, x: jnp.sum(jnp.sqrt(x - p["w"])),
            params, np.array([2.0, 1.0]), weight_blocks(params),
        )  # fmt: skip


def test_curvature_that_is_not_finite_is_named():
    params = {"w": jnp.ones(3)}
    with pytest.raises(checks.UserError, match=r"v\^T H v of w, by example"):
        block_forms(
            lambda p, x: jnp.sum(jnp.sqrt(x - p["w"])),
            params, params, np.array([2.0, 1.0]), weight_blocks(params),
        )  # fmt: skip
    with pytest.raises(checks.UserError, match="must be 2 or more"):
        hessian_trace(lambda p, x: x, params, np.ones(2), weight_blocks(params), num_probes=1)
    with pytest.raises(checks.UserError, match="2 or more for a variance"):
        gradient_variance(lambda p, x: x, params, np.ones(1), weight_blocks(params))
    with pytest.raises(checks.UserError, match="`only` must be part"):
        weight_blocks(params, only="kernel")
