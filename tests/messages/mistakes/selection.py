"""Mistakes with loss tables, selectors and what they need."""

import dataclasses
import types

import numpy as np

import lensllm_jax as lens
from lensllm_jax.data.task import Example, Task
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.selection import features, logme, loss_table, nlp_metrics, selectors
from lensllm_jax.selection.flops import TrainingCost
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.orders import Dropping
from lensllm_jax.selection.problem import Problem

SIZES = np.array([0, 200, 400, 800])
TABLE = LossTable(
    ("a", "b"), SIZES, np.array([[4.0, 3, 2, 1], [5, 4, 3, 2]]), np.ones(2), ("", ""), task="toy"
)
SEARCH = Halving(gamma=3, tau=5.0)
TASK = Task("toy", "", (Example("", "a"),), (Example("", "b"),), (Example("", "c"),), {}, "")


def rank(**changes):
    return lens.rank(TABLE, **{"budget_size": 400, "target_size": 800, **changes})


def table(**changes):
    return dataclasses.replace(TABLE, **changes)


def parse(*lines):
    return loss_table.parse_loss_table(lines)


def read(path, content=b"config name,200\n"):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return lens.read_loss_table(path)


def broken(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"12345678")
    return path


def subset(size):
    candidate = types.SimpleNamespace(is_encoder_decoder=False)
    return Measurement(candidate, TASK, config=MeasurementConfig()).subset(size)


def phase(ntk_losses):
    return selectors.fit_phase(Problem(TABLE, 1600, ntk_losses=ntk_losses))


# the message, and what brings it about in an empty folder
MISTAKES = [
    ("`selector` must be one of ..., got 'best'", lambda tmp: rank(selector="best")),
    (
        "`budget_size` must be one of the table's sizes above 0 [0, 200, 400, 800], got 300",
        lambda tmp: rank(budget_size=300),
    ),
    ("`target_size` must be above `budget_size` 400, got 400", lambda tmp: rank(target_size=400)),
    (
        (
            "`name` must be a candidate with a known spread, got 'a': selector zero_shot has none "
            "here (four sizes above 0 are needed)"
        ),
        lambda tmp: rank(selector="zero_shot").interval("a"),
    ),
    (
        "`name` must be one of a, b, got 'nobody'",
        lambda tmp: rank(selector="zero_shot").probability("a", "nobody"),
    ),
    (
        "`weights` must have an entry for every candidate, got none for 'b'",
        lambda tmp: rank(selector="nlp_metrics", weights={"a": {}}),
    ),
    (
        "selector model_size must have every candidate's `size`, got none for 'b'",
        lambda tmp: lens.rank(
            table(num_params=np.array([1.0, np.nan])),
            budget_size=400,
            target_size=800,
            selector="model_size",
        ),
    ),
    (
        "`ntk_losses['a']` must have shape (4,), got (3,)",
        lambda tmp: phase({"a": np.ones(3), "b": np.ones(4)}),
    ),
    ("`names` must hold one or more candidates, got none", lambda tmp: table(names=())),
    (
        "`config name` must be unique, got 'a' more than once; rename or remove one row",
        lambda tmp: table(names=("a", "a")),
    ),
    (
        "`sizes` must ascend from 0 or more, got [800, 400, 200, 0]",
        lambda tmp: table(sizes=SIZES[::-1]),
    ),
    ("`losses` must have shape (2, 4), got (2, 3)", lambda tmp: table(losses=np.ones((2, 3)))),
    ("`num_params` must have shape (2,), got (3,)", lambda tmp: table(num_params=np.ones(3))),
    (
        "loss of 'a' at size 0 must be positive and finite, got -4.0",
        lambda tmp: table(losses=-TABLE.losses),
    ),
    ("`num_params` must be positive, got zero or less", lambda tmp: table(num_params=np.zeros(2))),
    (
        "`size` must be one of [0, 200, 400, 800], got 300; measure that size or choose another",
        lambda tmp: TABLE.column(300),
    ),
    (
        (
            "every candidate must have a loss at size 800, got none for 'a'; measure it or drop "
            "that candidate"
        ),
        lambda tmp: table(losses=np.where(SIZES == 800, np.nan, TABLE.losses)).column(800),
    ),
    (
        "`budget_size` must be at least the smallest size 1, got 0",
        lambda tmp: table(sizes=SIZES + 1).up_to(0),
    ),
    ("`names` must be one of a, b, got 'c'", lambda tmp: TABLE.select(["c"])),
    (
        "`path` must be a CSV file, got DIR/none.csv: no such file",
        lambda tmp: lens.read_loss_table(tmp / "none.csv"),
    ),
    (
        "`path` must be a readable CSV file, got DIR/a.csv: ...",
        lambda tmp: read(tmp / "a.csv", b"\xff"),
    ),
    (
        "DIR/a.csv: the file must hold a header and one or more candidates, got 1 lines",
        lambda tmp: read(tmp / "a.csv"),
    ),
    (
        "the file must be CSV, got a broken line: unexpected end of data",
        lambda tmp: parse("config name,200", 'a,"1'),
    ),
    ("row 2 must have 2 cells like the header, got 1", lambda tmp: parse("config name,200", "a")),
    ("row 2 must have a name, got an empty one", lambda tmp: parse("config name,200", ",1")),
    (
        "the header must hold a column 'config name', got ['model', '200']",
        lambda tmp: parse("model,200", "a,1"),
    ),
    (
        "the header must name each column once, got '200' twice",
        lambda tmp: parse("config name,200,200", "a,1,1"),
    ),
    (
        "the header must name each size once, got 200 twice",
        lambda tmp: parse("config name,200,0200", "a,1,1"),
    ),
    (
        ("the header must hold 'config name', training-set sizes, 'size' and 'family', got 'mean'"),
        lambda tmp: parse("config name,mean", "a,1"),
    ),
    (
        "the header must hold training-set sizes such as 200, got none",
        lambda tmp: parse("config name,size", "a,1"),
    ),
    (
        "column '200' of 'a' must be a positive number or empty, got 'nan'",
        lambda tmp: parse("config name,200", "a,nan"),
    ),
    ("`gamma` must be 2 or more, got 0: it fits a line", lambda tmp: Halving(gamma=0, tau=5.0)),
    ("`tau` must be positive and finite, got -1.0", lambda tmp: Halving(gamma=3, tau=-1.0)),
    ("`keep` must be above 0 and at most 1, got 2", lambda tmp: Dropping(target_size=1, keep=2)),
    ("`target_size` must be positive and finite, got 0", lambda tmp: Dropping(target_size=0)),
    ("`size` must be positive and finite, got 0", lambda tmp: SEARCH.observe(0, 1.0)),
    ("`loss` must be positive and finite, got -1.0", lambda tmp: SEARCH.observe(200, -1.0)),
    (
        "`size` must be below the last one 200, got 400",
        lambda tmp: SEARCH.observe(200, 1.0).observe(400, 1.0),
    ),
    (
        "`observe` must not be called after a stop, got size 100",
        lambda tmp: dataclasses.replace(SEARCH, refused=(200, 3.0)).observe(100, 1.0),
    ),
    (
        "`tokens_per_example` must be positive and finite, got 0.0",
        lambda tmp: TrainingCost(tokens_per_example=0.0),
    ),
    ("`epochs` must be positive and finite, got 0.0", lambda tmp: TrainingCost(epochs=0.0)),
    (
        "`search_rounds` must be positive and finite, got 0.0",
        lambda tmp: TrainingCost(search_rounds=0.0),
    ),
    (
        "`max_length` must be positive and finite, got 0",
        lambda tmp: MeasurementConfig(max_length=0),
    ),
    (
        "`num_micro_batches` must divide the batch size 32, got 3",
        lambda tmp: MeasurementConfig(compute=ComputeConfig(num_micro_batches=3)),
    ),
    ("`size` must be at most 1 (the training examples of toy), got 2", lambda tmp: subset(2)),
    (
        "`features` must be finite, got nan at index (0, 0)",
        lambda tmp: logme.log_evidence(np.array([[np.nan]]), np.array([0])),
    ),
    (
        "`labels` must have shape (2,), got (1,)",
        lambda tmp: logme.log_evidence(np.ones((2, 1)), np.array([0])),
    ),
    (
        "`labels` must name two or more classes, got 1",
        lambda tmp: logme.log_evidence(np.ones((2, 1)), np.array([0, 0])),
    ),
    (
        "`matrix` must have 50 eigenvalues above zero, got 2",
        lambda tmp: nlp_metrics.heavy_tail_metrics(np.eye(2)),
    ),
    (
        "`weights` must hold a layer matrix with 50 or more rows and columns, got none",
        lambda tmp: nlp_metrics.mean_pl_alpha({"w": np.eye(2)}),
    ),
    (
        "`weights` must be a safetensors file, got DIR/a.safetensors: ...",
        lambda tmp: nlp_metrics.mean_pl_alpha(broken(tmp / "a.safetensors")),
    ),
    (
        "`count` must be positive and finite, got 0",
        lambda tmp: features.first_target_states(None, {"labels": np.ones((0, 2))}),
    ),
    (
        "`block_size` must be positive and finite, got 0",
        lambda tmp: features.first_target_states(None, {"labels": SIZES}, block_size=0),
    ),
    (
        "`num_words` must be positive and finite, got 0",
        lambda tmp: features.first_word_classes(TASK.train, num_words=0),
    ),
]
