"""What is generated from the notebooks is what they generate now: the library and README.md; the notebooks are clean.

All in a copy: nothing here is touched.
"""

import filecmp, os, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
tools = Path(sys.executable).parent
skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'runs', 'pretrained')


def modules(folder):
    "The library's files, from the repository's root."
    return {str(p.relative_to(folder)) for p in (folder / 'diffuseq').rglob('*.py')}


@pytest.fixture(scope='module')
def remade(tmp_path_factory):
    "The repository's sources once more, with the library's generated modules left out and everything made again."
    to = tmp_path_factory.mktemp('sources') / 'diffuseq'
    for folder in ('nbs', 'docs', 'diffuseq', 'figures'):
        shutil.copytree(root / folder, to / folder, ignore=skip)
    shutil.copy(root / 'settings.ini', to)
    for p in (to / 'diffuseq').rglob('*.py'):
        if p.name != '__init__.py':
            p.unlink()
    env = os.environ | {'PYTHONPATH': str(to)}
    for script in (tools / 'nbdev_export', tools / 'nbdev_clean', 'docs/readme.py'):
        subprocess.run([sys.executable, script], cwd=to, env=env, check=True)
    return to


def test_export_is_current(remade):
    stale = sorted(modules(root) ^ modules(remade))
    assert not stale, (
        f'no notebook exports these, or they were never exported: {stale}; run nbdev_export, delete what is left over'
    )
    changed = [m for m in sorted(modules(remade)) if not filecmp.cmp(root / m, remade / m, shallow=False)]
    assert not changed, f'not what the notebooks say: {changed}; edit the notebook and run nbdev_export'


def test_notebooks_are_clean(remade):
    dirty = [
        str(p.relative_to(remade))
        for p in sorted((remade / 'nbs').rglob('*.ipynb'))
        if not filecmp.cmp(p, root / p.relative_to(remade), shallow=False)
    ]
    assert not dirty, f'these hold execution counts or stray metadata: {dirty}; run nbdev_clean'


def test_readme_is_current(remade):
    for p in [remade / 'README.md', *(remade / 'index_files').glob('*')]:
        mine = root / p.relative_to(remade)
        assert mine.is_file() and filecmp.cmp(mine, p, shallow=False), (
            f'{mine.name} is not what nbs/index.ipynb says; run python docs/readme.py'
        )
