"""Work in other processes: answers, failures and deaths come back, and this process stays as it was."""

from __future__ import annotations

import multiprocessing
import operator
import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from batches import children
from child_work import refuse, reverse_forever

from ofg_deploy.child import Child, Children, Died
from ofg_deploy.errors import DeviceError, InputError


@pytest.fixture
def two():
    """At most two processes."""
    found = Children("of a test", 2)
    yield found
    found.close()
    assert not children()


def test_messages_of_any_size_go_both_ways_and_nothing_is_changed_here(monkeypatch, capfd) -> None:
    def changed(*_: object) -> None:
        raise AssertionError("state of this process is changed")

    with monkeypatch.context() as watched:
        watched.setattr(os, "putenv", changed)  # what os.environ[...] = ... calls
        watched.setattr(os, "chdir", changed)
        with Child("of a test", reverse_forever) as child:
            assert multiprocessing.active_children() == []
            for sent in (b"", b"ab", np.arange(3_000_000, dtype=np.float32)):  # 12 MB: many times what a pipe holds
                child.send(sent)
                np.testing.assert_array_equal(child.receive(), sent[::-1])
        with Child("of a test", refuse, "no such file") as child, pytest.raises(InputError, match=r"^no such file$"):
            child.receive()
        with Child("of a test", print, "of a library") as child, pytest.raises(Died, match=r"exit code 0"):
            child.receive()
    assert not children()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "of a library" in printed.err


def test_calls_return_and_raise_what_the_function_does(two) -> None:
    assert two.call(operator.add, 20, 3) == 23
    [process] = children()
    with pytest.raises(ZeroDivisionError):
        two.call(operator.truediv, 1, 0)
    with pytest.raises(DeviceError, match="lock"):  # no answer that can be sent
        two.call(threading.Lock)
    assert two.call(os.getpid) != process, "which ended with that"
    os.kill(two.call(os.getpid), 9)
    time.sleep(0.1)
    assert two.call(os.getenv, "PYTHONSAFEPATH") == "1"
    with pytest.raises(Died, match=r"^the process of a test died \(crashed, SIGABRT\)$"):
        two.call(os.abort)


def test_a_call_alone_waits_until_no_other_runs(two) -> None:
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(two.call, time.sleep, 0.6) for _ in range(2)]
        while len(children()) < 2:
            time.sleep(0.01)
        assert pool.submit(two.call, operator.neg, 3, alone=True).result() == -3
        assert all(other.done() for other in others)
        assert len(children()) == 2


def test_closing_ends_what_runs_and_what_waits(two) -> None:
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(two.call, time.sleep, 60) for _ in range(3)]
        while len(children()) < 2:
            time.sleep(0.01)
        two.close()
        for each in asked:
            with pytest.raises(CancelledError):
                each.result()
    with pytest.raises(CancelledError):
        two.call(os.getpid)
