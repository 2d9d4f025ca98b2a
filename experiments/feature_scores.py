r"""LogME and NLPmetrics, the rows of Table 3 that need a model and not its losses.

    python -m experiments.feature_scores --curves=experiments/results/pydoc_losses.csv \
        --task=pydoc --budgets=2,4,8,16 --output_dir=out/feature-scores

Neither fine-tunes.  `nlp_metrics` reads the checkpoint alone: the mean power-law exponent of its
layers' spectra, the same at every budget.  `logme` reads the first D training examples of the
nested order, D the budget: the state before the head where the first target token is predicted,
and which of the --num_words most common first words of those D targets is to come
(lensllm_jax/measurement/features.py).

--output_dir receives selection.csv, with the columns of rank_curves, and scores.csv, a row per
selector, budget and candidate.  PearCorr takes scores as they are: exponents should correlate
positively with the losses, evidence negatively.  FLOPs: logme a forward pass of D examples, 2 N a
token; nlp_metrics the singular values of every layer.  The same command resumes.  Two minutes for
the bundled pool on two busy cores; expected on pydoc: see docs/REPRODUCTION.md.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float

from experiments.common import cli
from experiments.common.curves import check_budgets, digests, divisors_of
from experiments.common.flags import define_budgets, define_curve
from experiments.common.measurement_flags import pretrained_flags
from experiments.common.ranking_metrics import metrics_row, show_metrics
from lensllm_jax import checks
from lensllm_jax.checkpoints.stored import stored_weights
from lensllm_jax.checkpoints.zoo import folder_of, load_candidate
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task
from lensllm_jax.measurement.features import first_target_states, first_word_classes
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.runs.resume import pretrained_settings
from lensllm_jax.runs.run_folder import RunFolder, file_name_of, known
from lensllm_jax.selection.flops import training_flops
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.public_tables import load_loss_table
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.ranking import Ranking
from lensllm_jax.selection.selectors.nlp_metrics import weight_matrices

FLAGS = pretrained_flags()
CURVES = define_curve()
BUDGETS = define_budgets(2, 4, 8, 16)
NUM_WORDS = flags.DEFINE_integer("num_words", 8, "First words that are classes of their own.")

SELECTORS = ("nlp_metrics", "logme")
Key = tuple[str, int]  # selector, divisor of the largest size


class Features(NamedTuple):
    """Of one candidate."""

    states: Float[np.ndarray, "n d"]  # before the head, in the nested order
    tokens: list[int]  # of each example, padding not counted
    seconds: float  # of the forward passes, compilation included


def main(_: Sequence[str]) -> None:
    """Measures what is missing, ranks at every budget, writes the tables."""
    divisors = divisors_of(BUDGETS.value)
    if NUM_WORDS.value < 1:
        raise checks.UserError(f"`num_words` must be 1 or more, got {NUM_WORDS.value}")
    run = FLAGS.run()
    names, config = run.names, run.measurement
    table = load_loss_table(CURVES.value).select(names)
    target = int(table.sizes[-1])
    check_budgets(table, divisors)
    pool = describe_pool(names)
    task = run.load_task(pool)
    most = target // min(divisors)
    if most > len(task.train):
        raise checks.UserError(
            f"`budgets` must leave at most {len(task.train)} examples (the training examples of "
            f"{task.name}), got {most}"
        )
    settings = {
        **pretrained_settings(pool, task, config),
        "curves": digests([CURVES.value]),
        "budgets": divisors,
        "num_words": NUM_WORDS.value,
    }
    folder = run.open_folder(settings, task, pool)
    features: dict[str, Features] = {}
    with run.progress(total=float(len(names))) as progress:
        for name in names:
            features[name] = _remember_features(name, task, config, most, folder)
            progress.finish(1.0, f"{name}: features measured")
    rankings = all_rankings(table, divisors, features, _examples(task, config, most))
    num_params = {name: summary.num_params for name, summary in pool.items()}
    costs = {key: cost(key[0], target // key[1], features, num_params) for key in rankings}
    rows = [row_of(table, key, ranking, *costs[key]) for key, ranking in rankings.items()]
    _write(folder, table.task, rows, rankings)
    show_metrics(table.task, divisors, {
        selector: [(row["pearson"], row["relative_accuracy"]) for row in rows
                   if row["selector"] == selector]
        for selector in SELECTORS
    })  # fmt: skip
    print(f"written to {folder.path}")


def _write(
    folder: RunFolder, task: str, rows: Sequence[Mapping[str, Any]], rankings: Mapping[Key, Ranking]
) -> None:
    folder.write_rows("selection.csv", [known(row) for row in rows])
    folder.write_rows("scores.csv", [
        {"task": task, "selector": selector, "budget_fraction": 1.0 / divisor,
         "candidate": name, "score": f"{score:.6g}"}
        for (selector, divisor), ranking in rankings.items()
        for name, score in ranking.scores.items()
    ])  # fmt: skip


def _remember_features(
    name: str, task: Task, config: MeasurementConfig, count: int, folder: RunFolder
) -> Features:
    """Those of the first ``count`` training examples, measured if the folder lacks them."""
    path = f"features/{file_name_of(name)}"
    if not folder.has_array(f"{path}.npy", f"{path}.json"):
        start = time.monotonic()
        candidate = load_candidate(name)
        batch = Measurement(candidate, task, config=config).subset(count)
        digest = folder.write_array(f"{path}.npy", first_target_states(candidate, batch))
        seconds = time.monotonic() - start
        tokens = batch["attention_mask"].sum(1).tolist()
        folder.write_piece(
            f"{path}.json", {"tokens": tokens, "seconds": seconds, "npy_sha256": digest}
        )
    stored = folder.read_piece(f"{path}.json")
    states = np.load(folder.path / f"{path}.npy", allow_pickle=False)
    return Features(states, stored["tokens"], stored["seconds"])


def weights_of(name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The stored tensors of a candidate, one at a time."""
    return stored_weights(folder_of(name))


def _examples(task: Task, config: MeasurementConfig, count: int) -> list[Example]:
    """The first ``count`` training examples of the nested order, whose targets give classes."""
    order = subset_order(len(task.train), seed=config.seed)[:count]
    return [task.train[i] for i in order]


def all_rankings(
    table: LossTable, divisors: Sequence[int], features: Mapping[str, Features],
    examples: Sequence[Example],
) -> dict[Key, Ranking]:  # fmt: skip
    """Each selector's ranking at each budget; ``features`` are those of ``examples``."""
    target = int(table.sizes[-1])
    budget: dict[str, Any] = {"budget_size": target // divisors[0], "target_size": target}
    weights = Evidence(weights={name: weights_of(name) for name in table.names})
    alone = rank(table, selector="nlp_metrics", evidence=weights, **budget)  # reads no data
    rankings: dict[Key, Ranking] = {("nlp_metrics", divisor): alone for divisor in divisors}
    for divisor in divisors:
        size = target // divisor
        classes = first_word_classes(examples[:size], num_words=NUM_WORDS.value)
        labelled = {name: (one.states[:size], classes) for name, one in features.items()}
        budget["budget_size"] = size
        rankings["logme", divisor] = rank(
            table, selector="logme", evidence=Evidence(features=labelled), **budget
        )
    return rankings


def row_of(
    table: LossTable, key: Key, ranking: Ranking, flops: float, seconds: float
) -> dict[str, Any]:
    """A row of selection.csv; FLOPs and seconds are those of the features."""
    row = metrics_row(table, *key, ranking)
    return {**row, "flops": flops, "seconds": row["seconds"] + seconds}


def cost(
    selector: str, size: int, features: Mapping[str, Features], num_params: Mapping[str, int]
) -> tuple[float, float]:
    """FLOPs and seconds of the pool; ``rank`` counts its own seconds.

    A forward pass of the examples (logme; of an encoder-decoder as if all of it read the prompt),
    or every layer's singular values (nlp_metrics).
    """
    if selector == "logme":  # a forward pass is a third of a training step
        tokens = {name: sum(one.tokens[:size]) for name, one in features.items()}
        flops = sum(
            training_flops(float(num_params[name]), float(count)) for name, count in tokens.items()
        )
        seconds = (one.seconds * size / len(one.tokens) for one in features.values())
        return flops / 3.0, sum(seconds)
    layers = (matrix for name in features for _, matrix in weight_matrices(weights_of(name)))
    return sum(_singular_value_flops(*matrix.shape) for matrix in layers), 0.0


def _singular_value_flops(rows: int, columns: int) -> float:
    """Of the singular values of a matrix, to leading order (Golub and Van Loan, 8.6)."""
    m, n = max(rows, columns), min(rows, columns)
    return 4.0 * m * n**2 - 4.0 * n**3 / 3.0


if __name__ == "__main__":
    cli.run(main)
