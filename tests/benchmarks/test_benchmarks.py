"""The benchmark runs, end to end, and its counts hold; its times are not judged on a machine that tests run on."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.support.benchmarks import BENCHMARKS, script


def smoke(name, folder, *options):
    """What a benchmark prints, and its figures; the table that it prints is the one that it writes."""
    files = ['--json', str(folder / 'figures'), '--table', str(folder / 'table')]
    command = [sys.executable, str(BENCHMARKS / name), '--smoke', *options, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((folder / 'table').read_text())
    assert table['command'] == [shlex.join(['python', f'benchmarks/{name}', '--smoke', *options])]
    assert script('tables').markdown(table) in done.stdout
    return done.stdout, json.loads((folder / 'figures').read_text())


def test_sealing_smoke(tmp_path):
    printed, figures = smoke('sealing.py', tmp_path)
    found = figures['models']['tiny']
    opened = {'plain, mapped', 'sealed', 'sealed, protected model', 'signed', 'AES-256-GCM, at once', 'safetensors'}
    assert opened <= set(found['open']['ratios'])
    assert {'lock', 'unlock', 'reseal', 'save', 'AES-256-GCM, chunks'} <= set(found['write']['ratios'])
    assert set(found['copy']['ratios']) == {'rekey'} and set(found['mapped']['ratios']) == {'sealed'}
    for kind in ('open', 'mapped', 'write', 'copy'):
        assert found[kind]['base s'] > 0 and found['peak MiB'][f'{kind} base'] > 0
        assert all(r['q1'] <= r['median'] <= r['q3'] for r in found[kind]['ratios'].values())
    assert all(f'{name} is not installed' in printed for name in figures['left out'])
    assert '| sealed, `torch.load` and a protected model | load |' in printed and 'like pairs' in printed


def test_fingerprint_smoke(tmp_path):
    printed, figures = smoke('fingerprint.py', tmp_path)
    ways = {f'{how}, {what}' for how in ('lock', 'rekey', 'rekey of maps') for what in ('exact', 'fingerprint')}
    assert set(figures['copies']['ratios']) == ways
    assert figures['trace']['owners'] == ['customer 7'] and figures['trace']['cpu s'] > 0
    assert figures['trace']['next z'] < 4.5 < figures['trace']['z']
    assert '| `rekey` of a sealed file |' in printed


def test_overhead_smoke(tmp_path):
    printed, figures = smoke('overhead.py', tmp_path, '--models', 'Fast-SCNN', '--points', 'stages')
    row = figures['models']['Fast-SCNN']
    hot = row['hot path']
    assert hot['points'] == 3
    assert hot['encryptions'] == 3 * 2 * 3  # points, kinds of pass, passes
    assert set(hot['first'].values()) | set(hot['later'].values()) == {0}
    for mode in ('inference', 'training'):
        assert row[mode]['encryptions'] == 3 * row[mode]['rounds']  # plain in one half of the runs, keyed in the other
        assert row[mode]['wall']['q1'] <= row[mode]['wall']['median'] <= row[mode]['wall']['q3']
        assert row[mode]['own']['median'] > 0
        assert f'| {mode}' in printed and row['peak MiB']['keyed'][mode] > 0
    derived = next(iter(figures['derivation'].values()))
    assert derived['points'] > 20 and derived['ms']['ChannelPermutation']['median'] > 0
    assert figures['help s']['median'] > 0


@pytest.mark.parametrize('kinds', [('correct', 'files', 'memory'), ('time', 'compile')], ids=', '.join)
def test_gpu_smoke(kinds, tmp_path):
    command = [sys.executable, str(BENCHMARKS / 'gpu.py'), '--cpu', '--out', str(tmp_path), '--minutes', '9']
    command += ['--table', str(tmp_path / 'table.json')]
    done = subprocess.run([*command, '--models', 'SegFormer-B0', '--kinds', *kinds], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert {row['kind'] for row in found['rows']} == set(kinds) and not found['left out']
    assert all(row.get('ok', True) for row in found['rows'])
    assert (tmp_path / 'gpu.md').read_text() in done.stdout and 'no GPU is used' in done.stdout
    for name in ('', '-memory', '-compile', '-files'):
        table = json.loads((tmp_path / f'table{name}.json').read_text())
        assert table['columns'] == script('tables').read_table(f'gpu{name}')['columns']
        assert bool(table['rows']) == ((name[1:] or 'time') in kinds)
    for row in found['rows']:
        if row['kind'] == 'time':
            assert set(row['training']['ratios']) == {'again', 'stages', 'linear', 'opened'}
        elif row['kind'] == 'compile':
            assert row['plain']['graphs'] == row['keyed']['graphs'] == 1 and row['keyed']['fullgraph']
        elif row['kind'] == 'correct':
            assert max(row[points]['logits'] for points in ('stages', 'linear', 'opened')) < 1e-4
        elif row['kind'] == 'files':
            assert all(row['bits equal'].values()) and len(row['bits equal']) == 7


BROKEN = """
import json, os, sys, time
print(json.dumps({'device': 'cuda', 'card': 'none'}), flush=True)
for line in sys.stdin:
    row = json.loads(line)
    if row['kind'] == 'correct':
        os._exit(3)
    if row['kind'] == 'memory':
        time.sleep(60)
    print(json.dumps({'error': 'out of memory'}), flush=True)
"""


def test_gpu_rows_that_break_or_hang_are_told_and_the_rest_goes_on(tmp_path):
    for path in (*BENCHMARKS.glob('gpu*.py'), BENCHMARKS / 'tables.py'):
        shutil.copy(path, tmp_path)
    (tmp_path / 'gpu_worker.py').write_text(BROKEN)
    command = [sys.executable, str(tmp_path / 'gpu.py'), '--out', str(tmp_path / 'out'), '--minutes', '0.4']
    command += ['--models', 'SegFormer-B0', '--kinds', 'correct', 'files', 'memory']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / 'out' / 'gpu.json').read_text())
    how = {row['kind']: row.get('error', 'done') for row in found['rows']}
    assert how['correct'] == 'the process that ran it ended with status 3' and how['files'] == 'out of memory'
    assert how['memory'].startswith('stopped: it took more than') and not found['left out']
    assert 'status 3' in done.stdout and 'stopped' in (tmp_path / 'out' / 'gpu.md').read_text()
