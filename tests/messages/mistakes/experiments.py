"""Mistakes with the flags of the binaries and with the folders of their runs."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from experiments.common import cli
from experiments.common.run_folder import RunFolder
from lensllm_jax.data.task import Example, Task
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.paired import paired
from tests.messages.binaries import load

cells, executors = (load("finetune_grid").module.__dict__[name] for name in ("cells", "executors"))

TASK = Task("toy", "", (Example("", "a"),), (Example("", "b"),), (Example("", "c"),), {}, "")
TWO = np.ones(2)
TABLE = "config name,0,200,400\na,3,2,1\nb,3,2,1\n"


def binary(name, **flags):
    """A binary's module, as it is after its flags were read."""
    module = load(name).module
    for flag, value in flags.items():
        for holder in (module, getattr(module, "measuring", None)):
            if hasattr(holder, flag):
                getattr(holder, flag).value = value
    return module


def processes(number, process_id=0, folder=None):
    return binary(
        "compute_ntk", NUM_PROCESSES=number, PROCESS_ID=process_id, STORE_DIR=folder,
        COORDINATOR_ADDRESS="localhost:1",
    ).join_processes()  # fmt: skip


def curves(folder, text=TABLE, second=None, of="rank_curves", **flags):
    """What a binary says of a table, or of two of the same name."""
    paths = []
    for name, content in (("one", text), ("two", second)):
        if content is not None:
            (folder / name).mkdir(parents=True)
            (folder / name / "a.csv").write_text(content)
            paths.append(str(folder / name / "a.csv"))
    return binary(of, CURVES=paths, BUDGETS=["2"], **flags).main([])


def savings(folder, text=TABLE + "c,3,2,1\n", ledger=None, **flags):
    """What saving says of a table and of what its fine-tunes cost."""
    paths = [] if ledger is None else [str(written(folder / "ledger.csv", ledger))]
    return curves(folder, text, of="saving", **{"LEDGER": paths, **flags})


def two_seeds(path):
    return binary("seed_noise", CURVES=path, AGAIN=path).main([])


def affordable(**flags):
    sizes = {"BUDGET_SIZE": 1, "SMALLEST_SIZE": 1, "TARGET_SIZE": 2}
    return binary("select_model", **{**sizes, **flags}).affordable_sizes(TASK, MeasurementConfig())


def of_mean_length(mean):
    measuring = binary("finetune_grid", MEAN_LENGTH=mean).measuring
    measuring.load_task = lambda *_, **__: TASK
    return measuring.load_task_for(["zoo/gpt2-xs"])


def threads(number):
    module = load("finetune_grid").module.executors
    module.RAY_THREADS.value = number
    return module.check_flags()


def grid_sizes(text):
    return binary("finetune_grid").sizes_of(text, TASK)


def grid_of(**flags):
    return binary("finetune_grid", CANDIDATES="zoo/gpt2-xs", **flags).grid_of_flags()


def damaged_search(folder):
    """A cell whose search was cut off while it was written."""
    job = types.SimpleNamespace(path=folder / "200.json")
    written(job.path.with_suffix(cells.SEARCHED), "{")
    return cells._searched(job, None, print)


def kernel_sizes(**flags):
    return binary("kernel_spectra", **flags).sample_sizes(TASK)


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


def opened(folder, **settings):
    return RunFolder.open(folder, settings)


def ray_that_is_not_installed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        patch.setattr(executors, "check_address", lambda address: None)
        mark = executors.Mark(Path("run.json"), "")
        return next(executors.run_ray([], TASK, mark, address="localhost:1", threads=1))


# the message, and what brings it about in an empty folder
MISTAKES = [
    ("`budgets` must be whole numbers from 2 up, got '1'", lambda tmp: cli.divisor("budgets", "1")),
    (
        "`candidate` must be one, got zoo/gpt2-xs, zoo/gpt2-s",
        lambda tmp: binary("compute_ntk", CANDIDATES="zoo/gpt2-xs,zoo/gpt2-s").main([]),
    ),
    (
        "`num_processes` must be 1 without --store_dir and --coordinator_address, got 2",
        lambda tmp: processes(2),
    ),
    (
        "`process_id` must be from 0 to 1, got 2",
        lambda tmp: processes(2, process_id=2, folder="tiles"),
    ),
    ("`processes` must be positive and finite, got 0", lambda tmp: executors.shares({0, 1}, 0)),
    (
        "`processes` must be at most 2 (the cores of this process), got 3",
        lambda tmp: executors.shares({0, 1}, 3),
    ),
    (
        "`ray_address` must be host:port of a Ray head, got 'localhost'",
        lambda tmp: executors.check_address("localhost"),
    ),
    (
        (
            "`ray_address` must be of a running Ray cluster, got 'localhost:1', which does not "
            "answer: start one with `ray start --head`"
        ),
        lambda tmp: executors.check_address("localhost:1"),
    ),
    (
        ("`executor` must be serial or local without Ray, got ray: pip install 'lensllm-jax[ray]'"),
        lambda tmp: ray_that_is_not_installed(),
    ),
    ("`ray_threads` must be positive and finite, got 0", lambda tmp: threads(0)),
    (
        "`seeds` must be whole numbers, comma-separated, got '1,many'",
        lambda tmp: cli.whole_numbers("seeds", "1,many"),
    ),
    (
        "`learning_rates` must be numbers, comma-separated, got '1,many'",
        lambda tmp: cli.numbers("learning_rates", "1,many"),
    ),
    (
        "`learning_rates` must be positive and finite, got 0.0",
        lambda tmp: grid_of(LEARNING_RATES="0.0"),
    ),
    ("`batch_sizes` must be positive and finite, got 0", lambda tmp: grid_of(BATCH_SIZES="0")),
    ("`seeds` must be distinct, got (1, 1)", lambda tmp: grid_of(SEEDS="1,1")),
    ("`sizes` must be one or more whole numbers, got ''", lambda tmp: grid_sizes("")),
    (
        (
            "`search` must be a whole file, got DIR/200.searched, damaged (...): delete it to "
            "search again"
        ),
        lambda tmp: damaged_search(tmp),
    ),
    (
        "`decay_steps` must be a step or all, got 'late'",
        lambda tmp: binary("select_model", DECAY_STEPS="late").measuring.decay_steps(),
    ),
    ("`mean_length` must be positive and finite, got -1.0", lambda tmp: of_mean_length(-1.0)),
    (
        "`max_length` must be at least 2 (tokens that zoo/gpt2-xs needs for a target), got 1",
        lambda tmp: binary("select_model").measuring.load_checked(
            "zoo/gpt2-xs", MeasurementConfig(max_length=1)
        ),
    ),
    (
        "`sizes` must be whole numbers, comma-separated, got '200,many'",
        lambda tmp: grid_sizes("200,many"),
    ),
    (
        "`sizes` must be at most 1 (the training examples of toy), got 200",
        lambda tmp: grid_sizes("200"),
    ),
    (
        "`candidates` must be one or more distinct names, got ','",
        lambda tmp: binary("select_model", CANDIDATES=",").main([]),
    ),
    (
        "`checkpoint_seconds` must be zero or positive and finite, got -1.0",
        lambda tmp: binary("select_model", CHECKPOINT_SECONDS=-1.0).main([]),
    ),
    (
        "`budget_size` must be at most 1 (the training examples of toy), got 2",
        lambda tmp: affordable(BUDGET_SIZE=2),
    ),
    (
        "`budget_size` must be at least `smallest_size` 2, got 1",
        lambda tmp: affordable(SMALLEST_SIZE=2),
    ),
    ("`target_size` must be above `budget_size` 1, got 1", lambda tmp: affordable(TARGET_SIZE=1)),
    (
        "`num_kernel_examples` must be at most 1 (the training examples of toy), got 64",
        lambda tmp: affordable(),
    ),
    (
        "`max_length` must be at most 128 (the positions of zoo/gpt2-xs), got 4096",
        lambda tmp: binary("select_model").measuring.load_checked(
            "zoo/gpt2-xs", MeasurementConfig(max_length=4096)
        ),
    ),
    (
        "`steps` must be zero or positive and finite, got -1",
        lambda tmp: binary("pretrain_zoo", STEPS=-1).main([]),
    ),
    (
        "`candidates` must be one of ..., got 'gpt5'",
        lambda tmp: binary("pretrain_zoo", CANDIDATES="gpt5").main([]),
    ),
    ("`selectors` must be one of ..., got 'luck'", lambda tmp: curves(tmp, SELECTED=["luck"])),
    (
        "`curves` must have different file names, got ['a', 'a']",
        lambda tmp: curves(tmp, second=TABLE),
    ),
    (
        "a: a ranking must have two or more candidates, got 'a'",
        lambda tmp: curves(tmp, text="config name,0,200,400\na,3,2,1\n"),
    ),
    (
        "`selectors` must leave one that the tables allow, got none",
        lambda tmp: binary("rank_curves")._write(None, "selection.csv", []),
    ),
    ("`num_matvecs` must be positive and finite, got 0", lambda tmp: bound_flags(NUM_MATVECS=0)),
    (
        (
            "`megabytes` must be 1 or more for 32 products in the largest block of a, got 0: give "
            "more, or lower `num_matvecs`"
        ),
        lambda tmp: binary("theory_bound", MEGABYTES=0, ONLY="").check_blocks("a", {"w": TWO}),
    ),
    ("`num_probes` must be 2 or more, got 1", lambda tmp: bound_flags(NUM_PROBES=1)),
    (
        "`remainder_constant` must be positive and finite, got 0.0",
        lambda tmp: bound_flags(CONSTANT=0.0),
    ),
    (
        (
            "`sizes` must be two or more from `num_examples` (16, at least 4) to 100 (the training "
            "examples), got 8,50"
        ),
        lambda tmp: bound_sizes("8", "50"),
    ),
    ("`output_dir` must be a folder, got the file DIR/a", lambda tmp: opened(written(tmp / "a"))),
    (
        "`output_dir` must be empty or hold an earlier run, got DIR with a: name another folder",
        lambda tmp: opened(written(tmp / "a").parent),
    ),
    (
        (
            "`output_dir` must hold a run.json of ours, got one that does not read: DIR; name "
            "another folder"
        ),
        lambda tmp: opened(written(tmp / "run.json", "[").parent),
    ),
    (
        (
            "`output_dir` must be of a run with these settings, got DIR with seed=1 there, 2 now: "
            "name another folder"
        ),
        lambda tmp: opened(written(tmp / "run.json", '{"settings": {"seed": 1}}').parent, seed=2),
    ),
    (
        "`num_test_examples` must be positive and finite, got 0",
        lambda tmp: kernel_sizes(NUM_TEST_EXAMPLES=0),
    ),
    ("`num_labels` must be positive and finite, got 0", lambda tmp: kernel_sizes(NUM_LABELS=0)),
    (
        "`sample_sizes` must name one or more sizes, got none",
        lambda tmp: kernel_sizes(SAMPLE_SIZES=[]),
    ),
    (
        "`sample_sizes` must be whole numbers, comma-separated, got '8,many'",
        lambda tmp: kernel_sizes(SAMPLE_SIZES=["8", "many"]),
    ),
    (
        (
            "`sample_sizes` must ascend from 2 or more to at most 1 (the training examples of "
            "toy), got [8]"
        ),
        lambda tmp: kernel_sizes(SAMPLE_SIZES=["8"]),
    ),
    (
        "`differences` must be finite, got nan at index (0, 0)",
        lambda tmp: paired(np.array([[np.nan, 1.0]])),
    ),
    (
        "`differences` must have two or more candidates, got 1",
        lambda tmp: paired(np.array([[1.0]])),
    ),
    (
        "`num_resamples` must be positive and finite, got 0",
        lambda tmp: binary("phase_transitions", CURVES=[], NUM_RESAMPLES=0).main([]),
    ),
    (
        "every candidate of a must have 6 sizes above 0, got 2 of 'a'",
        lambda tmp: binary("phase_transitions", CURVES=[str(written(tmp / "a.csv", TABLE))]).main(
            []
        ),
    ),
    (
        "`tables` must be a folder of tables, got DIR/none",
        lambda tmp: figures(tmp / "none", tmp / "out"),
    ),
    (
        "`output_dir` must be a folder, got the file DIR/a",
        lambda tmp: figures(tmp, written(tmp / "a")),
    ),
    (
        "`tables` must hold a table of results, got none in DIR",
        lambda tmp: figures(tmp, tmp / "out"),
    ),
    (
        "`selectors` must be one of ats, ..., got 'luck'",
        lambda tmp: savings(tmp, SELECTED=["luck"]),
    ),
    ("`levels` must be numbers above 0 ..., got 'x'", lambda tmp: savings(tmp, LEVELS=["x"])),
    (
        "`curves` must have different file names, got ['a', 'a']",
        lambda tmp: savings(tmp, second=TABLE),
    ),
    (
        "a must hold three or more candidates and two or more sizes above 0, got 2 and 2",
        lambda tmp: savings(tmp, TABLE),
    ),
    ("a must have a `size` of 'a', got none", lambda tmp: savings(tmp)),
    (
        "`again` must share three or more candidates and a size with `curves`, got 2 and 3",
        lambda tmp: two_seeds(str(written(tmp / "a.csv", TABLE))),
    ),
    (
        (
            "`ledger` must name one a table, got 2 for 1 tables: leave a name empty where nobody "
            "counted, as in --ledger=,ledger.csv"
        ),
        lambda tmp: savings(tmp, LEDGER=["", "b.csv"]),
    ),
    (
        "`ledger` must be a CSV with ..., got DIR/ledger.csv: ...",
        lambda tmp: savings(tmp, ledger="a\n1\n"),
    ),
    (
        "`ledger` must hold every fine-tune of a, got none of ('a', 400)",
        lambda tmp: savings(tmp, ledger="candidate,size,flops\na,200,1\n"),
    ),
]
