"""What benchmarks found becomes rows of cells, under the heads that stand on the pages."""

from __future__ import annotations

import json

from tests.support.benchmarks import script

tables = script('tables')
WRONG = {
    f'wrong key {n + 1}': value for n, value in enumerate((0.82, 0.05, 0.14, 1.31, 0.48, 3.69, 0, 0.34, 2.18, 0.64))
}
PAIR = {'plain': 15.42, 'floor': 2.67587, 'right key': 16.2, 'no key': 0.04, **WRONG, 'floor there': 2.67591}


def heads_of(name):
    return tables.read_table(name)['columns']


def test_pairs_of_trainings_and_their_mean():
    run = script('run')
    mean = {'difference': 0.046667, 'standard error': 0.54998}
    found = {'fast-scnn, cityscapes, linear, X, seed 0': PAIR, 'fast-scnn, cityscapes, linear, X': mean}
    assert list(run.COLUMNS) == heads_of('training')
    assert list(run.table(found)) == [
        ['Cityscapes, seed 0', '15.42', '16.20', '+0.78', '0.04 (0.01)', '0.00 to 3.69 (1.38)'],
        ['**Cityscapes: mean, with its standard error**', '', '', '**+0.05 ± 0.55**', '', ''],
    ]
    found['segformer, cityscapes, linear, X, seed 0'] = PAIR
    assert [row[0] for row in run.table(found)][::2] == [
        'fast-scnn, Cityscapes, seed 0',
        'segformer, Cityscapes, seed 0',
    ]


def test_losses_beside_each_other():
    first = {'stages': {'loss': 2.4147e-16}, 'linear': {'loss': 2.3788e-16}, 'opened': {'loss': 0.0}}
    found = {'fcn-r18, adamw': first, 'fcn-r18, sgd': {'linear': {'loss': 2.41e-14}}}
    heads, *rows = script('law').table(found)
    assert heads[:4] == heads_of('law')[:4]
    assert rows == [
        ['FCN-ResNet-18, AdamW', '2.4e-16', '2.4e-16', '0'],
        ['FCN-ResNet-18, SGD with momentum', '', '2.4e-14', ''],
    ]


def test_what_is_left_of_a_fingerprint(tmp_path):
    rows = {
        'plain': {'mIoU': 48.4552, 'floor': 2.6777},
        'noise of 30%': {'z': 1.965, 'log10 chance': 0.0, 'found': 0, 'largest z of others': 2.606, 'mIoU': 20.149},
        'fine-tuned at 0.0001': {
            'z': 169.3,
            'log10 chance': -6223.08,
            'found': 1,
            'largest z of others': 2.13,
            'mIoU': 47.433,
        },
    }
    copies = {'mean': 839.4, 'median': 593.9, 'largest': 594.8, 'beyond (largest + smallest - median)': 594.8}
    rows |= {f'{how} of 2 copies': {'z': z, 'largest z of others': 3.18} for how, z in copies.items()}
    rows['mean of 2 copies']['mIoU'] = 48.448
    script('thieves_tables').write_tables(tmp_path / 'out.json', rows, list(rows)[1:], 60)
    single, together = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('out', 'out-copies'))
    assert single['columns'] == ['plain 48.46, floor 2.68', *heads_of('thieves')[1:]]
    assert single['rows'] == [
        ['noise of 30 %', '20.15', '**2.0**', '**1: not found**', '2.6'],
        ['fine-tuned for 60 iterations at 0.0001', '47.43', '169', '1e-6223', '2.1'],
    ]
    assert together['columns'] == heads_of('thieves-copies')
    assert together['rows'] == [['2', '839 (48.45 mIoU)', '594', '595', '595', '3.2']]


def test_the_demo_and_its_audit(tmp_path):
    reports, file = script('reports'), tmp_path / 'found.json'
    who = {f'opened, wrong tables: random:{n + 1}': miou for n, miou in enumerate((0.71, 2.51, 1.41))}
    mious = {
        'sealed file, right key: file:demo.key': 59.47,
        'sealed file, no key: none': 3.17,
        'opened, no tables: none': 3.87,
    }
    file.write_text(json.dumps({'floor': 3.598, 'mIoU': mious | who}))
    assert list(reports.demo(file)) == [
        heads_of('demo'),
        ['the sealed file with its key', '59.47', '16.5'],
        ['the sealed file without a key', '3.17', '0.9'],
        ['another key', 'refused', ''],
        ['opened weights without their tables', '3.87', '1.1'],
        [
            'opened weights with wrong tables, `random:1`, `random:2`, `random:3`',
            '0.71, 2.51, 1.41',
            '0.2, 0.7, 0.4',
        ],
        ['constant guess (the floor)', '3.60', '1.0'],
    ]
    attack = {'about': {'title': 'a random key'}, 'score': {'miou': 4.0714}}
    control = {'about': {'title': 'one class everywhere'}, 'score': {'miou': 3.3838}}
    gain = {'photos': 0, 'attack': attack, 'control': control, 'advantage': 0.6876}
    file.write_text(json.dumps({'summary': {'advantages': [gain]}}))
    assert list(reports.audit(file)) == [
        heads_of('demo-audit'),
        ['no photos', '4.07, a random key', '3.38, one class everywhere', '+0.69'],
    ]


def test_a_comparison_of_two_models(tmp_path):
    row = {'name': 'plain', 'title': 'plain', 'miou': {'right': 32.61}}
    locked = {
        'name': 'x',
        'title': 'locked',
        'miou': {'right': 32.0, 'none': 0.5, 'wrong-1': 1.0},
        'key_space': 5.0,
        'audit': '+1.0 (x)',
    }
    files = []
    for name in ('one', 'SETR'):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / 'compare.json')
        files[-1].write_text(json.dumps({'options': {}, 'methods': [], 'floor': 2.68, 'rows': [row, locked]}))
    heads, *rows = script('reports').compare(*files)
    assert [r[0] for r in rows] == ['plain', 'locked', 'SETR, plain', 'SETR, locked']
    assert dict(zip(heads, rows[1]))['drop'] == '0.61' and rows[1][1:] == rows[3][1:]


def test_audits_and_locks():
    gains = {n: {'attack': ['x', got], 'advantage': gain} for n, got, gain in (
        ('no photos', 0.8, -1.9), ('4 photos', 24.6, 16.4), ('18 photos', 19.6, 15.4), ('37 photos', 23.3, 11.7),
        ('no photos + public', 43.7, 1.52), ('4 photos + public', 43.7, 1.5), ('18 photos + public', 43.7, -0.7),
        ('37 photos + public', 43.7, 1.0),
    )}  # fmt: skip
    found = {'key': 43.7, 'no key': 0.1, **gains, 'floor': 2.7}
    heads, *rows = script('audits').table({'fast-scnn, locked linear SignedChannelPermutation': found})
    assert heads == heads_of('audits')
    assert rows == [
        [
            *('Fast-SCNN, locked, `linear`, signs', '43.7', '0.1', 'no'),
            *('-1.9 (0.8)', '**+16.4** (24.6)', '**+15.4** (19.6)', '**+11.7** (23.3)'),
        ],
        ['', '', '', 'yes', '+1.5 (43.7)', '+1.5 (43.7)', '-0.7 (43.7)', '+1.0 (43.7)'],
    ]
    locking = script('locking')
    sealed = dict(zip(locking.READ, (48.73,) * 5 + (2.68,) * 3))
    found = list(locking.sealed_table({'floor': 2.6759, 'sealed': sealed}))
    assert [cell for _, cell in found] == ['48.73'] * 5 + ['2.68, the floor'] * 3
    assert [name for name, _ in found] == [row['read'] for row in tables.records('locking-sealed')]
    shares = {
        'from-ciphertext': dict.fromkeys((0.01, 0.05, 0.1), [2.64, 4.6, 10.82]),
        'from-scratch': dict.fromkeys((0.01, 0.05, 0.1), [1.0]),
    }
    first = next(iter(script('ciphertext').table(shares)))
    assert first == ['1 %', '6.02 (2.64 to 10.82)', '1.00 (1.00 to 1.00)']
