"Every equation of the paper is derived, exported and checked somewhere, and equations.ipynb says where."

import re
from collections import defaultdict
import equations, nbformat, pytest
from equations import root


@pytest.fixture(scope='module')
def found():
    return equations.read()


def test_every_equation_is_derived_exported_and_checked(found):
    missing = equations.holes(found)
    assert not missing, '\n'.join(missing)


def test_the_map_is_current(found):
    text = next(c.source for c in nbformat.read(root / 'nbs/equations.ipynb', 4).cells if equations.MARK in c.source)
    assert text.endswith(equations.MARK + '\n\n' + equations.table(found)), 'run python docs/equations.py'


def test_the_map_names_all_numbers():
    assert len(equations.NUMBERS) == len(set(equations.NUMBERS))
    assert set(equations.NUMBERS) == {*map(str, range(1, 27)), 'C1', 'C2'}


def headings_of(name):
    "The anchors of a notebook's headings."
    texts = [c.source for c in nbformat.read(root / 'nbs' / name, 4).cells if c.cell_type == 'markdown']
    return {equations.slug(title) for text in texts for title in re.findall(r'^#+ (.*)', text, re.M)}


def test_links_of_the_map_lead_to_headings(found):
    links = re.findall(r'\]\(([^)#]+)#([^)]+)\)', equations.table(found))
    headings = {name: headings_of(name) for name in {name for name, _ in links}}
    assert len(links) > 40
    assert not [link for link in links if link[1] not in headings[link[0]]]


@pytest.mark.parametrize('key, what', [('tags', 'derivation'), ('names', 'export'), ('checks', 'check')])
def test_a_hole_is_named(found, key, what):
    emptied = found | {key: defaultdict(list, found[key] | {'14': []})}
    assert [m.startswith(f'Eq. 14 has no {what}') for m in equations.holes(emptied)] == [True]


@pytest.mark.parametrize(
    'source, counts',
    [
        ('test_close(a, b)  # Eq. 3, 14: by hand', {'3', '14'}),
        ('for x in y: assert x  # Eq. C1', {'C1'}),
        ('# Eq. 5\nassert a', {'5'}),
        ('print(a)  # Eq. 5', set()),
        ('assert a  # as Eq. S2', set()),
        ('assert a, "Eq. 5"', set()),
        ('# plot only\nassert a  # Eq. 5', set()),
        ('test_close(\n    a,\n    b,\n)  # Eq. 3', {'3'}),
        ('#| export\ndef f(): "Eq. 5."; assert a  # Eq. 6', set()),
        ('#|exporti\nassert a  # Eq. 6', set()),
    ],
)
def test_what_counts_as_a_check(source, counts):
    out = equations.nothing()
    equations.read_code(source, '01_x.ipynb', 'Heading', out)
    assert set(out['checks']) == counts


CLASS = '''#| export
from a import (
    b,
    c,
)


@dataclass
class A(B):
    """A class (Eq. 1)."""

    size: int = 3

    @property
    def one(
        self,
    ):  # (B,)
        """A half (Eq. 2,
        3).

        Raises
        ------
        ValueError
            If Eq. 4 fails.
        """
        return f()

    def _two(self):
        "Nobody's (Eq. 5)."


class B:
    def three(self):
        "Of its father (Eq. 6)."


@patch
@torch.no_grad()
def four(
    self: A,
    x,  # Eq. 7
):
    "Patched on (Eq. 8)."
    return self._two()
'''


def test_whole_classes_export_their_methods():
    out = equations.nothing()
    equations.read_code(CLASS, '01_x.ipynb', 'Heading', out)
    named = {'1': ['A'], '2': ['A.one'], '3': ['A.one'], '4': ['A.one'], '6': ['B.three'], '8': ['A.four']}
    assert dict(out['names']) == named
    assert {'B.three', 'A._two'} <= equations.reached({'A', '.three', '.four'}, out['calls'])
    assert 'A._two' not in equations.reached({'A', '.three'}, out['calls'])


USES = (
    'class A:\n    def one(self): return f()',
    '@patch\ndef two(self:A): return g()',
    'def f(): "Eq. 5."',
    'def g(): "Eq. 6, 7."',
    'def h(): return f()',
)


@pytest.mark.parametrize(
    'start, seen',
    [
        ({'h'}, {'f'}),
        ({'A'}, set()),
        ({'A', '.two'}, {'g'}),
        ({'.two'}, set()),
        ({'A', '.one', '.two'}, {'f', 'g'}),
    ],
)
def test_use_is_found_through_calls_and_methods(start, seen):
    out = equations.nothing()
    for source in USES:
        equations.read_code('#| export\n' + source, '01_x.ipynb', 'Heading', out)
    assert dict(out['names']) == {'5': ['f'], '6': ['g'], '7': ['g']}
    assert equations.reached(start, out['calls']) & {'f', 'g'} == seen
