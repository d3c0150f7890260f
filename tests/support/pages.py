"""Pages of HTML: parsed, and looked at by a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
PHONE, SCREEN = 390, 1200  # CSS pixels
_VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Page(HTMLParser):
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


def find_browser() -> str | None:
    """The path of a browser, where one is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def look(browser, folder, page, width, *options, height=1500):
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
