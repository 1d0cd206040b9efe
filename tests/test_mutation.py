"""Mistakes in exported cells are noticed: three of those in mutate.py; and the tool itself.

All of them: python tests/mutate.py --chosen
"""

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
        ('(\n    a  # a + b, (B,)\n    - b\n)', ['(\n    a  # a + b, (B,)\n    + b\n)']),
        (
            '@f(1)\ndef g(\n    x: int = 3,  # 1 + 2\n) -> int:\n    "1 + 2"\n    return x < 4',
            [
                '@f(1)\ndef g(\n    x: int = 4,  # 1 + 2\n) -> int:\n    "1 + 2"\n    return x < 4',
                '@f(1)\ndef g(\n    x: int = 3,  # 1 + 2\n) -> int:\n    "1 + 2"\n    return x <= 4',
                '@f(1)\ndef g(\n    x: int = 3,  # 1 + 2\n) -> int:\n    "1 + 2"\n    return x < 5',
            ],
        ),
    ],
)
def test_every_token_is_changed_alone(source, changed):
    assert {source[:i] + new + source[j:] for i, j, new in mutate.Sites(source).found} == set(changed)


def test_the_draw_is_a_function_of_the_seed():
    first = mutate.draw(mutate.root, 30, 0)
    assert first == mutate.draw(mutate.root, 40, 0)[:30] and first != mutate.draw(mutate.root, 30, 1)
    assert [name for name, *_ in first[: len(mutate.LATER)]] == list(mutate.LATER)


def test_three_are_caught_by_their_own_notebooks(tmp_path):
    "In a process of its own, which makes forks. It calls a mistake caught once the same check passed without it."
    labels = ['a sign', 'rounding by dot product', 'the normaliser of Eq. 3']
    out = tmp_path / 'mutants.jsonl'
    command = [sys.executable, mutate.__file__, '--chosen', *labels, '--out', out]
    p = subprocess.run(command, cwd=mutate.root, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    results = [json.loads(line) for line in out.read_text('utf8').splitlines()]
    expected = [('caught', mutate.CHOSEN[label][0]) for label in labels]
    assert [(r['verdict'], r['check']) for r in results] == expected, p.stdout


def contents(folder):
    "The bytes of every source."
    files = [p for part in ('nbs', 'diffuseq') for p in (folder / part).rglob('*') if p.is_file()]
    return {p: p.read_bytes() for p in files if '__pycache__' not in p.parts}


def test_a_copy_is_left_as_it_was(monkeypatch):
    to = mutate.copy_of()
    before = contents(to)
    seen = []

    def look(folder, check, seconds=0):
        seen.append(contents(folder) != before)
        return 0, ''

    monkeypatch.setattr(mutate, 'look', look)
    label, cell, source = mutate.chosen(to, 'source noised')
    assert mutate.attempt(to, '03_forward', cell, source, set()) == ('survived', '', '')
    assert seen == [True] * 3
    assert contents(to) == before
    shutil.rmtree(to.parent)
