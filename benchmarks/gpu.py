#!/usr/bin/env python
"""What protection costs on a GPU, and whether it is right there: in ten minutes, for three of the host's models.

    python benchmarks/gpu.py [--out gpu_out] [--minutes 10] [--models FCN-R50-D8 ...] [--kinds correct ...] [--cpu]

Plain, keyed (at `stages` by permutation, at `linear` by permutation with signs) and opened in memory (runtime='plain'),
by turns: training step and inference in float32 and under autocast, peak memory, torch.compile, the logits against the
plain model's, and a sealed file opened to the GPU. Each measurement is a row; the most important ones come first, those
that no longer fit into the minutes are named. A row that fails is reported, and the rest goes on: the rows run in a
process of their own, which is started again should it break or hang.

Without a GPU (or with --cpu) rows of every kind run on tiny images, to see that they work and are right; no time of
theirs means anything.
OUT/gpu.json is written again after every row, OUT/gpu.md too. The exit status is 1 if a row failed or was not right.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu_report
from tables import add_option

HERE = Path(__file__).resolve().parent
MODELS = ('FCN-R50-D8', 'DeepLabV3+-R50', 'SegFormer-B0')
START_LIMIT = 240.0  # seconds: importing torch and the host from a cold disk
KINDS = ('correct', 'time', 'compile', 'files', 'memory')
CPU_SECONDS = 2.0  # what a row needs on tiny images


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        kind: ``correct``, ``time``, ``memory``, ``compile`` or ``files``.
        model: which model.
        seconds: what it needs on a GPU, roughly; not begun where less is left, and given up after four times as long.
        precision: of times: ``float32`` or ``autocast``.
        mode, points: of compiled models: ``inference`` or ``training``, and where they are keyed.
    """

    kind: str
    model: str
    seconds: float
    precision: str = ''
    mode: str = ''
    points: str = ''

    @property
    def name(self) -> str:
        return ', '.join(filter(None, (self.kind, self.model, self.precision, self.mode, self.points)))


def rows_of(models: list[str]) -> list[Row]:
    """All rows, the most important ones first; those of torch.compile take the longest."""
    first = models[-1]  # the host trains SegFormer compiled in one graph; it comes first here
    others = models[:-1]
    found = [Row('correct', m, 12) for m in models]
    found += [Row('time', m, 16, precision) for precision in ('float32', 'autocast') for m in models]
    found += [Row('compile', first, 40, mode=mode, points='linear') for mode in ('inference', 'training')]
    found += [Row('files', models[0], 15)]
    found += [Row('memory', m, 10) for m in models]
    found += [Row('compile', m, 40, mode='inference', points='linear') for m in others]
    found += [Row('files', m, 15) for m in models[1:]]
    found += [Row('compile', first, 30, mode=mode, points='stages') for mode in ('inference', 'training')]
    found += [Row('compile', m, 60, mode='training', points='linear') for m in others]
    found += [Row('compile', m, 30, mode='inference', points='stages') for m in others]
    found += [Row('compile', m, 40, mode='training', points='stages') for m in others]
    return found


def rows_on_cpu(models: list[str]) -> list[Row]:
    """Every kind for the smallest model, which is the last one; for the others what may differ without a GPU too."""
    few = [row for row in rows_of(models) if row.model == models[-1] and row.points != 'stages']
    return few + [row for row in rows_of(models) if row not in few and row.kind in ('correct', 'files')]


class Worker:
    """The process that runs rows; started when it is needed, and again after it broke or was stopped."""

    def __init__(self, cpu: bool) -> None:
        self._cpu = cpu
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def start(self) -> dict[str, Any]:
        """Start it; what it says of the machine."""
        paths = [str(HERE.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', str(HERE / 'gpu_worker.py'), *(['--cpu'] if self._cpu else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
            preexec_fn=os.setpgrp,  # so that the compiler's own processes end with it
        )
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        return self._answer(START_LIMIT)

    def run(self, row: Row, limit: float) -> dict[str, Any]:
        """What a row found, or the error that it ended with."""
        try:
            if self._process is None:
                began = time.monotonic()
                about = self.start()
                limit -= time.monotonic() - began
                if 'error' in about:
                    self.stop()
                    return about
            self._process.stdin.write(json.dumps(asdict(row)) + '\n')
            self._process.stdin.flush()
            answer = self._answer(limit)
        except OSError as error:
            answer = {'error': f'the process that ran it is gone: {error}', 'broken': True}
        if answer.pop('broken', False):
            self.stop()
        return answer

    def stop(self) -> None:
        """End it, with whatever it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(limit, 1.0))
        except queue.Empty:
            return {'error': f'stopped: it took more than {limit:.0f} s', 'broken': True}
        if line is None:
            status = self._process.wait() if self._process is not None else None
            return {'error': f'the process that ran it ended with status {status}', 'broken': True}
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)


class Run:
    """A whole run: its rows, its clock, and what it writes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self._began = args.out, time.monotonic()
        self._worker = Worker(args.cpu)
        self.found: dict[str, Any] = {'about': {}, 'rows': [], 'left out': []}
        self._models, self._kinds, self._minutes = args.models, args.kinds, args.minutes

    def __call__(self) -> dict[str, Any]:
        """Run all that fits; what was found."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            about = self._worker.start()
            about['date'] = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
            self.found['about'] = about
            if 'error' in about:
                self._say(f'nothing can be run: {about["error"]}')
            else:
                self._run(on_gpu=about['device'] == 'cuda')
        finally:
            self._worker.stop()
            self._write()
        return self.found

    def _run(self, on_gpu: bool) -> None:
        if not on_gpu:
            self._say('no GPU is used: rows of every kind run on tiny images on the CPU, and their times mean nothing')
        budget = 60 * (self._minutes if self._minutes is not None else 10 if on_gpu else 2)
        rows = rows_of(self._models) if on_gpu else rows_on_cpu(self._models)
        for row in rows:
            if row.kind not in self._kinds:
                continue
            needed = row.seconds if on_gpu else CPU_SECONDS
            left = budget - self._elapsed()
            if left < needed:
                self._say(f'left out, {left:.0f} s are left: {row.name}')
                self.found['left out'].append(row.name)
                continue
            began = time.monotonic()
            answer = self._worker.run(row, min(left, max(4 * row.seconds, 60)))
            seconds = round(time.monotonic() - began, 1)
            self.found['rows'].append({'name': row.name, **asdict(row), 'seconds': seconds, **answer})
            how = f'FAILED: {answer["error"].splitlines()[0][:300]}' if 'error' in answer else 'done'
            self._say(f'{row.name}: {how}, {seconds} s')
            self._write()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _say(self, text: str) -> None:
        print(f'[{self._elapsed():5.0f} s] {text}', flush=True)

    def _write(self) -> None:
        self.found['seconds'] = round(self._elapsed(), 1)
        for name, text in (
            ('gpu.json', json.dumps(self.found, indent=1) + '\n'),
            ('gpu.md', gpu_report.report(self.found)),
        ):
            part = self.out / f'{name}.part'
            part.write_text(text)
            part.replace(self.out / name)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('gpu_out'), metavar='DIR')
    parser.add_argument('--minutes', type=float, help='all in all; by default 10 with a GPU, 2 without')
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS), metavar='MODEL')
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS), metavar='KIND', help=', '.join(KINDS))
    parser.add_argument('--cpu', action='store_true', help='as without a GPU')
    add_option(parser)
    return parser.parse_args()


def main() -> int:
    """Measure, print, and tell by the exit status whether all was right."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = Run(args)()
    print('\n' + gpu_report.report(found), flush=True)
    if args.table:
        gpu_report.write_tables(found, args.table)
    return int(bool(gpu_report.faults(found)) or not found['rows'])


if __name__ == '__main__':
    sys.exit(main())
