#!/usr/bin/env python
"""What lock, rekey and unlock cost on a checkpoint's file, and what a protected load costs, against doing without.

    python benchmarks/locking.py [--config CONFIG] [--rounds 12] [--size 128 256] [--json FILE] [--smoke]

The host's stock model of CONFIG (FCN with a ResNet-101 by default) gets random weights and a checkpoint file. Then by
turns, in one process:

  file      lock, rekey and unlock of the file, each against loading and saving the plain file (to the disk, as they
            do); all of them make a new file, and its removal afterwards is not timed
  load      the protected file into a model that checks its MAC and unlocks it in memory, against the plain file into a
            plain model; the same without the check; a plain load and the digests of its tensors, which is the least
            that any check of every bit with HMAC-SHA256 takes; and what people do today: the file decrypted as a whole
            with AES-256-GCM, then loaded
  inference the unlocked model against the plain one, one model object and the same input

Ratios are medians over pairs, with quartiles; `noise` is the same of the base against itself. Peak memory is the
high-water mark of a fresh child process for each way. The exit status is 1 if a limit was missed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import build_stock, quiet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from mmengine.runner import load_checkpoint
from timing import peak_memory, time_ways
from tqdm import tqdm

from keyseg_mm import (
    SecretKey,
    lock_file,
    plan_lock,
    read_key_file,
    rekey_file,
    unlock_file,
    unlock_model,
    write_key_file,
)
from keyseg_mm.keys.locator import LocatedKey
from keyseg_mm.mac import digest, in_threads
from keyseg_mm.mm.keyed import protect
from keyseg_mm.runtime.attach import await_checkpoint, detach
from keyseg_mm.runtime.gates import gates_of
from keyseg_mm.runtime.protection import Rules

FILE_LIMIT, MEMORY_LIMIT, LOAD_LIMIT = 1.3, 1.2, 1.2
RESNET_101 = 'fcn/fcn_r101-d8_4xb2-40k_cityscapes-512x1024.py'
SMALL = 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'
FILE_WAYS, LOAD_WAYS = (
    ('lock', 'rekey', 'unlock'),
    ('protected', 'protected, no check', 'plain and SHA-256', 'AES-256-GCM'),
)


@dataclass
class Bench:
    """A model with its files in a folder, and the ways to be measured."""

    folder: Path
    model: Any
    key: SecretKey
    new_key: SecretKey
    plan: Any = None

    @classmethod
    def of(cls, config: str, folder: Path) -> Bench:
        """Build the model, and write its files unless they are there."""
        torch.manual_seed(0)
        model, _ = build_stock(config)
        key, new_key = (_key(folder / f'{name}.key') for name in ('old', 'new'))
        bench = cls(folder, model.eval(), key, new_key)
        bench.plan = plan_lock(model)
        if not bench.path('plain').exists():
            torch.save({'meta': {}, 'state_dict': model.state_dict()}, bench.path('plain'))
            lock_file(bench.path('plain'), model, bench.plan, key, bench.path('locked'))
            nonce = os.urandom(12)
            sealed = AESGCM(_aes_key()).encrypt(nonce, bench.path('plain').read_bytes(), None)
            bench.path('sealed').write_bytes(nonce + sealed)
        return bench

    def path(self, name: str) -> Path:
        return self.folder / f'{name}.pth'

    def file_ways(self) -> dict[str, Callable[[], object]]:
        """What changes a file, and the base that it is compared with."""
        out, plain, locked = self.path('out'), self.path('plain'), self.path('locked')
        return {
            'base': lambda: _load_and_save(plain, out),
            'lock': lambda: lock_file(plain, self.model, self.plan, self.key, out),
            'rekey': lambda: rekey_file(locked, self.key, self.new_key, out),
            'unlock': lambda: unlock_file(locked, self.key, out),
        }

    def remove_output(self) -> None:
        """Take away what a file way made."""
        self.path('out').unlink(missing_ok=True)

    def load_ways(self) -> dict[str, Callable[[], object]]:
        """What gets a file's weights into the model."""
        return {
            'base': lambda: self._load('plain'),
            'protected': lambda: self._load_protected(verify=True),
            'protected, no check': lambda: self._load_protected(verify=False),
            'plain and SHA-256': self._load_and_hash,
            'AES-256-GCM': self._load_sealed,
        }

    def _load(self, name: str) -> None:
        load_checkpoint(self.model, str(self.path(name)), 'cpu', logger='silent')

    def _load_protected(self, verify: bool) -> None:
        protect(self.model, LocatedKey(self.key), {'unlock': True, 'verify': verify})
        self._load('locked')
        detach(self.model)

    def _load_and_hash(self) -> None:
        self._load('plain')
        in_threads(digest, self.model.state_dict().values())

    def _load_sealed(self) -> None:
        data = self.path('sealed').read_bytes()
        opened = AESGCM(_aes_key()).decrypt(data[:12], data[12:], None)
        found = torch.load(io.BytesIO(opened), 'cpu', weights_only=True)
        self.model.load_state_dict(found['state_dict'])


def _key(path: Path) -> SecretKey:
    if not path.exists():
        write_key_file(path, SecretKey.generate())
    return read_key_file(path)


def _aes_key() -> bytes:
    return bytes(range(32))  # any will do: only the time counts


def _load_and_save(path: Path, out: Path) -> None:
    content = torch.load(path, 'cpu', weights_only=True)
    with out.open('wb') as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def time_inference(bench: Bench, rounds: int, size: tuple[int, int]) -> dict[str, Any]:
    """The unlocked model against the plain one."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    plain = {name: value.clone() for name, value in bench.model.state_dict().items()}
    await_checkpoint(bench.model, bench.key, Rules(unlock=True))
    bench._load('locked')
    unlock_model(bench.model)
    assert all(torch.equal(plain[name], value) for name, value in bench.model.state_dict().items())
    assert not any(gates_of(m) for m in bench.model.modules())

    def infer() -> None:
        with torch.no_grad():
            bench.model(images, mode='tensor')

    # The same object with the same weights and without encryptors: what is left to differ is noise, and shown as such.
    return time_ways({'base': infer, 'unlocked': infer}, rounds, 'inference')


def peaks_of(config: str, folder: Path, most: int | None) -> dict[str, float]:
    """Peak memory in MiB of each way, or of the first few, in a fresh process."""
    peaks = {}
    for kind, ways in (('file', ('base', *FILE_WAYS)), ('load', ('base', *LOAD_WAYS))):
        for way in tqdm(ways[:most], desc=f'memory, {kind}', leave=False):
            command = [sys.executable, '-W', 'ignore', __file__, '--config', config, '--child', str(folder), kind, way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks[f'{kind} {way}'] = float(done.stdout.splitlines()[-1])
    return peaks


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        bench = Bench.of(args.config, folder)
        return {
            'torch': torch.__version__,
            'threads': torch.get_num_threads(),
            'config': args.config,
            'MiB': bench.path('plain').stat().st_size / 2**20,
            'file': time_ways(bench.file_ways(), args.rounds, 'files', bench.remove_output),
            'load': time_ways(bench.load_ways(), args.rounds, 'loading'),
            'inference': time_inference(bench, args.rounds, args.size),
            'peak MiB': peaks_of(args.config, folder, 2 if args.smoke else None),
        }


def misses(found: dict[str, Any]) -> list[str]:
    """What is over its limit."""
    file, load, peak = found['file']['ratios'], found['load']['ratios'], found['peak MiB']
    checks = [(f'{way}, time', file[way]['median'], FILE_LIMIT) for way in FILE_WAYS]
    checks += [(f'{way}, memory', peak[f'file {way}'] / peak['file base'], MEMORY_LIMIT) for way in FILE_WAYS]
    checks.append(('protected load, time', load['protected']['median'], LOAD_LIMIT))
    checks.append(('protected load against AES-256-GCM', load['protected']['median'], load['AES-256-GCM']['median']))
    return [f'{what}: {value:.3f}, at most {limit:.3f}' for what, value, limit in checks if value > limit]


def report(found: dict[str, Any]) -> None:
    """Print the figures."""
    print(f'{found["config"]}, {found["MiB"]:.0f} MiB, {found["threads"]} thread(s), torch {found["torch"]}')
    for kind in ('file', 'load', 'inference'):
        took = found[kind]
        noise = took['noise']
        print(
            f'{kind}: base {took["base s"]:.3f} s, noise {noise["median"]:.3f} [{noise["q1"]:.3f}, {noise["q3"]:.3f}]'
        )
        for way, r in took['ratios'].items():
            peak = found['peak MiB'].get(f'{kind} {way}')
            base = found['peak MiB'].get(f'{kind} base')
            memory = f'   peak memory {peak:.0f} MiB, ratio {peak / base:.3f}' if peak and base else ''
            print(f'  {way:20} {r["median"]:.3f} [{r["q1"]:.3f}, {r["q3"]:.3f}]{memory}')


def main() -> int:
    """Measure, print, and tell by the exit status whether every limit was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=RESNET_101, help="below the host's configs/")
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--size', type=int, nargs=2, default=(128, 256), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    parser.add_argument('--smoke', action='store_true', help='a small model, short: only see that it runs')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, kind, way = args.child
        bench = Bench.of(args.config, Path(folder))
        bench.remove_output()
        (bench.file_ways() if kind == 'file' else bench.load_ways())[way]()
        print(peak_memory())
        return 0
    if args.smoke:
        args.config, args.rounds, args.size = SMALL, 2, (64, 64)
    found = measure(args)
    report(found)
    missed = found['missed'] = [] if args.smoke else misses(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + '\n')
    for line in missed:
        print(f'MISSED {line}')
    return int(bool(missed))


if __name__ == '__main__':
    sys.exit(main())
