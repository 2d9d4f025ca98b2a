"""Rows: a task's records as the tokens of one candidate, every row of one length.

The length is that of the task's longest record in this candidate's tokens, so that one compilation
serves every subset and nothing of the text is lost.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.chat import has_chat_template
from lensllm_jax.data.encoding import EncodedExamples, encode_causal, encode_seq2seq, longest_rows
from lensllm_jax.data.task import Example, Task

_STEP = 8  # tokens: lengths are multiples, and those of different tasks share compiled steps
_MOST_KEPT = 64
_longest: dict[str, tuple[int, int]] = {}  # of this process, by task and tokenizer


Reader: TypeAlias = Candidate | CandidateSummary  # a tokenizer, and a config with positions


class RowLengths(NamedTuple):
    """Of every row, in tokens."""

    source: int  # that a decoder, or an encoder, reads
    target: int  # that the decoder behind an encoder writes, else 0

    @property
    def total(self) -> int:
        """Tokens of one example."""
        return self.source + self.target


def row_lengths(task: Task, reader: Reader, *, chat_template: str = "none") -> RowLengths:
    """Lengths that hold every record of a task.

    Raises:
        UserError: if the candidate has fewer positions, or cannot read a record.
    """
    positions = reader.config.max_positions or math.inf
    longest = _longest_of(task, reader, chat=_uses_chat(reader, chat_template))
    if max(longest) > positions:
        num_bytes = task.max_bytes or max(example.num_bytes for example in task.examples)
        held = int(num_bytes * positions / max(longest))
        raise checks.UserError(
            f"`max_bytes` must be few enough for the {positions} positions of {reader.name}, got "
            f"{task.max_bytes}, which take it up to {max(longest)} tokens: pass about "
            f"--max_bytes={held}, for all candidates, or leave it out"
        )
    rounded = (int(min(math.ceil(n / _STEP) * _STEP, positions)) for n in longest)
    return RowLengths(*rounded)


def encode_rows(
    examples: Sequence[Example], reader: Reader, lengths: RowLengths, *, chat_template: str = "none"
) -> EncodedExamples:
    """Records as rows of these lengths."""
    if not reader.config.is_encoder_decoder:
        chat = _uses_chat(reader, chat_template)
        return encode_causal(examples, reader.tokenizer, length=lengths.source, chat=chat)
    config: Any = reader.config  # of an encoder-decoder
    return encode_seq2seq(
        examples, reader.tokenizer, length=lengths.source, target_length=lengths.target,
        decoder_start_token_id=config.decoder_start_token_id,
    )  # fmt: skip


def _uses_chat(reader: Reader, chat_template: str) -> bool:
    """Whether records become conversations: decoders alone have templates."""
    auto = chat_template == "auto"
    return auto and not reader.config.is_encoder_decoder and has_chat_template(reader.tokenizer)


def _longest_of(task: Task, reader: Reader, *, chat: bool) -> tuple[int, int]:
    """``longest_rows`` of the whole task, remembered: candidates may share a tokenizer."""
    tokenizer, seq2seq = reader.tokenizer, reader.config.is_encoder_decoder
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template)
    parts = (task.fingerprint, tokenizer.backend_tokenizer.to_str(), special, seq2seq, chat)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    if key not in _longest:
        found = longest_rows(task.examples, tokenizer, is_encoder_decoder=seq2seq, chat=chat)
        while len(_longest) >= _MOST_KEPT:
            _longest.pop(next(iter(_longest)))
        _longest[key] = found
    return _longest[key]
