"""What the three commands share: how they end, and how an error becomes a line on stderr."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer

from sdrt.kernels.errors import SdrtError

BROKEN_PIPE = 1
REFUSED = 2
INTERRUPTED = 130
UsageError: Any = typer.BadParameter.__base__  # typer offers no public name for it


class CommandError(SdrtError):
    """Arguments that do not fit each other, or what they name."""


def run_command(
    app: typer.Typer,
    name: str,
    arguments: Sequence[str] | None = None,
    *,
    interrupted: str = "interrupted",
    out_of_memory: str = "the GPU's memory is too small",
) -> int:
    """Run a command and return its exit code; every foreseen error is lines that name it.

    SIGTERM and SIGHUP count as Ctrl-C, but for a SIGHUP that nohup has it ignore. What is no
    foreseen error is a bug, and keeps its traceback.

    Args:
        app: its commands return an exit code, or None for 0.
        name: what help and messages call it.
        arguments: those of the process unless given.
        interrupted: what to say when it was interrupted.
        out_of_memory: what to say when the GPU has no memory left.
    Returns:
        2 when refused, 130 when interrupted, else what the command returned.
    """
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        with command.make_context(name, given) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except UsageError as error:
        message = error.format_message()  # empty where help was shown instead
        return _refuse(*([f"{message} (see {name} --help)"] if message else []))
    except SdrtError as error:
        return _refuse(*error.problems)
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        named = f"{error.filename}: {error.strerror}"
        return _refuse(str(error) if error.filename is None else named)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return _refuse(out_of_memory)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _refuse(*problems: str) -> int:
    for problem in problems:
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    return REFUSED


def _is_out_of_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")  # without it nothing is on a GPU, and it is slow to import
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
