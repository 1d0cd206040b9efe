"""What can go wrong around the command `diffuseq`, and a fuzzer for the rest: one line that says what to do.

FUZZ=1000 sets the number of the fuzzer's cases (100), FUZZ_FIRST the first of them (0).
"""

import copy, io, json, os, random, shutil, signal, subprocess, sys, time, traceback
from collections import Counter
from contextlib import redirect_stderr, suppress
from pathlib import Path
import pytest
from test_cli import done, start_echo

GENERATE = ['generate', '--model', 'm', '--in', 'in', '--out', 'out']


def one_line(err):
    "The message, if that is all there is."
    assert err.startswith('diffuseq: ') and len(err.splitlines()) == 1, err
    return err


def begun(path, process):
    "Wait until something stands in a file, or the process has ended."
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    "Runs the command in this process, in a folder of its own, with a model that writes capitals: status, complaints."
    from diffuseq import cli
    from diffuseq.config import BlockDecoding

    class Capitals:
        decoding = BlockDecoding()

        def state_dict(self):
            return 'm'

        def generate(self, sources, **settings):
            return [s.upper() for s in sources]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'load', lambda name, device: Capitals())
    monkeypatch.setattr(cli, 'digest_of', lambda name: name)

    def run(*argv):
        status = cli.main([*argv])
        return status, capsys.readouterr().err

    return run


# ---- two at once, signals, disks and pipes


def test_two_at_once_do_not_write_into_one_file(tmp_path):
    (tmp_path / 'in').write_text('a\n' * 40)
    argv = [*GENERATE, '--batch-size', '1']
    assert done(start_echo(tmp_path, *GENERATE[:-1], 'whole', '--batch-size', '1'))[0] == 0
    first = start_echo(tmp_path, *argv, pause=0.3)
    begun(tmp_path / 'out', first)
    status, _, err = done(start_echo(tmp_path, *argv))
    assert status == 2 and f'out is in use by diffuseq generate, process {first.pid} on' in one_line(err)
    first.kill()
    first.communicate()
    assert done(start_echo(tmp_path, *argv))[0] == 0  # the dead do not hold it
    assert (tmp_path / 'out').read_bytes() == (tmp_path / 'whole').read_bytes()
    assert not list(tmp_path.glob('.*holder'))


@pytest.mark.parametrize('number, expected', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_word_on_how_to_go_on(tmp_path, number, expected):
    (tmp_path / 'in').write_text('a\n' * 500)
    p = start_echo(tmp_path, *GENERATE, '--batch-size', '2', pause=0.02)
    begun(tmp_path / 'out', p)
    p.send_signal(number)
    status, _, err = done(p)
    lines = len((tmp_path / 'out').read_text().splitlines())
    words = f'interrupted after {lines} lines of out; the same command goes on from there'
    assert status == expected and words in one_line(err)
    assert not list(tmp_path.glob('.*holder'))


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_a_signal_before_anything_is_written_too(tmp_path):
    p = start_echo(tmp_path, 'generate', '--model', 'm', '--out', 'out', stdin=subprocess.PIPE)
    for _ in range(200):
        if listens(p.pid):
            break
        time.sleep(0.05)
    p.send_signal(signal.SIGTERM)
    status, _, err = done(p)
    assert status == 143 and 'the same command' in one_line(err) and not (tmp_path / 'out').exists()


def listens(pid):
    "Whether a process catches SIGTERM."
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith('SigCgt'))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def small_files():
    "Files of this process hold at most 200 bytes."
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


def test_a_full_disk_loses_nothing(tmp_path):
    (tmp_path / 'in').write_text(''.join(f'text number {i}\n' for i in range(40)))
    assert done(start_echo(tmp_path, *GENERATE[:-1], 'whole', '--batch-size', '3'))[0] == 0
    argv = [*GENERATE, '--batch-size', '3']
    settings = (tmp_path / 'whole.settings.json').read_text()
    (tmp_path / 'out.settings.json').write_text(settings)
    (tmp_path / 'out').write_bytes((tmp_path / 'whole').read_bytes()[:70])
    status, _, err = done(start_echo(tmp_path, *argv, preexec_fn=small_files))
    err = one_line(err)
    assert status == 2 and 'cannot write to out (File too large) after' in err and 'the same command goes on' in err
    assert 70 < (tmp_path / 'out').stat().st_size <= 200
    assert done(start_echo(tmp_path, *argv))[0] == 0
    assert (tmp_path / 'out').read_bytes() == (tmp_path / 'whole').read_bytes()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_standard_output_is_one_message(tmp_path):
    with open('/dev/full', 'wb') as full:
        p = start_echo(tmp_path, 'generate', '--model', 'm', stdin=subprocess.PIPE, stdout=full)
        status, _, err = done(p, b'a\n')
    assert status == 2 and 'cannot write to standard output (No space left on device)' in one_line(err)


def test_a_reader_that_closes_the_pipe_is_no_error_message(tmp_path):
    (tmp_path / 'in').write_text('a long line to fill the pipe\n' * 20000)
    p = start_echo(tmp_path, 'generate', '--model', 'm', '--in', 'in')
    p.stdout.readline()
    p.stdout.close()
    assert (p.stderr.read(), p.wait(60)) == (b'', 1)


def test_show_into_a_closed_pipe_is_no_error_message(tmp_path):
    run_folder(tmp_path)
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    argv = [sys.executable, '-m', 'diffuseq', 'show', tmp_path / 'run']
    p = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, env=buffered)
    os.close(write)
    assert (p.returncode, p.stderr) == (1, b'')


# ---- input that is something else


@pytest.mark.parametrize(
    'data, words',
    [
        (b'[{"src": "a"}, {"src": "b"}]', 'in, line 1: this looks like one JSON list'),
        (b'\n[\n {"src": "a"}\n]\n', 'in, line 2: this looks like one JSON list'),
        (b'["a", "b"]\n', 'in, line 1: this looks like one JSON list'),
        (b'{\n "src": "a"\n}\n', 'in, line 1: this looks like a JSON object over several lines'),
        (b'\n\n{"src": \n"a"}\n', 'in, line 3: not valid JSON'),
        (b'{"src": "a"}\n{"src": \n', 'in, line 2: not valid JSON'),
        (b'{"src": "a"}\n{"text": "a"}\n', "in, line 2: no field 'src' or 'source'; it has 'text'"),
        (b'{"src": "a"}\n"b"\n', 'in, line 2: str instead of one object on each line'),
        (b'{"src": 1}\n', "in, line 1: 'src' is int; expected a string"),
        (b'{"src": "a", "trg": 1}\n', "in, line 1: 'trg' is int; expected a string"),
        (b'{"src": "a", "refs": []}\n', "in, line 1: 'refs' is an empty list"),
        (b'{"src": "a", "refs": ["b", null]}\n', "in, line 1: 'refs'[1] is NoneType"),
        (b'{"src": "a \\ud800"}\n', "in, line 1: 'src' holds the character U+D800 at place 3"),
        (b'{"src": "a", "trg": "\\udfff"}\n', "in, line 1: 'trg' holds the character U+DFFF"),
        (b'{"src": "a", "refs": ["b", "\\ud800"]}\n', "in, line 1: 'refs'[1] holds the character U+D800"),
        (b'{"src": ' + b'[' * 50000 + b'\n', 'in, line 1: nested too deeply'),
        (b'a\nb\0c\n', 'in, line 2 holds the character U+0000 at place 2'),
        (b'a\n\xff\xfe\n', 'in, line 2: not UTF-8'),
        ('a\n'.encode('utf-16'), 'in, line 1: not UTF-8'),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_made_of_it(said, data, words):
    Path('in').write_bytes(data)
    status, err = said(*GENERATE, '--batch-size', '1')
    assert status == 2 and words in one_line(err)
    assert not Path('out').exists() or len(Path('out').read_bytes().splitlines()) < len(data.splitlines())


def test_a_bad_line_is_mended_and_the_same_command_goes_on(said):
    Path('in').write_text('{"src": "a", "trg": "b"}\n{"src": "c", "trg": "\\ud800"}\n{"src": "e", "trg": "f"}\n')
    assert said(*GENERATE, '--batch-size', '1')[0] == 2
    assert len(Path('out').read_text().splitlines()) == 1
    Path('in').write_text('{"src": "a", "trg": "b"}\n{"src": "c", "trg": "d"}\n{"src": "e", "trg": "f"}\n')
    assert said(*GENERATE, '--batch-size', '1')[0] == 0
    assert [json.loads(line)['reference'] for line in Path('out').read_text().splitlines()] == ['b', 'd', 'f']


@pytest.mark.parametrize('data, made', [(b'\n\n{"src": "a"}\n', 1), (b'\n[1] a\n', 2), (b'\n\n', 2), (b'', 0)])
def test_blank_lines_decide_nothing(said, data, made):
    Path('in').write_bytes(data)
    assert said(*GENERATE)[0] == 0
    assert len(Path('out').read_text().splitlines()) == made


# ---- files and folders that are something else


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--out', '.'], '. is a folder; name a file in it, as in --out generated.txt'),
        (['--out', '/dev/null'], 'no regular file'),
        (['--out', 'in/new/out'], 'in'),
        (['--in', '.'], '. is a folder; expected a file with a text on each line'),
        (['--in', 'none'], 'none: No such file'),
    ],
)
def test_a_place_that_cannot_be_is_named_and_left_alone(said, argv, words):
    Path('in').write_text('a\n')
    status, err = said(*GENERATE, *argv)
    assert status == 2 and words in one_line(err)
    assert os.listdir() == ['in']


def test_a_new_folder_is_made(said):
    Path('in').write_text('a\n')
    assert said(*GENERATE, '--out', 'new/folder/out')[0] == 0
    assert Path('new/folder/out').read_text() == 'A\n'


@pytest.mark.parametrize('text', ['', 'x', '[]', 'null', '[' * 50000, '{"n": 1}', '\udc80'])
def test_settings_of_another_shape_are_one_line(said, text):
    Path('in').write_text('a\n')
    assert said(*GENERATE)[0] == 0
    Path('out.settings.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    status, err = said(*GENERATE)
    assert status == 2 and 'choose another --out, or delete out and out.settings.json' in one_line(err)
    assert Path('out').read_text() == 'A\n'


@pytest.mark.parametrize('line', ['', 'x', '[]', '[' * 50000, '{}', '{"source": "b"}'])
def test_an_output_of_another_shape_is_one_line(said, line):
    Path('in').write_text('{"src": "a"}\n')
    assert said(*GENERATE)[0] == 0
    Path('out').write_text(line + '\n')
    status, err = said(*GENERATE)
    assert status == 2 and 'choose another --out' in one_line(err)


@pytest.mark.parametrize(
    'data, words',
    [
        (b'{"generated": 1}\n', "o, line 1: 'generated' is int"),
        (b'{"generated": ["a", 1]}\n', "o, line 1: 'generated'[1] is int"),
        (b'{"generated": []}\n', "o, line 1: 'generated' is an empty list"),
        (b'{"generated": null}\n', "o, line 1: 'generated' is NoneType"),
        (b'{"source": "a"}\n', "o, line 1: no field 'generated'"),
        (b'{"generated": "a", "reference": {"b": "c"}}\n', "o, line 1: 'reference' is dict"),
        (b'{"generated": "a", "reference": ["b", 2]}\n', "o, line 1: 'reference'[1] is int"),
        (b'{"generated": "a", "reference": "b", "source": ["c"]}\n', "o, line 1: 'source' is list"),
        (b'{"generated": "a", "reference": "\\ud800"}\n', "o, line 1: 'reference' holds the character U+D800"),
        (b'{"generated": "a", "reference": "b"}\n\n{"generated": "a"}\n', 'o, line 3: no reference'),
        (
            b'{"generated": "a", "reference": "b"}\n{"generated": ["a", "b"], "reference": "b"}\n',
            'o, line 2: 2 candidates',
        ),
        (b'[{"generated": "a"}]\n', 'o, line 1: this looks like one JSON list'),
        (b'{"generated": ' + b'[' * 50000 + b'\n', 'o, line 1: nested too deeply'),
        (b'\n', 'o, line 1: no reference'),
        (b'', 'o is empty'),
    ],
)
def test_evaluate_names_a_bad_line(said, data, words):
    Path('o').write_bytes(data)
    status, err = said('evaluate', '--in', 'o', '--bertscore', 'none')
    assert status == 2 and words in one_line(err)


@pytest.mark.parametrize(
    'argv, words',
    [(['--out', '.'], '. is a folder'), (['--references', '.'], '. is a folder'), (['--in', '.'], 'folder')],
)
def test_evaluate_names_a_place_that_cannot_be(said, argv, words):
    Path('o').write_text('a\n')
    status, err = said('evaluate', '--in', 'o', '--bertscore', 'none', *argv)
    assert status == 2 and words in one_line(err)


REPORT = dict(title='A run', table=[dict(model='it', bleu=0.5)])
SAMPLE = dict(source='a', generated='b', reference='c')


def run_folder(tmp_path, report=REPORT, samples=SAMPLE):
    "A run that was evaluated."
    run = tmp_path / 'run'
    run.mkdir(exist_ok=True)
    (run / 'metrics.json').write_text(report if isinstance(report, str) else json.dumps(report))
    (run / 'samples.jsonl').write_text(samples if isinstance(samples, str) else json.dumps(samples) + '\n')
    return run


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(report='['), 'metrics.json: not valid JSON'),
        (dict(report='[]'), 'metrics.json: list instead of'),
        (dict(report='[' * 50000), 'metrics.json: nested too deeply'),
        (dict(report={}), 'metrics.json: no title, or no table'),
        (dict(report=REPORT | dict(table={})), 'metrics.json: no title, or no table'),
        (dict(report=REPORT | dict(table=[1])), 'metrics.json: no title, or no table'),
        (dict(report=REPORT | dict(table=[{}])), 'metrics.json: no title, or no table'),
        (dict(report=REPORT | dict(title=['x'])), 'metrics.json: no title, or no table'),
        (dict(samples='x\n'), 'samples.jsonl, line 1: expected an object'),
        (dict(samples='[1]\n'), 'samples.jsonl, line 1: this looks like one JSON list'),
        (dict(samples=SAMPLE | dict(generated=[])), "samples.jsonl, line 1: 'generated' is an empty list"),
        (dict(samples=SAMPLE | dict(source=1)), "samples.jsonl, line 1: 'source' is int"),
        (dict(samples=dict(source='a')), 'samples.jsonl, line 1: expected an object'),
        (dict(samples='{"source": "\\ud800", "generated": "b", "reference": "c"}\n'), 'U+D800'),
    ],
)
def test_show_names_a_bad_file(said, tmp_path, change, words):
    run_folder(tmp_path, **change)
    status, err = said('show', 'run')
    assert status == 2 and words in one_line(err)


def test_show_names_a_missing_file(said, tmp_path):
    (run_folder(tmp_path) / 'samples.jsonl').unlink()
    status, err = said('show', 'run')
    assert status == 2 and 'samples.jsonl' in one_line(err)


def test_memory_that_runs_out_is_one_line(said, monkeypatch):
    from diffuseq import cli

    def load(name, device):
        raise MemoryError

    monkeypatch.setattr(cli, 'load', load)
    Path('in').write_text('a\n')
    status, err = said(*GENERATE)
    assert status == 2 and 'memory ran out' in one_line(err)


# ---- damage of every kind


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with a model of the smallest profile, its run, inputs, and an output that was generated from one."
    from diffuseq.cli import main
    from diffuseq.config import make_config
    from diffuseq.hub import new_model
    from diffuseq.text import train_tokenizer

    folder = tmp_path_factory.mktemp('whole')
    texts = [' '.join(f'word{i} and thing{j}' for j in range(i % 3 + 1)) for i in range(5)]
    config = make_config(profile='smoke')
    run = run_folder(folder)
    new_model(config, train_tokenizer(texts, config.vocab_size)).save_pretrained(run)
    (folder / 'in.txt').write_text(''.join(f'{text}\n' for text in texts))
    rows = [dict(src=text, trg=text.upper()) for text in texts[:3]] + [dict(src=texts[3], refs=['a', 'b'])]
    (folder / 'in.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    for name in ('in.txt', 'in.jsonl'):
        argv = ['generate', '--model', run, '--in', folder / name, '--out', folder / f'of.{name}', '--device', 'cpu']
        assert main([*map(str, argv)]) == 0
    return folder


def test_a_value_out_of_range_is_named_with_its_file(whole, tmp_path, capsys):
    from diffuseq.cli import main

    shutil.copytree(whole / 'run', tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    saved = json.loads(path.read_text())
    saved['network']['dropout'] = 2.0
    path.write_text(json.dumps(saved))
    assert main(['generate', '--model', f'{tmp_path / "run"}', '--in', f'{whole / "in.txt"}']) == 2
    err = one_line(capsys.readouterr().err)
    assert f'{path}: config: dropout=2.0' in err


PIECES = [
    b'\0',
    b'\xff',
    b'\n',
    b'\r',
    b'{',
    b'}',
    b'[',
    b'"',
    b',',
    b' ',
    b'9',
    b'\xef\xbb\xbf',
    b'\\ud800',
    b'\n\n{\n',
]
VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    7,
    0.5,
    1e-9,
    -0.5,
    1e308,
    '',
    'x',
    '\ud800',
    'gpt2',
    [],
    {},
    [[]],
    ['a'],
    {'a': 1},
]
OPTIONS = dict(
    order=['left-to-right', 'semi-autoregressive', 'confidence', 'parallel', 'left', 'x'],
    end=['eos', 'predicted', 'open'],
    sampler=['ddpm', 'ddim', 'dpmpp', 'renoise', 'repredict'],
    variance=['posterior', 'large'],
    readout=['nearest', 'logits'],
    steps=['1', '3', '50', '51', '0', '-1', 'x', ''],
    temperature=['0', '1', '0.3', '-1', 'nan', 'inf', '1e-30', '1e30'],
    eta=['0', '0.5', '2'],
    noise_bound=['0', '1'],
    beam=['1', '2', '4', '0'],
    calls=['0', '1', '3', '-1', 'x'],
    n=['1', '2', '3', '0'],
    seed=['0', '5', '-3', '99999999999999999999999'],
    batch_size=['1', '2', '3', '100', '0'],
    device=['cpu', 'cuda:9', 'tpu', ''],
    triples=['0', '1', '-1'],
)
SWITCHES = [
    'rounding',
    'no-rounding',
    'no-replace',
    'published-stride',
    'json',
    'mbr',
    'rerank',
    'raw',
    'likeliest',
    'x',
]


def damage_bytes(rng, path):
    "Cut, repeat, overwrite or insert some bytes."
    data = path.read_bytes()
    i = rng.randrange(len(data) + 1)
    j = min(len(data), i + rng.choice([1, 2, 10, 1000]))
    how = rng.choice(['cut', 'drop', 'repeat', 'insert', 'insert', 'flip', 'empty'])
    if how == 'cut':
        data = data[:i]
    elif how == 'drop':
        data = data[:i] + data[j:]
    elif how == 'repeat':
        data = data[:j] + data[i:]
    elif how == 'insert':
        data = data[:i] + rng.choice(PIECES) + data[i:]
    elif how == 'flip':
        data = data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :]
    else:
        data = b''
    path.write_bytes(data)


def places(value, path=()):
    "Every place in a JSON value."
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def damage_value(rng, value):
    "A JSON value with another value, another key or a hole somewhere."
    value = copy.deepcopy(value)
    *path, last = rng.choice([p for p in places(value) if p] or [(None,)])
    if last is None:
        return rng.choice(VALUES)
    inside = value
    for key in path:
        inside = inside[key]
    if rng.random() < 0.2:
        del inside[last]
    elif rng.random() < 0.1 and isinstance(inside, dict):
        inside['new'] = inside.pop(last)
    else:
        inside[last] = rng.choice(VALUES)
    return value


def damage_json(rng, path):
    "Another value somewhere in a file of JSON, or in a line of one of JSON lines."
    text = path.read_text('utf-8')
    if path.suffix == '.json':
        path.write_text(json.dumps(damage_value(rng, json.loads(text))))
        return
    lines = text.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = json.dumps(damage_value(rng, json.loads(lines[i])))
    path.write_text('\n'.join(lines) + '\n')


def damage(rng, folder):
    "Spoil a file, remove it, or exchange it; returns its name."
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    path = rng.choice(files)
    how = rng.choice(
        ['copy', 'remove', 'bytes', 'bytes', 'bytes'] + ['json'] * 6 * (path.suffix in ('.json', '.jsonl'))
    )
    if how == 'copy':
        path.write_bytes(rng.choice(files).read_bytes())
    elif how == 'remove':
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
    elif how == 'json':
        with suppress(ValueError):  # spoiled already
            damage_json(rng, path)
    else:
        damage_bytes(rng, path)
    return path.name


USUAL = [
    '',
    '--order parallel --steps 3',
    '--order confidence --steps 2',
    '--order left-to-right --end predicted',
    '--order left-to-right --beam 2',
    '--json',
]
USUAL += ['--temperature 1', '--n 2 --mbr', '--n 2 --rerank', '--batch-size 2 --seed 1', '--n 3 --json --temperature 1']


def some_options(rng):
    "One or two options of any command, perhaps with values that cannot be."
    for option in rng.sample([*OPTIONS, *SWITCHES], rng.choice([1, 2])):
        yield f'--{option.replace("_", "-")}'
        if option in OPTIONS:
            yield rng.choice(OPTIONS[option])


def arguments(rng, folder):
    "A command line, mostly of what there is."
    name = rng.choice(['in.txt', 'in.jsonl'])
    which = rng.choice(['generate'] * 4 + ['evaluate', 'show'])
    if which == 'generate':
        argv = ['generate', '--model', folder / 'run', '--in', folder / name, '--device', 'cpu']
        to = rng.choice([None] * 3 + [f'of.{name}'] * 6 + ['new'] * 9 + ['new/out', '.'])
        argv += ['--out', f'{folder}/{to}'] * bool(to)
        argv += rng.choice(USUAL if to != f'of.{name}' else ['']).split()
    elif which == 'evaluate':
        argv = ['evaluate', '--in', folder / f'of.{name}', '--bertscore', 'none']
        argv += ['--references', folder / rng.choice([name, name, 'in.txt', 'in.jsonl'])] * (rng.random() < 0.7)
    else:
        argv = ['show', folder / 'run']
    if rng.random() < 0.3:
        argv += some_options(rng)
    return [*map(str, argv)]


def texts_in(data):
    "How many texts stand in plain or JSON lines."
    lines = data.removeprefix(b'\xef\xbb\xbf').split(b'\n')
    lines = lines[:-1] if not lines[-1] else lines
    full = [line for line in lines if line.decode().strip()]
    return len(full) if full and full[0].lstrip().startswith(b'{') else len(lines)


def call(argv):
    "The command in this process: status (or the exception), standard output, standard error."
    from diffuseq.cli import main

    out = io.TextIOWrapper(io.BytesIO())
    err = io.StringIO()
    sys.stdout, before = out, sys.stdout
    try:
        with redirect_stderr(err):
            status = main(argv)
    except BaseException as e:
        status = ''.join(traceback.format_exception(e)[-3:])
    finally:
        sys.stdout = before
    out.flush()
    return status, out.buffer.getvalue(), err.getvalue()


def try_case(case, whole, folder):
    "One call on spoiled files: its status, and what is wrong, or None."
    rng = random.Random(case)
    shutil.copytree(whole, folder)
    spoiled = [damage(rng, folder) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    argv = arguments(rng, folder)
    what = f'case {case}: spoiled {spoiled}, {" ".join(argv)}'.replace(f'{folder}/', '')
    status, out, err = call(argv)
    if status not in (0, 1, 2, 130, 143) or 'Traceback' in err:
        return 'error', f'{what}: status {status}, {err}'
    if status == 2 and not err.strip().splitlines()[-1].startswith('diffuseq: '):
        return status, f'{what}: no message, {err!r}'
    if status == 0 and argv[0] == 'generate':
        made = Path(argv[argv.index('--out') + 1]).read_bytes() if '--out' in argv else out
        expected = texts_in(Path(argv[argv.index('--in') + 1]).read_bytes())
        if made.count(b'\n') != expected:
            return status, f'{what}: {made.count(10)} lines for {expected} texts'
    return status, None


def test_whatever_is_spoiled_is_one_line_or_all_lines(whole, tmp_path):
    count = int(os.environ.get('FUZZ', 100))
    first = int(os.environ.get('FUZZ_FIRST', 0))
    statuses = Counter()
    wrong = []
    for case in range(first, first + count):
        folder = tmp_path / 'case'
        status, complaint = try_case(case, whole, folder)
        shutil.rmtree(folder)
        statuses[status] += 1
        wrong += [complaint] * bool(complaint)
    print(f'{count} tried, {count - len(wrong)} right, {len(wrong)} wrong; statuses {dict(statuses)}')
    assert not wrong, '\n'.join(wrong)
