"""The site of these pages: ``make docs``."""

import re
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import keyseg_mm  # noqa: E402

warnings.filterwarnings('ignore', category=UserWarning)  # of the host, of what it lacks

project, author, copyright = 'keyseg_mm', 'the keyseg_mm authors', 'the keyseg_mm authors; Apache-2.0'
release = version = keyseg_mm.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['figures']
html_theme, html_title = 'furo', 'keyseg_mm'
html_extra_path = ['figures/site']  # the demo's audit, as the audit wrote it
html_show_sourcelink = False
myst_heading_anchors = 3
autodoc_typehints, autodoc_member_order, napoleon_use_rtype = 'none', 'bysource', False
pygments_style, highlight_language = 'friendly', 'bash'
suppress_warnings = ['toc.not_included']  # pages that are new, and have no place yet

# Pages link to files of the repository as the repository shows them; on the site some of these are pages, others not.
_PAGES = {
    '../configs/README.md': 'configs.md',
    '../SECURITY.md': 'security.md',
    '../CHANGELOG.md': 'changelog.md',
    '../CONTRIBUTING.md': 'contributing.md',
}


def _relink(text: str, page: str) -> str:
    def change(match: re.Match[str]) -> str:
        words, target, anchor = match['words'], match['target'], match['anchor'] or ''
        if target.startswith(('http:', 'https:', 'mailto:')):
            return match[0]
        if target in _PAGES:
            return f'[{words}]({_PAGES[target]}{anchor})'
        if target.startswith('docs/'):
            return f'[{words}]({target.removeprefix("docs/")}{anchor})'
        if target.startswith('../') or (page in ('configs', 'contributing', 'security') and target):
            return words if words.startswith('`') else f'{words} (`{target}`)' if words != target else f'`{words}`'
        return match[0]

    return re.sub(r'(?<!!)\[(?P<words>[^\]\n]+)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)', change, text)


def setup(app: object) -> None:
    """Change links as pages are read, those that are included too."""
    app.connect('source-read', lambda app, name, source: source.__setitem__(0, _relink(source[0], name)))
    app.connect('include-read', lambda app, path, name, source: source.__setitem__(0, _relink(source[0], name)))
