"""Mistakes with the flags of the binaries and with the folders of their runs."""

import jax
import numpy as np
import pytest

from experiments.common import cli
from lensllm_jax.data.task import Example, Task
from lensllm_jax.selection.loss_table import LossTable
from tests.messages.binaries import load

TASK = Task("toy", "", (Example("", "a"),), (Example("", "b"),), (Example("", "c"),), {}, "")
TWO = np.ones(2)
TABLE = "config name,0,200,400\na,3,2,1\nb,3,2,1\n"
LONG_TABLE = "config name,0,200,400,800,1600\na,5,4,3,2,1\nb,5,4,3,2,1\n"
UNEVEN = "config name,0,300,400\na,3,2,1\nb,3,2,1\n"


def binary(name, **flags):
    """A binary's module, as it is after its flags were read."""
    loaded = load(name)
    for constant, value in flags.items():
        flag = getattr(loaded.module, constant, None) or loaded.flags[constant.lower()]
        flag.value = value
    return loaded.module


def curves(folder, text=TABLE, second=None, of="rank_curves", **flags):
    """What a binary says of a table, or of two of the same name."""
    paths = []
    for name, content in (("one", text), ("two", second)):
        if content is not None:
            (folder / name).mkdir(parents=True)
            (folder / name / "a.csv").write_text(content)
            paths.append(str(folder / name / "a.csv"))
    return binary(of, CURVES=paths, **flags).main([])


def savings(folder, text=TABLE + "c,3,2,1\n", ledger=None, **flags):
    """What saving says of a table and of what its fine-tunes cost."""
    paths = [] if ledger is None else [str(written(folder / "ledger.csv", ledger))]
    return curves(folder, text, of="saving", **{"LEDGER": paths, **flags})


def two_seeds(path):
    return binary("seed_noise", CURVES=path, AGAIN=path).main([])


def kernel_sizes(**flags):
    return binary("kernel_spectra", **flags).sample_sizes(TASK)


def curve_sizes(**flags):
    return binary("kernel_curves", **flags).curve_sizes(TASK)


def curves_of(path, names=("a",)):
    return binary("kernel_curve_value").read_curves(path, names)


def curve_value(folder):
    return binary("kernel_curve_value", TABLES_FOLDER=str(folder), TASKS=["toy"]).main([])


def gradient_descent(**flags):
    return binary("linear_training", **flags)._checked_shares()


def pool_table(count=1, *, names="ab", first=0):
    """A table of as many sizes, from ``first`` in steps of 100."""
    sizes = first + 100 * np.arange(count)
    return LossTable(tuple(names), sizes, np.ones((2, count)), TWO, ("", ""))


def joined(*tables):
    return load("pool_orders").module.joined(tables)


def quarter(table):
    return list(load("pool_orders").module.prediction_rows("full", table, ["posterior"]))


def agreement(full, lora):
    return list(load("pool_orders").module.agreement_rows(full, lora))


def figures(tables, output):
    flags = {"TABLES_FOLDER": str(tables), "OUTPUT_DIR": str(output)}
    return binary("paper_figures", **flags).main([])


def bound_sizes(*texts):
    return binary("theory_bound", SIZES=list(texts))._sizes(100)


def bound_flags(**flags):
    return binary("theory_bound", **flags).check_flags()


def written(path, content="x"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def platform_that_is_not_here():
    def devices():
        raise RuntimeError("Unable to initialize backend 'gelu' (set JAX_PLATFORMS='')")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "gelu")
        patch.setattr(jax, "devices", devices)
        return cli._check_platform()


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("JAX_PLATFORMS", "name a platform ... got 'gelu'", lambda tmp: platform_that_is_not_here()),
    ("budgets", "divisors of 400 ... got none", lambda tmp: curves(tmp, UNEVEN, BUDGETS=None)),
    (
        "device_gb",
        "positive ... got 0.0",
        lambda tmp: binary("plan", CANDIDATES="zoo/gpt2-xs", DEVICE_GB=0.0).main([]),
    ),
    (
        "candidates",
        "name one or more, got ','",
        lambda tmp: binary("published", CANDIDATES=",").main([]),
    ),
    (
        "candidates",
        "one of published/gemma-3-270m ... got 'gpt5'",
        lambda tmp: binary("published", CANDIDATES="gpt5").main([]),
    ),
    ("candidates", "name one or more, got ()", lambda tmp: binary("plan", CANDIDATES=",").main([])),
    (
        "num_tokens",
        "at most 128 (the positions of zoo/gpt2-xs), got 4096",
        lambda tmp: binary("plan", CANDIDATES="zoo/gpt2-xs", NUM_TOKENS=4096).main([]),
    ),
    ("budgets", "whole numbers from 2 ... got '1'", lambda tmp: cli.divisor("budgets", "1")),
    ("seeds", "whole numbers ... got '1,many'", lambda tmp: cli.whole_numbers("seeds", "1,many")),
    (
        "learning_rates",
        "numbers ... got '1,many'",
        lambda tmp: cli.numbers("learning_rates", "1,many"),
    ),
    (
        "devices",
        "one whole number, got '1,4'",
        lambda tmp: binary("select_model", DEVICES="1,4").FLAGS.values(),
    ),
    (
        "learning_rate",
        "one rate or auto, got '1e-3,3e-3'",
        lambda tmp: binary("select_model", LEARNING_RATE="1e-3,3e-3").FLAGS.values(),
    ),
    (
        "decay_steps",
        "step or all ... got 'late'",
        lambda tmp: binary("select_model", DECAY_STEPS="late").FLAGS.values(),
    ),
    ("steps", "zero or positive ... got -1", lambda tmp: binary("pretrain_zoo", STEPS=-1).main([])),
    (
        "candidates",
        "one of ... got 'gpt5'",
        lambda tmp: binary("pretrain_zoo", CANDIDATES="gpt5").main([]),
    ),
    ("selectors", "one of ... got 'luck'", lambda tmp: curves(tmp, SELECTED=["luck"])),
    (
        "pools",
        "from 2 to 2 ... got [9]",
        lambda tmp: curves(tmp, LONG_TABLE, of="race_curves", POOLS=["9"]),
    ),
    (
        "seed",
        "zero or positive and finite, got -1",
        lambda tmp: curves(tmp, LONG_TABLE, of="race_curves", SEED=-1),
    ),
    (
        "draws",
        "positive and finite, got 0",
        lambda tmp: curves(tmp, LONG_TABLE, of="race_curves", DRAWS=0),
    ),
    ("curves", "4 sizes or more above 0, got 2", lambda tmp: curves(tmp, of="race_curves")),
    (
        "curves",
        "have different file names ... got ['a', 'a']",
        lambda tmp: curves(tmp, second=TABLE),
    ),
    (
        "a: a ranking",
        "have two or more ... got 'a'",
        lambda tmp: curves(tmp, text="config name,0,200,400\na,3,2,1\n"),
    ),
    (
        "selectors",
        "leave one ... got none",
        lambda tmp: binary("rank_curves")._write(None, "selection.csv", []),
    ),
    ("num_matvecs", "positive ... got 0", lambda tmp: bound_flags(NUM_MATVECS=0)),
    (
        "megabytes",
        "1 or more ... got 0",
        lambda tmp: binary("theory_bound", MEGABYTES=0, ONLY="").check_blocks("a", {"w": TWO}),
    ),
    ("num_probes", "2 or more ... got 1", lambda tmp: bound_flags(NUM_PROBES=1)),
    ("remainder_constant", "positive ... got 0.0", lambda tmp: bound_flags(CONSTANT=0.0)),
    (
        "curves",
        "share sizes ... got none",
        lambda tmp: joined(pool_table(), pool_table(names="cd", first=100)),
    ),
    ("curves", "at size 0 and at two others, got [0, 100]", lambda tmp: joined(pool_table(2))),
    ("curves", "losses at 50 ... got [0, 100, 200]", lambda tmp: quarter(pool_table(3))),
    (
        "lora_curves",
        "share two or more candidates ... got []",
        lambda tmp: agreement(pool_table(), pool_table(names="cd")),
    ),
    ("num_examples", "positive ... got 0", lambda tmp: gradient_descent(NUM_EXAMPLES=0)),
    ("num_steps", "positive ... got 0", lambda tmp: gradient_descent(NUM_STEPS=0)),
    ("shares", "between 0 and 2 ... got [2.0]", lambda tmp: gradient_descent(SHARES=["2"])),
    (
        "size",
        "positive and at most 1 ... got 800",
        lambda tmp: binary("kernel_change", NUM_EXAMPLES=1).checked_sizes(TASK),
    ),
    ("num_examples", "positive ... got 0", lambda tmp: curve_sizes(NUM_EXAMPLES=0)),
    (
        "num_examples",
        "at most 1 (the training examples of toy), got 2",
        lambda tmp: curve_sizes(NUM_EXAMPLES=2),
    ),
    (
        "num_labels",
        "positive ... got 0",
        lambda tmp: curve_sizes(NUM_EXAMPLES=1, NUM_LABELS=0),
    ),
    (
        "sizes",
        "two or more ... at most 0 ... got [2, 1]",
        lambda tmp: curve_sizes(NUM_EXAMPLES=1, SIZES=["2", "1"]),
    ),
    ("tables", "hold toy_kernel_curves.csv, got no", curve_value),
    (
        "k.csv",
        "hold a curve of every candidate, got none of a",
        lambda tmp: curves_of(
            written(
                tmp / "k.csv", "candidate,readout,estimate,size,mean_square\nb,loss,gcv,2,1.0\n"
            )
        ),
    ),
    ("sizes", "two or more ... got 8,50", lambda tmp: bound_sizes("8", "50")),
    ("num_test_examples", "positive ... got 0", lambda tmp: kernel_sizes(NUM_TEST_EXAMPLES=0)),
    ("num_labels", "positive ... got 0", lambda tmp: kernel_sizes(NUM_LABELS=0)),
    ("sample_sizes", "name one or more ... got none", lambda tmp: kernel_sizes(SAMPLE_SIZES=[])),
    (
        "sample_sizes",
        "whole numbers ... got '8,many'",
        lambda tmp: kernel_sizes(SAMPLE_SIZES=["8", "many"]),
    ),
    ("sample_sizes", "ascend from 2 ... got [8]", lambda tmp: kernel_sizes(SAMPLE_SIZES=["8"])),
    (
        "num_resamples",
        "positive ... got 0",
        lambda tmp: binary("phase_transitions", CURVES=[], NUM_RESAMPLES=0).main([]),
    ),
    (
        "every candidate of a",
        "have 6 sizes above ... got 2 of 'a'",
        lambda tmp: binary("phase_transitions", CURVES=[str(written(tmp / "a.csv", TABLE))]).main(
            []
        ),
    ),
    ("tables", "folder of tables ... got none", lambda tmp: figures(tmp / "none", tmp / "out")),
    ("output_dir", "folder ... got the file", lambda tmp: figures(tmp, written(tmp / "a"))),
    ("tables", "hold a table ... got none", lambda tmp: figures(tmp, tmp / "out")),
    ("selectors", "one of ... got 'luck'", lambda tmp: savings(tmp, SELECTED=["luck"])),
    ("levels", "numbers above 0 ... got 'x'", lambda tmp: savings(tmp, LEVELS=["x"])),
    (
        "curves",
        "have different file names ... got ['a', 'a']",
        lambda tmp: savings(tmp, second=TABLE),
    ),
    ("a", "hold three or more ... got 2 and 2", lambda tmp: savings(tmp, TABLE)),
    ("a", "have a `size` ... got none", lambda tmp: savings(tmp)),
    (
        "again",
        "share three or more ... got 2 and 3",
        lambda tmp: two_seeds(str(written(tmp / "a.csv", TABLE))),
    ),
    (
        "ledger",
        "name one per table ... got 2 for 1 tables",
        lambda tmp: savings(tmp, LEDGER=["", "b.csv"]),
    ),
    ("ledger", "CSV ... got ledger.csv", lambda tmp: savings(tmp, ledger="a\n1\n")),
    (
        "ledger",
        "hold every fine-tune ... got none of ('a', 400)",
        lambda tmp: savings(tmp, ledger="candidate,size,flops\na,200,1\n"),
    ),
]
