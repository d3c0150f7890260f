"""Runs of lock, rekey and unlock that are killed, or run out of space: files are whole, or not there at all.

Children are forked from one process that has imported everything, so that each of many short runs takes no seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keyseg_mm import unlock_file
from tests.support.cli import keyseg
from tests.support.files import KEY, SUFFIXES, VERBS, arguments, same, source_of, weights_in

# Runs jobs one by one, each in a fork of its own: keyseg's arguments, and how the run is to end early. A job
# with 'after' is killed when it has made that share of the calls that the first one made.
CHILD = """
import json, os, resource, signal, sys
from multiprocessing import RawValue
import keyseg_mm.checkpoint.operations, keyseg_mm.keys.locator, safetensors.torch
from keyseg_mm.cli import main

CALLS = RawValue('q')  # shared with the forks

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def run(job, last):
    def called(frame, event, argument):
        CALLS.value += 1
        if CALLS.value == last:
            kill()

    CALLS.value = 0
    if 'at' not in job and 'size' not in job:
        sys.setprofile(called)
    if 'size' in job:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if job.get('dies') else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job['size'], job['size']))
    if 'at' in job:
        module, _, name = job['at'].rpartition('.')
        setattr(sys.modules[module], name, kill)
    return main(job['arguments'])

def end(job, calls=0):
    said, said_here = os.pipe()  # no file, which would have a limit of size too
    child = os.fork()
    if child == 0:
        os.dup2(said_here, 1)
        os.dup2(said_here, 2)
        code = 70
        try:
            code = run(job, int(job.get('after', -1) * calls))
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(said_here)
    text = open(said).read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return dict(code=code, said=text, calls=CALLS.value, files=os.listdir(job['folder']))

jobs = json.load(sys.stdin)
if any(job['arguments'][0] == 'lock' for job in jobs):
    import keyseg_mm.mm.bench
whole = end(jobs[0])
print(json.dumps([whole, *(end(job, whole['calls']) for job in jobs[1:])]))
"""


def in_children(jobs: list[dict]) -> list[dict]:
    """Run jobs; each gets a folder of its own, and the result has what was said and which files lie there."""
    for job in jobs:
        Path(job['folder']).mkdir(parents=True)
        job['arguments'] = [str(a) for a in job['arguments']]
    # a full disk must not leave half of a module's bytecode beside its source, where later tests would read it
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
    done = subprocess.run(
        [sys.executable, '-c', CHILD], input=json.dumps(jobs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_killed_at_any_moment(suffix, made, tmp_path):
    """The target is not there, or it is whole; the source is as it was; and a second run makes it."""
    source, whole = source_of('unlock', made, suffix), (made / f'plain{suffix}').stat().st_size
    before = source.read_bytes()
    jobs: list[dict] = [{}]
    jobs += [{'at': call} for call in ('secrets.token_hex', 'os.fchmod', 'os.fsync', 'os.link', 'os.unlink')]
    jobs += [{'size': size, 'dies': True} for size in (0, 1, 4096, whole // 2, whole - 600)]
    jobs += [{'after': part / 13} for part in range(1, 13)]
    for index, job in enumerate(jobs):
        job['folder'] = str(tmp_path / f'run{index}')
        job['arguments'] = arguments('unlock', made, source, tmp_path / f'run{index}' / f'out{suffix}')
    wanted = weights_in(made / f'plain{suffix}')
    killed = []
    for job, result in zip(jobs, in_children(jobs)):
        killed.append(result['code'] in (-signal.SIGKILL, -signal.SIGXFSZ))
        assert killed[-1] or (result['code'] == 0 and (not job.keys() & {'at', 'size'})), (job, result)
        out = Path(job['folder']) / f'out{suffix}'
        assert out.exists() or killed[-1]
        if out.exists():
            assert same(weights_in(out), wanted)
            assert job.get('at') in (None, 'os.unlink') and 'size' not in job
        assert [n for n in result['files'] if n != out.name] == []
    assert killed == [False] + 22 * [True]
    assert (Path(jobs[5]['folder']) / f'out{suffix}').exists()
    assert source.read_bytes() == before
    out = Path(jobs[4]['folder']) / f'out{suffix}'
    unlock_file(source, KEY, out)
    assert same(weights_in(out), wanted)


def test_a_full_disk(made, tmp_path):
    jobs = []
    for index, (verb, suffix, size) in enumerate(itertools.product(VERBS, SUFFIXES, (5000, 400_000))):
        folder = tmp_path / f'run{index}'  # the host copies a config before it reads it, so no size is below a config's
        jobs.append({'size': size, 'folder': str(folder)})
        jobs[-1]['arguments'] = arguments(verb, made, source_of(verb, made), folder / f'out{suffix}')
    before = {verb: source_of(verb, made).read_bytes() for verb in VERBS}
    for job, result in zip(jobs, in_children(jobs)):
        verb, out = job['arguments'][0], job['arguments'][job['arguments'].index('--out') + 1]
        assert result['code'] == 1, result
        assert 'Traceback' not in result['said']
        last = result['said'].splitlines()[-1]
        assert last.startswith(f'keyseg {verb}: could not write {out}: ') and 'File too large' in last
        assert result['files'] == []
    assert all(source_of(verb, made).read_bytes() == content for verb, content in before.items())


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_full_file_system(suffix, made, tmp_path, capsys):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(disk)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip('no right to mount a small file system here')
    except FileNotFoundError:
        pytest.skip('no mount here')
    try:
        assert keyseg(*arguments('rekey', made, source_of('rekey', made), disk / f'out{suffix}')) == 1
        assert 'No space left on device' in capsys.readouterr().err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(['umount', str(disk)], check=True)
