"""The charts of docs/results.md are drawn from its tables."""

from __future__ import annotations

from tests.support.benchmarks import BENCHMARKS, script

DOCS = BENCHMARKS.parent / 'docs'


def test_every_chart_finds_its_table_and_stands_on_the_page():
    page = (DOCS / 'results.md').read_text()
    for name, draw in script('charts').CHARTS.items():
        bars = [bar.get_width() for axes in draw().axes for bar in axes.patches]
        assert len(bars) >= 8 and max(bars) > 1, name
        assert f'(images/{name})' in page and (DOCS / 'images' / name).is_file()
