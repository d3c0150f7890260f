"""Work that is shared out to threads: results in order, the first error, and nothing at work behind it."""

from __future__ import annotations

import os
import threading

import pytest

from keyseg_mm import threads
from keyseg_mm.threads import in_threads


@pytest.fixture(autouse=True, params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: request.param)
    return request.param


def test_results_are_in_the_order_of_the_items(cores):
    workers, gate = set(), threading.Barrier(min(cores, 5))

    def work(n):
        if n < min(cores, 5):
            gate.wait(60)  # each thread has one of these
        workers.add(threading.get_ident())
        return n * n

    assert in_threads(work, iter(range(100))) == [n * n for n in range(100)]
    assert len(workers) == min(cores, 5)
    assert in_threads(work, []) == []


def test_no_more_threads_than_it_says(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 1000)
    workers = set()
    in_threads(lambda n: workers.add(threading.get_ident()), range(1000))
    assert 1 <= len(workers) <= threads._MOST_THREADS


@pytest.mark.parametrize('error', [IndexError, ValueError])  # the first one also ends a list
def test_the_first_items_error_is_raised_when_all_threads_are_done(cores, error):
    done, before = [], threading.active_count()
    met = threading.Barrier(min(cores, 2))

    def work(n):
        if n in (3, 4):
            if cores > 1:
                met.wait(60)  # both are at work when they fail
            raise error(n)
        done.append(n)

    with pytest.raises(error) as found:
        in_threads(work, range(10_000))
    assert found.value.args == (3,) and threading.active_count() == before
    assert len(done) < 10_000
