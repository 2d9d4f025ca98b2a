"""Bundled tables: read by name wherever a path is, unchanged, with their source and licence."""

import hashlib

import numpy as np
import pytest

import lensllm_jax as lens
from experiments.common import curves
from lensllm_jax import checks
from lensllm_jax.selection.public_tables import loss_table_file

DIGESTS = {
    "flan": "ead24af8eaa97ac0507bbd76c4880eb09c6361e252f4971666ba55017215d1e9",
    "gigaword": "7d0b08ef9df06eefb4355f859fb44e7860c1e55effd781d318d60a1f8661f2b3",
}


@pytest.mark.parametrize("task", DIGESTS)
def test_a_table_is_as_it_was_published(task):
    file = loss_table_file(f"lin2024/{task}")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == DIGESTS[task]
    table = lens.load_loss_table(f"lin2024/{task}")
    assert (len(table.names), table.task, table.unit) == (30, task, "nats per token")
    assert not np.isnan(table.column(1_638_400)).any()
    notice = (file.parent / "NOTICE").read_text()
    for word in ("linhaowei1/Fine-tuning-Scaling-Law", "5214568", "Apache License", file.name):
        assert word in notice


def test_every_name_of_the_list_loads():
    assert lens.list_loss_tables() == ("lin2024/flan", "lin2024/gigaword")
    for name in lens.list_loss_tables():
        assert lens.load_loss_table(name).names


def test_a_path_is_read_as_before(tmp_path):
    file = loss_table_file("lin2024/flan")
    copy = tmp_path / "flan.csv"
    copy.write_bytes(file.read_bytes())
    for path in (copy, str(copy)):
        table = lens.load_loss_table(path)
        assert (table.task, table.unit) == ("flan", "")


def test_binaries_take_the_names():
    names = ["lin2024/flan", "lin2024/gigaword"]
    assert [table.task for table in curves.read_curves(names)] == ["flan", "gigaword"]
    assert [*curves.digests(names).values()] == [*DIGESTS.values()]


def test_a_name_of_none_is_refused_with_those_that_are_there():
    with pytest.raises(checks.UserError, match="`table` must be one of lin2024/flan, lin2024/g"):
        lens.load_loss_table("lin2024/alpaca")
    with pytest.raises(checks.UserError, match="no such file"):
        lens.load_loss_table("alpaca.csv")
