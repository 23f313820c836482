"""Child processes: answers, crashes, and an end that interrupts unfinished work."""

import sys
import time

import pytest

from sdrt.export import child
from sdrt.export.child import Child, ChildCrash

MODULE = """
import os, sys
from sdrt.export.child import Requests
requests = Requests()
pending = iter(requests)
setup = next(pending)
for request in pending:
    print("a library's own words")
    if request == "crash":
        os.abort()
    if request == "work":  # until nobody asks any more
        requests.answer({"progress": "at work"})
        requests.ended.wait()
        open(setup["mark"], "w").write("gave up")
        break
    requests.answer({"progress": 1})
    requests.answer({"setup": setup, "got": request})
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """A child that answers with what it is asked."""
    (tmp_path / "echo_child.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with Child("echo_child", {"mark": str(tmp_path / "mark")}) as made:
        yield made


def test_answers_and_progress(echo, tmp_path):
    seen = []
    for request in ({"a": 1}, [2]):
        answer = echo.ask(request, seen.append)
        assert answer == {"setup": {"mark": str(tmp_path / "mark")}, "got": request}
    assert seen == [1, 1]


def test_a_crash_is_an_error_and_the_next_request_starts_anew(echo):
    with pytest.raises(ChildCrash, match="exit status -6") as caught:
        echo.ask("crash")
    assert caught.value.status == -6
    assert echo.ask("again")["got"] == "again"


def test_closing_makes_it_give_up(echo, tmp_path):
    """As after Ctrl-C: the parent stops reading in the middle of a request."""

    def interrupt(_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        echo.ask("work", interrupt)
    echo.close()
    assert (tmp_path / "mark").read_text() == "gave up"


def test_what_does_not_end_is_ended(tmp_path, monkeypatch):
    stubborn = tmp_path / "python"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\nread a\necho '{}'\nsleep 60 & wait; sleep 60\n")
    stubborn.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stubborn))
    monkeypatch.setattr(child, "GRACE_S", 0.2)
    started = time.monotonic()
    with Child("anything") as made:
        assert made.ask({}) == {}
    assert time.monotonic() - started < 10
