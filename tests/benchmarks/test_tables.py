"""Pages say what benchmarks/results says, and benchmarks write it there as it is shown."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest

from tests.support.benchmarks import BENCHMARKS, script

ROOT = BENCHMARKS.parent
tables = script('tables')
NAMES = sorted(path.stem for path in tables.RESULTS.glob('*.json'))
PAGES = {path.name: path.read_text() for path in tables.PAGES}
SHOWN = [match['name'] for page in PAGES.values() for match in tables.PLACE.finditer(page)]
ACCURACY = ('methods', 'locking-sealed', 'locking')  # what the figures of README.md are of, loading aside


def numbers(text):
    return re.findall(r'(?<![\w.])[-+]?\d+\.\d+', text)


@pytest.mark.parametrize('page', PAGES)
def test_a_page_says_what_the_results_say(page):
    assert tables.filled(PAGES[page]) == PAGES[page], 'python benchmarks/tables.py'
    assert not tables.without_command(PAGES[page])


FIGURE = f'| {tables.read_table("demo")["rows"][1][-1]} |'


@pytest.mark.parametrize(('old', 'new'), [(FIGURE, '| 0.001 |'), ('make demo', 'make')], ids=['figure', 'command'])
def test_a_page_that_says_something_else_is_told_and_filled(old, new, tmp_path, monkeypatch, capsys):
    page = 'By `make demo` and `python benchmarks/reports.py demo demo_out/results.json`:\n\n'
    page = tables.filled(page + '<!-- table: demo -->\n<!-- end -->\n\nafter\n')
    monkeypatch.setattr(tables, 'PAGES', [tmp_path / 'page.md'])
    monkeypatch.setattr(sys, 'argv', ['tables.py', '--check'])
    tables.PAGES[0].write_text(page)
    assert tables.main() == 0 and not capsys.readouterr().out
    assert old in page
    tables.PAGES[0].write_text(page.replace(old, new))
    assert tables.main() == 1 and 'page.md' in capsys.readouterr().out
    assert tables.PAGES[0].read_text() == page.replace(old, new)
    monkeypatch.setattr(sys, 'argv', ['tables.py'])
    assert tables.main() == (new == 'make')  # commands are of the page
    assert (tables.PAGES[0].read_text() == page) == (new != 'make')


@pytest.mark.parametrize('name', NAMES)
def test_results_are_whole_and_stand_on_one_page(name):
    found = tables.read_table(name)
    assert SHOWN.count(name) == 1
    assert found['command'] and found['columns'] and found['rows']
    assert {len(row) for row in found['rows']} == {len(found['columns'])} == {len(found['align'])}
    assert all(isinstance(cell, str) and '|' not in cell for row in found['rows'] for cell in row)
    for command in found['command']:
        words = shlex.split(command)
        assert words[0] in ('keyseg', 'make', 'python') and not [word for word in words if '/' in word[:1]]
        assert all((ROOT / word).is_file() for word in words if word.startswith('benchmarks/'))


def test_every_table_of_a_page_is_there():
    assert set(SHOWN) == set(NAMES)


def test_the_readme_figures_stand_in_the_results():
    heads = '|--:|--:|--:|--:|--:|\n'
    english, chinese = (
        [
            [numbers(cell) for cell in line.split('|')[1:-1]]
            for line in page.partition(heads)[2].split('\n\n')[0].split('\n')
        ]
        for page in (PAGES['README.md'], PAGES['README_zh-CN.md'])
    )
    assert english == chinese and len(english) == 8
    loading = {numbers(row['FCN-R101'])[0] for row in tables.records('sealing') if row['against'] == 'load'}
    assert {number for row in english for number in row[-1]} <= loading
    accuracy = {
        number for name in ACCURACY for row in tables.read_table(name)['rows'] for n in row for number in numbers(n)
    }
    most = next(row for row in tables.records('ciphertext') if row['photos'] == '10 %')
    sealed, scratch = (float(numbers(most[start])[0]) for start in ('from the sealed file', 'from scratch'))
    accuracy.add(f'{sealed - scratch:+.1f}')  # what the sealed file is worth to train from
    assert {number for row in english for cell in row[:-1] for number in cell} <= accuracy


def test_a_benchmark_writes_its_table_and_keeps_a_command_that_is_like_its_own(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'one.json'
    here = str(BENCHMARKS / 'images.py')
    monkeypatch.setattr(sys, 'argv', [here, '--size', '4', '4', '--table', str(path), '--json', 'x'])
    tables.write_table(path, ('', 'a'), [['b', '1.0']], 'lr')
    assert capsys.readouterr().out == '|  | a |\n| --- | --: |\n| b | 1.0 |\n'
    first = json.loads(path.read_text())
    assert first == {
        'command': ['python benchmarks/images.py --size 4 4'],
        'columns': ['', 'a'],
        'align': 'lr',
        'rows': [['b', '1.0']],
    }
    commands = ['make demo', 'python benchmarks/images.py --size HEIGHT WIDTH']
    path.write_text(json.dumps({**first, 'command': commands}))
    tables.write_table(path, ('', 'a'), [['b', '2.0']])
    assert json.loads(path.read_text())['command'] == commands
    monkeypatch.setattr(sys, 'argv', [here, '--repeats', '3'])
    tables.write_table(path, ('', 'a'), [['b', '3.0']])
    assert json.loads(path.read_text())['command'] == ['make demo', 'python benchmarks/images.py --repeats 3']
