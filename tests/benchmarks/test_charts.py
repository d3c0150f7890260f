"""The charts of docs/results.md are drawn from its tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_chart_finds_its_table_and_stands_on_the_page():
    spec = importlib.util.spec_from_file_location('charts', ROOT / 'benchmarks' / 'charts.py')
    charts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(charts)
    page = (ROOT / 'docs' / 'results.md').read_text()
    for name, draw in charts.CHARTS.items():
        bars = [bar.get_width() for axes in draw(page).axes for bar in axes.patches]
        assert len(bars) >= 8 and max(bars) > 1, name
        assert f'(images/{name})' in page and (ROOT / 'docs' / 'images' / name).is_file()
