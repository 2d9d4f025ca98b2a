"""A race on models: fine-tunes what the race asks for, until it stops.

Example:
    >>> smallest_of(6400, max_cost=0.1), smallest_of(1638400, max_cost=0.1)
    (50, 200)
    >>> affordable(6400, num_searched=0), affordable(4000, num_searched=400)
    (0.1, 0.3)
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lensllm_jax.data.task import Task
from lensllm_jax.measurement.jobs import FAILURES, Job, one_line
from lensllm_jax.runs import executors, terminal
from lensllm_jax.runs.executors import ExecutorConfig
from lensllm_jax.runs.resume import CandidateRun, Cells, test_covariances
from lensllm_jax.selection.race import OPENING, Move, Outcome, Race, RaceRule, run

_MOST_FIRST = 200  # examples: the first size of a task that has many
_FIRST_SHARE = 12.0  # the first two sizes together take at most a quarter of the budget
_MAX_COST = 0.1


def affordable(target_size: int, *, num_searched: int) -> float:
    """The default of ``max_cost``: 0.1, or three times what the searches of rates take."""
    return max(_MAX_COST, 3.0 * num_searched / target_size)


def smallest_of(target_size: int, *, max_cost: float, num_searched: int = 0) -> int:
    """The first size: the target halved until all candidates can run it and its double.

    Args:
        target_size: examples.
        max_cost: of the race, as a share of tuning all on the target.
        num_searched: examples that the search of each rate trains on.
    """
    examples, size = max_cost * target_size - num_searched, target_size
    most = min(float(_MOST_FIRST), examples / _FIRST_SHARE)
    while size > max(most, 1.0):
        size //= 2
    return max(size, 1)


def ladder(target_size: int, largest: int, *, smallest: int) -> tuple[int, ...]:
    """The target halved again and again: sizes below it, from ``smallest`` to ``largest``."""
    sizes = (target_size >> k for k in range(1, target_size.bit_length()))
    return tuple(sorted(size for size in sizes if smallest <= size <= largest))


class Workers(NamedTuple):
    """Where a race's fine-tunes are measured, and what keeps their losses."""

    executor: ExecutorConfig
    task: Task
    cells: Cells

    def failures(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Fills the folder with the cells of jobs; candidate -> why it has none."""
        if self.executor.kind == "serial":  # each is measured when it is read
            return {}
        failed, unfinished = {}, self.cells.unfinished(list(jobs))
        for result in executors.run(
            self.executor, unfinished, self.task, self.cells.folder, on_progress=self.cells.show
        ):
            if result.cell is None:
                failed[result.job.name] = result.reason
            else:
                self.cells.keep(result.job, result.cell)
        return failed


def run_race(
    pool: Mapping[str, CandidateRun], rule: RaceRule, workers: Workers, *, quiet: bool
) -> tuple[Race, list[dict[str, Any]]]:
    """The race at its end, and its fine-tunes with their reasons: the rows of ``race.csv``.

    Every loss is read from the run folder, or measured and stored.
    """
    workers.failures(candidate.job(0) for candidate in pool.values())
    zero_shot = {name: candidate.measure_loss(0) for name, candidate in pool.items()}
    params = [float(candidate.summary.num_params) for candidate in pool.values()]
    folder = workers.cells.folder
    race = Race.start(
        tuple(pool), params, rule, zero_shot=zero_shot,
        covariance_of=functools.partial(test_covariances, folder),
    )  # fmt: skip
    ran: list[tuple[Move, Outcome]] = []  # in the step under way
    rows: list[dict[str, Any]] = []

    def measure(moves: Sequence[Move]) -> Iterator[Outcome]:
        # one of each candidate; jobs are made before any of them is read, so that they are the
        # same after a resume
        failed = workers.failures(pool[move.candidate].job(move.size) for move in moves)
        if is_opening := moves[0].reason == OPENING and not quiet:
            terminal.warn(f"{len(moves)} candidates, {moves[0].size} examples: {OPENING}")
        for move in moves:
            if not quiet and not is_opening:
                terminal.warn(f"{move.candidate}, {move.size} examples: {move.reason}")
            outcome = _outcome(pool[move.candidate], move, failed.get(move.candidate))
            ran.append((move, outcome))
            yield outcome

    for step, now in enumerate(run(race, measure, count=workers.executor.at_a_time), 1):
        for name in now.dropped:
            pool[name].forget_weights()
        rows += _rows_of(step, ran, race, now)
        folder.write_rows("race.csv", rows)
        ran.clear()
        race = now
    return race, rows


def _outcome(candidate: CandidateRun, move: Move, failure: str | None) -> Outcome:
    if failure is None:
        try:
            loss = candidate.measure_loss(move.size)
        except FAILURES as error:
            failure = one_line(error)
        else:
            return Outcome(
                move.candidate, move.size, loss, seconds=candidate.seconds[move.size],
                num_searched=candidate.num_searched,
            )  # fmt: skip
    terminal.warn(f"failed: {move.candidate}, {move.size} examples: {failure}")
    return Outcome(move.candidate, move.size, None, failure)


def _rows_of(
    step: int, ran: Sequence[tuple[Move, Outcome]], before: Race, now: Race
) -> Iterator[dict[str, Any]]:
    """Rows of race.csv: each fine-tune of a step, and what was believed after the step."""
    dropped = [name for name in now.dropped if name not in before.dropped]
    for move, outcome in ran:
        cost = move.cost
        if outcome.loss is not None and not before.largest[move.candidate]:  # its rate was searched
            cost = before.cost_of(move.candidate, move.size + outcome.num_searched)
        yield {
            "step": step, "candidate": move.candidate, "size": move.size, "cost": cost,
            "reason": move.reason, "test_loss": outcome.loss, "failure": outcome.reason,
            "leader": now.leader, "p_best": now.probability, "dropped": " ".join(dropped),
            "stop": now.stop.text if now.stop else "",
        }  # fmt: skip
