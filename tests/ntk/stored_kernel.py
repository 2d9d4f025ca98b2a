"""A process that fills a tile store, to be killed and to be one of several.

    python -m tests.ntk.stored_kernel FOLDER SECONDS_A_TILE [ADDRESS NUM_PROCESSES PROCESS]

Prints the number of every tile that it computes and, at the end, the kernel's fingerprint.
"""

import sys
import time

import jax

from lensllm_jax.ntk.gram import assemble, empirical_ntk, tiles
from lensllm_jax.ntk.store import TileStore, fingerprint, kernel_settings
from tests.ntk import cases

BLOCK_SIZE = 1
SHAPE = {"block_size": BLOCK_SIZE, "symmetric": True}


def kernel(folder, *, on_tile=None, pause=0.0, patience_seconds=60.0):
    """The kernel of the smallest case, through a store."""
    case = cases.make("mlp")
    n = len(case.x)

    def tile_fn(tile):
        time.sleep(pause)
        rows, columns = (case.x[part] for part in tile)
        return empirical_ntk(
            case.f, case.params, rows, None if tile.rows == tile.columns else columns
        )

    settings = kernel_settings(case.f, case.params, case.x, None, block_size=BLOCK_SIZE)
    store = TileStore.open(folder, settings)
    store.fill(tiles(n, n, **SHAPE), tile_fn, on_tile=on_tile, patience_seconds=patience_seconds)
    return assemble(store.read, n, n, **SHAPE)


def in_memory():
    """The same kernel without a store."""
    case = cases.make("mlp")
    return empirical_ntk(case.f, case.params, case.x, block_size=BLOCK_SIZE)


def _say(progress):
    if progress.computed:
        print(f"tile {progress.done} of {progress.total}", flush=True)


if __name__ == "__main__":
    path, seconds, *distributed = sys.argv[1:]
    if distributed:
        address, num_processes, process = distributed
        jax.distributed.initialize(address, int(num_processes), int(process))
    print(fingerprint(kernel(path, on_tile=_say, pause=float(seconds))), flush=True)
