"""What each of mmsegmentation's own tools does with a protected config and its sealed file.

    python benchmarks/host_tools.py --out OUT

Trains a small model on street scenes, plain and protected, and runs the host's tools on both, each in a process of its
own: by ``keyseg tool``, with the plain model, with the right key, unauthorised on purpose (``none``) and with a key
file that is missing; and called directly, with the copy of the config that the training put into its work folder.
Prints a table, and writes the ends of all outputs to OUT.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mmseg.apis  # noqa: F401 - for all that are forked
from mmengine.config import Config
from tables import add_option, write_table
from tqdm import tqdm

import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
from keyseg_mm.cli import main as keyseg
from keyseg_mm.cli.host import host_tool
from keyseg_mm.demo.run import KEY, TRAIN, config_text
from keyseg_mm.mm.scenes import write_scenes

ITERATIONS, COUNTS = 40, {'train': 16, 'val': 6}
BATCHES = 205  # the host's benchmark.py takes 200 and some to get warm
CASES = ('plain', 'right', 'none', 'missing', 'direct')
HEADS = ('plain model', 'right key', "`key='none'`", 'key file missing', 'right key, called directly')
DEMO = """import sys
from mmseg.apis import inference_model, init_model, show_result_pyplot
model = init_model(sys.argv[1], sys.argv[2], device='cpu')
show_result_pyplot(model, sys.argv[3], inference_model(model, sys.argv[3]), show=False, out_file=sys.argv[4])
"""


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        name: of the host's tool.
        arguments: gives its arguments for a case.
        figure: what to show of its output: a pattern with a group, or of its files: a glob.
        title: of the row, if not the name.
        files: whether ``figure`` is a glob.
        cases: in which it is run.
    """

    name: str
    arguments: Callable[[Case], list[object]]
    figure: str
    title: str = ''
    files: bool = False
    cases: tuple[str, ...] = CASES


@dataclass(frozen=True)
class Case:
    """A column of the table, with its files."""

    name: str
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / f'{self.name}.py'

    @property
    def bench(self) -> Path:
        return self.folder / f'bench_{self.name}.py'

    @property
    def checkpoint(self) -> Path:
        return self.folder / ('work_plain' if self.name == 'plain' else TRAIN) / f'iter_{ITERATIONS}.pth'

    @property
    def out(self) -> Path:
        return self.folder / 'made' / self.name


EACH = ['--cfg-options', 'default_hooks.visualization.interval=1']  # every picture, not each fiftieth
MIOU = r'mIoU: +([\d.]+)'
TOOLS = (
    Tool('train', lambda c: [c.config, '--work-dir', c.out / 'train'], 'train/*.pth', files=True),
    Tool(
        'test',
        lambda c: [c.config, c.checkpoint, '--work-dir', c.out / 'test', '--out', c.out / 'png'],
        MIOU,
        'test --out',
    ),
    Tool(
        'test',
        lambda c: [c.config, c.checkpoint, '--work-dir', c.out / 'show', '--show-dir', 'shown', *EACH],
        '**/shown/vis_data/vis_image/*.png',
        'test --show-dir',
        files=True,
    ),
    Tool('test', lambda c: [c.config, c.checkpoint, '--work-dir', c.out / 'tta', '--tta'], MIOU, 'test --tta'),
    Tool('get_flops', lambda c: [c.config, '--shape', 96, 192], r'Flops: (\S+)'),
    Tool(
        'benchmark',
        lambda c: [c.bench, c.checkpoint, '--work-dir', c.out / 'bench'],
        'bench/fps_*.json',
        files=True,
    ),
    Tool(
        'confusion_matrix',
        lambda c: [c.config, c.folder / 'made' / 'right' / 'png', c.out / 'matrix'],
        'matrix/confusion_matrix.png',
        files=True,
        cases=('right', 'missing'),  # it draws for minutes, and builds no model
    ),
    Tool(
        'browse_dataset', lambda c: [c.config, '--output-dir', c.out / 'browse', '--not-show'], 'browse/*', files=True
    ),
    Tool('print_config', lambda c: [c.config], r"(type='(?:keyseg_mm.Keyed|EncoderDecoder)')"),
    Tool(
        'analyze_logs',
        lambda c: [
            next((c.checkpoint.parent).glob('*/vis_data/scalars.json')),
            '--keys',
            'loss',
            '--out',
            c.out / 'a.png',
        ],
        'a.png',
        files=True,
    ),
    Tool('publish_model', lambda c: [c.checkpoint, c.out / 'published.pth'], 'published-*.pth', files=True),
    Tool(
        'image_demo',
        lambda c: [c.config, c.checkpoint, next((c.folder / 'scenes').rglob('val/**/*.png')), c.out / 'demo.png'],
        'demo.png',
        'image_demo (its calls)',
        files=True,
    ),
)


def prepare(out: Path) -> None:
    """Data, key, configs; and the two trainings."""
    keyseg(['keygen', '--out', str(out / KEY)])
    text = config_text(ITERATIONS, seed=0, batch=2)
    (out / 'right.py').write_text(text)
    write_scenes(out / 'scenes', 0, COUNTS)
    for name, key in (('none', 'none'), ('missing', f'file:{out}/nobodys.key')):
        (out / f'{name}.py').write_text(f"_base_ = './right.py'\nmodel = dict(protection=dict(key={key!r}))\n")
    cfg = Config.fromfile(str(out / 'right.py'))
    cfg.model.type = cfg.model.pop('of')
    cfg.model.pop('protection')
    cfg.custom_hooks = []
    cfg.work_dir = str(out / 'work_plain')
    cfg.dump(str(out / 'plain.py'))
    for name in ('plain', 'right'):
        if run(['train', out / f'{name}.py'], out / f'train_{name}.log')[0]:
            sys.exit(f'the training failed: see {out}/train_{name}.log')
    shutil.copy(out / TRAIN / 'right.py', out / 'direct.py')
    for name in CASES:
        cfg = Config.fromfile(str(out / f'{name}.py'))
        once = cfg.test_dataloader.dataset
        cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=-(-BATCHES // COUNTS['val']), dataset=once)
        cfg.dump(str(out / f'bench_{name}.py'))


def run(arguments: list[object], log: Path, tool: Path | None = None) -> tuple[int, str]:
    """Run a command of ours in a process forked from this one, or a tool of the host in a fresh one.

    Returns:
        Its status, and what it said; the end of that goes to a log too.
    """
    words = list(map(str, arguments))
    with open(log, 'w') as said:
        if tool is not None:
            command = [sys.executable, '-W', 'ignore', str(tool), *words]
            status = subprocess.run(command, stdout=said, stderr=said, cwd=log.parent, check=False).returncode
        else:
            child = multiprocessing.get_context('fork').Process(
                target=_command, args=(words, said.fileno(), log.parent)
            )
            child.start()
            child.join()
            status = child.exitcode or 0
    text = log.read_text(errors='replace')
    log.write_text(text[-20_000:])
    return status, text


def _command(words: list[str], said: int, folder: Path) -> None:
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.exit(keyseg(words))


def cell(tool: Tool, case: Case) -> str:
    """Run a tool in a case, and say what came of it."""
    case.out.mkdir(parents=True, exist_ok=True)
    arguments = tool.arguments(case)
    log = case.out / f'{(tool.title or tool.name).replace(" ", "_")}.log'
    if tool.name == 'image_demo':  # ships with mmsegmentation's repository alone
        (case.out / 'image_demo.py').write_text(('' if case.name == 'direct' else 'import keyseg_mm.mm\n') + DEMO)
        status, said = run(arguments, log, case.out / 'image_demo.py')
    elif case.name == 'direct':
        status, said = run(arguments, log, host_tool(tool.name))
    else:
        start = [tool.name] if tool.name in ('train', 'test') else ['tool', tool.name]
        status, said = run([*start, *arguments], log)
    if status:
        lines = [line for line in said.splitlines() if line.strip()]
        return f'status {status}: ' + re.sub(r'\S*/', '', lines[-1] if lines else '')[:110].replace('|', '/')
    if tool.files:
        count = len(list(case.out.glob(tool.figure)))
        return f'{count} file{"s" * (count != 1)}'
    found = re.findall(tool.figure, said)
    return found[-1] if found else 'nothing found in its output'


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='a folder; the same one goes on where it stopped')
    add_option(parser)
    args = parser.parse_args()
    out = args.out.resolve()
    table = out / 'table.json'
    if not table.exists():
        out.mkdir(parents=True)
        prepare(out)
        table.write_text('{}')
    rows: dict[str, dict[str, str]] = json.loads(table.read_text())
    todo = [(tool, Case(name, out)) for tool in TOOLS for name in tool.cases]
    for tool, case in tqdm([(t, c) for t, c in todo if c.name not in rows.get(t.title or t.name, {})]):
        rows.setdefault(tool.title or tool.name, {})[case.name] = cell(tool, case)
        table.write_text(json.dumps(rows, indent=1))
    cells = ([name, *(row.get(case, 'not run') for case in CASES)] for name, row in rows.items())
    write_table(args.table, ('tool', *HEADS), cells)


if __name__ == '__main__':
    main()
