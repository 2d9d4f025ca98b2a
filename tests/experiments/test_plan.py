"""The plan names the first way that fits, from a config alone."""

import csv
import json

import pytest

from lensllm_jax.finetune.memory import StepMemory
from lensllm_jax.runs.run_folder import RUN
from tests.messages.binaries import load

OPT_6_7B = {
    "model_type": "opt", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "ffn_dim": 16384, "vocab_size": 50272, "word_embed_proj_dim": 4096,
}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opt")
    (folder / "config.json").write_text(json.dumps(OPT_6_7B))
    output = folder / "out"
    load("plan", candidates=str(folder), devices="1,8", output_dir=str(output)).module.main([])
    assert json.loads((output / RUN).read_text())["settings"]["device_gb"] == 80
    with open(output / "plan.csv") as file:
        return list(csv.DictReader(file))


def test_a_model_too_large_for_one_device_is_cut_or_gets_an_adapter(planned):
    one, eight = ([row for row in planned if row["devices"] == n] for n in "18")
    assert [row["fits"] for row in one] == ["False"] * 4 + ["True"]
    assert [row["tune"] for row in one] == ["full"] * 4 + ["lora"]
    # passes of one example cost no time: they come before blocks that are computed again
    assert [row["remat"] for row in one] == ["False"] * 2 + ["True"] * 3
    assert [(row["tune"], row["remat"], row["fits"]) for row in eight] == [
        ("full", "False", "True")
    ]


def test_full_tuning_in_float32_needs_the_published_107_gb(planned):
    first = {name: float(planned[0][name]) for name in (*StepMemory._fields, "total")}
    optimiser = first["trained"] / 2 + first["gradients"] + first["moments"]  # 16 bytes each
    assert optimiser == pytest.approx(107e9, rel=0.01)
    assert first["loaded"] == 4 * 6_658_473_984  # parameters of OPT-6.7B
    assert sum(first.values()) == 2 * first["total"]
