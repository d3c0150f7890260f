"""The notebook, run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / 'examples' / 'quickstart.ipynb'


def test_the_notebook_runs(capsys):
    cells = json.loads(NOTEBOOK.read_text())['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    assert not any(cell.get('outputs') for cell in cells), 'it is kept without outputs'
    names = {'__name__': 'notebook'}
    for text in code:
        exec(compile(text, NOTEBOOK.name, 'exec'), names)
    printed = capsys.readouterr().out
    assert 'and the key given is' in printed and 'without the tables' in printed and len(code) >= 7
