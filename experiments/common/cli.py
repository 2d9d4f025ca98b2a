"""CLI conventions of every binary.

Bad input ends in one line on stderr and exit code 2; an interruption says how to resume
and exits with 130; ``--help`` shows the module's docstring, which holds the command.

Example:
    >>> from experiments.common import cli
    >>> cli.names("zoo/gpt2-xs, my/model,")
    ('zoo/gpt2-xs', 'my/model')
"""

import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from lensllm_jax import checks
from lensllm_jax.printable import printable

BAD_INPUT = 2
INTERRUPTED = 130


def names(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated flag, stripped, empty ones dropped."""
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def whole_numbers(name: str, value: str | Sequence[str]) -> tuple[int, ...]:
    """The numbers of a comma-separated flag, as text or as absl's entries of it.

    Raises:
        UserError: if an entry is empty or not a whole number, zero or above.

    Example:
        >>> whole_numbers("sizes", "0, 200"), whole_numbers("sizes", "")
        ((0, 200), ())
    """
    entries = _entries(value)
    if not all(map(_is_whole, entries)):
        raise checks.UserError(
            f"`{name}` must be whole numbers, comma-separated, got {','.join(entries)!r}"
        )
    return tuple(map(int, entries))


def numbers(name: str, value: str | Sequence[str]) -> tuple[float, ...]:
    """As :func:`whole_numbers`, of any numbers."""
    entries = _entries(value)
    try:
        return tuple(map(float, entries))
    except ValueError:
        raise checks.UserError(
            f"`{name}` must be numbers, comma-separated, got {','.join(entries)!r}"
        ) from None


def _entries(value: str | Sequence[str]) -> list[str]:
    """Stripped, empty ones kept: a comma too many is a slip, not a shorter list."""
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    return [entry.strip() for entry in value]


def _is_whole(entry: str) -> bool:
    return entry.isascii() and entry.isdigit()  # isdigit alone takes a raised 2


def divisor(name: str, text: str) -> int:
    """One entry of a flag of fractions 1/divisor: a whole number from 2 up."""
    if not _is_whole(text.strip()) or int(text) < 2:
        raise checks.UserError(f"`{name}` must be whole numbers from 2 up, got {text!r}")
    return int(text)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a binary, whose ``main`` gets what the flags left over, and exits with its code."""

    def guarded(argv: Sequence[str]) -> int:
        logging.set_verbosity(logging.WARNING)  # JAX reports absent accelerators as INFO
        _stop_on_signals()
        if len(argv) > 1:
            return _fail(f"arguments must be flags (--name=value), got {argv[1]!r}")
        try:
            _check_platform()
            return main(argv) or 0
        except checks.UserError as error:
            return _fail(str(error))
        except FloatingPointError as error:
            return _fail(str(error), code=1)
        except BrokenPipeError:
            # the reader of our output went away; stdout must not complain again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:  # a full disk, a folder that may not be written
            return _fail(str(error), code=1)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            return _fail(f"out of memory: {error}: give more, or take smaller batches", code=1)
        except KeyboardInterrupt as error:  # a signal that is not Ctrl-C's is its argument
            code = 128 + error.args[0] if error.args else INTERRUPTED
            _fail("interrupted: the same command resumes", code=code)
            if _is_computing():  # XLA's threads crash where Python ends under them
                with contextlib.suppress(OSError):
                    sys.stdout.flush()
                os._exit(code)
            return code

    app.run(guarded, flags_parser=_parse)


def _is_computing() -> bool:
    """Whether JAX was asked for an array that is not there yet."""
    jax = sys.modules.get("jax")
    return jax is not None and not all(
        array.is_deleted() or array.is_ready() for array in jax.live_arrays()
    )


def _stop_on_signals() -> None:
    """Ends on SIGTERM and SIGHUP as on Ctrl-C, unless they are ignored (nohup)."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def _check_platform() -> None:
    """Refuses a platform of JAX's that this machine lacks, before anything is measured."""
    if not (platform := os.environ.get("JAX_PLATFORMS")):
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX's, for an unknown one and for no GPU
        reason = str(error).split(" (set ")[0] or "no such device is here"
        raise checks.UserError(
            f"`JAX_PLATFORMS` must name a platform of this machine, got {platform!r}: {reason}; "
            "unset it"
        ) from None


def _is_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or XLA found no memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _parse(argv: Sequence[str]) -> list[str]:
    """Absl's parser, but a wrong flag ends in one line and exit code 2, and help in 0."""
    module = sys.modules["__main__"]
    if _is_help(argv) and module.__doc__:
        module.__doc__ = _folded(module.__doc__, flags.get_help_width())
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        sys.exit(_fail(str(error)))
    except SystemExit:
        sys.exit(0 if _is_help(argv) else BAD_INPUT)


def _folded(text: str, width: int) -> str:
    """A docstring in lines of this width; commands (indented by four) stay as they are."""
    paragraphs: list[str] = []
    for line in text.splitlines():
        above = paragraphs[-1] if paragraphs else ""
        begins = not above.strip() or not line.strip() or line.startswith(("* ", "    "))
        if begins or above.startswith("    "):
            paragraphs.append(line)
        else:
            paragraphs[-1] += f" {line.strip()}"
    folded = (
        paragraph
        if paragraph.startswith("    ")
        else textwrap.fill(
            paragraph, width, subsequent_indent="  " * paragraph.startswith("* "),
            break_long_words=False, break_on_hyphens=False,
        )
        for paragraph in paragraphs
    )  # fmt: skip
    return "\n".join(folded) + "\n"


def _is_help(argv: Sequence[str]) -> bool:
    return any(arg.lstrip("-").split("=")[0].startswith("help") for arg in argv[1:])


def _fail(message: str, *, code: int = BAD_INPUT) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return code
