"""A process that fills a tile store, to be killed and to be one of several.

    python -m tests.ntk.stored_kernel FOLDER SECONDS_A_TILE [ADDRESS NUM_PROCESSES PROCESS]

Prints the number of every tile that it computes and, at the end, the kernel's fingerprint.
"""

import logging
import sys
import time

import jax

from lensllm_jax.fingerprint import fingerprint
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.store import logger
from tests.ntk import cases


def kernel(folder, *, on_tile):
    """The kernel of the smallest case through a store, or in memory where the folder is None."""
    case = cases.make("mlp")

    def watch(record):
        if hasattr(record, "tile"):
            on_tile(record.tile)
        return not hasattr(record, "tile")

    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(watch)
    try:
        return empirical_ntk(case.f, case.params, case.x, block_size=1, store=folder)
    finally:
        logger.removeFilter(watch)
        logger.setLevel(level)


if __name__ == "__main__":
    path, seconds, *distributed = sys.argv[1:]
    if distributed:
        address, num_processes, process = distributed
        jax.distributed.initialize(address, int(num_processes), int(process))

    def say(progress):
        if progress.computed:
            print(f"tile {progress.done} of {progress.total}", flush=True)
            time.sleep(float(seconds))

    print(fingerprint(kernel(path, on_tile=say)), flush=True)
