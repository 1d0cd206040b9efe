"Mistakes in exported cells are noticed: three of those in mutate.py, and the tool itself. All of them: python tests/mutate.py --chosen"

import json, shutil, subprocess, sys
import pytest
import mutate


def test_chosen_mistakes_can_still_be_made():
    for label in mutate.CHOSEN:
        assert mutate.chosen(mutate.root, label)[2]


@pytest.mark.parametrize(
    'source, changed',
    [
        ('a + b*2', ['a - b*2', 'a + b/2', 'a + b*3']),
        ('(é - b)**2', ['(é + b)**2', '(é - b)', '(é - b)**3']),
        ('x[t - 1]', ['x[t + 1]', 'x[t - 2]']),
        ('~m', ['m']),
        ('-1', ['1', '-2']),
        (
            'torch.where(target[..., None], a, b)',
            ['torch.where(~target[..., None], a, b)', 'torch.where(a, target[..., None], b)'],
        ),
        ('p.argmax(-1)', ['p.argmin(-1)', 'p.argmax(1)', 'p.argmax(-2)']),
        ('x = True', ['x = False']),
        ('a < b <= c', ['a <= b <= c', 'a < b < c']),
        ('f(a, f(b, c))', ['f(f(b, c), a)', 'f(a, f(c, b))']),
        ('not a or b', ['a or b', 'not a and b']),
        (
            "def f(x:int=1)->'a-b':\n    'doc 1'\n    raise ValueError(f'{x+1}')",
            ["def f(x:int=2)->'a-b':\n    'doc 1'\n    raise ValueError(f'{x+1}')"],
        ),
        ("import a\nroot/'a.b'", []),
        ('max(a, b)', ['min(a, b)']),
    ],
)
def test_every_token_is_changed_alone(source, changed):
    assert {source[:i] + new + source[j:] for i, j, new in mutate.Sites(source).found} == set(changed)


def test_the_draw_is_a_function_of_the_seed():
    first = mutate.draw(mutate.root, 30, 0)
    assert first == mutate.draw(mutate.root, 40, 0)[:30] and first != mutate.draw(mutate.root, 30, 1)
    assert [name for name, *_ in first[: len(mutate.LATER)]] == list(mutate.LATER)


def test_three_are_caught_by_their_own_notebooks(tmp_path):
    "In a process of its own, which makes forks. Before it calls a mistake caught, it sees the same check pass without the mistake."
    labels, out = ['a sign', 'rounding by dot product', 'the normaliser of Eq. 3'], tmp_path / 'mutants.jsonl'
    p = subprocess.run(
        [sys.executable, mutate.__file__, '--chosen', *labels, '--out', out],
        cwd=mutate.root,
        capture_output=True,
        text=True,
    )
    assert p.returncode == 0, p.stderr
    results = [json.loads(line) for line in out.read_text('utf8').splitlines()]
    assert [(r['verdict'], r['check']) for r in results] == [('caught', mutate.CHOSEN[label][0]) for label in labels], (
        p.stdout
    )


def test_a_copy_is_left_as_it_was(tmp_path, monkeypatch):
    to = mutate.copy_of()
    files = lambda: {
        p: p.read_bytes()
        for folder in ('nbs', 'diffuseq')
        for p in (to / folder).rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }
    before, seen = files(), []
    monkeypatch.setattr(mutate, 'look', lambda to, check, seconds=0: (seen.append(files() != before), (0, ''))[1])
    label, cell, source = mutate.chosen(to, 'source noised')
    assert (
        mutate.attempt(to, '02_forward', cell, source, set()) == ('survived', '', '')
        and seen == [True] * 3
        and files() == before
    )
    shutil.rmtree(to.parent)
