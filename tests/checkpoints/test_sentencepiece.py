"""Folders that hold their vocabulary as a sentencepiece model, as those of mT5 on the hub do."""

import itertools
import json
import shutil
from pathlib import Path

import sentencepiece

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.zoo import FOLDER as ZOO

TEXT = "the king of the stone is lost"


def test_text_is_read_as_sentencepiece_reads_it(tmp_path: Path):
    folder = tmp_path / "mt5"
    shutil.copytree(ZOO / "mt5-xs", folder)
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    nouns = itertools.permutations(("king", "river", "city", "stone"), 2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"the {a} of the {b} is lost" for a, b in nouns),
        model_prefix=str(folder / "spiece"), vocab_size=21,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    tokenizer = load_folder(folder).tokenizer
    pieces = oracle.encode(TEXT)
    assert len(set(pieces)) > 5  # not all of them unknown
    assert tokenizer(TEXT).input_ids == [*pieces, tokenizer.eos_token_id]
