"""What is known of the published files: ``make published`` holds each to it."""

from typing import NamedTuple


class Known(NamedTuple):
    """Of one file."""

    num_params: int
    types: tuple[str, ...]  # of its blocks
    continuation: str  # of "The capital of France is", greedy
    loss: float  # nats per byte of target on the texts of the tests, as PyTorch has it


KNOWN = {
    "published/smollm2-135m": Known(134_515_008, ("Q4_1", "Q8_0"), " Paris.", 0.99260),
    "published/gemma-3-270m": Known(
        268_098_176, ("Q4_K", "Q5_0", "Q6_K", "Q8_0"), " the capital of the", 0.98682
    ),
    "published/qwen2.5-coder-0.5b": Known(
        630_167_424, ("Q4_K", "Q5_0", "Q6_K", "Q8_0"), " Paris", 0.85337
    ),
}
