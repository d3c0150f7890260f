"""Independent runs in this process, in local processes and on a Dask cluster: the same results, and none is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from keyseg_mm.audit.engine import executor
from keyseg_mm.audit.engine.executor import make_executor
from keyseg_mm.errors import KeysegError, SecretExposedError
from keyseg_mm.keys.locator import locate

JOBS = 6


@dataclass(frozen=True)
class Job:
    number: int
    folder: Path


def figure(job):
    """A figure that hangs on the generator of the process, as an attack's does; the third job raises an error."""
    if job.number == 2:
        raise ValueError(f'nothing for {job.number}')
    np.random.seed(job.number)
    time.sleep(0.01)  # for another thread of the process to get in between
    return np.random.random(3).tolist()


def killed_once(job):
    """As :func:`figure`; the process of job 4 is killed in the midst of it the first time."""
    mark = job.folder / 'was_here'
    if job.number == 4 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return figure(job)


def killed_always(job):
    if job.number == 1:
        with (job.folder / 'tries').open('a') as file:
            file.write('x')
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number


def waits(job):
    """Job 1 comes to its end when the result of job 0 has been stored."""
    until = time.monotonic() + 60
    while job.number == 1 and not (job.folder / 'stored').exists() and time.monotonic() < until:
        time.sleep(0.01)
    return (job.folder / 'stored').exists()


def slow(job):
    time.sleep(job.number)
    return job.number


def key_id(locator):
    """The key's id, and whether the process has it in its environment still."""
    return locate(locator).key.id, 'MY_KEY' in os.environ


def unsendable(job):
    return threading.Lock()


def starts_another(job):
    """Start a process that outlives the test by far, unless it is ended."""
    process = subprocess.Popen(['sleep', '300'])
    try:
        (job.folder / f'pid-{job.number}').write_text(str(process.pid))
        process.wait()
    finally:
        process.kill()
        process.wait()


def results(way, function, folder, jobs=JOBS):
    found = {}
    way.run(function, [Job(i, folder) for i in range(jobs)], found.__setitem__)
    return found


@pytest.fixture(scope='module')
def local():
    with make_executor(jobs=2) as way:
        yield way


@pytest.fixture(scope='module')
def cluster():
    """A cluster that is there already, of two processes with two threads each."""
    distributed = pytest.importorskip('distributed', reason="Dask is not installed: pip install 'keyseg-mm[dask]'")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture
def dask(cluster):
    with make_executor(scheduler=cluster.scheduler_address) as way:
        yield way


@pytest.fixture
def expected(tmp_path):
    found = results(make_executor(), figure, tmp_path)
    assert re.fullmatch(r'ValueError: nothing for 2 \(test_executor.py, line \d+\)', found[2].why)
    figures = [tuple(found[i]) for i in found if i != 2]
    assert list(found) == list(range(JOBS)) and len(set(figures)) == JOBS - 1
    return found


@pytest.mark.parametrize('way', ['local', 'dask'])
@pytest.mark.parametrize('function', [figure, killed_once])
def test_the_same_results_in_every_way(way, function, request, tmp_path, expected):
    assert results(request.getfixturevalue(way), function, tmp_path) == expected
    assert (tmp_path / 'was_here').exists() == (function is killed_once)


def test_a_job_that_kills_its_process_every_time_fails_alone(local, tmp_path):
    found = results(local, killed_always, tmp_path)
    assert 'BrokenProcessPool' in found.pop(1).why
    assert found == {i: i for i in range(JOBS) if i != 1}
    assert (tmp_path / 'tries').read_text() == 'xx'


def test_a_job_that_kills_every_worker_of_a_cluster_fails_alone(dask, tmp_path):
    found = results(dask, killed_always, tmp_path)
    assert 'KilledWorker' in found.pop(1).why
    assert found == {i: i for i in range(JOBS) if i != 1}


def test_results_stay_when_the_cluster_goes_away(tmp_path, monkeypatch):
    distributed = pytest.importorskip('distributed', reason="Dask is not installed: pip install 'keyseg-mm[dask]'")
    found = {}
    with distributed.LocalCluster(n_workers=1, dashboard_address=None, silence_logs=50) as cluster:

        def done(index, result):
            found[index] = result
            cluster.close()

        monkeypatch.setattr(executor, '_PATIENCE', 1.0)
        with (
            make_executor(scheduler=cluster.scheduler_address) as way,
            pytest.raises(KeysegError, match='connection to the Dask scheduler was lost'),
        ):
            way.run(slow, [Job(i, tmp_path) for i in range(0, 100, 50)], done)
    assert found == {0: 0}


def test_a_result_is_handed_over_at_once(local, tmp_path):
    def done(index, result):
        (tmp_path / 'stored').touch()

    local.run(waits, [Job(i, tmp_path) for i in range(2)], done)
    found = results(local, waits, tmp_path, jobs=2)
    assert found == {0: True, 1: True}


def test_what_cannot_be_sent_back_is_an_error_of_its_job(local, tmp_path):
    assert 'pickle' in results(local, unsendable, tmp_path, jobs=1)[0].why
    assert results(local, figure, tmp_path, jobs=1)[0] == figure(Job(0, tmp_path))


def test_keys_do_not_travel(local, key):
    for way in (make_executor(), local):
        with pytest.raises(SecretExposedError):
            way.run(print, [key], print)


@pytest.mark.parametrize(('how', 'status'), [(signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_what_was_started_ends_with_the_caller(how, status, tmp_path):
    code = (
        'import signal, sys; from pathlib import Path; import tests.audit.test_executor as t\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # a background shell has it ignored
        'with t.make_executor(jobs=2) as way:\n'
        '    try:\n'
        '        t.results(way, t.starts_another, Path(sys.argv[1]))\n'
        '    except KeyboardInterrupt:\n'
        '        raise SystemExit(1)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    # a session of its own: SIGINT goes to all of it, as the terminal sends it
    caller = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)], env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    pids = [int(_text(tmp_path / f'pid-{i}')) for i in range(2)]
    (os.killpg if how == signal.SIGINT else os.kill)(caller.pid, how)
    _, said = caller.communicate(timeout=60)
    assert caller.returncode == status
    assert not said or how == signal.SIGKILL, said.decode()
    until = time.monotonic() + 30
    while any(_runs(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _text(path):
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f'{path} was not written')


def _runs(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_what_a_user_asks_for(monkeypatch):
    with pytest.raises(KeysegError, match='not both'):
        make_executor(jobs=2, scheduler='tcp://127.0.0.1:8786')
    monkeypatch.setitem(sys.modules, 'distributed', None)
    with pytest.raises(KeysegError, match=r"pip install 'keyseg-mm\[dask\]'"):
        make_executor(scheduler='tcp://127.0.0.1:8786')


@pytest.mark.parametrize('address', ['tcp://127.0.0.1:1', 'nonsense://'])
def test_no_scheduler_at_the_address(address, monkeypatch):
    pytest.importorskip('distributed', reason="Dask is not installed: pip install 'keyseg-mm[dask]'")
    monkeypatch.setattr(executor, '_PATIENCE', 0.5)
    with pytest.raises(KeysegError, match=f'--scheduler {address}: no Dask scheduler answers'):
        make_executor(scheduler=address)


def test_dask_is_not_imported_unless_asked_for():
    code = 'import sys, keyseg_mm.audit.engine.executor as e\nwith e.make_executor(2): sys.exit("dask" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_a_key_of_the_environment_reaches_the_processes_that_need_it(key, monkeypatch):
    monkeypatch.setenv('MY_KEY', key.to_text())
    assert key_id('env:MY_KEY') == (key.id, False)
    found = []
    with make_executor(2) as running:
        running.run(key_id, ['env:MY_KEY'] * 2, lambda index, result: found.append(result))
    assert found == [(key.id, False)] * 2 and 'MY_KEY' not in os.environ
