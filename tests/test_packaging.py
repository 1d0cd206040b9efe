"The package as it is installed: cards inside, the command works, imports are cheap, nothing reaches into the repository."

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


def python(*args, cwd, **env):
    "What a fresh interpreter prints; it must end well."
    p = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    return p.stdout.strip()


def cards():
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
    with tarfile.open(archive) as t:
        t.extractall(
            top / 'unpacked', **(dict(filter='data') if hasattr(tarfile, 'data_filter') else {})
        )  # Python before 3.11.4 has no filters
    (unpacked,) = (top / 'unpacked').iterdir()
    python('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', top / 'dist', unpacked, cwd=top)
    (wheel,) = (top / 'dist').glob('*.whl')
    return top, archive, wheel


@pytest.fixture(scope='module')
def site(built):
    "A folder with the wheel installed and nothing else."
    top, _, wheel = built
    python('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', top / 'site', wheel, cwd=top)
    return top / 'site'


def test_wheel_holds_modules_cards_and_models(built):
    names = set(zipfile.ZipFile(built[2]).namelist())
    assert {f'diffuseq/_data/{c}' for c in cards()} <= names
    assert {str(p.relative_to(root)) for p in (root / 'diffuseq').rglob('*.py')} <= names
    assert {str(p.relative_to(root)) for p in (root / 'diffuseq/pretrained').rglob('*') if p.is_file()} <= names
    assert not [n for n in names if n.startswith(('tests/', 'docs/', 'nbs/'))]


def test_metadata_is_that_of_settings(built):
    c = ConfigParser(delimiters=['='], interpolation=None)
    c.read(root / 'settings.ini')
    wheel = zipfile.ZipFile(built[2])
    text = wheel.read(next(n for n in wheel.namelist() if n.endswith('/METADATA'))).decode()
    assert (
        f'Version: {c["DEFAULT"]["version"]}\n' in text and f'Requires-Python: >={c["DEFAULT"]["min_python"]}\n' in text
    )
    for requirement in c['DEFAULT']['requirements'].split():
        assert f'Requires-Dist: {requirement}' in text
    assert '# DiffuSeq' in text


def test_version_is_said_once(site):
    c = ConfigParser(delimiters=['='], interpolation=None)
    c.read(root / 'settings.ini')
    assert (
        python('-c', 'import diffuseq; print(diffuseq.__version__)', cwd=site.parent, PYTHONPATH=str(site))
        == c['DEFAULT']['version']
    )


def test_command_works_from_an_installed_package(site):
    script = site / 'bin/diffuseq'
    assert python(script, '--version', cwd=site.parent, PYTHONPATH=str(site)).startswith('diffuseq ')
    assert 'generate' in python('-m', 'diffuseq.cli', '--help', cwd=site.parent, PYTHONPATH=str(site))


def test_installed_package_finds_its_cards(site):
    code = (
        'import diffuseq.data as d; print(d.__file__); [d.load_card(n) for n in d.task_names()]; print(*d.task_names())'
    )
    where, names = python('-c', code, cwd=site.parent, PYTHONPATH=str(site)).splitlines()[-2:]
    assert where.startswith(str(site)) and set(names.split()) == {Path(c).stem for c in cards() if c.endswith('.yaml')}


def test_every_module_imports_without_the_repository(site):
    modules = [
        str(p.relative_to(root).with_suffix('')).replace('/', '.')
        for p in (root / 'diffuseq').rglob('*.py')
        if p.stem not in ('__init__', '_modidx')
    ]
    code = f'import importlib, sys; found = [importlib.import_module(m).__file__ for m in {modules!r}]; print(all(f.startswith({str(site)!r}) for f in found))'
    assert python('-c', code, cwd=site.parent, PYTHONPATH=str(site)).splitlines()[-1] == 'True'


def test_only_declared_packages_are_imported(site):
    "What a module imports is among the requirements of `pip install .`: no seaborn, no notebook tools at import time."
    modules = [
        str(p.relative_to(root).with_suffix('')).replace('/', '.')
        for p in (root / 'diffuseq').rglob('*.py')
        if p.stem not in ('__init__', '_modidx')
    ]
    code = (
        'import sys\nclass Refuse:\n def find_spec(self, name, path=None, target=None):\n  if name.split(".")[0] in ("nbdev", "papermill", "jupyterlab", "seaborn", "pytest", "execnb"): raise ImportError("not installed for a user: " + name)\n'
        f'sys.meta_path.insert(0, Refuse())\nimport importlib\n[importlib.import_module(m) for m in {modules!r}]'
    )
    python('-c', code, cwd=site.parent, PYTHONPATH=str(site))


def test_import_is_cheap(site):
    code = 'import sys, diffuseq, diffuseq.cli; print([m for m in ("torch", "transformers", "datasets", "pandas") if m in sys.modules])'
    assert python('-c', code, cwd=site.parent, PYTHONPATH=str(site)) == '[]'


def test_front_door_names_exist(site):
    code = 'import diffuseq; print([n for n in diffuseq.__all__ if not callable(getattr(diffuseq, n))])'
    assert python('-c', code, cwd=site.parent, PYTHONPATH=str(site)).splitlines()[-1] == '[]'
