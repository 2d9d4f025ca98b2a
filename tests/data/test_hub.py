"""The paper's corpora, read from copies in the hub's own layout (no network is touched)."""

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.data.hub import read_hub_task
from tests.data.test_files import write_jsonl

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _cache_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def flan_rows(split, count=12):
    return [
        {"inputs": f"{split} question {i}?", "targets": "yes", "task": "boolq"}
        for i in range(count)
    ]


def flan_copy(folder, rows=flan_rows):
    """A folder a split with a JSON lines file a data set, as in Muennighoff/flan."""
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        write_jsonl(folder / split / f"boolq_10templates_{split}.jsonl", rows(split))
    return folder


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def wikitext_copy(folder):
    """Parquet files of a named config, declared in the card, as in Salesforce/wikitext."""
    card = ["---", "configs:", "- config_name: wikitext-103-raw-v1", "  data_files:"]
    for split in SPLITS:
        lines = ["", f" = {split} title = \n", "", f" A {split} paragraph . \n", " = = Part = = \n"]
        lines += [f" Line {i} of {split} , 2 @.@ 5 long = 3 . \n" for i in range(3)]
        name = f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet"
        write_parquet(folder / name, [{"text": line} for line in lines])
        card += [f"  - split: {split}", f"    path: wikitext-103-raw-v1/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def gigaword_copy(folder):
    """default/<split>/0000.parquet, as every refs/convert/parquet branch is laid out."""
    for split in SPLITS:
        rows = [{"document": f"{split} news {i} .", "summary": f"{split} {i}"} for i in range(4)]
        write_parquet(folder / "default" / split / "0000.parquet", rows)
    return folder


def test_flan_asks_with_its_inputs(tmp_path):
    task = load_task("flan", folder=flan_copy(tmp_path / "flan"))
    assert (len(task.train), len(task.validation), len(task.test)) == (12, 12, 12)
    assert {e.target for e in task.train} == {"yes"}
    assert all(e.prompt.startswith("train question") for e in task.train)


def test_flan_is_sampled_and_not_read_from_the_top(tmp_path):
    folder = flan_copy(tmp_path / "flan", lambda split: flan_rows(split, 100))
    task = read_hub_task("flan", folder=folder, sizes={"train": 5, "validation": 2, "test": 3})
    assert (len(task.train), len(task.validation), len(task.test)) == (5, 2, 3)
    numbers = sorted(int(e.prompt.split()[-1].rstrip("?")) for e in task.train)
    assert numbers != [0, 1, 2, 3, 4]


def test_wikitext_keeps_paragraphs_and_leaves_headings_and_blanks(tmp_path):
    task = load_task("wikitext", folder=wikitext_copy(tmp_path / "wikitext"))
    assert {e.target for e in task.test} == {
        "A test paragraph .",
        *(f"Line {i} of test , 2 @.@ 5 long = 3 ." for i in range(3)),
    }
    assert {e.prompt for e in task.train} == {""}


def test_gigaword_asks_for_the_headline(tmp_path):
    task = load_task("gigaword", folder=gigaword_copy(tmp_path / "gigaword"))
    prompts = {e.prompt: e.target for e in task.test}
    assert prompts["test news 0 .\nSummary:"] == "test 0"


def test_offline_says_what_to_do():
    # tests/conftest.py sets HF_HUB_OFFLINE, so no connection is tried.
    with pytest.raises(UserError, match=r"hf download Salesforce/wikitext .* pass folder=DIR"):
        load_task("wikitext")


def test_a_copy_without_a_split_or_a_field_is_refused(tmp_path):
    folder = flan_copy(tmp_path / "flan")
    (folder / "test" / "boolq_10templates_test.jsonl").unlink()
    with pytest.raises(UserError, match="must have train, validation and test, got no test"):
        load_task("flan", folder=folder)
    other = flan_copy(tmp_path / "other", lambda _: [{"inputs": "a", "target": "b"}])
    with pytest.raises(UserError, match="text in field 'targets' of every row, got None"):
        load_task("flan", folder=other)


def test_an_unknown_corpus_is_refused():
    with pytest.raises(UserError, match="one of flan, gigaword, wikitext, got 'c4'"):
        read_hub_task("c4")
