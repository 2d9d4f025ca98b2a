"""Mistakes with loss tables, selectors and what they need."""

import dataclasses

import numpy as np

import lensllm_jax as lens
from lensllm_jax.selection import loss_table
from lensllm_jax.selection.flops import TrainingCost
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.orders import DropRule
from lensllm_jax.selection.problem import Evidence, Problem
from lensllm_jax.selection.public_tables import load_loss_table
from lensllm_jax.selection.race import Outcome, Race, RaceRule, replay
from lensllm_jax.selection.selectors import lensllm, logme, nlp_metrics

SIZES = np.array([0, 200, 400, 800])
TABLE = LossTable(
    ("a", "b"), SIZES, np.array([[4.0, 3, 2, 1], [5, 4, 3, 2]]), np.ones(2), ("", ""), task="toy"
)
SEARCH = Halving(gamma=3, tau=5.0)


RULE = RaceRule(target_size=800, sizes=(200, 400), max_cost=1.0)


def rank(**changes):
    return lens.rank(TABLE, **{"budget_size": 400, "target_size": 800, **changes})


def table(**changes):
    return dataclasses.replace(TABLE, **changes)


def parse(*lines):
    return loss_table.parse_loss_table(lines)


def parse_as(lines, **kind):
    return loss_table.parse_loss_table(lines, **kind)


def read(path, content=b"config name,200\n"):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return lens.read_loss_table(path)


def phase(ntk_losses):
    return lensllm.fit_phase(Problem(TABLE, 1600, evidence=Evidence(ntk_losses=ntk_losses)))


def rule(**changes):
    return RaceRule(**{"target_size": 800, "sizes": (100, 200), **changes})


def race(names=("a", "b"), **changes):
    return Race.start(names, (1.0,) * len(names), rule(**{"max_cost": 1.0, **changes}))


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("table", "text or a path, got NoneType", lambda tmp: load_loss_table(None)),
    ("path", "text or a path, got NoneType", lambda tmp: lens.read_loss_table(None)),
    ("table", "one of lin2024/flan ... got 'lin2024/x'", lambda tmp: load_loss_table("lin2024/x")),
    ("selector", "one of ... got 'best'", lambda tmp: rank(selector="best")),
    (
        "selector",
        "score a candidate ... got ats ... no score here (a: a line needs two sizes",
        lambda tmp: rank(budget_size=200, selector="ats").selected,
    ),
    (
        "candidates",
        "can be fine-tuned, got none: a: no loss at 200",
        lambda tmp: [*replay(table(losses=np.where(SIZES == 200, np.nan, TABLE.losses)), RULE)],
    ),
    ("level", "between 0 and 1, got 90", lambda tmp: rank().interval("a", level=90)),
    ("level", "between 0 and 1, got 0.0", lambda tmp: rank().rank_interval("a", level=0.0)),
    ("budget_size", "one of ... got 300", lambda tmp: rank(budget_size=300)),
    ("target_size", "above `budget_size` 400 ... got 400", lambda tmp: rank(target_size=400)),
    ("target_size", f"above ... 2**63, got {2**63}", lambda tmp: rank(target_size=2**63)),
    ("target_size", "positive and finite, got nan", lambda tmp: rank(target_size=np.nan)),
    (
        "budget_size",
        "one of the table's sizes above 0 ... got 400",
        lambda tmp: rank(budget_size="400"),
    ),
    (
        "table",
        "be a LossTable, got 'lin2024/flan': take one from `load_loss_table`",
        lambda tmp: lens.rank("lin2024/flan", budget_size=200, target_size=400),
    ),
    (
        "name",
        "candidate with a known ... got 'a'",
        lambda tmp: rank(selector="zero_shot").interval("a"),
    ),
    (
        "name",
        "one of ... got 'nobody'",
        lambda tmp: rank(selector="zero_shot").probability("a", "nobody"),
    ),
    (
        "weights",
        "have an entry ... got none for 'b'",
        lambda tmp: rank(selector="nlp_metrics", evidence=Evidence(weights={"a": {}})),
    ),
    (
        "selector model_size",
        "have every candidate's `size` ... got none for 'b'",
        lambda tmp: lens.rank(
            table(num_params=np.array([1.0, np.nan])),
            budget_size=400,
            target_size=800,
            selector="model_size",
        ),
    ),
    (
        "ntk_losses['a']",
        "have shape ... got (3,)",
        lambda tmp: phase({"a": np.ones(3), "b": np.ones(4)}),
    ),
    (
        "table",
        "hold a loss above size 0 ... got none",
        lambda tmp: lens.rank(
            table(losses=np.where(SIZES > 0, np.nan, TABLE.losses)),
            budget_size=400,
            target_size=800,
        ),
    ),
    ("names", "hold one or more ... got none", lambda tmp: table(names=())),
    ("config name", "unique ... got 'a' more than once", lambda tmp: table(names=("a", "a"))),
    ("sizes", "ascend from 0 ... got [800, 400, 200, 0]", lambda tmp: table(sizes=SIZES[::-1])),
    ("losses", "have shape ... got (2, 3)", lambda tmp: table(losses=np.ones((2, 3)))),
    ("num_params", "have shape ... got (3,)", lambda tmp: table(num_params=np.ones(3))),
    ("loss of 'a' at size 0", "positive ... got -4.0", lambda tmp: table(losses=-TABLE.losses)),
    ("num_params", "positive ... got zero or less", lambda tmp: table(num_params=np.zeros(2))),
    ("size", "one of ... got 300", lambda tmp: TABLE.column(300)),
    (
        "every candidate",
        "have a loss ... got none for 'a'",
        lambda tmp: table(losses=np.where(SIZES == 800, np.nan, TABLE.losses)).column(800),
    ),
    ("budget_size", "at least the smallest ... got 0", lambda tmp: table(sizes=SIZES + 1).up_to(0)),
    ("names", "one of ... got 'c'", lambda tmp: TABLE.select(["c"])),
    ("path", "CSV file ... got none.csv", lambda tmp: lens.read_loss_table(tmp / "none.csv")),
    ("path", "readable CSV file ... got a.csv", lambda tmp: read(tmp / "a.csv", b"\xff")),
    ("a.csv: the file", "hold one or more ... got a header alone", lambda tmp: read(tmp / "a.csv")),
    (
        "losses",
        "fall with data ... got 1 of 1 rows",
        lambda tmp: parse("config name,0,200", "a,1,2"),
    ),
    (
        "losses",
        "all in percent or none ... got 1 of 2",
        lambda tmp: parse("config name,0,200", "a,1,2%"),
    ),
    (
        "losses",
        "one decimal sign ... got a comma and '2.5'",
        lambda tmp: parse("config name;0;200", "a;4,05;2.5"),
    ),
    (
        "losses",
        "have a decimal point ... got '4,051'",
        lambda tmp: parse("config name;0", "a;4,051"),
    ),
    (
        "accuracies",
        "below 1 ... got 100",
        lambda tmp: parse_as(["config name,0", "a,100"], higher_is_better=True),
    ),
    (
        "accuracies",
        "rise with data ... got 2 of 2 rows",
        lambda tmp: parse_as(["config name,0,200", "a,.9,.5", "b,.8,.7"], higher_is_better=True),
    ),
    (
        "perplexities",
        "above 1 ... got 0.5",
        lambda tmp: parse_as(["config name,0", "a,.5"], perplexity=True),
    ),
    ("row 2", "have a name ... got an empty one", lambda tmp: parse("config name,200", ",1")),
    ("the header", "hold a column ... got ['model', '200']", lambda tmp: parse("model,200", "a,1")),
    (
        "the header",
        "name each column once ... got '200' twice",
        lambda tmp: parse("config name,200,200", "a,1,1"),
    ),
    (
        "the header",
        "name each size once ... got 200 twice",
        lambda tmp: parse("config name,200,0200", "a,1,1"),
    ),
    (
        "the header",
        "hold 'config name' ... got 'mean'",
        lambda tmp: parse("config name,mean", "a,1"),
    ),
    (
        "the header",
        "hold training-set sizes ... got none",
        lambda tmp: parse("config name,size", "a,1"),
    ),
    (
        "column '200' of 'a'",
        "positive number or empty ... got 'nan'",
        lambda tmp: parse("config name,200", "a,nan"),
    ),
    ("gamma", "2 or more ... got 0", lambda tmp: Halving(gamma=0, tau=5.0)),
    ("tau", "positive ... got -1.0", lambda tmp: Halving(gamma=3, tau=-1.0)),
    ("keep", "above 0 ... got 2", lambda tmp: DropRule(target_size=1, keep=2)),
    ("target_size", "positive ... got 0", lambda tmp: DropRule(target_size=0)),
    ("size", "positive ... got 0", lambda tmp: SEARCH.observe(0, 1.0)),
    ("loss", "positive ... got -1.0", lambda tmp: SEARCH.observe(200, -1.0)),
    (
        "size",
        "below the last one ... got 400",
        lambda tmp: SEARCH.observe(200, 1.0).observe(400, 1.0),
    ),
    (
        "observe",
        "not be called after ... got size 100",
        lambda tmp: dataclasses.replace(SEARCH, rejected=(200, 3.0)).observe(100, 1.0),
    ),
    ("target_size", "positive ... got 0", lambda tmp: rule(target_size=0)),
    ("target_size", "at least the largest ... got 150", lambda tmp: rule(target_size=150)),
    ("sizes", "ascending from above 0 ... got (200, 100)", lambda tmp: rule(sizes=(200, 100))),
    ("confidence", "above 0.5 ... got 0.5", lambda tmp: rule(confidence=0.5)),
    ("max_cost", "positive ... got 0.0", lambda tmp: rule(max_cost=0.0)),
    ("max_seconds", "positive ... got 0.0", lambda tmp: rule(max_seconds=0.0)),
    ("worth", "zero or more ... got -1.0", lambda tmp: rule(worth=-1.0)),
    ("names", "two candidates or more ... got 1", lambda tmp: race(("a",))),
    ("max_cost", "pay for 100 examples ... got 0.1", lambda tmp: race(max_cost=0.1)),
    (
        "max_cost",
        "the search of its rate on 30, 0.163 of ... got 0.15 ... learning_rate",
        lambda tmp: race(max_cost=0.15, num_searched=30),
    ),
    ("num_searched", "zero or positive ... got -1", lambda tmp: rule(num_searched=-1)),
    ("name", "one of ... got 'c'", lambda tmp: race().observe(Outcome("c", 100, 1.0))),
    ("loss", "finite ... got nan", lambda tmp: race().observe(Outcome("a", 100, np.nan))),
    (
        "size",
        "above the last one ... got 100",
        lambda tmp: race().observe(Outcome("a", 100, 1.0)).observe(Outcome("a", 100, 1.0)),
    ),
    (
        "tokens_per_example",
        "positive ... got 0.0",
        lambda tmp: TrainingCost(tokens_per_example=0.0),
    ),
    ("epochs", "positive ... got 0.0", lambda tmp: TrainingCost(epochs=0.0)),
    ("search_rounds", "positive ... got 0.0", lambda tmp: TrainingCost(search_rounds=0.0)),
    (
        "features",
        "finite ... got nan at index (0, 0)",
        lambda tmp: logme.log_evidence(np.array([[np.nan]]), np.array([0])),
    ),
    (
        "labels",
        "have shape ... got (1,)",
        lambda tmp: logme.log_evidence(np.ones((2, 1)), np.array([0])),
    ),
    (
        "labels",
        "name two or more ... got 1",
        lambda tmp: logme.log_evidence(np.ones((2, 1)), np.array([0, 0])),
    ),
    (
        "matrix",
        "have 50 eigenvalues above ... got 2",
        lambda tmp: nlp_metrics.heavy_tail_metrics(np.eye(2)),
    ),
    (
        "weights",
        "hold a layer matrix ... got none",
        lambda tmp: nlp_metrics.mean_pl_alpha({"w": np.eye(2)}),
    ),
]
