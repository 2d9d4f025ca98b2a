"""Tokenizer: a checkpoint's own, with an end and a padding token whatever it lacks.

Example:
    >>> import lensllm_jax as lens
    >>> tokenizer = lens.load_candidate("zoo/gpt2-xs").tokenizer
    >>> tokenizer.eos_token_id is not None and tokenizer.pad_token_id is not None
    True
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensllm_jax import checks
from lensllm_jax.checkpoints.config import transformers

VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")


def read_tokenizer(folder: Path, attributes: Mapping[str, Any], *, vocab_size: int) -> Any:
    """The tokenizer of a checkpoint folder.

    An end token that it lacks is that of the config; padding that it lacks is the config's,
    or else the end token (masks, not ids, say what is padding).

    Args:
        folder: the checkpoint.
        attributes: its config, Hugging Face's names.
        vocab_size: rows of the embedding.

    Returns:
        What ``AutoTokenizer`` gives, completed.

    Raises:
        UserError: if there is none, it does not read, it has more tokens than the embedding
            has rows, or neither it nor the config knows an end token.
    """
    advice = "save it there with tokenizer.save_pretrained(folder)"
    # transformers makes up an empty tokenizer where it finds none
    if not any((folder / file).exists() for file in VOCABULARIES):
        raise checks.UserError(
            f"`{folder}` must hold a tokenizer to read text, got none of "
            f"{', '.join(VOCABULARIES)}: {advice}"
        )
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries behind it raise classes of their own
        raise checks.UserError(
            f"`{folder}` must hold a tokenizer to read text, got one that does not load "
            f"({str(error).splitlines()[0]}): {advice}"
        ) from error
    if len(tokenizer) > vocab_size:
        raise checks.UserError(
            f"tokenizer of `{folder}` must have at most {vocab_size} tokens "
            f"(rows of the embedding), got {len(tokenizer)}"
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
