"""The audit's report: right without network, on phones, in the dark and on paper, looked at by a real browser."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest
import torch

from keyseg_mm.audit.engine.runner import Result, read_result, to_json
from keyseg_mm.audit.model.referee import Score
from keyseg_mm.audit.model.report import summarise
from keyseg_mm.audit.report.page import painted, png, render, unpng
from tests.support.audits import made_run, make_report
from tests.support.pages import PHONE, SCREEN, Page, look


def rendered(report):
    return render(report, summarise(report))


@pytest.fixture(scope='module')
def page():
    return rendered(make_report())


def test_the_page_stands_alone_and_is_well_formed(page):
    parsed = Page()
    parsed.feed(page)
    assert not parsed.open and parsed.addresses
    assert all(address.startswith('data:image/png;base64,') for address in parsed.addresses)
    assert not re.search(r'url\(|@import|<script|<link', page)
    assert 'name="viewport"' in page and '@media print' in page and 'prefers-color-scheme: dark' in page


def test_the_page_says_what_the_audit_found(page):
    parsed = Page()
    parsed.feed(page)
    text = ' '.join(' '.join(parsed.texts).split())
    summary = summarise(make_report())
    assert summary.level == 'falls'
    for words in (
        summary.verdict, '+39.8', 'Falls', '54.4', '14.6', '58.8', 'cut short', 'failed: ValueError',
        *summary.change, *summary.means, *summary.warnings, 'in:backbone.layer1',
        'ChannelRotation(block=8)', 'The scenario photos-0.01', 'passed',
    ):  # fmt: skip
        assert words in text, words
    assert text.index(summary.verdict) < text.index('What it means') < text.index('All runs')
    assert parsed.tags.count('dl') == 2 and parsed.tags.count('img') == 12


def test_nothing_that_comes_from_outside_becomes_markup(page):
    assert '<b>best</b>' not in page and '&lt;b&gt;best&lt;/b&gt;' in page
    assert '<script>alert' not in page and '&lt;script&gt;alert' in page


@pytest.mark.parametrize(
    'changes',
    [
        {'outcomes': ()},
        {'outcomes': (made_run('control', 'scratch', 14.0, 'photos-0.1', 0.1),)},
        {'public': None, 'places': ()},
        {'authorised': Score(2.0, 100.0, 1.0)},
    ],
    ids=['nothing', 'a control alone', 'no public weights', 'nothing to steal'],
)
def test_sparse_reports_can_be_read_too(changes):
    parsed = Page()
    parsed.feed(rendered(make_report(**changes)))
    assert not parsed.open


def test_a_result_survives_json():
    for outcome in make_report().outcomes:
        read = json.loads(json.dumps(to_json(outcome), allow_nan=False))
        if isinstance(outcome, Result):
            assert read_result(read, Score) == outcome
        else:
            with pytest.raises((KeyError, TypeError)):
                read_result(read, Score)


def test_label_maps_survive_and_are_painted():
    labels = torch.tensor([[0, 1, 2], [255, 18, 3]])
    assert unpng(png(labels)).tolist() == labels.tolist()
    picture = unpng(painted(png(labels), [[10, 20, 30], [40, 50, 60]]))[..., ::-1]
    assert picture[0, 0].tolist() == [10, 20, 30] and picture[0, 1].tolist() == [40, 50, 60]
    assert picture[1, 0].tolist() == [0, 0, 0] and len({tuple(p) for p in picture.reshape(-1, 3).tolist()}) == 6


# --- in a browser


@pytest.mark.parametrize('width', [PHONE, SCREEN])
def test_a_browser_shows_it_without_scrolling_sideways(browser, tmp_path, page, width):
    measures, picture = look(browser, tmp_path, page, width)
    assert measures['client'] == width and measures['scroll'] <= width and not measures['wide'], measures
    assert len(measures['images']) == 12 and all(measures['images'])
    colours = {tuple(p) for p in picture[::3, ::3].reshape(-1, 3).tolist()}
    red = (24, 35, 180)  # blue, green, red of the verdict's bar: #b42318
    assert red in {tuple(p) for p in picture[:400].reshape(-1, 3).tolist()}
    assert (picture[:40] > 240).mean() > 0.5 and len(colours) > 50


def test_a_page_that_is_too_wide_is_noticed(browser, tmp_path, page):
    broken = page.replace('<h2>Best', '<pre style="width:700px">x</pre><h2>Best')
    measures, _ = look(browser, tmp_path, broken, PHONE)
    assert measures['scroll'] > PHONE and 'PRE.null' in measures['wide']


def test_it_follows_dark_mode(browser, tmp_path, page):
    light = look(browser, tmp_path, page, SCREEN)[1]
    dark = look(browser, tmp_path, page, SCREEN, '--blink-settings=preferredColorScheme=0')[1]
    assert np.median(light) > 230 and np.median(dark) < 60


def test_it_prints(browser, tmp_path, page):
    source, pdf = tmp_path / 'page.html', tmp_path / 'page.pdf'
    source.write_text(page)
    options = ['--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path / "profile"}']
    subprocess.run([browser, *options, f'--print-to-pdf={pdf}', source.as_uri()], capture_output=True, timeout=120)
    pages = len(re.findall(rb'/Type\s*/Page\b', pdf.read_bytes()))
    assert pdf.read_bytes().startswith(b'%PDF') and 1 <= pages <= 8
