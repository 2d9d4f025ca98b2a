"""Packing: running text as chunks of whole sentences, of nearly equal length.

Equal lengths keep padding low when every batch has one static shape.  The defaults aim at 64
tokens of a small vocabulary: in the 2,048 tokens of the bundled candidates, speeches take one
token per 2.6 characters.

Example:
    >>> pack("One is short. Two is longer, a bit. Three ends it.", shortest=20, longest=40)
    ['One is short. Two is longer, a bit.', 'Three ends it.']
"""

import re
import textwrap
from collections.abc import Iterator

# A full stop after these ends no sentence in the texts that we pack.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)
    (?<!\bGen\.)(?<!\b[A-Z]\.)["')\]”’]*\s+(?=["'(\[“‘]*[A-Z0-9])""",
    re.VERBOSE,
)
_CLAUSE_END = re.compile(r"(?<=[;:,])\s+|(?<=—)\s*")


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, each on one line with single spaces; a blank line ends one too."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        start = 0
        for end in _SENTENCE_END.finditer(line):
            found.append(line[start : end.end()].rstrip())
            start = end.end()
        found.append(line[start:])
    return [sentence for sentence in found if sentence]


def pack(text: str, *, shortest: int = 110, longest: int = 160) -> list[str]:
    """Consecutive sentences of ``text``, packed into chunks; the last may be short.

    Args:
        text: running text.
        shortest: a chunk this long (characters) is closed at the next sentence end.
        longest: no chunk is longer (characters); a sentence that does not fit is split between
            clauses, or between words where it has no clause.
    """
    chunks: list[str] = []
    current = ""
    for piece, ends_sentence in _pieces(text, longest):
        if len(current) + 1 + len(piece) > longest and current:
            chunks.append(current)
            current = ""
        current = f"{current} {piece}" if current else piece
        if ends_sentence and len(current) >= shortest:
            chunks.append(current)
            current = ""
    return [*chunks, current] if current else chunks


def _pieces(text: str, longest: int) -> Iterator[tuple[str, bool]]:
    """Clauses no longer than ``longest``, and whether each ends its sentence."""
    for sentence in sentences(text):
        clauses: list[str] = []
        for clause in _CLAUSE_END.split(sentence):
            if len(clause) <= longest:  # nearly all: textwrap takes ten times all other work
                clauses.append(clause)
            else:
                clauses.extend(textwrap.wrap(clause, longest, break_on_hyphens=False))
        for i, clause in enumerate(clauses):
            yield clause, i == len(clauses) - 1
