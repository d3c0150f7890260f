"""The audit's report: right without network, on phones, in the dark and on paper, looked at by a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

from keyseg_mm.audit.model.page import render, write_report
from keyseg_mm.audit.model.summary import summarise
from keyseg_mm.audit.report.charts import Series, line_chart
from keyseg_mm.audit.report.pictures import colour_png, painted, png, unpng
from keyseg_mm.errors import KeysegError

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
PHONE, SCREEN = 390, 1200  # CSS pixels
_VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


def _labels(seed):
    blocks = torch.randint(0, 4, (4, 8), generator=torch.Generator().manual_seed(seed))
    return png(blocks.repeat_interleave(8, 0).repeat_interleave(8, 1))


def _result(kind, name, value, situation, share=None, key_share=None, beyond=False, error=None):
    result = {
        'kind': kind, 'name': name, 'title': f'{name} by a rather long-winded method', 'needs': ['labelled'],
        'source': 'Somebody & Else <2024>, arXiv 2109.00224', 'cost': 'little', 'family': 'recover', 'error': error,
        'situation': situation, 'situation_title': f'the situation {situation}', 'share': share, 'photos': 7,
        'key_share': key_share, 'beyond_files': beyond, 'seconds': 12.3,
    }  # fmt: skip
    if error is None:
        figures = {'miou': value, 'agreement': 71.0, 'kappa': 0.51, 'recovery': 0.25, 'exhausted': name == 'hill'}
        result.update(figures, notes='a note', labels_png=[_labels(2), _labels(3)], trail=[], images_used=3)
    return result


def make_report(**changes):
    score = {'miou': 58.8, 'agreement': 100.0, 'kappa': 1.0}
    photo = colour_png(np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8))
    point = {
        'point': 'in:backbone.layer1.0.conv1',
        'channels': 64,
        'transform': {'type': 'ChannelRotation', 'block': 8},
    }
    report = {
        'format': 'keyseg_mm audit', 'version': 1, 'made_by': '0.1.0', 'when': '2026-01-01 12:00', 'seed': 0,
        'config': 'a_rather_long_config_name_8xb2-160k_ade20k-512x512.py',
        'checkpoint': '<b>best</b>_mIoU_iter_500.pth',
        'public': 'public.pth', 'second': None, 'key_id': 'ks1wxf3zvg5exqn3cuv', 'points': [point], 'suite': 'quick',
        'budget': {'steps': 60, 'seconds': 11.1}, 'device': 'cpu', 'held_out': 16, 'train_photos': 160,
        'photo_size': [32, 64], 'floor': 2.2, 'authorised': score, 'no_key': {**score, 'miou': 0.7},
        'close': {point['point']: 0.01}, 'seconds': 70.0,
        'checks': {
            'positive': {**score, 'recovery': 1.0, 'passed': True},
            'negative': {**score, 'miou': 0.9, 'recovery': 0.02, 'chance': 0.01, 'passed': True},
        },
        'pictures': {
            'photos': [photo, photo], 'truth': [_labels(0)] * 2, 'authorised': [_labels(0)] * 2,
            'no_key': [_labels(1)] * 2, 'classes': ['a', 'b', 'c', 'd'],
            'palette': [[128, 64, 128], [244, 35, 232], [70, 70, 70], [102, 102, 156]],
        },
        'results': [
            _result('control', 'scratch', 14.6, 'photos-0.1', 0.1), _result('attack', 'hill', 54.4, 'photos-0.1', 0.1),
            _result('attack', 'broken', 0.0, 'photos-0.1', 0.1, error='ValueError: <script>alert(1)</script>'),
            _result('attack', 'random', 0.5, 'file'), _result('control', 'scratch', 6.0, 'photos-0.01', 0.01),
            _result('attack', 'hill', 20.0, 'photos-0.01', 0.01), _result('attack', 'file', 1.0, 'file'),
            _result('attack', 'partial', 40.0, 'leak-0.5', 0.1, 0.5, True),
        ],
    }  # fmt: skip
    report.update(changes)
    report['summary'] = summarise(report)
    return report


class _Page(HTMLParser):
    """Collects addresses and checks that tags are closed as they were opened."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.texts, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'action', 'data')]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope='module')
def page():
    return render(make_report())


def test_the_page_stands_alone_and_is_well_formed(page):
    parsed = _Page()
    parsed.feed(page)
    assert not parsed.open and parsed.addresses
    assert all(address.startswith('data:image/png;base64,') for address in parsed.addresses)
    assert not re.search(r'url\(|@import|<script|<link', page)
    assert 'name="viewport"' in page and '@media print' in page and 'prefers-color-scheme: dark' in page


def test_the_page_says_what_the_audit_found(page):
    parsed = _Page()
    parsed.feed(page)
    text = ' '.join(' '.join(parsed.texts).split())
    report = make_report()
    assert report['summary']['level'] == 'falls'
    for words in (
        report['summary']['verdict'], '+39.8', 'Falls', '54.4', '14.6', '58.8', 'cut short', 'failed: ValueError',
        *report['summary']['change'], *report['summary']['means'], *report['summary']['warnings'], 'in:backbone.layer1',
        'ChannelRotation(block=8)', '0.01 from public weights', 'the situation leak-0.5', 'passed',
    ):  # fmt: skip
        assert words in text, words
    assert text.index(report['summary']['verdict']) < text.index('What it means') < text.index('All runs')
    assert parsed.tags.count('svg') == 2 and parsed.tags.count('img') == 12


def test_nothing_that_comes_from_outside_becomes_markup(page):
    assert '<b>best</b>' not in page and '&lt;b&gt;best&lt;/b&gt;' in page
    assert '<script>alert' not in page and '&lt;script&gt;alert' in page
    assert '<x>' not in line_chart([Series('<x>', [(0, 1)], 'attack')], '<x>', '<x>', [(0.0, '<x>')])


@pytest.mark.parametrize(
    'changes',
    [
        {'results': []},
        {'results': [_result('control', 'scratch', 14.0, 'photos-0.1', 0.1)]},
        {'public': None, 'close': {}},
        {'authorised': {'miou': 2.0, 'agreement': 100.0, 'kappa': 1.0}},
    ],
    ids=['nothing', 'a control alone', 'no public weights', 'nothing to steal'],
)
def test_sparse_reports_can_be_read_too(changes):
    parsed = _Page()
    parsed.feed(render(make_report(**changes)))
    assert not parsed.open


def test_a_report_is_written_and_a_damaged_one_refused(tmp_path):
    with pytest.raises(KeysegError, match='run the audit first'):
        write_report(tmp_path)
    (tmp_path / 'report.json').write_text('{')
    with pytest.raises(KeysegError, match='damaged'):
        write_report(tmp_path)
    (tmp_path / 'report.json').write_text(json.dumps(make_report()))
    assert write_report(tmp_path).read_text() == render(make_report())
    (tmp_path / 'report.json').write_text(json.dumps({**make_report(), 'version': 2}))
    with pytest.raises(KeysegError, match='this release'):
        write_report(tmp_path)


def test_label_maps_survive_and_are_painted():
    labels = torch.tensor([[0, 1, 2], [255, 18, 3]])
    assert unpng(png(labels)).tolist() == labels.tolist()
    picture = unpng(painted(png(labels), [[10, 20, 30], [40, 50, 60]]))[..., ::-1]
    assert picture[0, 0].tolist() == [10, 20, 30] and picture[0, 1].tolist() == [40, 50, 60]
    assert picture[1, 0].tolist() == [0, 0, 0] and len({tuple(p) for p in picture.reshape(-1, 3).tolist()}) == 6


# --- in a browser


@pytest.fixture(scope='module')
def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f'no browser to look with: none of {", ".join(BROWSERS)} is installed (Debian: apt install chromium)'
        )
    return found


def _look(browser, folder, page, width, *options, height=1500):
    """Show the page in a frame of some width, as no browser makes its own window as narrow as a phone.

    Returns the frame's measures, and what a screenshot shows of it.
    """
    measure = (
        'const d = frame.contentDocument, r = d.documentElement;'
        'const all = [...d.querySelectorAll("body *")];'
        'const wide = all.filter(e => e.getBoundingClientRect().right > r.clientWidth + 1);'
        'const out = {scroll: r.scrollWidth, client: r.clientWidth, height: r.scrollHeight,'
        ' wide: wide.map(e => e.tagName + "." + e.getAttribute("class")),'
        ' images: [...d.images].map(i => i.complete ? i.naturalWidth : 0)};'
        'document.body.setAttribute("data-out", JSON.stringify(out));'
    )
    frame = (
        f'<iframe id="frame" style="border:0;width:{width}px;height:{height}px" srcdoc="{html.escape(page)}"></iframe>'
    )
    outer = folder / 'outer.html'
    outer.write_text(f"<!doctype html><body style='margin:0' onload='{measure}'>{frame}</body>")
    shot = folder / 'shot.png'
    common = [
        browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage',
        '--host-resolver-rules=MAP * ~NOTFOUND', f'--user-data-dir={folder / "profile"}', *options,
        f'--window-size={max(width, 600)},{height}',
    ]  # fmt: skip
    outputs = []
    for what in (['--dump-dom'], [f'--screenshot={shot}']):
        done = subprocess.run([*common, *what, outer.as_uri()], capture_output=True, text=True, timeout=120)
        outputs.append(done.stdout)
    found = re.search(r'data-out="([^"]*)"', outputs[0])
    assert found, 'the browser did not come to the end of the page'
    picture = cv2.imread(str(shot))
    assert picture is not None
    return json.loads(html.unescape(found.group(1))), picture[:, :width]


@pytest.mark.parametrize('width', [PHONE, SCREEN])
def test_a_browser_shows_it_without_scrolling_sideways(browser, tmp_path, page, width):
    measures, picture = _look(browser, tmp_path, page, width)
    assert measures['client'] == width and measures['scroll'] <= width and not measures['wide'], measures
    assert len(measures['images']) == 12 and all(measures['images'])
    colours = {tuple(p) for p in picture[::3, ::3].reshape(-1, 3).tolist()}
    red = (24, 35, 180)  # blue, green, red of the verdict's bar: #b42318
    assert red in {tuple(p) for p in picture[:400].reshape(-1, 3).tolist()}
    assert (picture[:40] > 240).mean() > 0.5 and len(colours) > 50


def test_a_page_that_is_too_wide_is_noticed(browser, tmp_path, page):
    broken = page.replace('<h2>Curves', '<pre style="width:700px">x</pre><h2>Curves')
    measures, _ = _look(browser, tmp_path, broken, PHONE)
    assert measures['scroll'] > PHONE and 'PRE.null' in measures['wide']


def test_it_follows_dark_mode(browser, tmp_path, page):
    light = _look(browser, tmp_path, page, SCREEN)[1]
    dark = _look(browser, tmp_path, page, SCREEN, '--blink-settings=preferredColorScheme=0')[1]
    assert np.median(light) > 230 and np.median(dark) < 60


def test_it_prints(browser, tmp_path, page):
    source, pdf = tmp_path / 'page.html', tmp_path / 'page.pdf'
    source.write_text(page)
    options = ['--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path / "profile"}']
    subprocess.run([browser, *options, f'--print-to-pdf={pdf}', source.as_uri()], capture_output=True, timeout=120)
    pages = len(re.findall(rb'/Type\s*/Page\b', pdf.read_bytes()))
    assert pdf.read_bytes().startswith(b'%PDF') and 1 <= pages <= 8
