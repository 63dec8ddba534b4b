"""Groups whose items are read in threads before they are needed."""

import threading
import time

import pytest
from conftest import until

from mifuse_cli.errors import InputError
from mifuse_cli.model import read_ahead
from mifuse_cli.model.read_ahead import ahead, reading_threads

GROUPS = [list(range(start, start + 5)) for start in range(0, 50, 5)]


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("ThreadPool")]


def test_every_group_in_order_and_its_items_too():
    def read(item):
        time.sleep(0.001 * (5 - item % 5))  # the last of a group is read first
        return item**2

    assert list(ahead(GROUPS, read, 5)) == [(group, [item**2 for item in group]) for group in GROUPS]
    assert list(ahead([], read, 5)) == [] and list(ahead([[], [1]], read, 1)) == [([], []), ([1], [1])]


def test_the_next_two_groups_are_read_meanwhile_and_no_more():
    taken, read = [], []

    def groups():
        for group in GROUPS:
            taken.append(group)
            yield group

    found = ahead(groups(), read.append, 2)
    assert taken == []
    next(found)
    until(lambda: len(read) == 15)
    time.sleep(0.05)
    assert len(taken) == 3 and sorted(read) == list(range(15))
    next(found)
    until(lambda: len(read) == 20)
    found.close()


def test_in_threads_of_which_none_is_left():
    names = set()

    def read(item):
        names.add(threading.current_thread().name)
        time.sleep(0.01)

    found = ahead(GROUPS, read, 3)
    next(found)
    assert len(threads()) == 3
    found.close()
    assert len(names) == 3 and threads() == []


def test_what_cannot_be_read_is_raised_when_it_is_due():
    def read(item):
        if item == 7:
            raise InputError("g.wav: cannot be decoded")
        return item

    found = ahead(GROUPS, read, 4)
    assert next(found) == (GROUPS[0], GROUPS[0])
    with pytest.raises(InputError, match=r"g\.wav"):
        next(found)
    assert threads() == []


def test_as_many_threads_as_free_cores(monkeypatch):
    monkeypatch.setattr(read_ahead, "free_cores", lambda: 6)
    assert reading_threads() == 4 and reading_threads(3) == 3 and reading_threads(100) == 4
    monkeypatch.setattr(read_ahead, "count", lambda: 4)
    assert reading_threads() == 1
