"""A race on models: fine-tunes what the race asks for, until it stops.

Example:
    >>> smallest_of(6400, max_cost=0.1), smallest_of(1638400, max_cost=0.1)
    (50, 200)
"""

from collections.abc import Iterator, Mapping, Sequence

from lensllm_jax.measurement.jobs import FAILURES, one_line
from lensllm_jax.runs import terminal
from lensllm_jax.runs.resume import CandidateRun
from lensllm_jax.selection.race import Move, Outcome, Race, RaceRule, run

_MOST_FIRST = 200  # examples: the first size of a task that has many
_FIRST_SHARE = 12.0  # the first two sizes together take at most a quarter of the budget


def smallest_of(target_size: int, *, max_cost: float) -> int:
    """The first size: the target halved until all candidates can run it and its double."""
    most, size = min(float(_MOST_FIRST), max_cost * target_size / _FIRST_SHARE), target_size
    while size > max(most, 1.0):
        size //= 2
    return max(size, 1)


def ladder(target_size: int, largest: int, *, smallest: int) -> tuple[int, ...]:
    """The target halved again and again: sizes below it, from ``smallest`` to ``largest``."""
    sizes = (target_size >> k for k in range(1, target_size.bit_length()))
    return tuple(sorted(size for size in sizes if smallest <= size <= largest))


def run_race(pool: Mapping[str, CandidateRun], rule: RaceRule, *, quiet: bool) -> Race:
    """The race at its end; every loss is read from the run folder, or measured and stored."""
    zero_shot = {name: candidate.measure_loss(0) for name, candidate in pool.items()}
    params = [float(candidate.summary.num_params) for candidate in pool.values()]
    race = Race.start(tuple(pool), params, rule, zero_shot=zero_shot)

    def measure(moves: Sequence[Move]) -> Iterator[Outcome]:
        failed = set()
        for move in moves:
            if move.candidate in failed:
                continue
            outcome = _outcome(pool[move.candidate], move, quiet=quiet)
            if outcome.loss is None:
                failed.add(move.candidate)
            yield outcome

    now = race
    for now in run(race, measure):
        for name in now.dropped:
            pool[name].forget_weights()
    return now


def _outcome(candidate: CandidateRun, move: Move, *, quiet: bool) -> Outcome:
    if not quiet:
        terminal.warn(f"{move.candidate}, {move.size} examples: {move.reason}")
    try:
        loss = candidate.measure_loss(move.size)
    except FAILURES as error:
        reason = one_line(error)
        terminal.warn(f"failed: {move.candidate}, {move.size} examples: {reason}")
        return Outcome(move.candidate, move.size, None, reason)
    return Outcome(move.candidate, move.size, loss, seconds=candidate.seconds[move.size])
