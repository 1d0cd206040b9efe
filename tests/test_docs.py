"The site is built from the notebooks without a warning, formulas and pictures included, and needs no network to be read."

import re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / 'docs'))
from nbread import paths


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The rendered site; a warning (a broken link, a page that no list holds, a formula that is not closed) is an error."
    to = tmp_path_factory.mktemp('site')
    p = subprocess.run(
        [
            sys.executable,
            '-m',
            'sphinx',
            '-q',
            '-W',
            '--keep-going',
            '-c',
            root / 'docs',
            '-b',
            'html',
            '-d',
            to / 'doctrees',
            root / 'nbs',
            to / 'html',
        ],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    return to / 'html'


def test_every_notebook_has_a_page(site):
    books = [p.relative_to(root / 'nbs').with_suffix('.html') for p in paths(root / 'nbs')]
    assert not [str(b) for b in books if not (site / b).is_file()]


def test_nothing_is_fetched(site):
    for page in site.rglob('*.html'):
        sources = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text('utf8'))
        assert not sources, f'{page.name} fetches {sources}'


def test_formulas_keep_their_numbers(site):
    "A `tag` inside `split` would be an error in the browser: displays are handed to MathJax as they were written."
    text = ''.join(p.read_text('utf8') for p in site.glob('0*.html'))
    assert r'\tag{' in text and not re.search(r'\\begin\{split\}(?:(?!\\end\{split\}).)*\\tag', text, re.S)


def test_hidden_cells_and_directives_are_not_shown(site):
    for page in site.rglob('*.html'):
        assert not re.search(r'#\| ?(?:hide|export|slow)', page.read_text('utf8')), page.name
