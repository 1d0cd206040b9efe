"Mistakes in exported cells are noticed: three of those in mutate.py, and the tool itself. All of them: python tests/mutate.py --chosen"
import shutil
import nbformat, pytest
import mutate

def test_chosen_mistakes_can_still_be_made():
    for label in mutate.CHOSEN: assert mutate.chosen(mutate.root, label)[2]

@pytest.mark.parametrize('source, changed', [
    ('a + b*2', ['a - b*2', 'a + b/2', 'a + b*3']), ('(é - b)**2', ['(é + b)**2', '(é - b)', '(é - b)**3']), ('x[t - 1]', ['x[t + 1]', 'x[t - 2]']), ('~m', ['m']), ('-1', ['1', '-2']),
    ('torch.where(target[..., None], a, b)', ['torch.where(~target[..., None], a, b)', 'torch.where(a, target[..., None], b)']), ('p.argmax(-1)', ['p.argmin(-1)', 'p.argmax(1)', 'p.argmax(-2)']),
    ('x = True', ['x = False']), ('a < b <= c', ['a <= b <= c', 'a < b < c']), ('f(a, f(b, c))', ['f(f(b, c), a)', 'f(a, f(c, b))']), ('not a or b', ['a or b', 'not a and b']),
    ("def f(x:int=1)->'a-b':\n    'doc 1'\n    raise ValueError(f'{x+1}')", ["def f(x:int=2)->'a-b':\n    'doc 1'\n    raise ValueError(f'{x+1}')"]), ("import a\nroot/'a.b'", []), ('max(a, b)', ['min(a, b)'])])
def test_every_token_is_changed_alone(source, changed):
    assert {source[:i] + new + source[j:] for i, j, new in mutate.Sites(source).found} == set(changed)

def test_the_draw_is_a_function_of_the_seed():
    first = mutate.draw(mutate.root, 30, 0)
    assert first == mutate.draw(mutate.root, 40, 0)[:30] and first != mutate.draw(mutate.root, 30, 1)
    assert [name for name, *_ in first[:len(mutate.LATER)]] == list(mutate.LATER)

@pytest.fixture(scope='module')
def copy():
    to = mutate.copy_of()
    yield to
    shutil.rmtree(to.parent)

@pytest.mark.parametrize('label', ['a sign', 'rounding by dot product', 'the normaliser of Eq. 3'])
def test_a_mistake_is_caught_by_its_own_notebook(copy, label):
    name = mutate.CHOSEN[label][0]
    sizes = lambda: [p.read_bytes() for p in (copy/f'nbs/{name}.ipynb', *sorted((copy/'diffuseq').glob('*.py')))]
    before = sizes()
    verdict, check, said = mutate.attempt(copy, name, *mutate.chosen(copy, label)[1:])
    assert (verdict, check) == ('caught', name), said
    assert sizes() == before

def test_what_changes_nothing_survives(copy):
    "Without a mistake the same checks pass: it is the mistake that they notice."
    nb = nbformat.read(copy/'nbs/08_anchoring.ipynb', 4)
    cell = next(c for c in nb.cells if mutate.is_exported(c) and 'def replace_source' in c.source)
    assert mutate.attempt(copy, '08_anchoring', cell.id, cell.source.replace('return torch.where(target[...,None], z, source)', 'return torch.where(target[..., None], z, source)'))[0] == 'survived'
