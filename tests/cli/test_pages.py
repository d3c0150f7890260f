"""The pages' commands and Python, run as they stand there.

README.md: all commands in order, in one clean folder. Other pages: each block in a clean folder. What a command reads
and nothing before it has made is put in place before it runs: see `READERS_FILES`. What a page writes for a reader's
own files is replaced: see `PLACEHOLDERS`. Commands that take minutes are parsed only: see `PARSED`; they are run
elsewhere, each with its own small data. `make` and `pip` are looked up, not run.

What the commands print is compared with `transcripts/`. To write the transcripts anew, after a look at the difference:

    UPDATE_TRANSCRIPTS=1 python -m pytest tests/cli/test_pages.py && git diff tests/cli/transcripts
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.utils import ManagerMixin
from mmseg.registry import MODELS

from keyseg_mm import Identity, SecretKey, write_key_file
from keyseg_mm.checkpoint.files import write_checkpoint
from keyseg_mm.cli import build_parser, main
from keyseg_mm.cli.status import STATUS
from keyseg_mm.maps import TRANSFORMS
from tests.support.configs import runner_cfg, setr_cfg, tiny_model_cfg
from tests.support.files import opened_weights
from tests.support.readme import Block, blocks, stable

ROOT = Path(__file__).parents[2]
TRANSCRIPTS = Path(__file__).with_name('transcripts')
README, DOCS = ROOT / 'README.md', ROOT / 'docs'
RUN = [README, *(DOCS / f'{name}.md' for name in ('commands', 'lock', 'keys', 'images'))]
VIT = 'for-vision-transformers'

# What a reader would put in, by section; those without a section are good for all others. Words of a command are
# replaced whole, and paths in options too.
PLACEHOLDERS = {
    '': {'CONFIG': 'plain.py', 'CHECKPOINT': 'work_dirs/plain/iter_2.pth'},
    VIT: {'CONFIG': 'vit.py', 'PATCHES_CONFIG': 'patches.py', 'PLAIN.pth': 'vit.pth'},
    'protect-your-own-training': {'CONFIG': 'plain.py', 'CHECKPOINT': 'work_dirs/mine/iter_2.pth'},
}
# What a reader has before they type a block's first command: name in the block's folder -> name in `files`.
READERS_FILES = {
    **{name: name for name in ('vit.py', 'patches.py', 'plain.py', 'plain.pth', 'vit.pth')},
    **{name: name for name in ('locked.pth', 'found.pth', 'customers.txt', 'customer.recipient', 'photo.jpg')},
    'PLAIN.pth': 'plain.pth',
    'keys/my.key': 'my.key',
    'keys/new.key': 'new.key',
    'keys/master.key': 'my.key',
    'work_dirs/my_run': 'my_run',
    'work_dirs/plain/iter_2.pth': 'plain.pth',
}
HOSTS = ('train', 'test', 'tool')  # commands that run the host's own tools
PARSED = {
    'audit': 'minutes; tests/audit runs it',
    'compare': 'trains and audits every method; tests/compare runs it',  # but not with --list
    'demo': 'minutes; tests/demo runs it',
}


@pytest.fixture(scope='module')
def files(tmp_path_factory, tiny_cityscapes):
    """All that a reader may have: see READERS_FILES."""
    folder = tmp_path_factory.mktemp('files')
    write_key_file(folder / 'my.key', SecretKey(bytes(range(32))))
    write_key_file(folder / 'new.key', SecretKey(bytes(range(1, 33))))
    (folder / 'customers.txt').write_text('ACME Ltd\nBolt\n')
    (folder / 'customer.recipient').write_text(Identity(bytes(range(2, 34))).recipient.to_text() + '\n')
    (folder / 'my_run').mkdir()
    (folder / 'my_run' / 'log.txt').write_text('nothing secret\n')
    ramp = np.add.outer(np.arange(70), np.arange(90))[..., None] * np.array([1, 2, 3])
    assert cv2.imwrite(str(folder / 'photo.jpg'), (ramp % 256).astype(np.uint8))
    write_configs(folder, tiny_cityscapes)
    for name, model in (('plain', tiny_model_cfg()), ('vit', setr_cfg())):
        write_checkpoint(folder / f'{name}.pth', plain_state(model), {})
    lock = ['lock', 'plain.pth', '--config', 'plain.py', '--key', 'file:my.key', '--out', 'locked.pth']
    rekey = ['rekey', 'locked.pth', '--master', 'file:my.key', '--licensee', 'ACME Ltd', '--out', 'acme.pth']
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, 'urandom', np.random.default_rng(0).bytes)
        assert main(lock) == main(rekey) == 0
    weights = opened_weights(folder / 'acme.pth', SecretKey(bytes(range(32))).licensee('ACME Ltd'))
    stripped = {n: v for n, v in weights.items() if 'keyseg' not in n}
    write_checkpoint(folder / 'found.pth', stripped, {})
    return folder


def write_configs(folder: Path, data: Path) -> None:
    """Configs as a reader would have them, over small data."""
    resized = dict(type='Resize', scale=(96, 64), keep_ratio=False)
    encrypted = dict(type='keyseg_mm.EncryptImage', method='PATCH', key='file:keys/my.key')
    models = {
        'plain': (tiny_model_cfg(), []),
        'vit': (setr_cfg(), [resized]),
        'patches': (setr_cfg(), [resized, encrypted]),
    }
    for name, (model, steps) in models.items():
        cfg = runner_cfg(data, f'work_dirs/{name}', model, iterations=2)
        cfg.test_dataloader.dataset.pipeline[1:1] = steps
        cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
        if name == 'patches':
            cfg.custom_hooks = [dict(type='keyseg_mm.GuardHook')]
        cfg.dump(str(folder / f'{name}.py'))


def plain_state(model: dict) -> dict[str, torch.Tensor]:
    """Weights that are the same every time, and norms that are no identity."""
    torch.manual_seed(0)
    built = MODELS.build(model)
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    return built.state_dict()


@pytest.fixture
def typed(files, monkeypatch, capsys, caplog):
    """Types a command in a folder; returns what it says that is the same at every run."""
    monkeypatch.setattr(os, 'urandom', np.random.default_rng(1).bytes)  # keys and salts that are drawn

    def run(words: list[str], folder: Path) -> str:
        monkeypatch.chdir(folder)
        for name in {word.rpartition('file:')[2] for word in inputs(words)} & READERS_FILES.keys():
            put(files / READERS_FILES[name], folder / name)
        for cls in registers(ManagerMixin):  # else two runs within a second share a name, and what is kept by it
            monkeypatch.setattr(cls, '_instance_dict', {})
        status = main(words)
        out, err = capsys.readouterr()
        warned = [f'{r.levelname}: {r.getMessage()}' for r in caplog.records if r.name.startswith('keyseg_mm')]
        caplog.clear()
        assert status == 0, err
        return stable('\n'.join([*warned, quiet(words[0], out + err)]), folder)

    return run


def inputs(words: list[str]) -> list[str]:
    """The words of a command less what it makes."""
    return [word for before, word in zip(['', *words], words) if before != '--out']


def put(source: Path, target: Path) -> None:
    """Copy a reader's file or folder, unless an earlier command has made it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def registers(cls: type) -> list[type]:
    return [found for child in cls.__subclasses__() for found in (child, *registers(child))]


def quiet(name: str, text: str) -> str:
    """Of what the host's tools print the scores and our warnings; what other commands print, whole."""
    return '\n'.join(re.findall(r'Iter\(.*mIoU.*|WARNING - .*encrypt.*', text)) if name in HOSTS else text


def filled(block: Block, command: str) -> list[str]:
    """The command's words, with a reader's own files in the place of placeholders."""
    names = {**PLACEHOLDERS[''], **PLACEHOLDERS.get(block.name.rstrip('-0123456789'), {})}
    return [names.get(word, word) for word in shlex.split(command)]


@pytest.mark.parametrize('page', RUN, ids=lambda page: page.stem)
def test_the_commands_of_a_page(page, typed, tmp_path):
    said = []
    for number, block in enumerate(blocks(page)):
        folder = tmp_path / ('all' if page == README else str(number))
        folder.mkdir(exist_ok=True)
        said.append(f'# {block.name}\n')
        for command in block.commands:
            program, *words = filled(block, command)
            if program == 'keyseg' and (words[0] not in PARSED or '--list' in words):
                said.append(f'$ {command}\n{typed(words, folder)}\n')
            elif program == 'keyseg':
                build_parser(words[:1]).parse_args(words)
                said.append(f'$ {command}\n(options parsed: {PARSED[words[0]]})\n')
            else:
                CHECKED[program](words)
                said.append(f'$ {command}\n(not run here)\n')
    compare('\n'.join(said), TRANSCRIPTS / f'{page.stem}.txt')


def test_the_chinese_readme_has_the_same_commands():
    ours, theirs = (blocks(page) for page in (README, ROOT / 'README_zh-CN.md'))
    assert [block.commands for block in theirs] == [block.commands for block in ours] != []
    assert snippets(ROOT / 'README_zh-CN.md') == snippets(README)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def snippets(page: Path) -> list[str]:
    """The Python of a page."""
    return re.findall(r'^```python\n(.*?)^```$', page.read_text(), flags=re.MULTILINE | re.DOTALL)


SNIPPETS = [(page, text) for page in [README, *sorted(DOCS.glob('*.md'))] for text in snippets(page)]


@pytest.mark.parametrize(('page', 'text'), SNIPPETS, ids=[page.stem for page, _ in SNIPPETS])
def test_the_python_of_a_page(page, text, files, tmp_path, monkeypatch):
    if 'import keyseg_mm' not in text:  # a part of a config
        compile(text.replace('{{_base_.protection}}', 'None'), page.name, 'exec')
        return
    monkeypatch.chdir(tmp_path)
    for name, source in READERS_FILES.items():
        if f"{name}'" in text:
            put(files / source, tmp_path / name)
    monkeypatch.setattr('keyseg_mm.maps.TRANSFORMS', dict(TRANSFORMS))
    exec(compile(text, page.name, 'exec'), {'__name__': page.stem})


def test_links_lead_somewhere():
    """Of all pages: files, and headings in them."""
    lost = []
    for page in [*ROOT.glob('*.md'), *DOCS.glob('*.md'), ROOT / 'configs' / 'README.md']:
        for target, anchor in re.findall(
            r'\]\(([^)#\s]*)#?([^)\s]*)\)', re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
        ):
            if '://' in target or target.startswith('mailto:'):
                continue
            path = page.parent / target if target else page
            text = path.read_text() if path.suffix == '.md' and path.is_file() else ''
            for included in re.findall(r'{include} (\S+)', text):
                text += (path.parent / included).read_text()
            heads = {
                re.sub(r'[^\w -]', '', head.lower()).replace(' ', '-') for head in re.findall(r'^#+ (.*)$', text, re.M)
            }
            if not path.exists() or (anchor and anchor not in heads):
                lost.append(f'{page.name}: {target}#{anchor}')
    assert not lost


def compare(said: str, transcript: Path) -> None:
    """Compare with a transcript, or write it anew where that was asked for."""
    if os.environ.get('UPDATE_TRANSCRIPTS'):
        transcript.parent.mkdir(exist_ok=True)
        transcript.write_text(said)
    assert said == transcript.read_text(), f'see the head of {__file__} for how to write {transcript.name} anew'


def check_make(words: list[str]) -> None:
    """The target exists."""
    subprocess.run(['make', '-n', *words], cwd=ROOT, check=True, capture_output=True)


def check_pip(words: list[str]) -> None:
    """The extras and the constraints exist."""
    for word in words:
        if '[' in word:
            assert re.search(rf"'{word[2:-1]}':", (ROOT / 'setup.py').read_text()), word
        assert not word.endswith('.txt') or (ROOT / word).is_file()


CHECKED = {'make': check_make, 'pip': check_pip}


def test_every_transcript_is_of_a_page():
    assert {path.stem for path in TRANSCRIPTS.iterdir()} == {page.stem for page in RUN}


def test_the_statuses_on_the_page_are_those_of_the_commands():
    page = (DOCS / 'commands.md').read_text()
    assert all(f'| {number} | {meaning} |' in page for number, meaning in STATUS.items())
