"Every equation of the paper is derived, exported and checked somewhere, and index.ipynb says where."

import re, sys
from collections import defaultdict
from pathlib import Path
import nbformat
import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / 'docs'))
import equations


@pytest.fixture(scope='module')
def found():
    return equations.read()


def test_every_equation_is_derived_exported_and_checked(found):
    missing = equations.holes(found)
    assert not missing, '\n'.join(missing)


def test_the_map_is_current(found):
    text = next(c.source for c in nbformat.read(root / 'nbs/index.ipynb', 4).cells if equations.MARK in c.source)
    assert text.endswith(equations.MARK + '\n\n' + equations.table(found)), (
        'run python docs/equations.py, then python docs/readme.py'
    )


def test_the_map_names_all_numbers():
    assert equations.NUMBERS == [*dict.fromkeys(equations.NUMBERS)] and {*equations.NUMBERS} == {
        *map(str, range(1, 27)),
        'C1',
        'C2',
    }


def test_links_of_the_map_lead_to_headings(found):
    links = re.findall(r'\]\(([^)#]+)#([^)]+)\)', equations.table(found))
    headings = {
        name: {
            equations.slug(h)
            for c in nbformat.read(root / 'nbs' / name, 4).cells
            if c.cell_type == 'markdown'
            for h in re.findall(r'^#+ (.*)', c.source, re.M)
        }
        for name in {n for n, _ in links}
    }
    assert len(links) > 40 and not [link for link in links if link[1] not in headings[link[0]]]


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
        ('#| export\ndef f(): "Eq. 5."; assert a  # Eq. 6', set()),
    ],
)
def test_what_counts_as_a_check(source, counts):
    out = equations.nothing()
    equations.read_code(source, '01_x.ipynb', 'Heading', out)
    assert set(out['checks']) == counts


def test_use_is_found_through_calls_and_methods():
    out = equations.nothing()
    for source in (
        'class A:\n    def one(self): return f()',
        '@patch\ndef two(self:A): return g()',
        'def f(): "Eq. 5."',
        'def g(): "Eq. 6, 7."',
        'def h(): return f()',
    ):
        equations.read_code('#| export\n' + source, '01_x.ipynb', 'Heading', out)
    assert {k: v for k, v in out['names'].items()} == {'5': ['f'], '6': ['g'], '7': ['g']}
    for start, seen in (
        ({'h'}, {'f'}),
        ({'A'}, set()),
        ({'A', '.two'}, {'g'}),
        ({'.two'}, set()),
        ({'A', '.one', '.two'}, {'f', 'g'}),
    ):
        assert equations.reached(start, out['calls']) & {'f', 'g'} == seen
