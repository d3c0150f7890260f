#!/usr/bin/env python
"""What a sealed file costs to open and to write, against a plain one and against what else encrypts models.

    python benchmarks/sealing.py [--model fcn_r101 swin_b] [--rounds 12] [--only mapped] [--json FILE] [--smoke]

Modules with the shapes of FCN-R101 and of UPerNet-Swin-B get random weights and files; the host is not needed. Then by
turns, in one process:

  open    a file into the parameters of a module, against ``torch.load`` and ``load_state_dict`` of a plain file: that
          file mapped; sealed, by ``keyseg_mm.load``, and into a protected module by ``load_state_dict``; signed;
          encrypted as a whole with AES-256-GCM, at once as people do, and in chunks, in place and in threads;
          safetensors, mapped and not encrypted; tensorizer (XSalsa20-Poly1305) and cryptotensors (AES-256-GCM) with
          their encryption
  mapped  a sealed file opened, against the plain file mapped: the two alone, close behind each other
  write   a plain file read and written again, to the disk, against lock, unlock and reseal of the file, and other
          encryption; ``save`` writes a live module's parameters, which stay as they are, and reads none
  copy    the file copied, to the disk, against rekey, which gives it to other recipients

Ratios are medians over pairs, with quartiles; `noise` is the same of the base against itself. Peak memory is the
high-water mark of a fresh child process for each way. Before anything is timed, each way of opening has to bring back
every weight. Rivals that are not installed are left out: ``pip install tensorizer cryptotensors safetensors``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rivals import RIVALS, AesInPlace, Files, missing, synced
from shapes import MODELS, module_of
from tables import add_option, spread, write_table
from timing import peak_memory, time_ways
from torch import Tensor, nn
from tqdm import tqdm

import keyseg_mm
from keyseg_mm import Sealing, SecretKey, rekey_file, seal_file, unlock_file
from keyseg_mm.envelope import SEALED, SIGNED
from keyseg_mm.runtime.attach import await_checkpoint, detach
from keyseg_mm.runtime.protection import Rules

META = {'epoch': 3}
#: And what the ratios of each are over.
KINDS = {'open': 'load', 'mapped': 'mapped load', 'write': 'load and save', 'copy': 'copy'}
NAMES = {'fcn_r101': 'FCN-R101', 'swin_b': 'Swin-B'}
TITLES = {
    'plain, mapped': 'plain file, mapped',
    'sealed': '**sealed, `keyseg_mm.load`**',
    'sealed, protected model': 'sealed, `torch.load` and a protected model',
    'signed': 'signed, `keyseg_mm.load`',
    'AES-256-GCM, at once': 'the whole file by AES-256-GCM at once, then loaded',
    'open AES-256-GCM, chunks': 'the whole file by AES-256-GCM in chunks, in place and in threads',
    'open safetensors': 'safetensors, mapped, not encrypted',
    'AES-256-GCM, chunks': 'the whole file by AES-256-GCM in chunks',
    'safetensors': 'safetensors, not encrypted',
    'tensorizer': 'tensorizer, encrypted',
    'cryptotensors': 'cryptotensors, encrypted',
    'lock': '**lock**',
    'unlock': '**unlock**',
    'reseal': '**rekey --reseal**',
    'save': '`keyseg_mm.save` of a live model',
    'rekey': '**rekey**',
}
LIMITS = {
    'open sealed': 0.6,
    'mapped sealed': 1.15,
    'write lock': 1.2,
    'write unlock': 1.2,
    'write reseal': 1.2,
    'copy rekey': 1.05,
}
KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))


@dataclass
class Bench:
    """A module with its files in a folder, and the ways to be measured."""

    folder: Path
    module: nn.Module
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        self.files = Files(self.folder)

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def write_files(self) -> None:
        torch.save({'meta': META, 'state_dict': self.weights}, self.files.plain)
        for mode in (SEALED, SIGNED):
            seal_file(self.files.plain, Sealing(KEY, mode=mode), self.files.of(mode))
        self.files.of('aes').write_bytes(AESGCM(AesInPlace.KEY).encrypt(bytes(12), self.files.plain.read_bytes(), None))
        AesInPlace().write(self.files.plain.read_bytes(), self.files.of('aes chunks'))
        for rival in RIVALS:
            rival.write(self.weights, self.files.of(rival.name))

    def open_ways(self) -> dict[str, Callable[[], object]]:
        """What gets a file's weights into the module, and the base that it is compared with."""
        ways: dict[str, Callable[[], object]] = {
            'base': lambda: self._load(_read(self.files.plain)),
            'plain, mapped': lambda: self._load(_read(self.files.plain, mmap=True)),
            'sealed': lambda: keyseg_mm.load(self.module, self.files.of(SEALED), KEY),
            'sealed, protected model': self._load_protected,
            'signed': lambda: keyseg_mm.load(self.module, self.files.of(SIGNED), KEY),
            'AES-256-GCM, at once': lambda: self._load(AesInPlace.opened_at_once(self.files.of('aes'))),
            'AES-256-GCM, chunks': lambda: self._load(AesInPlace().opened(self.files.of('aes chunks'))),
        }
        ways |= {rival.name: lambda r=rival: self._load_rival(r) for rival in RIVALS}
        return ways

    def mapped_ways(self) -> dict[str, Callable[[], object]]:
        """What opens a sealed file, and a plain one that is mapped."""
        ways = self.open_ways()
        return {'base': ways['plain, mapped'], 'sealed': ways['sealed']}

    def write_ways(self) -> dict[str, Callable[[], object]]:
        """What reads a plain file and writes another."""
        out = self.files.of('out')

        def aes() -> None:
            AesInPlace().write(self.files.plain.read_bytes(), out)

        ways: dict[str, Callable[[], object]] = {
            'base': lambda: synced(out, lambda file: torch.save(_read(self.files.plain), file)),
            'lock': lambda: seal_file(self.files.plain, Sealing(KEY), out),
            'unlock': lambda: unlock_file(self.files.of(SEALED), KEY, out),
            'reseal': lambda: rekey_file(self.files.of(SEALED), KEY, [OTHER], out, reseal=True),
            'save': self._save,
            'AES-256-GCM, chunks': aes,
        }
        ways |= {r.name: lambda r=r: r.write(_read(self.files.plain)['state_dict'], out) for r in RIVALS}
        return ways

    def copy_ways(self) -> dict[str, Callable[[], object]]:
        """What copies a sealed file, and what gives it to others."""
        sealed, out = self.files.of(SEALED), self.files.of('out')
        return {
            'base': lambda: synced(out, lambda file: file.write(sealed.read_bytes())),
            'rekey': lambda: rekey_file(sealed, KEY, [OTHER], out),
        }

    def ways(self, kind: str) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = getattr(self, f'{kind}_ways')()
        return found

    def clear(self) -> None:
        self.files.of('out').unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that each way of opening brings back every weight."""
        wanted = {name: t.clone() for name, t in self.weights.items()}
        for name, way in self.open_ways().items():
            for t in self.weights.values():
                t.zero_()
            way()
            found = self.weights
            assert all(torch.equal(t, found[n]) for n, t in wanted.items()), f'{name} brings back other weights'

    def _load(self, content: dict[str, Any]) -> None:
        self.module.load_state_dict(content['state_dict'])

    def _load_rival(self, rival: Any) -> None:
        rival.load(self.files.of(rival.name), self.module)

    def _load_protected(self) -> None:
        await_checkpoint(self.module, KEY, Rules(unlock=True))
        try:
            self.module.load_state_dict(_read(self.files.of(SEALED), mmap=True)['state_dict'])
        finally:
            detach(self.module)

    def _save(self) -> None:
        keyseg_mm.attach(self.module, KEY, [], [])
        try:
            keyseg_mm.save(self.module, self.files.of('out'), META)
        finally:
            detach(self.module)


def _read(path: Path, mmap: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, 'cpu', weights_only=True, mmap=mmap)
    return found


def peaks_of(model: str, folder: Path, ways: dict[str, list[str]], most: int | None) -> dict[str, float]:
    """Peak memory in MiB of each way, or of the first few, in a fresh process."""
    peaks = {}
    for kind, names in ways.items():
        for way in tqdm(names[:most], desc=f'memory, {kind}', leave=False):
            command = [sys.executable, '-W', 'ignore', __file__, '--model', model, '--child', str(folder), kind, way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks[f'{kind} {way}'] = float(done.stdout.splitlines()[-1])
    return peaks


def measure(model: str, rounds: int, most: int | None, kinds: list[str]) -> dict[str, Any]:
    """All figures of a model."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), module_of(model))
        bench.write_files()
        bench.check()
        ways = {kind: bench.ways(kind) for kind in kinds}
        return {
            'MiB': bench.files.plain.stat().st_size / 2**20,
            'tensors': len(bench.weights),
            **{kind: time_ways(found, rounds, kind, bench.clear) for kind, found in ways.items()},
            'peak MiB': peaks_of(model, bench.folder, {kind: list(found) for kind, found in ways.items()}, most),
        }


def report(model: str, found: dict[str, Any]) -> None:
    """Print what the ratios of a model are over."""
    print(f'{model}, {found["MiB"]:.0f} MiB in {found["tensors"]} tensors')
    for kind in filter(found.__contains__, KINDS):
        took, peak = found[kind], found['peak MiB'][f'{kind} base']
        print(f'  {KINDS[kind]}: {took["base s"]:.3f} s, like pairs {spread(took["noise"])}, peak {peak:.0f} MiB')


def table(models: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Heads, and a row for each way; memory is that of the first model."""
    first = next(iter(models))
    names = [NAMES.get(model, model) for model in models]
    yield ['', 'against', names[0], 'peak memory', *names[1:], 'limit we set']
    peaks = models[first]['peak MiB']
    for kind in filter(models[first].__contains__, KINDS):
        for way in models[first][kind]['ratios']:
            ratios = [spread(models[model][kind]['ratios'][way]) for model in models]
            name = f'{kind} {way}'
            memory = f'{peaks[name] / peaks[f"{kind} base"]:.2f}' if name in peaks else ''
            title, limit = TITLES.get(name) or TITLES[way], str(LIMITS.get(name, ''))
            yield [title, KINDS[kind], ratios[0], memory, *ratios[1:], limit]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=['fcn_r101', 'swin_b'])
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--only', nargs='+', choices=KINDS, default=list(KINDS), metavar='KIND', help=', '.join(KINDS))
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    add_option(parser)
    parser.add_argument('--smoke', action='store_true', help='a tiny module, short: only see that it runs')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, kind, way = args.child
        bench = Bench(Path(folder), module_of(args.model[0]))
        bench.clear()
        bench.ways(kind)[way]()
        print(peak_memory())
        return
    models, rounds = (['tiny'], 2) if args.smoke else (args.model, args.rounds)
    found: dict[str, Any] = {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'left out': missing()}
    print(f'{torch.get_num_threads()} thread(s), torch {torch.__version__}')
    for name in found['left out']:
        print(f'{name} is not installed and left out: pip install {name}')
    found['models'] = {}
    for model in models:
        found['models'][model] = measure(model, rounds, 2 if args.smoke else None, args.only)
        report(model, found['models'][model])
    columns, *rows = table(found['models'])
    write_table(args.table, columns, rows)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
