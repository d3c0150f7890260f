"""Exported models beside PyTorch and the plain graph: mIoU, speed and loading, with the right, a wrong and no key.

    python benchmarks/exported.py CONFIG PLAIN.pth --data-root DIR --out exported.json

A plain checkpoint of the config is locked at ``stages``, where that can be, and at ``linear``, and exported: sealed,
and with the keys as inputs of the graph. Everything runs on one thread; what is compared runs by turns. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from common import PROTECTED, quiet
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS
from tables import add_option, spread, write_table

from keyseg_mm import SecretKey, load, plan_lock
from keyseg_mm.atomic import write_json
from keyseg_mm.checkpoint.operations import lock_file
from keyseg_mm.deploy import load as load_graph
from keyseg_mm.deploy import read_exported
from keyseg_mm.deploy.exporting import export_file
from keyseg_mm.deploy.graph import Form, Graph
from keyseg_mm.errors import LockError
from keyseg_mm.mm.config import build_plain_model, innermost, read_config
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.floor import constant_prediction_floor

KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
Run = Callable[[np.ndarray], np.ndarray]
COLUMNS = ('', 'mIoU', 'no key', 'tables of nobody', 'time', 'loading')
RUNTIMES = {'onnxruntime': 'onnxruntime', 'openvino': 'OpenVINO'}
TITLES = {
    'plain graph': 'plain graph',
    'linear.sealed': 'sealed graph',
    'stages.keyed': 'keys as inputs, `stages`',
    'linear.keyed': 'keys as inputs, `linear`',
}


def photos(cfg: Any, root: str, count: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Photos as they are read, (1, H, W, 3), and their labels (H, W)."""
    settings = innermost(cfg.test_dataloader.dataset)
    settings.data_root = root
    data = DATASETS.build(settings)
    for index in range(0, len(data), max(1, len(data) // count)):
        item = data[index]
        yield item['inputs'].permute(1, 2, 0)[None].numpy(), item['data_samples'].gt_sem_seg.data[0]


def score(run: Run, shots: list[tuple[np.ndarray, torch.Tensor]], classes: int) -> float:
    """mIoU in per cent, of the classes that are there."""
    areas = [
        IoUMetric.intersect_and_union(torch.from_numpy(run(photo)[0].argmax(0)), label, classes, 255)
        for photo, label in shots
    ]
    inside, union = (sum(area[i] for area in areas) for i in (0, 1))
    return 100 * float(np.nanmean((inside / union).numpy()))


def in_onnxruntime(source: Any, key: Any) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if key is None:  # an ordinary graph
        session = onnxruntime.InferenceSession(source, options)
    else:
        session = load_graph(source, key, sess_options=options)
    return lambda photo: session.run(None, {'image': photo})[0]


def in_openvino(source: Any, key: Any) -> Run:
    config = {'INFERENCE_NUM_THREADS': 1, 'INFERENCE_PRECISION_HINT': 'f32'}
    if key is None:
        model = openvino.Core().compile_model(openvino.Core().read_model(source), 'CPU', config)
    else:
        model = load_graph(source, key, 'openvino', config=config)
    return lambda photo: model([photo])[0]


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def ratios(plain: Callable[[], object], other: Callable[[], object], rounds: int) -> list[float]:
    """Quartiles of other / plain, by turns, the plain one before and after."""
    plain(), other()
    found = []
    for _ in range(rounds):
        before, it, after = seconds(plain), seconds(other), seconds(plain)
        found.append(2 * it / (before + after))
    return statistics.quantiles(found, n=4)


def wrong(run_with: Callable[[dict[str, np.ndarray]], np.ndarray], tables: dict[str, np.ndarray]) -> np.ndarray:
    """What a graph gives for the tables of nobody: each of the right kind, drawn anew."""
    draw = np.random.default_rng(0)
    made = {
        name: draw.permutation(len(table)) if table.dtype == np.int64 else draw.permutation(table)
        for name, table in tables.items()
    }
    return run_with(made)


def measure(args: argparse.Namespace, cfg: Any, folder: Path) -> dict[str, Any]:
    plain = build_plain_model(cfg)
    load(plain, args.checkpoint)
    shots = list(photos(cfg, args.data_root, args.photos))
    photo, classes = shots[0][0], plain.num_classes
    form = Form(size=photo.shape[1:3], preprocessing=True)
    whole = Graph(plain.eval(), form)

    def in_torch(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return whole(torch.from_numpy(image)).numpy()

    floor = constant_prediction_floor((label.numpy() for _, label in shots), classes)
    found: dict[str, Any] = {'photos': len(shots), 'floor': floor, 'torch': score(in_torch, shots, classes)}
    made = []
    for points, transform in PROTECTED.items():
        try:
            plan = plan_lock(plain, points, transform, trace_module(plain))
            lock_file(args.checkpoint, plain, plan, KEY, folder / f'{points}.pth')
        except LockError as error:  # something reads a map that cannot carry it
            found[points] = str(error)
            continue
        for kind in ('sealed', 'keyed') if points == 'linear' else ('keyed',):
            made.append(f'{points}.{kind}')
            export_file(cfg, folder / f'{points}.pth', KEY, folder / made[-1], form, keyed=kind == 'keyed')
    opened = folder / 'plain.onnx'
    opened.write_bytes(bytes(read_exported(folder / 'linear.sealed', KEY).graph))
    for name, start in {'onnxruntime': in_onnxruntime, 'openvino': in_openvino}.items():
        found[name] = compare(start, opened, [folder / kind for kind in made], shots, classes, args.rounds)
    return found


def compare(
    start: Callable[[Any, Any], Run], plain: Path, made: list[Path], shots: list[Any], classes: int, rounds: int
) -> dict[str, Any]:
    """Graphs beside the plain one in one runtime: what they score, how fast they run, and how fast they load."""
    base, photo = start(str(plain), None), shots[0][0]

    def load_plain() -> Run:
        return start(str(plain), None)

    rows: dict[str, Any] = {'plain graph': {'miou': score(base, shots, classes)}}
    rows['plain graph']['seconds'] = statistics.median(seconds(lambda: base(photo)) for _ in range(9))
    rows['plain graph']['load seconds'] = statistics.median(seconds(load_plain) for _ in range(5))
    for path in made:
        run, load_it = start(path, KEY), partial(start, path, KEY)
        rows[path.name] = row = {
            'miou': score(run, shots, classes),
            'time': ratios(lambda: base(photo), partial(run, photo), rounds),
            'load': ratios(load_plain, load_it, 5),
            'load seconds': statistics.median(seconds(load_it) for _ in range(5)),
        }
        if path.name.endswith('keyed'):
            row['no key'] = score(start(path, 'none'), shots, classes)
            if start is in_onnxruntime:
                row['wrong key'] = wrong_key(path, shots, classes)
    return rows


def wrong_key(path: Path, shots: list[tuple[np.ndarray, torch.Tensor]], classes: int) -> float:
    bare, tables = onnxruntime.InferenceSession(path.read_bytes()), read_exported(path, KEY).tables
    return score(lambda photo: wrong(lambda made: bare.run(None, {'image': photo, **made})[0], tables), shots, classes)


def table(found: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each graph in each runtime; times over those of the plain graph, medians and quartiles."""
    yield ['PyTorch', f'{found["torch"]:.2f}', '', '', '', '']
    for runtime, name in RUNTIMES.items():
        for kind, title in TITLES.items():
            if kind not in found[runtime]:
                continue
            row = found[runtime][kind]
            if kind == 'plain graph':
                took = [f'1 ({1e3 * row[what]:.0f} ms)' for what in ('seconds', 'load seconds')]
            else:
                took = [spread(dict(zip(('q1', 'median', 'q3'), row[what]))) for what in ('time', 'load')]
            strangers = [f'{row[what]:.2f}' if what in row else '' for what in ('no key', 'wrong key')]
            strangers = ['does not load', ''] if kind.endswith('sealed') else strangers
            yield [f'{name}, {title}', f'{row["miou"]:.2f}', *strangers, *took]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path, help='plain, of the config')
    parser.add_argument('--data-root', required=True, help="folder of the config's test data")
    parser.add_argument('--photos', type=int, default=100, help='at most so many of its photos, spread evenly (100)')
    parser.add_argument('--rounds', type=int, default=21, help='of each comparison of speed (21)')
    parser.add_argument('--out', type=Path, required=True, help='JSON to write')
    add_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    init_default_scope('mmseg')
    with quiet(), tempfile.TemporaryDirectory() as folder:
        found = measure(args, read_config(args.config), Path(folder))
    write_json(args.out, found)
    write_table(args.table, COLUMNS, table(found), 'lrrrrr')


if __name__ == '__main__':
    main()
