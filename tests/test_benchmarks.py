"""The benchmark runs, end to end, and its counts hold; its times are not judged on a machine that tests run on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

OVERHEAD = Path(__file__).parents[1] / 'benchmarks' / 'overhead.py'


def test_overhead_smoke(tmp_path):
    command = [sys.executable, str(OVERHEAD), '--smoke', '--models', 'Fast-SCNN', '--json', str(tmp_path / 'figures')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / 'figures').read_text())
    row = figures['models']['Fast-SCNN']
    hot = row['hot path']
    assert hot['points'] == hot['first']['derived'] == 3
    assert hot['first']['placed'] > 0 and hot['encryptions'] == 3 * 2 * 3  # points, kinds of pass, passes
    assert set(hot['later'].values()) == {0}
    for mode in ('inference', 'training'):
        assert row[mode]['encryptions'] == 3 * row[mode]['rounds']  # plain in one half of the runs, keyed in the other
        assert row[mode]['wall']['q1'] <= row[mode]['wall']['median'] <= row[mode]['wall']['q3']
        assert 1 < row[mode]['own']['median'] < 2
        assert f'  {mode}' in done.stdout and row['peak MiB']['keyed'][mode] > 0
    derived = next(iter(figures['derivation'].values()))
    assert derived['points'] > 20 and derived['ms']['ChannelPermutation']['median'] > 0
    assert figures['help s']['median'] > 0
