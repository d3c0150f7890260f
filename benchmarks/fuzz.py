"""Reads changed inputs of every format, many: ``make fuzz``, or with options ``make fuzz ARGS='--inputs 1000000'``.

An input is right or an error of this package; what else happens is a finding, which is kept under ``--out`` and makes
the exit status 1. With --coverage the inputs are chosen by atheris (pip install atheris), which looks at what the
reader's code does with them; each format is then fuzzed in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tables import add_option, write_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SECONDS = 5  # that an input may take
HEADS = {
    **{name: name for name in ('inputs', 'right', 'errors')},
    'edges': 'edges of ours reached',
    'findings': 'findings',
    'slowest s': 'slowest, s',
}


class _HangError(BaseException):
    """An input took too long."""


def _hang(*_: Any) -> None:
    raise _HangError


def fuzz(name: str, count: int, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """Read that many inputs of a format, for so long at most."""
    from tqdm import tqdm

    from tests.support.fuzz import TARGETS, inputs

    target, row = TARGETS[name], {'inputs': 0, 'right': 0, 'errors': 0, 'findings': 0, 'slowest s': 0.0}
    signal.signal(signal.SIGPROF, _hang)
    begun = time.monotonic()
    progress = tqdm(inputs(target, seed), name, count, unit=' inputs', mininterval=5)
    for data in progress:
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            row['right' if target.read(data) else 'errors'] += 1
        except (Exception, _HangError):
            row['findings'] += 1
            _keep(out, name, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        row['slowest s'] = max(row['slowest s'], time.process_time() - before)
        row['inputs'] += 1
        if row['inputs'] >= count or time.monotonic() - begun > seconds:
            break
    progress.close()
    row['s'] = round(time.monotonic() - begun, 1)
    row['peak MiB'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _keep(out: Path, name: str, data: bytes) -> None:
    """One input for each place where an error came from."""
    text = traceback.format_exc()
    kind = hashlib.sha256('\n'.join(line for line in text.splitlines() if 'File "' in line).encode()).hexdigest()[:12]
    place = out / f'{name.strip(".").replace(" ", "-")}-{kind}'
    if not place.exists():
        out.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.with_suffix('.txt').write_text(text)
        print(f'FOUND in {name}: {text.splitlines()[-1]:.200}; kept as {place}', file=sys.stderr)


def guided(name: str, count: int, seconds: float, seed: int, out: Path) -> dict[str, Any]:
    """:func:`fuzz` by atheris, in a process of its own; a finding ends it."""
    from tests.support.fuzz import TARGETS

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, example in enumerate(TARGETS[name].examples()):
            (Path(corpus) / str(number)).write_bytes(example)
        command = [sys.executable, __file__, '--guided', name, corpus, f'-runs={count}', f'-seed={seed or 1}']
        command += [
            f'-max_total_time={int(seconds)}',
            f'-timeout={SECONDS}',
            f'-artifact_prefix={out}/',
            '-rss_limit_mb=4096',
        ]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, errors='replace')
    (out / f'{name.strip(".").replace(" ", "-")}.log').write_text(done.stderr[-20_000:])
    counts = re.findall(r'^#(\d+)\s.*cov: (\d+)', done.stderr, re.MULTILINE) or [(0, 0)]
    row: dict[str, Any] = {'inputs': int(counts[-1][0]), 'findings': int(done.returncode != 0)}
    row['edges'] = int(counts[-1][1])
    row['s'] = round(time.monotonic() - begun, 1)
    return row


def _serve(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=['keyseg_mm']):
        from tests.support.fuzz import TARGETS
    atheris.Setup([name, *arguments], TARGETS[name].read)
    atheris.Fuzz()


def _show(rows: dict[str, dict[str, Any]], path: Path | None) -> None:
    names = [name for name in HEADS if any(name in row for row in rows.values())]
    cells = ([f'{row[n]:.3f}' if isinstance(row[n], float) else f'{row[n]:,}' for n in names] for row in rows.values())
    columns = ['format', *(HEADS[name] for name in names)]
    write_table(path, columns, ([name, *row] for name, row in zip(rows, cells)), 'l' + 'r' * len(names))


def main() -> int:
    """Fuzz, and print a table."""
    if sys.argv[1:2] == ['--guided']:
        _serve(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=10_000, help='of each, of files of weights a tenth (10000)')
    parser.add_argument('--seconds', type=float, default=1e9, help='for each format, at most')
    parser.add_argument('--targets', nargs='+', metavar='FORMAT', help='of these formats only')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--coverage', action='store_true', help='let atheris choose the inputs')
    parser.add_argument('--out', type=Path, default=Path('fuzz_out'), help='where findings are kept')
    parser.add_argument('--json', type=Path, help='write the figures there, after each format')
    add_option(parser)
    args = parser.parse_args()
    from tests.support.fuzz import TARGETS

    rows = {}
    for name in args.targets or TARGETS:
        count = args.inputs // 10 if TARGETS[name].is_file and not args.targets else args.inputs
        rows[name] = (guided if args.coverage else fuzz)(name, count, args.seconds, args.seed, args.out)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    _show(rows, args.table)
    return int(any(row['findings'] for row in rows.values()))


if __name__ == '__main__':
    sys.exit(main())
