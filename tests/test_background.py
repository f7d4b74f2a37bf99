"""Work one behind: in order, one piece at a time, and its errors are not lost."""

from __future__ import annotations

import threading

import pytest
import torch

from server.background import OneBehind


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_comes_out_of_the_next_call() -> None:
    with OneBehind() as behind:
        behind.run(fail)
        with pytest.raises(OSError, match="disk is full"):
            behind.run(lambda: None)


def test_the_last_error_comes_out_at_the_end() -> None:
    with pytest.raises(OSError, match="disk is full"), OneBehind() as behind:
        behind.run(fail)


def test_an_error_of_the_last_work_is_told_with_the_one_that_ended_it_all() -> None:
    def interrupted() -> None:
        with OneBehind() as behind:
            behind.run(fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert caught.value.__notes__ == ["and before that: the disk is full"]


def test_what_failed_first_is_told_when_all_fails_after_it() -> None:
    def failing() -> None:
        with OneBehind() as behind:
            behind.run(fail)
            raise ValueError("no client answers")

    with pytest.raises(OSError, match="disk is full") as caught:
        failing()
    assert caught.value.__notes__ == ["and after that: no client answers"]


def test_work_computes_with_as_many_threads_as_whoever_started_it() -> None:
    found: list[int] = []
    with OneBehind() as behind:
        behind.run(lambda: found.append(torch.get_num_threads()))
    assert found == [torch.get_num_threads()]


def test_nobody_gets_more_than_one_ahead() -> None:
    may_end, reached = threading.Event(), threading.Event()

    def first() -> None:
        may_end.wait()

    def second() -> None:
        behind.run(first)
        behind.run(lambda: None)
        reached.set()

    with OneBehind() as behind:
        ahead = threading.Thread(target=second)
        ahead.start()
        assert not reached.wait(0.05), "the second call returned before the first work was done"
        may_end.set()
        assert reached.wait(5)
        ahead.join()


def test_an_interruption_lets_the_write_end() -> None:
    done: list[int] = []

    def interrupted() -> None:
        with OneBehind() as behind:
            behind.run(lambda: done.append(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]
