"The package as it is installed: cards inside, the command works, imports are cheap, the repository is not needed."

import os, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
sources = (
    'settings.ini',
    'setup.py',
    'MANIFEST.in',
    'README.md',
    'LICENSE',
    'CITATION.cff',
    'CONTRIBUTING.md',
    'Makefile',
    'constraints.txt',
)


def python(*args, cwd=None, at=None):
    "What a fresh interpreter prints, in a folder, or with the package installed `at` a folder; it must end well."
    env = os.environ | (dict(PYTHONPATH=str(at)) if at else {})
    command = [sys.executable, *map(str, args)]
    p = subprocess.run(command, cwd=cwd or at.parent, env=env, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    return p.stdout.strip()


def settings():
    "The table of settings.ini."
    c = ConfigParser(delimiters=['='], interpolation=None)
    c.read(root / 'settings.ini', encoding='utf8')
    return c['DEFAULT']


def cards():
    "The files of data/ that a wheel brings along."
    return sorted(p.name for p in (root / 'data').iterdir() if p.suffix in ('.yaml', '.csv') or p.name == 'README.md')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A source archive, and the wheel made from that archive alone, both out of a copy of the repository."
    top = tmp_path_factory.mktemp('with blanks')
    tree = top / 'tree'
    tree.mkdir()
    for name in sources:
        shutil.copy(root / name, tree)
    for folder in ('diffuseq', 'docs'):
        shutil.copytree(root / folder, tree / folder, ignore=shutil.ignore_patterns('__pycache__'))
    (tree / 'data').mkdir()
    for name in cards():
        shutil.copy(root / 'data' / name, tree / 'data')
    python('setup.py', '-q', 'sdist', '-d', top / 'dist', cwd=tree)
    (archive,) = (top / 'dist').glob('*.tar.gz')
    safely = dict(filter='data') if hasattr(tarfile, 'data_filter') else {}  # Python before 3.11.4 has no filters
    with tarfile.open(archive) as t:
        t.extractall(top / 'unpacked', **safely)
    (unpacked,) = (top / 'unpacked').iterdir()
    python('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', top / 'dist', unpacked, cwd=top)
    (wheel,) = (top / 'dist').glob('*.whl')
    return top, archive, wheel


@pytest.fixture(scope='module')
def installed(built):
    "A folder with the wheel installed and nothing else."
    top, _, wheel = built
    python('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', top / 'site', wheel, cwd=top)
    return top / 'site'


def test_wheel_holds_modules_cards_and_models(built):
    names = set(zipfile.ZipFile(built[2]).namelist())
    assert {f'diffuseq/_data/{c}' for c in cards()} <= names
    assert {str(p.relative_to(root)) for p in (root / 'diffuseq').rglob('*.py')} | {'diffuseq/py.typed'} <= names
    assert {str(p.relative_to(root)) for p in (root / 'diffuseq/pretrained').rglob('*') if p.is_file()} <= names
    assert not [n for n in names if n.startswith(('tests/', 'docs/', 'nbs/'))]


def test_metadata_is_that_of_settings(built):
    c = settings()
    wheel = zipfile.ZipFile(built[2])
    text = wheel.read(next(n for n in wheel.namelist() if n.endswith('/METADATA'))).decode()
    lines = [f'Version: {c["version"]}', f'Requires-Python: >={c["min_python"]}']
    lines += [f'Requires-Dist: {requirement}' for requirement in c['requirements'].split()]
    assert not [line for line in lines if line not in text.splitlines()]
    assert '# DiffuSeq' in text


def test_version_is_said_once(installed):
    assert python('-c', 'import diffuseq; print(diffuseq.__version__)', at=installed) == settings()['version']


def test_command_works_from_an_installed_package(installed):
    assert python(installed / 'bin/diffuseq', '--version', at=installed).startswith('diffuseq ')
    assert 'generate' in python('-m', 'diffuseq.cli', '--help', at=installed)
    assert python('-m', 'diffuseq', '--version', at=installed).startswith('diffuseq ')


FIND_CARDS = """
import diffuseq.data as data
print(data.__file__)
for name in data.task_names():
    data.load_card(name)
print(*data.task_names())
"""


def test_installed_package_finds_its_cards(installed):
    where, names = python('-c', FIND_CARDS, at=installed).splitlines()[-2:]
    assert where.startswith(str(installed))
    assert set(names.split()) == {Path(c).stem for c in cards() if c.endswith('.yaml')}


IMPORT_ALL = """
import importlib, sys

class Refuse:
    "What a user need not have installed."

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('nbdev', 'papermill', 'jupyterlab', 'seaborn', 'pytest', 'execnb', 'ruff'):
            raise ImportError('not installed for a user: ' + name)

sys.meta_path.insert(0, Refuse())
print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')
"""


def test_every_module_imports_what_was_declared_and_needs_no_repository(installed):
    paths = [p.relative_to(root) for p in (root / 'diffuseq').rglob('*.py')]
    names = ['.'.join(p.with_suffix('').parts) for p in paths if p.stem not in ('__init__', '__main__', '_modidx')]
    found = python('-c', IMPORT_ALL, *names, at=installed).splitlines()[-len(names) :]
    assert len(names) > 20
    assert found == [str(installed / Path(*name.split('.')).with_suffix('.py')) for name in names]


def test_import_is_cheap(installed):
    large = ('torch', 'transformers', 'datasets', 'pandas')
    code = f'import sys, diffuseq, diffuseq.cli; print([m for m in {large} if m in sys.modules])'
    assert python('-c', code, at=installed) == '[]'


LATER = ('datasets', 'accelerate', 'torchmetrics', 'nltk', 'sacrebleu', 'bert_score', 'sklearn', 'pandas', 'pyarrow')
LATER += ('transformers.models.', 'transformers.modeling_')
FIRST_TEXT = f"""
import sys
from diffuseq import DiffuSeq, load_model
loaded = lambda names: sorted(m for m in sys.modules if m.startswith(names))
print(loaded({(*LATER, 'transformers')}))
print(load_model('basic-english').generate(['and he said'], progress=False) != [''], loaded({LATER}))
"""


def test_the_class_waits_for_torch_alone_and_the_first_text_for_what_writes_it(installed):
    assert python('-c', FIRST_TEXT, at=installed).splitlines()[-2:] == ['[]', 'True []']


def test_an_editor_knows_the_names_of_the_front_door():
    import diffuseq, jedi

    for name in diffuseq.__all__:
        (found,) = jedi.Script(f'from diffuseq import {name}').infer(1, len(f'from diffuseq import {name}'))
        assert found.full_name == f'diffuseq.{diffuseq._home[name]}.{name}' and found.type in ('class', 'function')


def test_front_door_names_exist(installed):
    code = 'import diffuseq; print([n for n in diffuseq.__all__ if not callable(getattr(diffuseq, n))])'
    assert python('-c', code, at=installed).splitlines()[-1] == '[]'
