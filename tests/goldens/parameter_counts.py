"""Writes parameter_counts.csv: how many parameters PyTorch's published models have.

    .venv-torch/bin/python -m tests.goldens.parameter_counts

Models are built on PyTorch's "meta" device: shapes alone, no memory.
"""

import csv
import importlib
from pathlib import Path

PATH = Path(__file__).with_suffix(".csv")


def published():
    """Configs of every published model, decoders first."""
    from tests.models.published import PUBLISHED

    try:
        others = importlib.import_module("tests.models.published_encoder_decoders").PUBLISHED
    except ModuleNotFoundError:
        others = {}
    return {**PUBLISHED, **others}


def torch_count(attributes):
    """Number of parameters of PyTorch's model, a shared one counted once."""
    import torch

    from tests.models.torch_oracle import auto_class, separate_untied_head, transformers

    attributes = dict(attributes)
    config_class = type(transformers.AutoConfig.for_model(attributes["model_type"]))
    config = config_class.from_dict(attributes)
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
        separate_untied_head(model, attributes)
    return model.num_parameters()


def golden_counts():
    """Model -> number of parameters, as committed."""
    with PATH.open(newline="") as file:
        return {row["model"]: int(row["parameters"]) for row in csv.DictReader(file)}


def main():
    with PATH.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "model_type", "parameters"))
        for model, attributes in published().items():
            writer.writerow((model, attributes["model_type"], torch_count(attributes)))


if __name__ == "__main__":
    main()
