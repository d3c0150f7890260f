"""The commands that are killed, what they are given, and what they make."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mmengine.config.config as config
import mmengine.runner.runner as runner
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from yapf.yapflib import yapf_api

from keyseg_mm import Identity, SecretKey, write_key_file
from keyseg_mm.audit.engine.attack import IMAGE_SUITES, SUITES, ModelSuite, Suite
from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.cli import main
from keyseg_mm.compare import trial
from keyseg_mm.demo import run as demo
from tests.support.configs import keyed_cfg, normed_model, runner_cfg, setr_cfg, tiny_model_cfg
from tests.support.data import write_tiny_cityscapes
from tests.support.families import build

KEY, OTHER = SecretKey(bytes(range(100, 132))), SecretKey(bytes(range(50, 82)))
IDENTITY = Identity(bytes(range(10, 42)))
ENCRYPTED = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='keyseg_mm.EncryptImage', key='file:right.key', method='NP'),
    dict(type='PackSegInputs'),
]


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        arguments: of ``keyseg``, where ``{made}`` is the folder of what it is given; it writes to the current folder.
        kills: how many of a thousand.
        opens: pattern of the files that it makes in the open, on purpose.
        before: files that are there already, by name, and what of ``made`` they are copies of.
    """

    arguments: str
    kills: int
    opens: str = 'nothing'
    before: dict[str, str] = field(default_factory=dict)


_KEY = '--key file:{made}/right.key'
_MASTER = '--master file:{made}/right.key --licensee ACME'
COMMANDS = {
    'lock': Command(f'lock {{made}}/plain.pth {_KEY} --out out.pth', 70),
    'lock, maps too': Command(
        f'lock {{made}}/plain.safetensors --config {{made}}/plain.py {_KEY} --out out.safetensors', 60
    ),
    'lock --overwrite': Command(
        f'lock {{made}}/plain.pth {_KEY} --out out.pth --overwrite', 70, before={'out.pth': 'other.pth'}
    ),
    'unlock': Command(f'unlock {{made}}/mapped.pth {_KEY} --out out.pth', 70, opens='.*'),
    'unlock, .safetensors': Command(f'unlock {{made}}/locked.safetensors {_KEY} --out out.safetensors', 70, opens='.*'),
    'unlock --overwrite': Command(
        f'unlock {{made}}/locked.pth {_KEY} --out out.pth --overwrite', 70, opens='.*', before={'out.pth': 'plain.pth'}
    ),
    'rekey': Command(
        f'rekey {{made}}/locked.pth {_KEY} --to file:{{made}}/a.recipient --new-key file:{{made}}/right.key '
        '--out out.pth',
        65,
    ),  # fmt: skip
    'rekey --reseal': Command(
        f'rekey {{made}}/locked.safetensors {_KEY} --new-key file:{{made}}/right.key --reseal --out out.safetensors', 65
    ),
    'rekey --licensee': Command(f'rekey {{made}}/mapped.pth {_MASTER} --out out.pth', 65),
    'keygen': Command('keygen --out keys/out.key', 60),
    'keygen --identity': Command('keygen --identity --post-quantum --out out.key', 60),
    'keygen --passphrase': Command('keygen --passphrase --out out.key', 55),
    'tool encrypt_images': Command(
        f'tool encrypt_images {{made}}/images out {_KEY} --checkpoint {{made}}/patches.pth', 60
    ),
    'train': Command('train {made}/keyed.py --work-dir out', 65),
    'demo': Command('demo --out out --iterations 2', 22, opens='run/out/in-the-open.pth'),
    'audit': Command(f'audit {{made}}/keyed.py {{made}}/mapped.pth {_KEY} --suite quick --out out', 28),
    'audit --images': Command(f'audit {{made}}/images.py {_KEY} --suite quick --out out', 25),
    'compare': Command(
        'compare {made}/plain.py --plain {made}/plain.pth --methods lock-signed --wrong-keys 1 --out out',
        20,
        opens='.*',
    ),  # fmt: skip
}


def make(made: Path) -> None:
    """Make what the commands are given, small."""
    init_default_scope('mmseg')
    made.mkdir(parents=True)
    data = write_tiny_cityscapes(made / 'data')
    for name, key in (('right', KEY), ('other', OTHER)):
        write_key_file(made / f'{name}.key', key)
    (made / 'a.recipient').write_text(IDENTITY.recipient.to_text() + '\n')
    state, meta = normed_model().state_dict(), {'dataset_meta': {'classes': ['road', 'sky']}}
    for suffix in ('.pth', '.safetensors'):
        write_checkpoint(made / f'plain{suffix}', state, meta)
    _configs(made, data)
    for source, out, more in (
        ('plain.pth', 'locked.pth', ()),
        ('plain.pth', 'other.pth', ('--to', f'file:{made}/a.recipient')),
        ('plain.safetensors', 'locked.safetensors', ()),
        ('plain.pth', 'mapped.pth', ('--config', made / 'plain.py')),
    ):
        _keyseg('lock', made / source, '--key', f'file:{made}/right.key', '--out', made / out, *more)
    setr = setr_cfg()
    Config(dict(model=setr.to_dict())).dump(str(made / 'setr.py'))
    torch.save({'state_dict': build(setr).state_dict()}, made / 'setr.pth')
    _keyseg('lock', made / 'setr.pth', '--config', made / 'setr.py', '--scheme', 'patches',
            '--key', f'file:{made}/right.key', '--out', made / 'patches.pth')  # fmt: skip
    shutil.copytree(data / 'leftImg8bit' / 'train' / 'town', made / 'images')


def _configs(made: Path, data: Path) -> None:
    runner_cfg(data, 'work', tiny_model_cfg(), iterations=2).dump(str(made / 'plain.py'))
    keyed = runner_cfg(data, 'work', keyed_cfg(tiny_model_cfg(), f'file:{made}/right.key'), iterations=2)
    keyed.custom_hooks.append(dict(type='EMAHook'))
    keyed.optim_wrapper.optimizer = dict(type='AdamW', lr=0.001)
    keyed.dump(str(made / 'keyed.py'))
    images = runner_cfg(data, 'work', tiny_model_cfg(), iterations=2)
    encrypted = [{**step, 'key': f'file:{made}/right.key'} if 'key' in step else step for step in ENCRYPTED]
    for loader in (images.train_dataloader, images.val_dataloader, images.test_dataloader):
        loader.dataset.pipeline = encrypted
    images.dump(str(made / 'images.py'))


def _keyseg(*arguments: object) -> None:
    if main([str(part) for part in arguments]):
        raise RuntimeError(f'keyseg {arguments[0]} failed')


def shrink(run_command: Callable[..., int]) -> None:
    """Let demo, audit and compare do as little as they can; ``run_command`` runs the steps of a comparison."""
    demo.COUNTS, demo.WRONG_TABLES = {'train': 2, 'val': 2}, ('random:1',)
    SUITES['quick'] = ModelSuite(1, 0.2, 2, 2, 64, (0.5,))
    IMAGE_SUITES['quick'] = Suite(1, 0.2, 2, 2, 64)
    trial.run_command = run_command
    runner.collect_env = dict  # asks compilers for their versions
    for owner in (config, yapf_api):  # lays out every config that is dumped
        owner.FormatCode = lambda text, **_: (text, True)
