"""Flags: each is defined in one place, and a binary shows and reads its own."""

import dataclasses
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from experiments.common.measurement_flags import MeasurementFlags
from lensllm_jax import checks
from lensllm_jax.measurement.measurement import MeasurementConfig
from tests.messages.binaries import ROOT, load

DEFINED = re.compile(r'DEFINE_\w+\(\s*"(\w+)"')
# a flag of one binary alone that has the name of another's
OWN = {
    "pretrain_zoo": {"candidates", "output_dir"},  # names without zoo/; the package's folder
    "theory_bound": {"candidate", "num_examples", "sizes"},
    # aliases; where tiles are computed, not cells
    "compute_ntk": {"candidate", "num_examples", "executor", "ray_address", "ray_threads"},
    "flags": {"task"},  # of tables, which have no text
    "pool_orders": {"candidates"},  # of tables, all by default
    "kernel_spectra": {"num_test_examples"},  # of the kernel
    "kernel_curves": {"sizes"},  # of kernels: none is fine-tuned on them
}


def defined_twice(sources):
    """Flags that several of the sources (name -> text) define."""
    places = defaultdict(set)
    for name, text in sources.items():
        for flag in set(DEFINED.findall(text)) - OWN.get(name, set()):
            places[flag].add(name)
    return {flag: names for flag, names in places.items() if len(names) > 1}


def test_a_flag_is_defined_in_one_place():
    sources = {path.stem: path.read_text() for path in (ROOT / "experiments").rglob("*.py")}
    assert sum(len(DEFINED.findall(text)) for text in sources.values()) > 50
    assert not defined_twice(sources)
    again = {"saving": 'flags.DEFINE_string("output_dir", None, "Again.")'}
    assert set(defined_twice({**sources, **again})) == {"output_dir"}


def test_help_shows_the_flags_of_a_binary_and_of_no_other():
    arguments = [sys.executable, "-m", "experiments.kernel_laws", "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = set(re.findall(r"^  --(?:\[no\])?(\w+):", done.stdout, re.MULTILINE))
    assert shown == {"budgets", "output_dir", "tables", "task"} == set(load("kernel_laws").flags)


def test_a_binary_that_fine_tunes_nothing_shows_no_flag_of_fine_tuning():
    kernel, grid = load("compute_ntk").flags.keys(), load("finetune_grid").flags.keys()
    assert {"readout", "num_kernel_examples", "seed", "chat_template"} <= kernel & grid
    assert {"batch_size", "learning_rate", "micro_batches", "tune"} <= grid - kernel


def test_defaults_of_flags_are_those_of_the_library():
    def measurement(**flags):
        return load("finetune_grid", output_dir="out", **flags).module.FLAGS.run().measurement

    automatic = MeasurementConfig(learning_rate="auto")
    assert measurement() == automatic
    assert measurement(chat_template="auto") == dataclasses.replace(automatic, chat_template="auto")


@pytest.mark.parametrize("text", ["", ",", "a,a"])
def test_candidates_are_one_or_more_and_distinct(text):
    flags: MeasurementFlags = load("finetune_grid", output_dir="out", candidates=text).module.FLAGS
    with pytest.raises(checks.UserError, match="`candidates` must be one or more distinct names"):
        flags.run()
    assert load("finetune_grid", output_dir="out", candidates="a, b").module.FLAGS.run().names == (
        "a",
        "b",
    )
