"The site is built from the notebooks without a warning, formulas and pictures included, and is read without a network."

import re, subprocess, sys
from pathlib import Path
import pytest
from nbread import paths

root = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    "The site's folder; a warning (a broken link, a page that no list holds, an open formula) is an error."
    to = tmp_path_factory.mktemp('rendered')
    strict = ['-q', '-W', '--keep-going']
    places = ['-c', root / 'docs', '-b', 'html', '-d', to / 'doctrees', root / 'nbs', to / 'html']
    p = subprocess.run([sys.executable, '-m', 'sphinx', *strict, *places], capture_output=True, text=True, cwd=root)
    assert p.returncode == 0, p.stderr[-3000:]
    return to / 'html'


def test_every_notebook_has_a_page(rendered):
    books = [p.relative_to(root / 'nbs').with_suffix('.html') for p in paths(root / 'nbs')]
    assert not [str(b) for b in books if not (rendered / b).is_file()]


def test_nothing_is_fetched(rendered):
    for page in rendered.rglob('*.html'):
        sources = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text('utf8'))
        assert not sources, f'{page.name} fetches {sources}'


def test_formulas_keep_their_numbers(rendered):
    "A `tag` inside `split` would be an error in the browser: displays are handed to MathJax as they were written."
    text = ''.join(p.read_text('utf8') for p in rendered.glob('0*.html'))
    assert r'\tag{' in text and not re.search(r'\\begin\{split\}(?:(?!\\end\{split\}).)*\\tag', text, re.S)


def test_hidden_cells_and_directives_are_not_shown(rendered):
    for page in rendered.rglob('*.html'):
        assert not re.search(r'#\| ?(?:hide|export|slow)', page.read_text('utf8')), page.name
