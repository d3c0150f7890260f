#!/usr/bin/env python
"""What a sealed file costs to open and to write, against a plain one and against what else encrypts models.

    python benchmarks/sealing.py [--model fcn_r101 swin_b] [--rounds 12] [--json FILE] [--smoke]

Modules with the shapes of FCN-R101 and of UPerNet-Swin-B get random weights and files; the host is not needed. Then by
turns, in one process:

  open    a file into the parameters of a module, against ``torch.load`` and ``load_state_dict`` of a plain file: that
          file mapped; sealed, mapped and not; signed; encrypted as a whole with AES-256-GCM, at once as people do, and
          in chunks, in place and in threads; safetensors, mapped and not encrypted; tensorizer (XSalsa20-Poly1305) and
          cryptotensors (AES-256-GCM) with their encryption
  write   a plain file read and written again, to the disk, against the same with the weights sealed where they lie,
          and encrypted otherwise; ``sealed, live`` seals a module's parameters, which stay as they are, and reads none

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rivals import RIVALS, AesInPlace, Files, missing, synced
from shapes import MODELS, module_of
from timing import peak_memory, time_ways
from torch import Tensor, nn
from tqdm import tqdm

from keyseg_mm.envelope import read_seal, write_seal
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.seal.tensors import open_tensors, seal_tensors

HEAD, META, SECTION = b'the stamp', {'epoch': 3}, 'state_dict'
# One content key for all rounds: only the time counts, and the weights are made up. A real one is drawn for each file.
CONTENT = SecretKey(bytes(range(32)))


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
        for mode in ('sealed', 'signed'):
            tensors, seal = seal_tensors(self.weights, CONTENT, SECTION, HEAD, META, mode)
            torch.save({'meta': META, 'state_dict': tensors, 'seal': json.dumps(write_seal(seal))}, self.files.of(mode))
        self.files.of('aes').write_bytes(AESGCM(AesInPlace.KEY).encrypt(bytes(12), self.files.plain.read_bytes(), None))
        AesInPlace().write(self.files.plain.read_bytes(), self.files.of('aes chunks'))
        for rival in RIVALS:
            rival.write(self.weights, self.files.of(rival.name))

    def open_ways(self) -> dict[str, Callable[[], object]]:
        """What gets a file's weights into the module, and the base that it is compared with."""
        ways: dict[str, Callable[[], object]] = {
            'base': lambda: self._load(_read(self.files.plain)),
            'plain, mapped': lambda: self._load(_read(self.files.plain, mmap=True)),
            'sealed, mapped': lambda: self._open('sealed', mmap=True),
            'sealed': lambda: self._open('sealed', mmap=False),
            'signed, mapped': lambda: self._open('signed', mmap=True),
            'AES-256-GCM, at once': lambda: self._load(AesInPlace.opened_at_once(self.files.of('aes'))),
            'AES-256-GCM, chunks': lambda: self._load(AesInPlace().opened(self.files.of('aes chunks'))),
        }
        ways |= {rival.name: lambda r=rival: self._load_rival(r) for rival in RIVALS}
        return ways

    def write_ways(self) -> dict[str, Callable[[], object]]:
        """What reads a plain file and writes another."""
        out = self.files.of('out')

        def aes() -> None:
            AesInPlace().write(self.files.plain.read_bytes(), out)

        ways: dict[str, Callable[[], object]] = {
            'base': lambda: synced(out, lambda file: torch.save(_read(self.files.plain), file)),
            'sealed': lambda: self._seal(_read(self.files.plain)['state_dict'], own=True),
            'sealed, live': lambda: self._seal(self.weights, own=False),
            'AES-256-GCM, chunks': aes,
        }
        ways |= {r.name: lambda r=r: r.write(_read(self.files.plain)['state_dict'], out) for r in RIVALS}
        return ways

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

    def _open(self, mode: str, mmap: bool) -> None:
        content = _read(self.files.of(mode), mmap=mmap)
        into = self.module.state_dict(keep_vars=True)
        seal = read_seal(json.loads(content['seal']))
        opened = open_tensors(content['state_dict'], CONTENT, seal, HEAD, content['meta'], into=into)
        self.module.load_state_dict(opened)  # of sealed ones it copies nothing: they are there

    def _seal(self, tensors: dict[str, Tensor], own: bool) -> None:
        sealed, seal = seal_tensors(tensors, CONTENT, SECTION, HEAD, META, own=own)
        content = {'meta': META, 'state_dict': sealed, 'seal': json.dumps(write_seal(seal))}
        synced(self.files.of('out'), lambda file: torch.save(content, file))


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


def measure(model: str, rounds: int, most: int | None) -> dict[str, Any]:
    """All figures of a model."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), module_of(model))
        bench.write_files()
        bench.check()
        opening, writing = bench.open_ways(), bench.write_ways()
        return {
            'MiB': bench.files.plain.stat().st_size / 2**20,
            'tensors': len(bench.weights),
            'open': time_ways(opening, rounds, 'opening'),
            'write': time_ways(writing, rounds, 'writing', lambda: bench.files.of('out').unlink(missing_ok=True)),
            'peak MiB': peaks_of(model, bench.folder, {'open': list(opening), 'write': list(writing)}, most),
        }


def report(model: str, found: dict[str, Any]) -> None:
    """Print the figures of a model."""
    print(f'{model}, {found["MiB"]:.0f} MiB in {found["tensors"]} tensors')
    for kind in ('open', 'write'):
        took, base = found[kind], found['peak MiB'][f'{kind} base']
        n = took['noise']
        print(f'  {kind:28}{"ratio":>7}  quartiles        peak MiB')
        print(f'    {"base":24}{1:9.3f}  {took["base s"]:.3f} s{base:18.0f}')
        print(f'    {"noise":24}{n["median"]:9.3f}  [{n["q1"]:.3f}, {n["q3"]:.3f}]')
        for way, r in took['ratios'].items():
            peak = found['peak MiB'].get(f'{kind} {way}')
            memory = f'{peak:11.0f}' if peak else ''
            print(f'    {way:24}{r["median"]:9.3f}  [{r["q1"]:.3f}, {r["q3"]:.3f}]{memory}')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', nargs='+', choices=MODELS, default=['fcn_r101', 'swin_b'])
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    parser.add_argument('--smoke', action='store_true', help='a tiny module, short: only see that it runs')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, kind, way = args.child
        bench = Bench(Path(folder), module_of(args.model[0]))
        (bench.open_ways() if kind == 'open' else bench.write_ways())[way]()
        print(peak_memory())
        return
    models, rounds = (['tiny'], 2) if args.smoke else (args.model, args.rounds)
    found: dict[str, Any] = {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'left out': missing()}
    print(f'{torch.get_num_threads()} thread(s), torch {torch.__version__}')
    for name in found['left out']:
        print(f'{name} is not installed and left out: pip install {name}')
    found['models'] = {}
    for model in models:
        found['models'][model] = measure(model, rounds, 2 if args.smoke else None)
        report(model, found['models'][model])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
