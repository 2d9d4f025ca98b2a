"""Address space: how much of it this process has mapped, and code that may map no more.

Example:
    >>> from lensllm_jax.address_space import growing_by_at_most
    >>> with growing_by_at_most(2**30):
    ...     bytes(2**40)
    Traceback (most recent call last):
    ...
    MemoryError
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


def mapped_bytes() -> int:
    """What this process has mapped, by Linux's account.

    Raises:
        OSError: on a system without one.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@contextlib.contextmanager
def growing_by_at_most(num_bytes: int) -> Iterator[None]:
    """Raises MemoryError from the code in it that maps more; no limit where none can be set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):  # such as macOS, which keeps no such account
        limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        lowest = min([mapped_bytes() + num_bytes, *limits])
        resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
