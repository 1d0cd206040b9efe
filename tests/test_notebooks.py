"Every notebook keeps the house rules that a machine can check."

import ast, re, sys
from pathlib import Path
import nbformat
import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / 'docs'))
from nbread import is_exported, paths, python

books = {str(p.relative_to(root / 'nbs')): nbformat.read(p, 4) for p in paths(root / 'nbs')}
every = pytest.mark.parametrize('name', books)


def code_cells(nb):
    return [c.source for c in nb.cells if c.cell_type == 'code']


@every
def test_opens_with_a_title_and_what_it_is_about(name):
    first = next(c.source for c in books[name].cells if c.cell_type == 'markdown')
    assert re.match(r'# \S.*\n\n> \S', first), 'the first text cell is `# Title`, an empty line, `> one line`'


@every
def test_no_cell_failed(name):
    for c in books[name].cells:
        assert not [o for o in c.get('outputs', []) if o.output_type == 'error'], c.source


@every
def test_outputs_hold_no_machine(name):
    "No warnings of this machine, no folder of its user, no progress bar in a committed output."
    for c in books[name].cells:
        for o in c.get('outputs', []):
            text = str(o.get('text', '')) + str(o.get('data', {}).get('text/plain', ''))
            assert not re.search(r'site-packages|/home/|/root/|it/s\]|s/it\]|\d+%\|', text), f'{c.id}: {text[:300]}'


@every
def test_cells_are_short(name):
    "At most 45 lines, not counting the rows of a table of settings (`name:type=value # meaning`)."
    for source in code_cells(books[name]):
        assert len([line for line in source.splitlines() if not re.match(r'    \w+:\w+=.* # ', line)]) <= 45, source[
            :200
        ]


@every
def test_links_lead_somewhere(name):
    for c in books[name].cells:
        if c.cell_type != 'markdown':
            continue
        for target in re.findall(r'\]\(([^)#\s]+\.ipynb)', c.source):
            if not target.startswith('http'):
                assert (root / 'nbs' / name).parent.joinpath(target).is_file(), f'{target} does not exist'


@every
def test_display_maths_stands_on_its_own_lines(name):
    for c in books[name].cells:
        if c.cell_type == 'markdown':
            text = re.sub(r'```.*?```|`[^`\n]*`', '', c.source, flags=re.S)
            assert text.count('$$') % 2 == 0, f'{c.id}: a display is not closed'
            assert not re.search(r'\\begin\{align\*?\}|\\bm\b|\\mathds\b', text), (
                f'{c.id}: use aligned, \\boldsymbol, \\mathbb'
            )


def definitions(cells):
    "(cell number, name, whether it is a method that was patched on, its source) of every public function and class that is exported."
    for i, source in enumerate(cells):
        if not is_exported(source):
            continue
        for node in ast.parse(python(source)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
                yield (
                    i,
                    node.name,
                    any('patch' in ast.unparse(d) for d in node.decorator_list),
                    ast.get_source_segment(python(source), node),
                )


@every
def test_what_is_exported_is_used(name):
    "By a check below it, or by something else that is exported here (which then must be used itself). PyTorch calls `forward`."
    cells = code_cells(books[name])
    for i, public, patched, own in definitions(cells):
        pattern = re.compile(rf'\.{public}\b' if patched else rf'\b{public}\b')
        elsewhere = '\n'.join([*cells[i + 1 :], *filter(is_exported, cells[:i]), python(cells[i]).replace(own, '')])
        assert public == 'forward' or pattern.search(elsewhere), f'{public} is exported and never used'


@pytest.mark.parametrize('name', [n for n in books if n.startswith('experiments/')])
def test_experiments_have_parameters(name):
    tagged = [c for c in books[name].cells if 'parameters' in c.metadata.get('tags', [])]
    assert len(tagged) == 1 and not any(is_exported(s) for s in code_cells(books[name]))


@every
def test_what_is_exported_has_a_place(name):
    cells = code_cells(books[name])
    assert any('#| default_exp' in s for s in cells) == any(is_exported(s) for s in cells)


def test_reading_order_has_no_arrow_back():
    "A notebook imports only modules whose notebooks come before it."
    order = [
        m[1]
        for nb in books.values()
        for s in code_cells(nb)
        if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))
    ]
    home = {
        m[1]: name
        for name, nb in books.items()
        for s in code_cells(nb)
        if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))
    }
    number = lambda name: int(re.match(r'\d+', Path(name).name)[0]) if re.match(r'\d+', Path(name).name) else 99
    for module, name in home.items():
        for source in code_cells(books[name]):
            if not is_exported(source):
                continue
            for used in re.findall(
                r'^(?:from diffuseq\.(\w+(?:\.\w+)?) import|import diffuseq\.(\w+(?:\.\w+)?))', source, re.M
            ):
                used = ''.join(used)
                assert number(home[used]) <= number(name), f'{name} imports {used}, which {home[used]} explains later'


def test_files_speak_of_the_project_only():
    "No folder of one machine, no tracker, no index address: the repository is read elsewhere."
    words = re.compile(
        '|'.join(
            [
                r'/wo' r'rk/(?!of)',
                r'issues? ' r'#?\d',
                r'#\d' r'{1,3}\b(?=[ .,)]| session)',
                r'pypi' r'\.org',
                r'python' r'hosted',
                r'scra' r'tch/',
                r'\bCE' r'O\b',
            ]
        ),
        re.I,
    )
    texts = {n: '\n'.join(c.source for c in nb.cells if not c.source.startswith('%%html')) for n, nb in books.items()}
    texts |= {
        str(p.relative_to(root)): p.read_text('utf8')
        for folder in ('tests', 'docs', 'data', '.ci')
        for p in (root / folder).glob('*')
        if p.suffix in ('.py', '.md', '.yaml') or p.name == 'run'
    }
    texts |= {
        n: (root / n).read_text('utf8')
        for n in ('Makefile', 'README.md', 'CONTRIBUTING.md', 'settings.ini', 'setup.py', 'constraints.txt')
    }
    found = {n: m[0] for n, t in texts.items() if (m := words.search(t))}
    assert not found, found
