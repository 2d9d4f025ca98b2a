r"""Tokenizer of a GGUF file, from its metadata.

Three kinds: byte-level BPE ("gpt2"), whose name of a pre-tokenizer stands for a regular
expression in llama.cpp's code; sentencepiece BPE ("llama"), whose merges follow from the scores of
the tokens; sentencepiece unigram ("t5").  Control and user-defined tokens are matched whole in a
text, as llama.cpp does.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lensllm_jax import checks
from lensllm_jax.checkpoints.gguf.header import Header

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # types of tokens
_SPACE = "\u2581"  # sentencepiece's

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
_DIGITS = (r"\p{N}", *_GPT2)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,)
_QWEN2 = (_CONTRACTIONS + _WORDS + r"\p{N}" + _REST,)
# llama.cpp's names of pre-tokenizers -> the expressions that isolate parts of a text, in turn
_SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "default"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), _QWEN2),
}
# of these, a word that is a token stays whole, whatever its merges
_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3"})


def read_gguf_tokenizer(header: Header) -> Any:
    """A fast tokenizer of transformers.

    Raises:
        UserError: if the file has none, or one of a kind or pre-tokenizer that is not supported.
    """
    from lensllm_jax.checkpoints.config import transformers

    vocabulary = _Vocabulary(header)
    kind = checks.one_of(
        f"tokenizer.ggml.model of {header.path}", vocabulary.get("model"), _BUILDERS
    )
    tokenizer = _BUILDERS[kind](vocabulary)
    tokenizer.add_special_tokens(list(vocabulary.added(_CONTROL)))
    tokenizer.add_tokens(list(vocabulary.added(_USER_DEFINED)))
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{role}_token": vocabulary.tokens[token]
        for role, theirs in roles.items()
        if (token := vocabulary.get(f"{theirs}_token_id")) is not None
        and 0 <= token < len(vocabulary.tokens)
    }
    tokenizer.post_processor = _around(vocabulary, kind)
    template = header.metadata.get("tokenizer.chat_template")
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False,
        **special,
    )  # fmt: skip


def _around(vocabulary: "_Vocabulary", kind: str) -> Any:
    """What puts the special tokens around a text that llama.cpp puts there."""
    from tokenizers import processors

    begins = kind == "llama" or vocabulary.get("pre") in _WHOLE_WORDS
    wanted = {"bos": vocabulary.get("add_bos_token", begins),
              "eos": vocabulary.get("add_eos_token", kind == "t5")}  # fmt: skip
    ids = {
        role: number
        for role, puts in wanted.items()
        if puts
        and (number := vocabulary.get(f"{role}_token_id")) is not None
        and 0 <= number < len(vocabulary.tokens)
    }
    if not ids:
        return None
    names = {role: vocabulary.tokens[number] for role, number in ids.items()}
    return processors.TemplateProcessing(
        single=[*([names["bos"]] if "bos" in names else []), "$A",
                *([names["eos"]] if "eos" in names else [])],
        special_tokens=[(names[role], number) for role, number in ids.items()],
    )  # fmt: skip


class _Vocabulary:
    """The metadata of a tokenizer."""

    def __init__(self, header: Header):
        self.path, self._metadata = header.path, header.metadata
        self.tokens: Sequence[str] = self.strings("tokens")
        self.types: Sequence[int] = self.get("token_type") or ()

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def strings(self, key: str) -> list[str]:
        """A list of text that must be there."""
        found = self.get(key)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise checks.UserError(
                f"`{self.path}` must hold the tokenizer's {key}, got {type(found).__name__}"
            )
        return found

    def scores(self) -> list[float]:
        """One per token."""
        found = self.get("scores")
        if not isinstance(found, list) or len(found) != len(self.tokens):
            raise checks.UserError(
                f"`{self.path}` must hold a score for each of {len(self.tokens)} tokens, got "
                f"{len(found) if isinstance(found, list) else 'none'}"
            )
        return found

    def ids(self) -> dict[str, int]:
        """Number of each token; of two that are spelled alike, the first."""
        ids: dict[str, int] = {}
        for number, token in enumerate(self.tokens):
            ids.setdefault(token, number)
        return ids

    def added(self, kind: int) -> Iterator[Any]:
        """Tokens of a type."""
        import tokenizers

        for token, type_of_token in zip(self.tokens, self.types, strict=False):
            if type_of_token == kind:
                yield tokenizers.AddedToken(token, normalized=False, special=kind == _CONTROL)


def _byte_level(vocabulary: _Vocabulary) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = checks.one_of(
        f"tokenizer.ggml.pre of {vocabulary.path}", vocabulary.get("pre", "gpt-2"), _SPLITS
    )
    merges = [merge.partition(" ")[::2] for merge in vocabulary.strings("merges")]
    try:
        bpe = models.BPE(vocabulary.ids(), merges, ignore_merges=name in _WHOLE_WORDS)
    except Exception as error:  # the library raises plain Exceptions
        raise checks.UserError(
            f"`{vocabulary.path}` must hold merges of its own tokens, got {error}"
        ) from error
    tokenizer = Tokenizer(bpe)
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in _SPLITS[name]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    ids = vocabulary.ids()
    unknown = vocabulary.get("unknown_token_id", 0)
    bpe = models.BPE(
        ids, _merges(ids, vocabulary.scores()), unk_token=vocabulary.tokens[unknown],
        fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    tokenizer = Tokenizer(bpe)
    prefix = vocabulary.get("add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )  # fmt: skip
    return tokenizer


def _merges(ids: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Pairs of tokens that make a token, those of the best score first.

    Sentencepiece joins, of all neighbours, those that make the token of the best score.
    """
    pairs = []
    for token, number in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                pairs.append((-scores[number], number, left, right, token[:cut], token[cut:]))
    return [pair[-2:] for pair in sorted(pairs)]


def _unigram(vocabulary: _Vocabulary) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    # T5's sentinels have lost their names in the file
    placeholder = re.compile(r"\[PAD\d+\]")
    sentinels = [i for i, token in enumerate(vocabulary.tokens) if placeholder.fullmatch(token)]
    names = {number: f"<extra_id_{99 - i}>" for i, number in enumerate(sentinels[:100])}
    tokens = [names.get(number, token) for number, token in enumerate(vocabulary.tokens)]
    tokenizer = Tokenizer(
        models.Unigram(
            list(zip(tokens, vocabulary.scores(), strict=True)),
            unk_id=vocabulary.get("unknown_token_id", 2), byte_fallback=False,
        )
    )  # fmt: skip
    charsmap = vocabulary.get("precompiled_charsmap")
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(bytes(c % 256 for c in charsmap))] if charsmap else []),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(list(names.values()))
    return tokenizer


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
