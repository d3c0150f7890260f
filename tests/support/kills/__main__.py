"""Kills every command that writes, at random moments, and counts what is left behind.

A process that has imported everything forks one for each kill, so a kill takes about as long as the command itself.
Half of the moments are drawn from all of the time that a command takes, half from the calls that it makes while it
writes a file. SIGKILL hits a command and all its children; SIGTERM and SIGHUP the command alone. Interrupted, it goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # threads do not survive a fork
os.environ['MPLBACKEND'] = 'Agg'

from tqdm import tqdm

import keyseg_mm.atomic as atomic
import keyseg_mm.audit.images.audit
import keyseg_mm.audit.model.audit
import keyseg_mm.baselines
import keyseg_mm.mm.bench
import keyseg_mm.mm.image_files  # noqa: F401
from benchmarks.tables import add_option, write_table
from keyseg_mm.cli import COMMANDS as NAMES
from keyseg_mm.cli import main as keyseg
from tests.support.kills.commands import COMMANDS, Command, make, shrink
from tests.support.kills.findings import Findings, Look, digests, pattern

COUNTED = (*asdict(Findings()), 'otherwise')
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 60.0  # seconds after a signal
MOST_WRITES = 256  # of files, in one command
HEAD = ('command', 'kills', 'landed', 'inputs changed', 'half written', 'left over', 'with secrets', 'open to others',
        'ended otherwise')  # fmt: skip
# shared with the forks: files begun, calls while each was written, and at which call of which file the end comes
BEGUN, CALLS, LAST = RawValue('q'), RawArray('q', MOST_WRITES), RawArray('q', 2)


class Child:
    """A fork that runs a command.

    Args:
        command: what it runs.
        folder: where; it is made.
        made: what it is given.
        number: of the signal that ends it as it writes; see ``LAST``.
    """

    def __init__(self, command: Command, folder: Path, made: Path, number: int = 0) -> None:
        for name in ('run', 'tmp'):
            (folder / name).mkdir(parents=True)
        for name, source in command.before.items():
            shutil.copy(made / source, folder / 'run' / name)
            (folder / 'run' / name).chmod(0o600)
        self.said, told = os.pipe()  # open for as long as it or a child of it lives
        BEGUN.value, CALLS[:] = 0, [0] * MOST_WRITES
        self.start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run(command.arguments.format(made=made).split(), folder, number))
        os.close(told)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)
        self.is_gone = False

    def _run(self, arguments: list[str], folder: Path, number: int) -> int:
        os.setpgid(0, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        os.umask(0o022)
        os.environ.update(TMPDIR=str(folder / 'tmp'), KEYSEG_PASSPHRASE='correct horse')
        tempfile.tempdir = None
        os.chdir(folder / 'run')
        log = os.open(folder.parent / f'{folder.name}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable(log)
        write, leader = atomic._write, os.getpid()

        def counted(*given: object) -> None:
            which = BEGUN.value
            BEGUN.value += 1

            def called(*_: object) -> None:
                CALLS[which] += 1
                if number and (which, CALLS[which]) == tuple(LAST):
                    _send(leader, number)

            sys.setprofile(called)
            try:
                write(*given)
            finally:
                sys.setprofile(None)

        atomic._write = counted
        return _ended(arguments)

    def wait(self, seconds: float | None) -> None:
        """Wait so long, or until it and all its children are gone."""
        self.is_gone = self.is_gone or bool(select.select([self.said], [], [], seconds)[0])

    def end(self) -> int:
        """Its exit status, once it and its children are gone; 99 if they do not go."""
        self.wait(PATIENCE)
        if not self.is_gone:
            os.kill(self.pid, signal.SIGABRT)  # says in its log where it is
            time.sleep(1)
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.said)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status if self.is_gone else 99


def _send(pid: int, number: int) -> None:
    (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def _ended(arguments: list[str]) -> int:
    """Run a command in a fork; its exit status."""
    try:
        code = keyseg(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_command(module: str, arguments: list[str], log: Path) -> int:
    """In place of that of a comparison, which starts an interpreter for each step: forks."""
    pid = os.fork()
    if pid == 0:
        for number in set(SIGNALS) - {signal.SIGKILL}:
            signal.signal(number, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os._exit(_ended(arguments))
    try:
        status = os.waitpid(pid, 0)[1]
        pid = 0
        return os.waitstatus_to_exitcode(status)
    finally:
        if pid:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def whole(command: Command, out: Path, made: Path) -> dict:
    """Runs to the end: the seconds of the quickest, the calls while each file was written, and what was made."""
    seconds = []
    for _ in range(3):
        folder = out / 'whole'
        shutil.rmtree(folder, ignore_errors=True)
        child = Child(command, folder, made)
        child.wait(None)
        seconds.append(time.monotonic() - child.start)
        if child.end() not in (0, 4):  # 4: an audit that found something
            raise RuntimeError(f'{command.arguments}: {(out / "whole.log").read_text()[-2000:]}')
    files = {pattern(name): digest for name, digest in digests(folder).items() if name.startswith('run/')}
    shutil.rmtree(folder)
    return {'seconds': min(seconds), 'calls': list(CALLS[: BEGUN.value]), 'files': files}


def kill(number: int, name: str, seed: int, out: Path, look: Look, known: dict) -> dict:
    """One kill, and what it left."""
    draw = random.Random(f'{seed}/{number}')  # noqa: S311 - a moment, no secret
    command, folder = COMMANDS[name], out / 'killed'
    sent = draw.choice(SIGNALS)
    shutil.rmtree(folder, ignore_errors=True)
    if draw.random() < 0.5:
        which = draw.randrange(len(known['calls']))
        LAST[:] = which, draw.randint(1, known['calls'][which])
        child = Child(command, folder, look.made, sent)
    else:
        child = Child(command, folder, look.made)
        child.wait(draw.random() * known['seconds'])
        if not child.is_gone:
            _send(child.pid, sent)
    status = child.end()
    landed = status in (-sent, 128 + sent)
    row = {'number': number, 'command': name, 'signal': sent.name, 'status': status, 'landed': landed}
    row |= {**asdict(look(folder, command, known['files'])), 'otherwise': not landed and status not in (0, 4)}
    if any(row[what] for what in COUNTED):
        shutil.copy(out / 'killed.log', out / f'{number}.log')
    return row


def table(rows: list[dict]) -> Iterator[list[str]]:
    """Counts by command."""
    for name in [*COMMANDS, '']:
        of = [row for row in rows if name in ('', row['command'])]
        counts = [sum(bool(row[what]) for row in of) for what in ('landed', *COUNTED)]
        if of:
            yield [f'`{name}`' if name else 'all', *map(str, (len(of), *counts))]


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.support.kills', description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('kills_out'))
    parser.add_argument('--kills', type=int, default=1000, help='in all (1000)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', nargs='+', choices=COMMANDS, default=list(COMMANDS))
    add_option(parser)
    args = parser.parse_args()
    out = args.out.resolve()
    made, noted = out / 'made', out / 'kills.jsonl'
    unknown = {command.arguments.split()[0] for command in COMMANDS.values()} - {*NAMES, 'tool'}
    assert not unknown, unknown
    shrink(run_command)
    if not (out / 'whole.json').exists():
        shutil.rmtree(out, ignore_errors=True)
        make(made)
        known = {n: whole(c, out, made) for n, c in tqdm(COMMANDS.items(), desc='whole runs', disable=None)}
        (out / 'whole.json').write_text(json.dumps(known))
    known = json.loads((out / 'whole.json').read_text())
    total = sum(command.kills for command in COMMANDS.values())
    todo = [name for name, command in COMMANDS.items() for _ in range(round(command.kills * args.kills / total))]
    random.Random(args.seed).shuffle(todo)  # noqa: S311
    rows = [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []
    done = {row['number'] for row in rows}
    look = Look(made)
    left = [(n, name) for n, name in enumerate(todo) if n not in done and name in args.only]
    with noted.open('a') as file:
        for number, name in tqdm(left, desc='kills', disable=None):
            rows.append(kill(number, name, args.seed, out, look, known[name]))
            file.write(json.dumps(rows[-1]) + '\n')
            file.flush()
    write_table(args.table, HEAD, table(rows), command='make kill')
    return int(any(row[what] for row in rows for what in COUNTED))


if __name__ == '__main__':
    sys.exit(main())
