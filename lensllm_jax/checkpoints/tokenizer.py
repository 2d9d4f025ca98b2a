"""Tokenizer: a checkpoint's own, with an end and a padding token whatever it lacks.

Example:
    >>> import lensllm_jax as lens
    >>> tokenizer = lens.load_candidate("zoo/gpt2-xs").tokenizer
    >>> tokenizer.eos_token_id is not None and tokenizer.pad_token_id is not None
    True
"""

import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lensllm_jax import checks
from lensllm_jax.checkpoints.config import transformers
from lensllm_jax.checkpoints.files import check_file, is_there, read_json
from lensllm_jax.checkpoints.gguf.header import is_gguf, read_header
from lensllm_jax.checkpoints.gguf.tokenizer import read_gguf_tokenizer

# the first that is there is read
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")

# all that a tokenizer may consist of
TOKENIZER_FILES = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip


# what is read of these beside a tokenizer.json
_BESIDE_JSON = ("special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja")

_ROLES = tuple(f"{role}_token" for role in "bos eos unk sep pad cls mask".split())


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).exists() for name in VOCABULARIES)


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Those of a checkpoint folder that ``read_tokenizer`` reads."""
    has_json = is_there(folder / VOCABULARIES[0])
    names = (VOCABULARIES[0], *_BESIDE_JSON) if has_json else TOKENIZER_FILES
    return tuple(folder / name for name in names if is_there(folder / name))


def read_tokenizer(
    folder: Path, attributes: Mapping[str, Any], *, vocab_size: int, table: str
) -> Any:
    """The tokenizer of a checkpoint folder or GGUF file.

    An end token that it lacks is that of the config; padding that it lacks is the config's,
    or else the end token (masks, not ids, say what is padding).

    Args:
        folder: the checkpoint.
        attributes: its config, Hugging Face's names.
        vocab_size: rows of the embedding.
        table: name of its tensor.

    Raises:
        UserError: if there is none, it does not read or needs a library that is not here, a
            token that texts may contain has no row of the embedding, or neither it nor the
            config knows an end token.
    """
    advice = "save it there with tokenizer.save_pretrained(folder)"
    # transformers invents an empty tokenizer where it finds none
    files = (folder / name for name in VOCABULARIES if is_there(folder / name))
    file = folder if is_gguf(folder) else next(files, None)
    if file is None:
        raise checks.UserError(
            f"`{folder}` must hold a tokenizer to read text, got none of "
            f"{', '.join(VOCABULARIES)}: {advice}"
        )
    for name in TOKENIZER_FILES if not is_gguf(folder) else ():
        if is_there(folder / name):
            check_file(folder / name)
    # without it transformers takes the file for one of another kind
    if file.suffix == ".model" and importlib.util.find_spec("sentencepiece") is None:
        raise checks.UserError(
            f"`{file}` must be read by sentencepiece, got no such library: install it "
            "(pip install sentencepiece)"
        )
    try:
        if is_gguf(file):
            tokenizer = read_gguf_tokenizer(read_header(file))
        elif file.name == VOCABULARIES[0]:
            tokenizer = _as_it_stands(file, attributes)
        else:
            tokenizer = transformers().AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False
            )
    except (KeyboardInterrupt, SystemExit, checks.UserError):
        raise
    except BaseException as error:  # the libraries raise classes of their own, a panic of Rust too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise checks.UserError(
            f"`{folder}` must hold a tokenizer to read text, got one that does not load "
            f"({reason}): {advice}"
        ) from error
    beyond = ids_beyond(tokenizer, vocab_size)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special -= {getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "unk")}
    # a special token that no text contains, as Gemma 3's for an image, needs no row
    if unreadable := sorted(beyond.keys() - special, key=beyond.__getitem__):
        raise checks.UserError(
            f"`{file}` must have at most {vocab_size} tokens (rows of the embedding, tensor "
            f"{table}), got {len(tokenizer)}, {unreadable[0]!r} with id {beyond[unreadable[0]]} "
            "among them: put the tokenizer there that the weights were trained with"
        )
    for name in ("eos_token", "pad_token"):
        token = attributes.get(f"{name}_id")
        token = token[0] if isinstance(token, list) else token  # Llama 3 has several ends
        # a default of Hugging Face's config may lie beyond a small vocabulary
        if getattr(tokenizer, name) is None and token is not None and 0 <= token < len(tokenizer):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    if tokenizer.eos_token_id is None:
        raise checks.UserError(
            f"tokenizer of `{folder}` must have an end token (eos_token), got none there and none "
            "in config.json: set it, and save the tokenizer again"
        )
    # padding is masked, and any row will do; a token beyond the table has none
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocab_size:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _as_it_stands(file: Path, attributes: Mapping[str, Any]) -> Any:
    """The tokenizer of a tokenizer.json, whatever class saved it.

    Some classes of transformers rebuild it from its vocabulary with a pre-tokenizer and a
    normalizer of their own, and then divide text into other tokens.  Only what the file lacks,
    the roles of its special tokens, is taken from the files next to it, or else from the class.
    """
    import tokenizers

    exact = tokenizers.Tokenizer.from_file(str(file))
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file.parent / name).exists():
            settings |= read_json(file.parent / name)
    roles = _class_roles(settings.get("tokenizer_class"), attributes, exact)
    roles |= {role: _token(settings[role]) for role in _ROLES if role in settings}
    added = {
        int(number): _token(token)
        for number, token in settings.get("added_tokens_decoder", {}).items()
    }
    template = file.parent / "chat_template.jinja"
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=exact,
        added_tokens_decoder=added,
        chat_template=template.read_text(encoding="utf-8")
        if template.exists()
        else settings.get("chat_template"),
        **roles,
    )


def _class_roles(name: str | None, attributes: Mapping[str, Any], exact: Any) -> dict[str, Any]:
    """Special tokens that a class of tokenizers has by default, of those in the vocabulary."""
    from transformers.models.auto import tokenization_auto as auto

    name = name or auto.TOKENIZER_MAPPING_NAMES.get(attributes.get("model_type", ""))
    tokenizer_class = auto.tokenizer_class_from_name(name) if isinstance(name, str) else None
    if tokenizer_class is None:
        return {}
    parameters = inspect.signature(tokenizer_class.__init__).parameters
    defaults = {role: str(parameters[role].default) for role in _ROLES if role in parameters}
    return {role: token for role, token in defaults.items() if exact.token_to_id(token) is not None}


def _token(stored: Any) -> Any:
    """A special token, as a string or with how text around it is stripped."""
    import tokenizers

    if not isinstance(stored, Mapping):
        return stored
    return tokenizers.AddedToken(**{k: v for k, v in stored.items() if k != "__type"})


def ids_beyond(tokenizer: Any, vocab_size: int) -> dict[str, int]:
    """Tokens without a row of the embedding, and their ids."""
    return {token: i for token, i in tokenizer.get_vocab().items() if i >= vocab_size}


def check_texts(name: str, texts: Iterable[str], tokenizer: Any, *, vocab_size: int) -> None:
    """Checks that every token of some texts has a row of a candidate's embedding.

    Raises:
        UserError: naming the first token that has none.
    """
    beyond = ids_beyond(tokenizer, vocab_size)
    if not beyond:
        return
    for text in texts:
        for i in tokenizer(text)["input_ids"]:
            if i >= vocab_size and i != tokenizer.pad_token_id:
                raise checks.UserError(
                    f"`task` must hold texts whose tokens {name} knows, got "
                    f"{tokenizer.convert_ids_to_tokens(i)!r} with id {i}, where its embedding has "
                    f"{vocab_size} rows: take the token out of the texts, or resize the embedding"
                )
