"The command `diffuseq` as a user meets it: real processes, real pipes, kills and damaged files."

import json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest

ECHO = """
import sys, time, diffuseq.cli as cli
class Echo:
    exact = True
    def __init__(self, name, device): self.name = name
    def generate(self, sources, n=1, mbr=False, likeliest=False, seed=0, first=0, progress=True, batch_size=None, steps=None, sampler=None, order=None, end=None, temperature=None, beam=None):
        time.sleep({pause} * len(sources))
        made = [[f'{{s.upper()}} {{seed}} {{first + i}} {{k}}' if s.strip() else '' for k in range(n)] for i, s in enumerate(sources)]
        return [m[0] for m in made] if mbr or likeliest or n == 1 else made
cli.load, cli.fingerprint = Echo, lambda model: model.name
sys.exit(cli.main())
"""


@pytest.fixture
def echo(tmp_path):
    "Starts the command with a model that says where it stands; `pause` seconds a text."

    def start(*argv, pause=0, **settings):
        script = tmp_path / f'echo{pause}.py'
        script.write_text(ECHO.format(pause=pause))
        return subprocess.Popen(
            [sys.executable, script, *map(str, argv)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **(dict(stdout=subprocess.PIPE) | settings),
        )  # a job in the background inherits that interrupts are ignored

    return start


def done(process, stdin=None):
    "Exit status, output and complaints of a process that ends by itself."
    out, err = process.communicate(stdin, timeout=60)
    return process.returncode, (out or b'').decode(), err.decode()


def test_killed_again_and_again_ends_with_the_same_bytes(echo, tmp_path):
    (tmp_path / 'in.txt').write_text(''.join(f'text number {i}\n' * (i % 7 > 0) or '\n' for i in range(300)))
    argv = ['generate', '--model', 'm', '--in', 'in.txt', '--batch-size', '4', '--seed', '5']
    status, _, err = done(echo(*argv, '--out', 'whole.txt'))
    assert status == 0 and '300 lines' in err
    rng, kills = random.Random(0), 0
    for _ in range(60):
        p = echo(*argv, '--out', 'killed.txt', pause=0.004)
        try:
            p.communicate(timeout=rng.uniform(0.1, 1))
        except subprocess.TimeoutExpired:
            p.kill()
            p.communicate()
            kills += 1
        if p.returncode == 0:
            break
        with open(tmp_path / 'killed.txt', 'ab') as f:
            f.write(b'half a li')
    assert p.returncode == 0 and kills >= 1
    assert (tmp_path / 'killed.txt').read_bytes() == (tmp_path / 'whole.txt').read_bytes()


def test_interrupt_says_how_to_go_on(echo, tmp_path):
    (tmp_path / 'in.txt').write_text('a\n' * 500)
    p = echo('generate', '--model', 'm', '--in', 'in.txt', '--out', 'out.txt', '--batch-size', '2', pause=0.02)
    while not (tmp_path / 'out.txt').exists() or not (tmp_path / 'out.txt').stat().st_size:
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    status, _, err = done(p)
    assert status == 130 and 'the same command goes on' in err and 'Traceback' not in err


def test_pipes(echo):
    status, out, _ = done(echo('generate', '--model', 'm', stdin=subprocess.PIPE), b'one\r\n\ntwo')
    assert (status, out) == (0, 'ONE 0 0 0\n\nTWO 0 2 0\n')
    status, out, _ = done(
        echo('generate', '--model', 'm', '--json', '--n', '2', stdin=subprocess.PIPE), 'zwölf\n'.encode()
    )
    assert json.loads(out) == dict(source='zwölf', generated=['ZWÖLF 0 0 0', 'ZWÖLF 0 0 1'])


def test_json_lines_keep_their_references(echo, tmp_path):
    (tmp_path / 'in.jsonl').write_text('{"src": "a", "trg": "b"}\n{"src": "", "refs": ["c", "d"]}\n')
    assert done(echo('generate', '--model', 'm', '--in', 'in.jsonl', '--out', 'out.jsonl', '--n', '3', '--mbr'))[0] == 0
    assert [json.loads(l) for l in (tmp_path / 'out.jsonl').read_text().splitlines()] == [
        dict(source='a', reference='b', generated='A 0 0 0'),
        dict(source='', reference=['c', 'd'], generated=''),
    ]


def test_a_closed_pipe_is_no_traceback(echo, tmp_path):
    (tmp_path / 'in.txt').write_text('a long line to fill the pipe\n' * 20000)
    p = echo('generate', '--model', 'm', '--in', 'in.txt')
    p.stdout.readline()
    p.stdout.close()
    err = p.stderr.read().decode()
    p.wait(60)
    assert p.returncode == 1 and 'Traceback' not in err


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(argv=['--seed', '1']), 'seed was 0 and is 1'),
        (dict(model='other'), 'model was'),
        (dict(text='x\nb\n'), 'first_text was'),
        (dict(text='{"src": "a"}\n{"src": "x"}\n', json=True), 'line 2 is not of line 2'),
        (dict(text='a\n'), 'only 1'),
    ],
)
def test_nothing_is_continued_that_does_not_belong_together(echo, tmp_path, change, words):
    name = 'in.jsonl'
    (tmp_path / name).write_text('{"src": "a"}\n{"src": "b"}\n' if change.get('json') else 'a\nb\n')
    base = ['generate', '--in', name, '--out', 'out.txt', '--model']
    assert done(echo(*base, 'm'))[0] == 0
    before = (tmp_path / 'out.txt').read_bytes()
    if 'text' in change:
        (tmp_path / name).write_text(change['text'])
    status, _, err = done(echo(*base, change.get('model', 'm'), *change.get('argv', [])))
    assert status == 2 and words in err and 'Traceback' not in err
    assert (tmp_path / 'out.txt').read_bytes() == before


def test_grown_input_is_continued(echo, tmp_path):
    base = ['generate', '--in', 'in.txt', '--out', 'out.txt', '--model', 'm']
    (tmp_path / 'in.txt').write_text('a\nb\n')
    done(echo(*base))
    (tmp_path / 'in.txt').write_text('a\nb\nc\n')
    assert done(echo(*base))[0] == 0
    assert (tmp_path / 'out.txt').read_text() == 'A 0 0 0\nB 0 1 0\nC 0 2 0\n'


@pytest.mark.parametrize(
    'data, words',
    [
        (b'{"src": "a"}\n{"src": \n', 'in, line 2: not valid JSON'),
        (b'{"src": "a"}\n{"text": "a"}\n', "in, line 2: no field 'src'"),
        (b'{"src": 1}\n', 'in, line 1'),
        (b'a\n\xff\xfe\n', 'in, line 2: not UTF-8'),
    ],
)
def test_bad_lines_are_named(echo, tmp_path, data, words):
    (tmp_path / 'in').write_bytes(data)
    status, _, err = done(echo('generate', '--model', 'm', '--in', 'in', '--out', 'out', '--batch-size', '1'))
    assert status == 2 and words in err and 'Traceback' not in err


def test_blank_lines_and_empty_fields_of_json_lines_are_nothing(echo, tmp_path):
    (tmp_path / 'in').write_text('{"src": "a", "trg": "b", "refs": null}\n\n{"src": "c", "trg": "d"}\n\n')
    status, _, err = done(echo('generate', '--model', 'm', '--in', 'in', '--out', 'out'))
    assert status == 0, err
    assert [json.loads(l)['reference'] for l in (tmp_path / 'out').read_text().splitlines()] == ['b', 'd']


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_is_one_message(echo):
    with open('/dev/full', 'wb') as full:
        status, _, err = done(echo('generate', '--model', 'm', stdin=subprocess.PIPE, stdout=full), b'a\n')
    assert status == 2 and 'No space left' in err and 'Traceback' not in err


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "An untrained model of the smallest profile, saved, and twelve sentences of several lengths."
    from diffuseq.config import make_config
    from diffuseq.model import new_model
    from diffuseq.text import train_tokenizer

    folder = tmp_path_factory.mktemp('tiny')
    texts = [' '.join(f'word{i} and thing{j}' for j in range(i % 5 + 1)) for i in range(12)]
    config = make_config(profile='smoke')
    new_model(config, train_tokenizer(texts, config.vocab_size)).save_pretrained(folder / 'model')
    (folder / 'in.txt').write_text('\n'.join(texts) + '\n')
    return folder, texts


def test_a_real_model_says_what_the_library_says(tiny):
    from diffuseq.cli import main
    from diffuseq.model import load_run

    folder, texts = tiny
    expected = load_run(folder / 'model').generate(texts, seed=3, temperature=1.0, batch_size=4, progress=False)
    argv = [
        'generate',
        '--model',
        str(folder / 'model'),
        '--in',
        str(folder / 'in.txt'),
        '--seed',
        '3',
        '--temperature',
        '1',
        '--batch-size',
        '4',
        '--out',
    ]
    assert main([*argv, str(folder / 'whole.txt')]) == 0
    whole = (folder / 'whole.txt').read_bytes()
    assert len(expected) == len(whole.decode().splitlines()) == 12
    (folder / 'cut.txt').write_bytes(whole[: len(whole) * 2 // 5])
    (folder / 'cut.txt.settings.json').write_bytes((folder / 'whole.txt.settings.json').read_bytes())
    assert main([*argv, str(folder / 'cut.txt')]) == 0 and (folder / 'cut.txt').read_bytes() == whole


@pytest.mark.parametrize('choice', [[], ['--n', '3', '--mbr'], ['--n', '3', '--likeliest']])
def test_a_call_that_is_refused_leaves_nothing_behind(tiny, tmp_path, capsys, choice):
    from diffuseq.cli import main

    argv = [
        'generate',
        '--model',
        str(tiny[0] / 'model'),
        '--in',
        str(tiny[0] / 'in.txt'),
        '--out',
        str(tmp_path / 'out.txt'),
        *choice,
    ]
    assert main([*argv, '--beam', '4', '--temperature', '1']) == 2
    assert 'beam search draws nothing' in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main([*argv, '--beam', '4']) == 0 and len((tmp_path / 'out.txt').read_text().splitlines()) == 12


@pytest.mark.parametrize('model, words', [('no-such-model', 'no-such-model'), ('.', 'no config.json')])
def test_a_model_that_is_none_is_one_message(tmp_path, model, words):
    (tmp_path / 'in').write_text('a\n')
    p = subprocess.run(
        [sys.executable, '-m', 'diffuseq.cli', 'generate', '--model', model, '--in', 'in'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | dict(HF_HUB_OFFLINE='1'),
    )
    assert p.returncode == 2 and words in p.stderr and 'Traceback' not in p.stderr and len(p.stderr.splitlines()) == 1


def test_a_device_that_is_none_is_one_message(tiny, capsys):
    from diffuseq.cli import main

    assert (
        main(['generate', '--model', str(tiny[0] / 'model'), '--in', str(tiny[0] / 'in.txt'), '--device', 'cudaa']) == 2
    )
    assert "device 'cudaa' cannot be used here" in capsys.readouterr().err
