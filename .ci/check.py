"""All checks, in order: form and sources are current, every notebook runs, every test passes.

The last line counts them; the exit status is 0 if none failed.
"""

import os, subprocess, sys, time
from pathlib import Path
from xml.etree import ElementTree

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / 'tests'))
from conftest import quiet
from nbread import paths

written = ('nbs', 'tests', 'docs', '.ci', 'setup.py')  # by hand


def python(*args, **how):
    "Run this interpreter in the repository's root."
    return subprocess.run([sys.executable, *args], cwd=root, env=os.environ | quiet, **how)


def form():
    "Whether every line has the form of ruff.toml; returns how many checks passed, failed and were skipped."
    options = ('--no-cache', '-q', '--output-format', 'concise')
    codes = [
        python('-m', 'ruff', *check, *options, *written).returncode for check in (('check',), ('format', '--check'))
    ]
    failed = sum(code != 0 for code in codes)
    return 2 - failed, failed, 0


def pytest(*args):
    "Run pytest; returns how many passed, failed and were skipped."
    report = root / '.pytest_cache/report.xml'
    report.unlink(missing_ok=True)
    options = ('-q', '--durations=5', '--continue-on-collection-errors', f'--junitxml={report}')
    code = python('-m', 'pytest', *options, *args).returncode
    if not report.is_file():
        return 0, 1, 0
    suites = list(ElementTree.parse(report).getroot().iter('testsuite'))
    count = lambda *names: sum(int(suite.get(name)) for suite in suites for name in names)
    bad = count('failures', 'errors')
    skipped = count('skipped')
    return count('tests') - bad - skipped, max(bad, int(code not in (0, 5))), skipped


def notebooks():
    """Run every notebook as nbdev does: cells marked slow or gpu keep their committed outputs.

    Returns how many passed, failed and were skipped.
    """
    nbdev_test = Path(sys.executable).with_name('nbdev_test')
    p = python(nbdev_test, '--n_workers', '2', '--timing', stderr=subprocess.PIPE, text=True, errors='replace')
    sys.stderr.write(p.stderr)
    named = [line for line in p.stderr.split('=' * 50)[-1].splitlines() if line.strip()]
    failed = len(named) if p.returncode else 0
    return len(paths(root / 'nbs')) - failed, failed, 0


def main():
    started = time.monotonic()
    counts = []
    for title, check in [
        ('Form', form),
        ('Sources are current', lambda: pytest('tests/test_sources.py')),
        ('Notebooks', notebooks),
        ('Tests', lambda: pytest('tests', '--ignore=tests/test_sources.py', '-n', '2', '--dist', 'loadfile')),
    ]:
        print(f'\n== {title}', flush=True)
        counts.append(check())
    passed, failed, skipped = map(sum, zip(*counts))
    print(f'\n{time.monotonic() - started:.0f} seconds')
    print(f'{passed} passed, {failed} failed' + (f', {skipped} skipped' if skipped else ''))
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
