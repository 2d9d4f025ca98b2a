"""The default selector: always an answer, calibrated widths, large pools in linear time."""

import dataclasses
import time

import numpy as np
import pytest

from lensllm_jax.selection.loss_table import LossTable, read_loss_table
from lensllm_jax.selection.problem import Evidence, Problem
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors import _slopes, ats, pooled, posterior
from lensllm_jax.selection.selectors.posterior import Constants, Views
from tests.selection.fakes import small_table
from tests.selection.tables import BUDGET_FRACTIONS, TABLES

LEVELS = (0.5, 0.9)  # of intervals
SETTINGS = {"budget_size": 3200, "target_size": 51200}


@pytest.mark.parametrize("budget", [200, 400, 800, 3200])
@pytest.mark.parametrize("num_candidates", [1, 2, 4])
def test_one_size_above_zero_is_enough_for_an_answer(budget, num_candidates):
    for zero in (False, True):
        table = small_table(num_candidates, zero=zero)
        r = rank(table, budget_size=budget, target_size=51200)
        assert r.selector == "posterior"
        for values in (r.scores, r.probability_best, r.expected_regret, r.log_std):
            assert np.isfinite(list(values.values())).all()
        assert np.isfinite(list(r.intervals.values())).all()
        assert sum(r.probability_best.values()) == pytest.approx(1.0)
        assert r.selected == min(r.expected_regret, key=r.expected_regret.__getitem__)


def test_fewer_sizes_are_wider():
    table = small_table()
    spread = {
        budget: np.mean(list(rank(table, budget_size=budget, target_size=51200).log_std.values()))
        for budget in (200, 800, 12800)
    }
    assert spread[200] > 1.5 * spread[800] > 3.0 * spread[12800]


def gappy():
    """One candidate measured at the budget alone, one not there, one never after fine-tuning."""
    table = small_table()
    losses = table.losses.copy()
    budget = int(np.flatnonzero(table.sizes == 3200)[0])
    losses[0, 1:budget] = np.nan
    losses[1, budget] = np.nan
    losses[2, 1 : budget + 1] = np.nan
    return dataclasses.replace(table, losses=losses)


@pytest.mark.parametrize(("rise", "is_diverged"), [(1.05, False), (1.2, True), (20.0, True)])
def test_a_candidate_that_diverged_moves_no_other(rise, is_diverged):
    table, budget = small_table(), 3200
    column = int(np.flatnonzero(table.sizes == budget)[0])
    losses = table.losses.copy()
    losses[2, column] = rise * losses[2, : column + 1].min()
    with_it = Problem(dataclasses.replace(table, losses=losses).up_to(budget), 51200)
    covariance = np.broadcast_to(1e-4 * np.eye(len(losses)), (column + 1, *[len(losses)] * 2))
    with_it = dataclasses.replace(with_it, evidence=Evidence(loss_covariance=covariance))
    others = np.delete(np.arange(len(losses)), 2)
    found, alone = posterior.score(with_it), posterior.score(with_it.among(others))
    for name in ("scores", "log_std", "distance_std"):
        whole, part = getattr(found, name)[others], getattr(alone, name)
        assert np.array_equal(whole, part) == is_diverged, name  # control: a rise that is none
    assert np.isfinite(found.scores).all()
    assert (found.best_first()[-1] == 2) >= is_diverged
    assert ("far above an earlier one" in found.messages[2]) == is_diverged
    assert not any("far above" in found.messages[row] for row in others)


def test_if_all_diverged_they_are_compared_as_they_are():
    table = small_table()
    losses = table.losses * np.linspace(1.0, 3.0, len(table.sizes))
    problem = Problem(dataclasses.replace(table, losses=losses).up_to(3200), 51200)
    assert problem.table.is_diverged.all()
    assert np.isfinite(posterior.score(problem).scores).all()


def test_gaps_cost_certainty_and_not_the_answer():
    whole, gaps = rank(small_table(), **SETTINGS), rank(gappy(), **SETTINGS)
    known = {name for name, score in gaps.scores.items() if np.isfinite(score)}
    assert known == {*gaps.scores} - {"m2"}
    widened = {name: gaps.log_std[name] / whole.log_std[name] for name in known}
    assert min(widened["m0"], widened["m1"]) > 1.2
    assert "two sizes above 0 are needed" in gaps.messages["m0"]
    assert "slopes" in gaps.messages["m3"]


def test_a_candidate_that_was_never_fine_tuned_is_not_ranked():
    table = small_table()
    losses = table.losses.copy()
    losses[1, table.sizes > 0] = np.nan
    r = rank(dataclasses.replace(table, losses=losses), **SETTINGS)
    assert r.order[-1] == "m1"
    assert np.isnan([r.scores["m1"], r.probability_best["m1"], r.expected_regret["m1"]]).all()
    assert "no loss above size 0" in r.messages["m1"]
    assert np.nansum([*r.probability_best.values()]) == pytest.approx(1.0)
    assert [row["p_first_beats_it"] for row in r.rows()][-1] is None


def test_equal_candidates_share_the_probability_and_a_clear_one_has_it():
    table = small_table(2)
    same = dataclasses.replace(table, losses=table.losses[[0, 0]])
    equal = rank(same, **SETTINGS)
    assert equal.probability("m0", "m1") == 0.5
    assert abs(equal.probability_best["m0"] - 0.5) < 0.05
    clear = dataclasses.replace(same, losses=same.losses * np.array([[1.0], [3.0]]))
    assert rank(clear, **SETTINGS).probability_best["m0"] > 0.99


def test_the_loss_at_the_budget_orders_and_does_not_move_the_level():
    plain = Constants(convergence=0.0)  # how far losses fall says how far they converge
    views = Views.of(Problem(small_table(), 51200).at_budget(3200, 51200))
    moved = np.array(views.log_losses)
    moved[2] += 1.0
    shifted = dataclasses.replace(views, log_losses=moved).posterior(plain)
    np.testing.assert_allclose(shifted.center, views.posterior(plain).center, atol=1e-12)
    moved[0] += 1.0  # the control: a view of the level itself
    shifted = dataclasses.replace(views, log_losses=moved).posterior(plain)
    assert shifted.center.mean() == pytest.approx(views.posterior(plain).center.mean() + 0.6)


def test_views_that_disagree_on_a_candidate_widen_it():
    views = Views.of(Problem(small_table(), 51200).at_budget(3200, 51200))
    moved = np.array(views.log_losses)
    moved[0, 1] += 0.1
    wider = dataclasses.replace(views, log_losses=moved).posterior().log_std
    assert wider[1] > 1.2 * views.posterior().log_std[1]


def test_test_records_widen_by_what_they_do_to_one_candidate_and_not_to_all():
    problem = Problem(small_table(), 51200).at_budget(3200, 51200)
    losses, plain = problem.table.losses, np.zeros(4)
    alike = 1e-3 * losses.T[:, :, None] * losses.T[:, None]  # relative errors of all are one

    def widths(covariance):
        evidence = Evidence(loss_covariance=covariance)
        return Views.of(dataclasses.replace(problem, evidence=evidence)).records_std

    np.testing.assert_allclose(widths(alike), plain, atol=1e-9)
    own = alike.copy()
    own[:, 1, 1] += 1e-2 * losses[1] ** 2
    share = 1.0 - 1.0 / 4  # of an own error that is left, relative to four candidates
    assert widths(own)[1] == pytest.approx(0.1 * share, rel=1e-6)
    np.testing.assert_array_equal(widths(np.full_like(alike, np.nan)), plain)
    # who ran further than the others is as uncertain as at the last size that it shares with them
    ahead = dataclasses.replace(
        problem, table=dataclasses.replace(problem.table, losses=losses.copy())
    )
    ahead.table.losses[np.arange(4) != 1, -1] = np.nan
    own[-1, np.arange(4) != 1] = own[-1][:, np.arange(4) != 1] = np.nan
    evidence = Evidence(loss_covariance=own)
    further = Views.of(dataclasses.replace(ahead, evidence=evidence)).records_std
    assert further[1] == pytest.approx(0.1 * share, rel=1e-6)


@pytest.mark.parametrize("kind", ["noise", "equal", "rising", "gaps", "dropped", "tiny"])
def test_odd_tables_have_finite_answers(kind):
    rng = np.random.default_rng(6)
    for share in (0.0, 0.3, 4.0, 20.0):
        count, sizes = 5, np.unique(np.round(100 * 2.0 ** rng.uniform(0.0, 12.0, 7)).astype(int))
        shape = count, len(sizes)
        falls = np.cumsum(rng.exponential(0.3, shape), axis=1)
        losses = np.exp(rng.normal(1.0, 1.0, (count, 1)) - falls + rng.normal(0.0, 0.3, shape))
        odd = {
            "equal": np.ones(shape),
            "rising": losses[:, ::-1],
            "gaps": np.where(rng.random(shape) < 0.5, np.nan, losses),
            "dropped": np.where(np.arange(shape[1]) > np.arange(count)[:, None], np.nan, losses),
            "tiny": 1e-30 * losses,
        }
        names = tuple(f"m{i}" for i in range(count))
        table = LossTable(names, sizes, odd.get(kind, losses), np.ones(count), ("",) * count)
        target = int(table.sizes[-1] * 2.0**share)
        scores = posterior.score(Problem(table, target))
        assert np.isfinite(scores.scores).all()
        assert np.isfinite(scores.log_std).all()
        assert (scores.scores > 0).all()
        assert (scores.log_std > 0).all()


def test_a_weight_of_one_is_that_view_alone():
    views = Views.of(Problem(small_table(), 51200).at_budget(3200, 51200))
    alone = Constants(local=0.0, slopes=1.0, budget=0.0, convergence=0.0, width=1.0)
    posterior = views.posterior(alone)
    np.testing.assert_array_equal(posterior.center, views.log_losses[1])
    np.testing.assert_allclose(posterior.log_std, views.log_std)
    np.testing.assert_array_equal(posterior.interval_std, posterior.log_std)


def test_a_candidate_far_below_the_others_is_not_expected_to_rise():
    falling = 2.0 * np.array([1.0, 0.8, 0.64, 0.51]) + 0.05 * np.arange(5)[:, None]
    losses = np.vstack([falling, [0.40, 0.39, 0.382, 0.376]])
    sizes, names = np.array([200, 400, 800, 1600]), tuple("abcdef")
    table = LossTable(names, sizes, losses, np.ones(6), ("",) * 6)
    far = Views.of(Problem(table, 6400))
    center, last = far.posterior().center, np.log(losses[:, -1])
    own = far.posterior(Constants(convergence=0.0)).center
    assert center[-1] == pytest.approx(own[-1] + 0.7 * (last - own)[-1])
    assert (center < last).all()
    # the control: distances from the mean shrink by so much that its loss would rise
    (share,), _ = posterior._convergence(np.array([last.mean() - own.mean()]), Constants())
    assert own.mean() + share * (own - own.mean())[-1] > last[-1]


def picks(draws):
    """Regret in percent by view, over pools of six of both public tables."""
    rng, regrets = np.random.default_rng(3), {"posterior": [], "ats": [], "pooled": []}
    for task in TABLES:
        table = read_loss_table(TABLES[task])
        target = int(table.sizes[-1])
        for _ in range(draws):
            rows = np.sort(rng.choice(len(table.names), 6, replace=False))
            part = table.select([table.names[i] for i in rows])
            truth = part.column(target)
            for divisor in (64, 256):
                problem = Problem(part, target).at_budget(target // divisor, target)
                for name, select in (
                    ("posterior", posterior.score),
                    ("ats", ats.score),
                    ("pooled", lambda p: pooled.views(p).mean(0)),
                ):
                    scores = select(problem)
                    values = scores if name == "pooled" else scores.scores
                    regrets[name].append(100 * (truth[np.argmin(values)] / truth.min() - 1))
    return {name: np.mean(values) for name, values in regrets.items()}


def test_regret_on_small_pools_is_lower_than_of_ats():
    regret = picks(draws=25)
    assert regret["posterior"] < 0.85 * regret["ats"]
    assert regret["posterior"] < regret["pooled"]


BOUNDS = [("flan", 72.0, 0.165), ("gigaword", 94.0, 0.080)]  # PearCorr in percent, Brier


@pytest.mark.parametrize(("task", "pearson", "brier"), BOUNDS)
def test_probabilities_on_all_candidates_are_calibrated(task, pearson, brier):
    table = read_loss_table(TABLES[task])
    target, rows = int(table.sizes[-1]), []
    truth = table.by_name(target)
    first, second = np.triu_indices(len(truth), 1)
    losses = np.array(list(truth.values()))
    for fraction in BUDGET_FRACTIONS:
        r = rank(table, budget_size=target // fraction, target_size=target)
        wins = losses[first] < losses[second]
        squares = np.mean((r.win_probability[first, second] - wins) ** 2)
        belief = Views.of(Problem(table, target).at_budget(target // fraction, target)).posterior()
        off = np.log(losses) - belief.center
        z = np.abs(off - off.mean()) / belief.interval_std
        inside = [np.mean(z < belief.quantile(0.5 + 0.5 * level)) for level in LEVELS]
        rows.append((r.evaluate(truth).pearson, squares, *inside))
    correlation, error, *cover = np.mean(rows, axis=0)
    assert correlation >= pearson
    assert error <= brier < 0.25  # a coin's
    np.testing.assert_allclose(cover, LEVELS, atol=0.06)


@pytest.mark.parametrize("task", TABLES)
def test_differences_predicted_come_true_by_a_share_that_falls_with_the_distance(task):
    """The convergence that ``posterior`` allows for, on tables without it."""
    table = read_loss_table(TABLES[task])
    target, shares = int(table.sizes[-1]), []
    truth = np.log(table.column(target))
    for fraction in (512, 64, 8):
        views = Views.of(Problem(table, target).at_budget(target // fraction, target))
        raw = views.posterior(Constants(convergence=0.0)).center
        off = raw - raw.mean()
        shares.append(off @ (truth - truth.mean()) / (off @ off))
    assert shares[0] < shares[1] - 0.2
    assert shares[1] < shares[2] - 0.1


def test_convergence_is_the_mean_over_tasks_and_its_spread_widens_intervals_alone():
    views = Views.of(Problem(small_table(), 51200).at_budget(3200, 51200))
    constants = Constants(convergence=3.0, convergence_shape=2.0)
    raw = views.posterior(dataclasses.replace(constants, convergence=0.0))
    belief = views.posterior(constants)
    budget = views.log_losses[2]
    fall = budget.mean() - raw.center.mean() + views.behind
    rates = np.random.default_rng(0).gamma(2.0, 3.0 / 2.0, (100_000, 1))
    shares = np.exp(-rates * fall**1.5)
    distance = raw.center - raw.center.mean()
    moved = (belief.center - belief.center.mean()) / distance
    np.testing.assert_allclose(moved, shares.mean(0), rtol=0.01)
    np.testing.assert_allclose(belief.distance_std, np.abs(distance) * shares.std(0), rtol=0.01)
    np.testing.assert_array_equal(belief.log_std, raw.log_std)
    same = views.posterior(dataclasses.replace(constants, convergence_shape=1e6))  # the control
    assert (same.distance_std < 0.01 * belief.distance_std).all()


# zoo candidates on pydoc, nats per byte: after 0, 50 and 100 examples, and after 6,400
EARLY_SIZES = np.array([0, 50, 100])
EARLY = {
    "cerebras-s": (1.955055, 1.888226, 1.839285, 1.351563),
    "gpt2-m": (2.203588, 2.119282, 2.057938, 1.374536),
    "gpt2-s": (1.925708, 1.844620, 1.793674, 1.335718),
    "gpt2-xs": (2.313222, 2.167432, 2.040640, 1.410049),
    "opt-m": (1.829411, 1.757335, 1.732084, 1.319100),
    "opt-s": (3.071489, 2.468833, 2.208825, 1.353497),
    "opt-xs": (2.220059, 2.162699, 2.130271, 1.566467),
}


def test_steep_slopes_on_the_smallest_sizes_do_not_decide(monkeypatch):
    """opt-s falls five times as fast as opt-m from 50 to 100 examples, and as fast from 200 on."""
    *losses, truth = np.array(list(EARLY.values())).T
    table = LossTable(tuple(EARLY), EARLY_SIZES, np.array(losses).T, np.ones(7), ("",) * 7)
    problem, best = Problem(table, 6400), int(truth.argmin())

    def odds_and_error():
        belief = Views.of(problem).posterior()
        off = np.log(truth) - belief.center
        return belief.odds().probability_best[best], np.abs(off - off.mean()) / belief.interval_std

    chance, error = odds_and_error()
    assert chance > 1.0 / 7.0
    assert error.max() < 3.0
    monkeypatch.setattr(_slopes, "_FORGETTING", 0.0)  # the control: slopes that go on
    chance, error = odds_and_error()
    assert chance < 0.03


def test_a_loss_at_the_target_is_the_prediction_whatever_the_others_ran():
    losses = np.array([[3.0, 2.6, 2.2], [2.8, 2.7, 2.65], [3.1, np.nan, np.nan]])
    table = LossTable(("a", "b", "c"), np.array([50, 100, 200]), losses, np.ones(3), ("",) * 3)
    local = Views.of(Problem(table, 200)).log_losses[0]
    np.testing.assert_allclose(local[:2], np.log([2.2, 2.65]), atol=1e-12)


def test_thousands_of_candidates_take_linear_time():
    rng, sizes = np.random.default_rng(0), np.concatenate([[0], 200 * 2 ** np.arange(8)])
    seconds = {}
    for count in (500, 4000):
        slopes = rng.lognormal(-3.0, 0.3, (count, 1))
        losses = np.exp(1.0 - slopes * np.log2(1 + sizes / 50.0))
        names = tuple(f"m{i}" for i in range(count))
        table = LossTable(names, sizes, losses, np.ones(count), ("",) * count)
        start = time.perf_counter()
        r = rank(table, budget_size=12800, target_size=409600)
        assert r.rows()[0]["candidate"] == r.selected
        assert len(r.probability_best) == count
        seconds[count] = time.perf_counter() - start
    # eight times the candidates: quadratic work would take 64 times as long
    assert seconds[4000] < 24.0 * seconds[500] + 1.0
