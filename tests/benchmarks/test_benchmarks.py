"""The benchmark runs, end to end, and its counts hold; its times are not judged on a machine that tests run on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def smoke(name, folder, *options):
    """What a benchmark prints, and its figures."""
    command = [sys.executable, str(BENCHMARKS / name), '--smoke', *options, '--json', str(folder / 'figures')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads((folder / 'figures').read_text())


def test_locking_smoke(tmp_path):
    printed, figures = smoke('locking.py', tmp_path)
    assert set(figures['file']['ratios']) == {'lock', 'rekey', 'unlock'}
    assert set(figures['load']['ratios']) == {'protected', 'protected, no check', 'plain and SHA-256', 'AES-256-GCM'}
    for kind in ('file', 'load', 'inference'):
        assert figures[kind]['base s'] > 0
        assert all(r['q1'] <= r['median'] <= r['q3'] for r in figures[kind]['ratios'].values())
    assert set(figures['peak MiB']) == {'file base', 'file lock', 'load base', 'load protected'}
    assert '  unlocked' in printed and 'peak memory' in printed


def test_sealing_smoke(tmp_path):
    printed, figures = smoke('sealing.py', tmp_path)
    found = figures['models']['tiny']
    ways = {
        'sealed, mapped',
        'sealed',
        'signed, mapped',
        'plain, mapped',
        'AES-256-GCM, at once',
        'AES-256-GCM, chunks',
    }
    assert ways | {'plain, mapped', 'safetensors'} <= set(found['open']['ratios'])
    assert {'sealed', 'sealed, live', 'AES-256-GCM, chunks', 'safetensors'} <= set(found['write']['ratios'])
    for kind in ('open', 'write'):
        assert found[kind]['base s'] > 0 and found['peak MiB'][f'{kind} base'] > 0
        assert all(r['q1'] <= r['median'] <= r['q3'] for r in found[kind]['ratios'].values())
    assert all(f'{name} is not installed' in printed for name in figures['left out'])
    assert '    sealed, mapped' in printed and 'peak MiB' in printed


def test_overhead_smoke(tmp_path):
    printed, figures = smoke('overhead.py', tmp_path, '--models', 'Fast-SCNN')
    row = figures['models']['Fast-SCNN']
    hot = row['hot path']
    assert hot['points'] == 3
    assert hot['encryptions'] == 3 * 2 * 3  # points, kinds of pass, passes
    assert set(hot['first'].values()) | set(hot['later'].values()) == {0}
    for mode in ('inference', 'training'):
        assert row[mode]['encryptions'] == 3 * row[mode]['rounds']  # plain in one half of the runs, keyed in the other
        assert row[mode]['wall']['q1'] <= row[mode]['wall']['median'] <= row[mode]['wall']['q3']
        assert 1 < row[mode]['own']['median'] < 2
        assert f'  {mode}' in printed and row['peak MiB']['keyed'][mode] > 0
    derived = next(iter(figures['derivation'].values()))
    assert derived['points'] > 20 and derived['ms']['ChannelPermutation']['median'] > 0
    assert figures['help s']['median'] > 0
