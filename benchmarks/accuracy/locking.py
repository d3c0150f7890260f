#!/usr/bin/env python
"""Lock a trained checkpoint and test it: plain, with its key, unlocked, rekeyed, and with wrong, old and missing keys.

    python benchmarks/accuracy/locking.py CONFIG CHECKPOINT --data-root DATA/cityscapes --out OUT

Everything by the commands a user has: keyseg lock, rekey, unlock and test. For each transform (all with the points
`linear`), and for single points on request, it prints one row, and how far the outputs with the key agree with the
plain model's on the first photos; the tables at the end. --table gets that of the transforms, and a file beside it,
*-sealed, that of the sealed file. Finished steps are kept in OUT and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from run import WRONG, floor_of, test
from tables import add_option, beside, write_table

from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.checkpoint.files import read_checkpoint, write_checkpoint
from keyseg_mm.stamp import is_stamp

SCHEMES = [('linear', t) for t in ('SignedChannelPermutation', 'ChannelPermutation', 'ChannelRotation')]
SMALL = ('relative error', 'other pixels')
HEADS = {
    'key': 'right key',
    'unlocked in memory': 'unlocked in memory',
    'rekeyed, new key': 'rekeyed, new key',
    'unlocked': 'unlocked file',
    'no key': 'no key',
    'old key': 'old key on the rekeyed file',
}
READ = {
    'sealed, opened': "sealed, opened (`runtime='plain'`)",
    'behind maps too, keyed': "sealed behind maps (`linear`, signs), keyed (`points='checkpoint'`)",
    'behind maps too, opened': 'the same, opened',
    'rekeyed, keyed': 'rekeyed to another key, keyed',
    'unlocked': 'unlocked file',
    'stock host, sealed': "sealed, by mmsegmentation's own test.py without this package",
    'stock host, behind maps too': 'sealed behind maps, the same way',
    'key=none, sealed': 'sealed behind maps, `key=none`',
}


def keyseg(*arguments: object) -> None:
    """One of our commands in a process of its own."""
    code = 'import sys; from keyseg_mm.cli import main; sys.exit(main(sys.argv[1:]))'
    done = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'keyseg {arguments[0]} failed: {done.stderr.strip()}')


def keyed_config(config: Path, out: Path) -> Path:
    """The config's protected version, which takes its points from the checkpoint."""
    from mmengine.config import Config

    kind = Config.fromfile(str(config)).model.type
    path = out / f'keyed_{config.name}'
    path.write_text(
        f"_base_ = '{config.resolve()}'\n"
        f"model = dict(type='keyseg_mm.Keyed', of='{kind}', protection=dict(key='none', points='checkpoint'))\n"
    )
    return path


def agreement(
    config: Path, checkpoint: Path, keyed: Path, locked: Path, key: str, photos: list[str]
) -> dict[str, float]:
    """Largest relative error of the logits, and the share of pixels of another class, on some photos."""
    import torch
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    cfg = Config.fromfile(str(keyed))
    cfg.model.protection.key = key
    models = [init_model(str(config), str(checkpoint), 'cpu'), init_model(cfg, str(locked), 'cpu')]
    worst, other, pixels = 0.0, 0, 0
    for photo in photos:
        a, b = (inference_model(model, photo).seg_logits.data.double() for model in models)
        worst = max(worst, float((a - b).norm() / a.norm()))
        other += int(torch.count_nonzero(a.argmax(0) != b.argmax(0)))
        pixels += a[0].numel()
    return {'relative error': worst, 'other pixels': other / pixels}


def with_old_stamp(rekeyed: Path, locked: Path, out: Path) -> Path:
    """The rekeyed weights under the stamp that they had before, so that nothing refuses the old key."""
    if not out.exists():
        new, old = (read_checkpoint(path)['state_dict'] for path in (rekeyed, locked))
        stamped = {n: v for n, v in new.items() if not is_stamp(n)}
        write_checkpoint(out, {**stamped, **{n: v for n, v in old.items() if is_stamp(n)}}, {})
    return out


def measure(scheme: tuple[str, str], args: argparse.Namespace, keys: dict[str, str], keyed: Path) -> dict[str, float]:
    """All figures of one choice of points and transform."""
    points, transform = scheme
    out = args.out / f'{points.replace(":", "-")}-{transform}'
    out.mkdir(exist_ok=True)
    locked, rekeyed, unlocked = (out / f'{name}.pth' for name in ('locked', 'rekeyed', 'unlocked'))
    old, new = keys['old'], keys['new']
    if not unlocked.exists():
        how = ['--no-seal', '--points', points, '--transform', transform, '--overwrite']  # the maps alone are measured
        keyseg('lock', args.checkpoint, '--config', args.config, '--key', old, '--out', locked, *how)
        keyseg('rekey', locked, '--key', old, '--new-key', new, '--new-maps', '--out', rekeyed, '--overwrite')
        keyseg('unlock', rekeyed, '--key', new, '--out', unlocked)
    data = [f'test_dataloader.dataset.data_root={args.data_root}']

    def keyed_test(name: str, checkpoint: Path, locator: str, *more: str) -> float:
        return test(keyed, checkpoint, [*data, f'model.protection.key={locator}', *more], out / name)

    row = {'key': keyed_test('test-key', locked, old), 'no key': keyed_test('test-none', locked, 'none')}
    if points == 'linear':
        stale = with_old_stamp(rekeyed, locked, out / 'stale.pth')
        row |= {
            'unlocked in memory': keyed_test('test-memory', locked, old, 'model.protection.runtime=plain'),
            'rekeyed, new key': keyed_test('test-rekeyed', rekeyed, new),
            'unlocked': test(args.config, unlocked, data, out / 'test-unlocked'),
            'old key': keyed_test('test-old', stale, old, 'model.protection.verify=False'),
            **{wrong: keyed_test(f'test-{wrong.replace(":", "")}', locked, wrong) for wrong in WRONG},
        }
    photos = sorted(map(str, Path(args.data_root).glob('leftImg8bit/val/*/*.png')))[: args.photos]
    return {**row, **agreement(args.config, args.checkpoint, keyed, locked, old, photos)}


def measure_sealed(args: argparse.Namespace, keys: dict[str, str], keyed: Path) -> dict[str, float]:
    """The sealed file, by every way in which it is read: opened with its key, and as whoever has no key reads it."""
    out = args.out / 'sealed'
    out.mkdir(exist_ok=True)
    old, new = keys['old'], keys['new']
    files = {name: out / f'{name}.pth' for name in ('sealed', 'maps', 'rekeyed', 'unlocked')}
    files['safetensors'] = out / 'sealed.safetensors'
    if not files['unlocked'].exists():
        for name in ('sealed', 'safetensors'):
            keyseg('lock', args.checkpoint, '--key', old, '--out', files[name], '--overwrite')
        keyseg('lock', args.checkpoint, '--config', args.config, '--key', old, '--out', files['maps'], '--overwrite')
        keyseg('rekey', files['maps'], '--key', old, '--new-key', new, '--out', files['rekeyed'], '--overwrite')
        keyseg('unlock', files['rekeyed'], '--key', new, '--out', files['unlocked'])
    data = [f'test_dataloader.dataset.data_root={args.data_root}']

    def opened(name: str, key: str, runtime: str) -> float:
        options = [*data, f'model.protection.key={key}', f'model.protection.runtime={runtime}']
        return test(keyed, files[name], options, out / f'test-{name}-{runtime}-{key.split("/")[-1]}')

    return {
        'sealed, opened': opened('sealed', old, 'plain'),
        'behind maps too, keyed': opened('maps', old, 'keyed'),
        'behind maps too, opened': opened('maps', old, 'plain'),
        'rekeyed, keyed': opened('rekeyed', new, 'keyed'),
        'unlocked': test(args.config, files['unlocked'], data, out / 'test-unlocked'),
        'stock host, sealed': stock(args.config, files['sealed'], data, out / 'test-stock'),
        'stock host, behind maps too': stock(args.config, files['maps'], data, out / 'test-stock-maps'),
        'key=none, sealed': opened('maps', 'none', 'keyed'),
    }


def stock(config: Path, checkpoint: Path, options: list[str], work_dir: Path) -> float:
    """mIoU by mmsegmentation's own test.py, in a process that never imports this package."""
    import mmseg

    if not sorted(work_dir.glob('*/*.json')):
        work_dir.mkdir(parents=True, exist_ok=True)
        tool = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'test.py'
        options = ['--cfg-options', *options, '--work-dir', str(work_dir)]
        # its own reader of files refuses what it writes itself, on today's torch
        environment = {**os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1', 'CUDA_VISIBLE_DEVICES': ''}
        command = [sys.executable, str(tool), str(config), str(checkpoint), *options]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    return float(json.loads(sorted(work_dir.glob('*/*.json'))[-1].read_text())['mIoU'])


def table(results: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each transform."""
    for points, transform in SCHEMES:
        row = results[f'{points} {transform}']
        wrong = ', '.join(f'{row[key]:.2f}' for key in WRONG)
        yield [f'`{transform}`', *(f'{row[name]:.2f}' for name in HEADS), wrong]


def sealed_table(results: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each way to read the sealed file."""
    for name, miou in results['sealed'].items():
        floor = ', the floor' if f'{miou:.2f}' == f'{results["floor"]:.2f}' else ''
        yield [READ[name], f'{miou:.2f}{floor}']


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--data-root', required=True, help='root of the data set that the config tests on')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--photos', type=int, default=20, help='photos on which outputs are compared')
    parser.add_argument('--sealed', action='store_true', help='the sealed file alone')
    parser.add_argument('--single', nargs='*', default=[], metavar='POINT', help='single points to lock at as well')
    add_option(parser)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    keys = {}
    for name in ('old', 'new'):
        path = args.out / f'{name}.key'
        keys[name] = f'file:{path}'
        if not path.exists():
            write_key_file(path, SecretKey.generate())
    keyed = keyed_config(args.config, args.out)
    data = [f'test_dataloader.dataset.data_root={args.data_root}']
    plain = test(args.config, args.checkpoint, data, args.out / 'plain')
    results: dict[str, Any] = {'floor': floor_of(args.config, args.data_root), 'plain': plain}
    print(f'floor {results["floor"]:.2f}, plain {plain:.2f}', flush=True)
    results['sealed'] = measure_sealed(args, keys, keyed)
    write_table(beside(args.table, 'sealed'), ('read', 'mIoU'), sealed_table(results))
    if args.sealed:
        return
    for scheme in [*SCHEMES, *((point, 'SignedChannelPermutation') for point in args.single)]:
        row = measure(scheme, args, keys, keyed)
        results[' '.join(scheme)] = row
        words = [f'{name} {value:.2e}' if name in SMALL else f'{name} {value:.2f}' for name, value in row.items()]
        print(f'{" ".join(scheme)}: {", ".join(words)}', flush=True)
    (args.out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    columns = ('transform', *HEADS.values(), ', '.join(f'`{key}`' for key in WRONG))
    write_table(args.table, columns, table(results))


if __name__ == '__main__':
    main()
