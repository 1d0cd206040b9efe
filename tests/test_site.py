"""The site is built without a warning, holds what it should, and reads at any width, without a network.

What needs a browser is skipped where no Chromium is installed.
"""

import html.parser, http.server, json, re, shutil, subprocess, sys, threading
from collections import defaultdict
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit
import nbformat, pytest
from nbread import ALT, paths

root = Path(__file__).resolve().parents[1]
WIDTHS = (390, 768, 1024, 1366, 1920)
browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    "The site's folder; a warning (a broken link, a page that no list holds, an open formula) is an error."
    to = tmp_path_factory.mktemp('rendered')
    p = subprocess.run([sys.executable, 'docs/pages.py', to], capture_output=True, text=True, cwd=root)
    assert p.returncode == 0, p.stderr[-3000:]
    return to / 'html'


class Page(html.parser.HTMLParser):
    "What a page holds: ids, links, pictures, its text as it was written."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.pictures = set(), [], []
        self.text = path.read_text('utf8')
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get('id'))
        if tag == 'a' and 'href' in attrs:
            self.links.append(attrs['href'])
        if tag == 'img':
            self.pictures.append(attrs)


@pytest.fixture(scope='module')
def site(rendered):
    "{path from the root: Page} of all pages."
    return {p.relative_to(rendered).as_posix(): Page(p) for p in sorted(rendered.rglob('*.html'))}


# ---- what is there


def test_every_notebook_has_a_page_and_can_be_downloaded(rendered, site):
    for p in paths(root / 'nbs'):
        name = p.relative_to(root / 'nbs')
        page = site[name.with_suffix('.html').as_posix()]
        target = next((link for link in page.links if link.endswith(f'_sources/{name.as_posix()}')), None)
        assert target, f'{name} cannot be downloaded from its page'
        mine = [c.source for c in nbformat.read(p, 4).cells]
        assert mine == [c.source for c in nbformat.read((rendered / name).parent / target, 4).cells][: len(mine)]


def test_nothing_is_fetched(site):
    for name, page in site.items():
        sources = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', page.text)
        assert not sources, f'{name} fetches {sources}'


def test_formulas_keep_their_numbers(site):
    "A `tag` inside `split` would be an error in the browser: displays are handed to MathJax as they were written."
    text = ''.join(page.text for name, page in site.items() if name.startswith('0'))
    assert r'\tag{' in text and not re.search(r'\\begin\{split\}(?:(?!\\end\{split\}).)*\\tag', text, re.S)


def test_hidden_cells_and_directives_are_not_shown(site):
    for name, page in site.items():
        assert not re.search(r'#\| ?(?:hide|export|slow)', page.text), name


def test_no_link_is_dead(rendered, site):
    dead = []
    for name, page in site.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme:
                continue
            target = (rendered / name).parent.joinpath(unquote(to.path)).resolve() if to.path else rendered / name
            other = site.get(target.relative_to(rendered).as_posix()) if target.is_relative_to(rendered) else None
            if not target.is_file() or other and to.fragment and unquote(to.fragment) not in other.ids:
                dead.append(f'{name}: {link}')
    assert not dead, dead


def test_every_picture_has_a_text(site):
    drawn = defaultdict(set)
    for p in paths(root / 'nbs'):
        for c in nbformat.read(p, 4).cells:
            if any(kind.startswith('image/') for o in c.get('outputs', []) for kind in o.get('data', {})):
                drawn[c.id].add(p.relative_to(root / 'nbs').as_posix())
    without = {cell: names for cell, names in drawn.items() if not ALT.get(cell)}
    assert not without, f'say what these pictures show in docs/figures.yaml: {without}'
    assert not ALT.keys() - drawn.keys(), (
        f'no cell draws these: {ALT.keys() - drawn.keys()}; take them from docs/figures.yaml'
    )
    silent = [
        (name, img['src']) for name, page in site.items() for img in page.pictures if len(img.get('alt', '')) < 20
    ]
    assert not silent, f'pictures without a text: {silent}'


# ---- the reference


def public():
    "{name of the reference: its notebook's page} of what the notebooks export."
    from pages import exports

    return {
        f'diffuseq.{home}.{name}': f'{page}.html' for home, names in exports().items() for name, _, page, _ in names
    }


def test_the_reference_describes_every_public_name_and_links_both_ways(site):
    names = public()
    assert len(names) > 200
    for name, book in names.items():
        page = f'reference/{name.removeprefix("diffuseq.").rpartition(".")[0]}.html'
        assert name in site[page].ids, f'{page} does not describe {name}'
        assert any(link.startswith(f'../{book}#') for link in site[page].links), f'{page} does not lead to {book}'
        assert any(link.endswith(f'{page}#{name}') for link in site[book].links), f'{book} does not lead to {name}'


def test_the_reference_says_what_parameters_and_settings_mean(site):
    text = re.sub(r'<[^>]+>', '', site['reference/block.html'].text)
    for said in ('of the choice of words; 0: the most probable', 'For invalid sources, numbers or settings'):
        assert said in text  # a comment beside a parameter; a section Raises
    assert 'sub-words of x at most' in re.sub(r'<[^>]+>', '', site['reference/config.html'].text)


def test_no_name_of_the_reference_is_left_without_a_link(site):
    for name, page in site.items():
        assert not re.search(r'(?<!>)<code class="xref py py-obj', page.text), f'{name} names what the reference lacks'


def test_the_search_finds_generate_in_the_reference(rendered):
    index = (rendered / 'searchindex.js').read_text('utf8')
    objects = json.loads(index.removeprefix('Search.setIndex(').removesuffix(')'))['objects']
    assert 'generate' in [entry[-1] for entry in objects['diffuseq.block.BlockDiffuSeq']]


def test_the_sidebar_has_captions_and_numbers(site):
    side = site['index.html'].text.partition('<article')[0]
    captions = re.findall(r'class="caption-text">([^<]+)', side)
    assert captions == ['Start', 'Method', 'Models', 'Baselines', 'Machine room', 'Experiments', 'Reference', 'Project']
    entries = re.findall(r'href="([^"]+)">([^<]+)</a>', side.partition('sidebar-tree')[2])
    assert entries[0][0] == 'guide.html' and dict(entries)['05_objective.html'] == '05 Objective'


# ---- the front page


def test_readme_is_short():
    assert len((root / 'README.md').read_text('utf8').splitlines()) < 120


def test_the_front_page_says_what_the_model_writes():
    import trace_picture
    from diffuseq import DiffuSeq

    model = DiffuSeq.from_pretrained('basic-english')
    text = (root / 'README.md').read_text('utf8')
    greedy = model.generate([trace_picture.SOURCE, 'He purchased an enormous automobile.'], progress=False)
    blind = 'The blind and the lame came to him in the temple, and he healed them.'
    for said in greedy + model.generate([blind], order='left-to-right', beam=5, progress=False):
        assert said in text, f'README.md does not say {said!r}'
    assert (root / 'figures/trace.svg').read_text('utf8') == trace_picture.svg(trace_picture.steps(model))


# ---- in a browser

HARNESS = r"""<!DOCTYPE html><meta charset="utf8"><body style="margin:0">
<iframe style="height:900px;border:0"></iframe><script>
const SLACK = 12  // headings and tables of the theme begin half a letter left of their text
const frame = document.querySelector('iframe')
const clips = e => getComputedStyle(e).overflowX !== 'visible'
function outside(page, width) {
  const doc = frame.contentDocument, found = []
  const say = (what, e) => found.push(`${page} at ${width}: ${what} ${e ? e.outerHTML.slice(0, 90) : ''}`)
  const article = doc.querySelector('article'), column = article.getBoundingClientRect()
  if (doc.documentElement.scrollWidth > width) say('the page is wider than the window')
  if (column.left < 0 || column.right > width || column.width < Math.min(300, width - 60))
    say('the article leaves the window')
  const toc = doc.querySelector('.toc-drawer')
  if (toc) {
    const r = toc.getBoundingClientRect()
    if (r.left < width - 1 && r.left + toc.scrollWidth > width + 1) say('the list of contents is cut')
  }
  for (const e of [article, ...article.querySelectorAll('*')]) {
    if (e.closest('svg, mjx-assistive-mml, .visually-hidden, .headerlink')) continue
    const r = e.getBoundingClientRect()
    const right = clips(e) ? r.right : Math.max(r.right, r.left + e.scrollWidth)
    if (!r.width || !r.height || right <= column.right + SLACK && r.left >= column.left - SLACK) continue
    let box = e === article ? e : e.parentElement
    while (box !== article && !clips(box)) box = box.parentElement
    if (box === article) say('outside its column', e)
  }
  return found
}
async function visit(page, widths) {
  frame.style.width = widths[0] + 'px'
  await new Promise(done => { frame.onload = done; frame.src = page })
  const inner = frame.contentWindow, found = []
  frame.contentDocument.head.insertAdjacentHTML('beforeend', '<style>html { scrollbar-width: none }</style>')
  if (inner.MathJax) await inner.MathJax.startup.promise
  const errors = '[data-mml-node="merror"], [data-mml-node="mtext"][fill="red"]'
  for (const e of frame.contentDocument.querySelectorAll(errors))
    found.push(`${page}: MathJax: ${e.getAttribute('data-mjx-error') || 'an unknown command'}`)
  if (frame.contentDocument.querySelectorAll('.math').length && !frame.contentDocument.querySelector('mjx-container'))
    found.push(`${page}: formulas are not set`)
  for (const width of widths) {
    frame.style.width = width + 'px'
    found.push(...outside(page, width))
  }
  return found
}
(async () => {
  const found = []
  for (const [page, widths] of JOBS)
    try { found.push(...await visit(page, widths)) } catch (error) { found.push(`${page}: ${error}`) }
  await fetch('/report', { method: 'POST', body: JSON.stringify(found) })
})()
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    "Serves the site and the harness, and keeps what the harness reports."

    def do_GET(self):
        if self.path != '/harness':
            return super().do_GET()
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.end_headers()
        self.wfile.write(HARNESS.replace('JOBS', json.dumps(self.server.jobs)).encode())

    def do_POST(self):
        self.server.found = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *args):
        pass


def look(folder, jobs, profile):
    "What a browser finds wrong with pages, [(page, widths)], of a folder."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder))
    server.jobs, server.done = jobs, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', f'--user-data-dir={profile}']
    address = f'http://127.0.0.1:{server.server_port}/harness'
    with subprocess.Popen([browser, *options, '--window-size=1920,1000', address], stderr=subprocess.DEVNULL) as p:
        done = server.done.wait(300)
        p.terminate()
    server.shutdown()
    assert done, 'the browser did not report'
    return server.found


needs_browser = pytest.mark.skipif(browser is None, reason='no Chromium is installed')


@needs_browser
def test_every_page_fits_every_width(rendered, site, tmp_path):
    "Each page at a phone's width and a desk's; those with the widest things at all five."
    wide = (
        'index',
        '05_objective',
        '26_metrics',
        '11_connections',
        'equations',
        'experiments/parity',
        'reference/block',
    )
    pages = [name for name in site if '<article' in site[name].text]
    jobs = [(name, WIDTHS if name.removesuffix('.html') in wide else (390, 1366)) for name in pages]
    assert len(jobs) > 70
    found = look(rendered, jobs, tmp_path)
    assert not found, '\n'.join(found[:40])


BROKEN = {
    'wide': ('<article><pre>' + 'x' * 400 + '</pre></article>', 'outside its column'),
    'cut': ('<article style="width:900px">a</article>', 'the article leaves the window'),
    'formula': (r'<article>\(a_b_c\)</article><script src="mathjax.js"></script>', 'MathJax: Double subscripts'),
    'command': (r'<article>\(\nosuch\)</article><script src="mathjax.js"></script>', 'MathJax: an unknown command'),
    'scrolled': ('<article><div style="overflow-x:auto"><pre>' + 'x' * 400 + '</pre></div></article>', None),
}


@needs_browser
@pytest.mark.parametrize('name', BROKEN)
def test_the_look_can_fail(name, tmp_path):
    from conf import mathjax

    body, what = BROKEN[name]
    shutil.copy(mathjax, tmp_path / 'mathjax.js')
    (tmp_path / 'a.html').write_text(f'<!DOCTYPE html><body>{body}', 'utf8')
    found = look(tmp_path, [('a.html', (390,))], tmp_path / 'profile')
    assert any(what in line for line in found) if what else not found
