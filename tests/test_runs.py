"The tables of the experiments and the chain that makes them: tiny models, notebooks that fail, odd records."

import ast, json, os, shlex, shutil, subprocess, sys, time
from contextlib import chdir
from pathlib import Path
import IPython.display, nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from tiny import slow
from diffuseq.runs import reproduce

root = Path(__file__).resolve().parents[1]
TABLES = ['compare', 'table1', 'table2_cases', 'table4_settings', 'report']
SMALL = dict(models=['fast', 'transformer'], n_eval=4, candidates=2)
KERNEL = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))


def notebook(path, *sources):
    "Write a notebook whose first cell holds its parameters."
    cells = [new_code_cell(source) for source in sources]
    cells[0].metadata['tags'] = ['parameters']
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    "A folder with links to what the experiments read, where they may write."
    folder = tmp_path_factory.mktemp('repository')
    for name in ('settings.ini', 'nbs', 'data', 'docs'):
        (folder / name).symlink_to(root / name)
    return folder


@pytest.fixture(scope='module')
def chain(repository):
    "The tables of two tiny models; the folder, and which notebooks failed."
    with chdir(repository):
        failed = reproduce('basic-english', 'smoke', 0.02, runs='runs/all', notebooks=TABLES, **SMALL)
    traces = '\n'.join(p.read_text() for p in (repository / 'runs/reproduce-basic-english').glob('*.txt'))
    return repository, failed, traces


def execute(folder, name, monkeypatch, **parameters):
    "The names in an experiment after its cells, executed in this process in a folder."
    monkeypatch.setattr(IPython.display, 'display', lambda *shown, **how: None)
    monkeypatch.chdir(folder)
    names = dict(display=IPython.display.display)
    for cell in nbformat.read(root / f'nbs/experiments/{name}.ipynb', 4).cells:
        if cell.cell_type == 'code':
            exec(compile(cell.source, cell.id, 'exec'), names)
        if 'parameters' in cell.metadata.get('tags', []):
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names


# ---- the chain


def test_the_tables_of_two_tiny_models(chain):
    folder, failed, traces = chain
    assert failed == [], traces
    record = json.loads((folder / 'figures/compare-basic-english.json').read_text())
    assert [run['recipe'] for run in record['runs']] == SMALL['models'] and record['failed'] == {}
    cases = json.loads((folder / 'figures/table2_cases-basic-english.json').read_text())
    assert cases['digest'] == record['digest']
    ways = [row['model'] for run in record['runs'] for row in run['rows']]
    assert [row['model'] for row in cases['rows']] == ways
    copies = {p.stem for p in (folder / 'runs/reproduce-basic-english').glob('*.ipynb')}
    assert copies == set(TABLES)


def test_a_second_call_trains_and_writes_nothing(chain, capsys):
    folder, _, _ = chain
    kept = lambda: {p: p.stat().st_mtime_ns for p in (folder / 'runs/all').rglob('*') if p.is_file()}
    before = kept()
    with chdir(folder):
        again = reproduce(
            'basic-english', 'smoke', 0.02, runs='runs/all', notebooks=['compare', 'table2_cases'], **SMALL
        )
    assert again == [] and kept() == before
    said = capsys.readouterr().err
    assert '[1/2] compare' in said and 'about 0:' in said  # an earlier call says how long it takes


def test_the_page_holds_every_statement_once(chain, monkeypatch):
    folder, _, _ = chain
    page = execute(folder, 'report', monkeypatch, profile='smoke')
    table = page['table']
    assert table.statement.is_unique and set(table.about) == {'bleu', 'self_bleu', 'div_4', 'dist_1'}
    assert len(page['records']) == len(TABLES) - 1  # this page has none


@slow
def test_a_killed_chain_goes_on(repository):
    call = "from diffuseq.runs import reproduce; reproduce('basic-english', 'smoke', 0.2, runs='runs/killed', "
    call += f'notebooks={TABLES[:2]}, **{SMALL})'
    process = subprocess.Popen([sys.executable, '-c', call], cwd=repository)
    first = repository / 'runs/killed/basic-english-fast-0/trained.json'
    while not first.is_file() and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.wait()
    before = first.stat().st_mtime_ns
    time.sleep(5)  # its kernel sees that nobody listens
    with chdir(repository):
        assert reproduce('basic-english', 'smoke', 0.2, runs='runs/killed', notebooks=TABLES[:2], **SMALL) == []
    assert first.stat().st_mtime_ns == before


# ---- notebooks that fail, and the command


@pytest.fixture
def odd(tmp_path):
    "A repository with a notebook that fails and one that does not."
    (tmp_path / 'settings.ini').touch()
    notebook(tmp_path / 'nbs/experiments/compare.ipynb', 'models = []\nminutes = 1\nseeds = {}', '1 / 0')
    notebook(tmp_path / 'nbs/experiments/report.ipynb', "task = ''\ndata_dir = None", 'print(task, data_dir)')
    return tmp_path


def test_a_notebook_that_fails_is_passed_by(odd, capsys):
    with chdir(odd):
        assert reproduce('mine', notebooks=['compare', 'report'], data_dir='here') == ['compare']
    out = capsys.readouterr().err
    assert 'FAILED: ZeroDivisionError: division by zero (runs/reproduce-mine/compare.txt)' in out
    assert '1 / 0' in (odd / 'runs/reproduce-mine/compare.txt').read_text()
    cells = nbformat.read(odd / 'runs/reproduce-mine/report.ipynb', 4).cells
    assert cells[-1].outputs[0].text == 'mine here\n'


def test_what_is_mended_does_not_stay_failed(odd):
    with chdir(odd):
        reproduce('mine', notebooks=['compare'])
        notebook(odd / 'nbs/experiments/compare.ipynb', 'models = []', '1')
        assert reproduce('mine', notebooks=['compare']) == []
    assert not (odd / 'runs/reproduce-mine/compare.txt').exists()


def test_unknown_parameters_and_other_places_are_refused(odd, tmp_path_factory):
    with chdir(odd), pytest.raises(ValueError, match='no notebook has a parameter datadir; did you mean data_dir'):
        reproduce('mine', notebooks=['report'], datadir='here')
    with chdir(tmp_path_factory.mktemp('elsewhere')), pytest.raises(FileNotFoundError, match='settings.ini'):
        reproduce('mine')


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_make_passes_everything_on(odd):
    "The line that make prints, executed where two of the notebooks are: the others are not there, so it must fail."
    told = ['TASK=my pairs', 'PROFILE=smoke', 'MINUTES=0.5', 'MODELS=fast, gru', 'SEEDS=0, 1', 'DATA_DIR=here']
    alone = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')}  # not `make test`'s
    how = dict(cwd=root, env=alone, capture_output=True, text=True, check=True)
    made = subprocess.run(['make', '-n', 'reproduce', *told], **how)
    line = made.stdout.strip().splitlines()[-1].replace('.venv/bin/python', shlex.quote(sys.executable))
    p = subprocess.run(line, cwd=odd, shell=True, capture_output=True, text=True)
    assert p.returncode not in (0, 127) and '1 of 10 notebooks done' in p.stderr, p.stderr
    given = nbformat.read(odd / 'runs/reproduce-my pairs/compare.ipynb', 4).cells
    passed = next(c.source for c in given if 'injected-parameters' in c.metadata.get('tags', []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(passed).body}
    assert values == dict(models=['fast', 'gru'], minutes=0.5, seeds=dict(fast=[0, 1], gru=[0, 1]))


# ---- records that do not fit


@pytest.fixture
def changed(chain, tmp_path):
    "Writes the record of compare with a change into a folder, and returns the folder."

    def write(change):
        record = json.loads((chain[0] / 'figures/compare-basic-english.json').read_text())
        change(record)
        (tmp_path / 'compare-basic-english.json').write_text(json.dumps(record))
        return str(tmp_path)

    return write


def other_digest(record):
    record['runs'][1]['digest'] = 'another'


def one_candidate(record):
    record['candidates'] = 1


def without_self_bleu(record):
    del record['runs'][0]['rows'][0]['of_many']['self_bleu']


def without_empty(record):
    for row in record['runs'][0]['rows']:
        del row['scores']['n_empty']


@pytest.mark.parametrize('name', ['table1', 'report'])
@pytest.mark.parametrize(
    'change, says',
    [
        (other_digest, 'digest of the held-out pairs another and'),
        (one_candidate, 'one candidate for each source.*-p candidates 10'),
        (without_self_bleu, 'no self_bleu in of_many.*measure again: papermill'),
        (without_empty, 'no n_empty in scores.*measure again: papermill'),
    ],
)
def test_records_that_do_not_fit_are_refused(changed, monkeypatch, name, change, says):
    given = dict(tasks=['basic-english']) if name == 'table1' else {}
    with pytest.raises(ValueError, match=says):
        execute(root, name, monkeypatch, into=changed(change), **given)


def test_a_record_of_another_task_is_refused(changed, monkeypatch):
    folder = changed(lambda record: record.update(task='qqp'))
    with pytest.raises(ValueError, match='cannot stand in one table: task'):
        execute(root, 'report', monkeypatch, into=folder)


@pytest.mark.parametrize('name', ['table1', 'table2_cases', 'report'])
def test_a_missing_record_names_its_command(tmp_path, monkeypatch, name):
    with pytest.raises(FileNotFoundError, match=r'no record; make it by  papermill nbs/experiments/\w+.ipynb'):
        execute(root, name, monkeypatch, into=str(tmp_path))


def test_cases_of_one_candidate_and_of_no_run_are_refused(tmp_path, monkeypatch):
    given = dict(runs=str(tmp_path), into=str(tmp_path), profile='smoke', n_eval=4)
    with pytest.raises(ValueError, match='candidates=1: a case shows several texts'):
        execute(root, 'table2_cases', monkeypatch, candidates=1, **given)
    with pytest.raises(FileNotFoundError, match='no trained run; make it by  papermill'):
        execute(root, 'table2_cases', monkeypatch, candidates=2, **given)


def test_missing_weights_say_not_run(chain, monkeypatch):
    folder, _, _ = chain
    names = execute(folder, 'table1', monkeypatch, tasks=['basic-english'])
    table = names['table_of']('basic-english')
    assert table.loc[('pre-trained, fine-tuned', 'GPT-2 large'), 'BLEU ↑'] == 'not run'
    assert table.loc[('encoder-decoder', 'GRU-attention'), 'BLEU ↑'] == 'not run'
    assert table.loc[('encoder-decoder', 'Transformer'), 'seeds'] == '1'


def test_differences_are_bold_and_escaped(chain, monkeypatch):
    folder, _, _ = chain
    marked = execute(folder, 'table2_cases', monkeypatch)['marked']
    assert marked('a <b> c', 'a c') == 'a <b>&lt;b&gt;</b> c'
    assert marked('', 'a c') == '<i>empty</i>'
    assert marked('c a', 'a c').count('<b>') == 1  # in this order
