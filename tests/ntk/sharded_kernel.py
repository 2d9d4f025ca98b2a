"""Run by test_sharding in a process of its own: kernels over several virtual devices."""

import sys

import jax
import numpy as np

from lensllm_jax.ntk.gram import empirical_ntk
from tests.ntk import cases


def main() -> None:
    """Prints, for 4 and for 8 devices, the largest relative difference to one device's kernels."""
    differences: dict[int, list] = {4: [], 8: []}
    for name in ("scanned transformer", "mlp, 3 outputs"):
        case = cases.make(name)
        n = jax.tree.leaves(case.x)[0].shape[0]
        for x in (case.x, cases.first(case.x, np.arange(11) % n)):  # neither divides evenly
            for x2 in (None, cases.first(x, np.arange(3))):
                one = empirical_ntk(case.f, case.params, x, x2)
                for count, found in differences.items():
                    many = empirical_ntk(case.f, case.params, x, x2, devices=jax.devices()[:count])
                    assert many.shape == one.shape
                    found.append(np.max(np.abs(many - one)) / np.max(np.abs(one)))
    for count, found in differences.items():
        print(count, len(found), max(found))


if __name__ == "__main__":
    sys.exit(main())
