"""How a command ends: exit codes and lines on stderr, whatever it raises."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import typer

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.command import run_command


class TwoProblems(SdrtError):
    """What a preset's error is like."""


def run(action, *arguments: str) -> int:
    """Run a command that calls ``action``."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(number: int = 0) -> int | None:
        return action()

    return run_command(app, "act", arguments, interrupted="stopped", out_of_memory="too small")


def throw(error: BaseException):
    """Return a function that raises."""

    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    "error, code, lines",
    [
        (TwoProblems("one: no", "two:\nno"), 2, ["error: one: no", "error: two: no"]),
        (FileNotFoundError(2, "No such file", "x"), 2, ["error: x: No such file"]),
        (OSError("no medium"), 2, ["error: no medium"]),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, ["error: too small"]),
        (KeyboardInterrupt(), 130, ["stopped"]),
        (typer.Abort(), 130, ["stopped"]),
        (typer.Exit(3), 3, []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_lines_and_codes(capsys, error: BaseException, code: int, lines) -> None:
    assert run(throw(error)) == code
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))


def test_commands_return_their_code(capsys) -> None:
    assert run(lambda: None) == 0 and run(lambda: 1) == 1
    assert run(lambda: 1, "--help") == 0
    assert "--number" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("--number", "x"), ("--unknown",), ("extra",)])
def test_usage_errors_are_one_line(capsys, arguments: tuple[str, ...]) -> None:
    assert run(lambda: 0, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith(" (see act --help)\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a"):
        run(throw(error))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_an_interrupt_and_the_handler_goes_back(capsys, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    assert run(lambda: signal.raise_signal(number)) == 130
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err == "stopped\n"


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(lambda: signal.raise_signal(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("command", ["export", "runtime", "bench"])
def test_refusals_are_quick(command: str) -> None:
    """All three commands refuse an unknown option in one line, without torch."""
    code = (
        f"import sys; from sdrt.{command} import cli\n"
        "print(cli.main(['--nonsense']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr
    assert done.stderr.startswith("error: No such option: --nonsense")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_error() -> None:
    """As behind ``| head``: the reader has what it wanted."""
    code = "import sys; from sdrt.bench import cli; sys.exit(cli.main(['list']))"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
