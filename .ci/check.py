"All checks, in order: sources are current, every notebook runs, every test passes. The last line counts them; the exit status is 0 if none failed."

import os, subprocess, sys, time
from pathlib import Path
from xml.etree import ElementTree

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / 'docs'))
from nbread import paths

quiet = dict(
    OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', MPLBACKEND='agg'
)


def pytest(*args):
    "Run pytest; returns how many passed, failed and were skipped."
    report = root / '.pytest_cache/report.xml'
    report.unlink(missing_ok=True)
    code = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '--durations=5',
            '--continue-on-collection-errors',
            f'--junitxml={report}',
            *args,
        ],
        cwd=root,
        env=os.environ | quiet,
    ).returncode
    if not report.is_file():
        return 0, 1, 0
    suites = ElementTree.parse(report).getroot().iter('testsuite')
    total, bad, skipped = (
        sum(n)
        for n in zip(
            *[
                (int(s.get('tests')), int(s.get('failures')) + int(s.get('errors')), int(s.get('skipped')))
                for s in suites
            ]
        )
    )
    return total - bad - skipped, max(bad, int(code not in (0, 5))), skipped


def notebooks():
    "Run every notebook as nbdev does (cells marked slow or gpu keep their committed outputs); returns how many passed and failed."
    p = subprocess.run(
        [sys.executable, Path(sys.executable).with_name('nbdev_test'), '--n_workers', '2', '--timing'],
        cwd=root,
        env=os.environ | quiet,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
    )
    sys.stderr.write(p.stderr)
    failed = len([line for line in p.stderr.split('=' * 50)[-1].splitlines() if line.strip()]) if p.returncode else 0
    return len(paths(root / 'nbs')) - failed, failed, 0


def main():
    started = time.monotonic()
    counts = []
    for title, check in [
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
