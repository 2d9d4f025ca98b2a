"""Tokenizer: a checkpoint's own, with an end and a padding token whatever it lacks.

Example:
    >>> import lensllm_jax as lens
    >>> tokenizer = lens.load_candidate("zoo/gpt2-xs").tokenizer
    >>> tokenizer.eos_token_id is not None and tokenizer.pad_token_id is not None
    True
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensllm_jax import checks
from lensllm_jax.checkpoints.config import transformers

# the first that is there is read
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")

# all that a tokenizer may consist of
TOKENIZER_FILES = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip


def read_tokenizer(
    folder: Path, attributes: Mapping[str, Any], *, vocab_size: int, table: str
) -> Any:
    """The tokenizer of a checkpoint folder.

    An end token that it lacks is that of the config; padding that it lacks is the config's,
    or else the end token (masks, not ids, say what is padding).

    Args:
        folder: the checkpoint.
        attributes: its config, Hugging Face's names.
        vocab_size: rows of the embedding.
        table: name of its tensor.

    Raises:
        UserError: if there is none, it does not read or needs a library that is not here, it
            has more tokens than the embedding has rows, or neither it nor the config knows an
            end token.
    """
    advice = "save it there with tokenizer.save_pretrained(folder)"
    # transformers invents an empty tokenizer where it finds none
    file = next((folder / name for name in VOCABULARIES if (folder / name).exists()), None)
    if file is None:
        raise checks.UserError(
            f"`{folder}` must hold a tokenizer to read text, got none of "
            f"{', '.join(VOCABULARIES)}: {advice}"
        )
    # without it transformers takes the file for one of another kind
    if file.suffix == ".model" and importlib.util.find_spec("sentencepiece") is None:
        raise checks.UserError(
            f"`{file}` must be read by sentencepiece, got no such library: install it "
            "(pip install sentencepiece)"
        )
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries behind it raise classes of their own
        raise checks.UserError(
            f"`{folder}` must hold a tokenizer to read text, got one that does not load "
            f"({str(error).splitlines()[0]}): {advice}"
        ) from error
    if len(tokenizer) - len(_without_row(tokenizer, vocab_size)) > vocab_size:
        raise checks.UserError(
            f"`{file}` must have at most {vocab_size} tokens (rows of the embedding, tensor "
            f"{table}), got {len(tokenizer)}: put the tokenizer there that the weights were "
            "trained with"
        )
    for name in ("eos_token", "pad_token"):
        token = attributes.get(f"{name}_id")
        token = token[0] if isinstance(token, list) else token  # Llama 3 has several ends
        # a default of Hugging Face's config may lie beyond a small vocabulary
        if getattr(tokenizer, name) is None and token is not None and 0 <= token < len(tokenizer):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    if tokenizer.eos_token is None:
        raise checks.UserError(
            f"tokenizer of `{folder}` must have an end token (eos_token), got none there and none "
            "in config.json: set it, and save the tokenizer again"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _without_row(tokenizer: Any, vocab_size: int) -> list[int]:
    """Special tokens beyond the embedding that no text contains, as Gemma 3's for an image.

    One that ends, begins or pads a text must have a row; any other that a text does spell out is
    looked up as NaN, which stops a run.
    """
    used = {getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")}
    return [
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if number >= vocab_size and token.special and number not in used
    ]
