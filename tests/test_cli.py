"The command `diffuseq` as a user meets it: real processes, real pipes, kills, and every option."

import json, os, random, signal, subprocess, sys, time
from dataclasses import fields
from functools import partial
import pytest
from diffuseq.cli import parsers

ECHO = """
import sys, time, diffuseq.cli as cli
from diffuseq.config import BlockDecoding
class Echo:
    decoding = BlockDecoding()
    def __init__(self, name, device): self.name = name
    def state_dict(self): return self.name
    def generate(self, sources, n=1, mbr=False, rerank=False, seed=0, first=0, progress=True, batch_size=None, **given):
        self.decoding.updated(**given)
        time.sleep({pause} * len(sources))
        text = lambda i, k: f'{{sources[i].upper()}} {{seed}} {{first + i}} {{k}}' if sources[i].strip() else ''
        made = [[text(i, k) for k in range(n)] for i in range(len(sources))]
        return [m[0] for m in made] if mbr or rerank or n == 1 else made
cli.load, cli.digest_of = Echo, lambda name: name
sys.exit(cli.main())
"""


def start_echo(folder, *argv, pause=0, **settings):
    "Starts the command in a folder with a model that says where it stands; `pause` seconds per text."
    script = folder / f'echo{pause}.py'
    script.write_text(ECHO.format(pause=pause))
    # a job in the background inherits that interrupts are ignored
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    how = dict(cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard) | settings
    return subprocess.Popen([sys.executable, script, *map(str, argv)], **how)


@pytest.fixture
def echo(tmp_path):
    "`start_echo` in a folder of the test's own."
    return partial(start_echo, tmp_path)


def done(process, stdin=None):
    "Exit status, output and complaints of a process that ends by itself."
    out, err = process.communicate(stdin, timeout=60)
    return process.returncode, (out or b'').decode(), err.decode()


def command(*argv, **settings):
    "The package as a command: exit status, output and complaints."
    how = dict(capture_output=True, text=True, env=os.environ | dict(HF_HUB_OFFLINE='1', TQDM_DISABLE='1'))
    p = subprocess.run([sys.executable, '-m', 'diffuseq', *map(str, argv)], **(how | settings))
    return p.returncode, p.stdout, p.stderr


def test_killed_again_and_again_ends_with_the_same_bytes(echo, tmp_path):
    (tmp_path / 'in.txt').write_text(''.join(f'text number {i}\n' * (i % 7 > 0) or '\n' for i in range(300)))
    argv = ['generate', '--model', 'm', '--in', 'in.txt', '--batch-size', '4', '--seed', '5']
    status, _, err = done(echo(*argv, '--out', 'whole.txt'))
    assert status == 0 and '300 lines' in err
    rng = random.Random(0)
    kills = 0
    killed = tmp_path / 'killed.txt'
    size = lambda: killed.stat().st_size if killed.exists() else 0
    for early in [True, True] + [False] * 60:
        before = size()
        p = echo(*argv, '--out', killed, pause=0.004)
        while not early and p.poll() is None and size() <= before:
            time.sleep(0.005)
        try:
            p.communicate(timeout=rng.uniform(0.01, 0.3))
        except subprocess.TimeoutExpired:
            p.kill()
            p.communicate()
            kills += 1
        if p.returncode == 0:
            break
        with open(killed, 'ab') as f:
            f.write(b'half a li' * (size() > 0))
    assert p.returncode == 0 and kills >= 3
    assert killed.read_bytes() == (tmp_path / 'whole.txt').read_bytes()


def test_pipes(echo):
    status, out, _ = done(echo('generate', '--model', 'm', stdin=subprocess.PIPE), b'one\r\n\ntwo')
    assert (status, out) == (0, 'ONE 0 0 0\n\nTWO 0 2 0\n')
    argv = ['generate', '--model', 'm', '--json', '--n', '2']
    status, out, _ = done(echo(*argv, stdin=subprocess.PIPE), 'zwölf\n'.encode())
    assert json.loads(out) == dict(source='zwölf', generated=['ZWÖLF 0 0 0', 'ZWÖLF 0 0 1'])


def test_json_lines_keep_their_references(echo, tmp_path):
    (tmp_path / 'in.jsonl').write_text('{"src": "a", "trg": "b"}\n{"src": "", "refs": ["c", "d"]}\n')
    assert done(echo('generate', '--model', 'm', '--in', 'in.jsonl', '--out', 'out.jsonl', '--n', '3', '--mbr'))[0] == 0
    assert [json.loads(l) for l in (tmp_path / 'out.jsonl').read_text().splitlines()] == [
        dict(source='a', reference='b', generated='A 0 0 0'),
        dict(source='', reference=['c', 'd'], generated=''),
    ]


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(argv=['--seed', '1']), 'seed was 0 and is 1'),
        (dict(argv=['--temperature', '1']), 'temperature was 0.0 and is 1.0'),
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
    assert status == 2 and words in err and len(err.splitlines()) == 1
    assert (tmp_path / 'out.txt').read_bytes() == before


def test_a_default_that_is_said_is_still_the_default(echo, tmp_path):
    (tmp_path / 'in.txt').write_text('a\n')
    base = ['generate', '--in', 'in.txt', '--out', 'out.txt', '--model', 'm']
    assert done(echo(*base))[0] == 0
    assert done(echo(*base, '--order', 'semi-autoregressive'))[0] == 0


def test_grown_input_is_continued(echo, tmp_path):
    base = ['generate', '--in', 'in.txt', '--out', 'out.txt', '--model', 'm']
    (tmp_path / 'in.txt').write_text('a\nb\n')
    done(echo(*base))
    (tmp_path / 'in.txt').write_text('a\nb\nc\n')
    assert done(echo(*base))[0] == 0
    assert (tmp_path / 'out.txt').read_text() == 'A 0 0 0\nB 0 1 0\nC 0 2 0\n'


def test_blank_lines_and_empty_fields_of_json_lines_are_nothing(echo, tmp_path):
    (tmp_path / 'in').write_text('{"src": "a", "trg": "b", "refs": null}\n\n{"src": "c", "trg": "d"}\n\n')
    status, _, err = done(echo('generate', '--model', 'm', '--in', 'in', '--out', 'out'))
    assert status == 0, err
    assert [json.loads(l)['reference'] for l in (tmp_path / 'out').read_text().splitlines()] == ['b', 'd']


# ---- real models


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Untrained models of the smallest profile, saved, and twelve sentences of several lengths."
    from diffuseq.config import make_config
    from diffuseq.hub import new_model
    from diffuseq.text import train_tokenizer

    folder = tmp_path_factory.mktemp('tiny')
    texts = [' '.join(f'word{i} and thing{j}' for j in range(i % 5 + 1)) for i in range(12)]
    for recipe in ('fast', 'paper', 'autoregressive', 'gru', 'transformer', 'gpvae-t5'):
        config = make_config(recipe=recipe, profile='smoke')
        new_model(config, train_tokenizer(texts, config.vocab_size)).save_pretrained(folder / recipe)
    (folder / 'in.txt').write_text('\n'.join(texts) + '\n')
    return folder, texts


def generating(tiny, *argv, recipe='fast', to=None):
    "The arguments of a call."
    folder, _ = tiny
    out = ['--out', to] * (to is not None)
    return [*map(str, ['generate', '--model', folder / recipe, '--in', folder / 'in.txt', *out, *argv])]


def test_a_real_model_says_what_the_library_says(tiny, tmp_path):
    from diffuseq.cli import main
    from diffuseq.hub import load_model

    folder, texts = tiny
    expected = load_model(folder / 'fast').generate(texts, seed=3, temperature=1.0, batch_size=4, progress=False)
    drawn = ['--seed', '3', '--temperature', '1', '--batch-size', '4', '--device', 'cpu']
    assert main(generating(tiny, *drawn, to=tmp_path / 'whole.txt')) == 0
    whole = (tmp_path / 'whole.txt').read_bytes()
    assert whole.decode().splitlines() == expected
    (tmp_path / 'cut.txt').write_bytes(whole[: len(whole) * 2 // 5])
    (tmp_path / 'cut.txt.settings.json').write_bytes((tmp_path / 'whole.txt.settings.json').read_bytes())
    assert main(generating(tiny, *drawn, to=tmp_path / 'cut.txt')) == 0
    assert (tmp_path / 'cut.txt').read_bytes() == whole


@pytest.mark.parametrize('recipe', ['fast', 'autoregressive', 'gru', 'transformer', 'gpvae-t5', 'paper'])
def test_in_double_precision_the_size_of_a_batch_changes_no_text(tiny, tmp_path, monkeypatch, recipe):
    from diffuseq import cli
    from diffuseq.hub import load_model

    monkeypatch.setattr(cli, 'load', lambda name, device: load_model(name).double())
    drawn = ['--n', '2', '--mbr', *(['--temperature', '1'] if recipe != 'paper' else ['--steps', '5'])]
    made = set()
    for size in (1, 5, 24):
        out = tmp_path / f'{size}.txt'
        assert cli.main(generating(tiny, *drawn, '--batch-size', size, recipe=recipe, to=out)) == 0
        made.add(out.read_bytes())
    assert len(made) == 1 and len(made.pop().splitlines()) == 12


@pytest.mark.parametrize('choice', [[], ['--n', '3', '--mbr'], ['--n', '3', '--rerank']])
def test_a_call_that_is_refused_leaves_nothing_behind(tiny, tmp_path, capsys, choice):
    from diffuseq.cli import main

    argv = generating(tiny, '--order', 'left-to-right', *choice, to=tmp_path / 'out.txt')
    assert main([*argv, '--beam', '4', '--temperature', '1']) == 2
    assert 'beam search draws nothing' in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main([*argv, '--beam', '4']) == 0 and len((tmp_path / 'out.txt').read_text().splitlines()) == 12


@pytest.mark.parametrize('lines', [True, False])
@pytest.mark.parametrize(
    'recipe, argv, words',
    [
        ('paper', ['--order', 'parallel'], 'this model has no setting order'),
        ('paper', ['--rerank', '--n', '2'], 'no exact log_prob'),
        ('paper', ['--eta', '0.5'], "eta has no effect with sampler='ddpm'"),
        ('autoregressive', ['--steps', '5'], 'this model has no setting steps; it has beam, groups'),
        ('autoregressive', ['--no-rounding'], 'this model has no setting rounding'),
        ('fast', ['--noise-bound', '1'], 'this model has no setting noise_bound'),
        ('fast', ['--order', 'left-to-right', '--steps', '5'], "steps has no effect with order='left-to-right'"),
        ('fast', ['--order', 'parallel', '--steps', '5000'], 'steps=5000 is larger than T'),
        ('fast', ['--order', 'confidence', '--end', 'eos'], "end has no effect with order='confidence'"),
    ],
)
def test_a_setting_without_effect_is_refused_before_anything_is_written(
    tiny, tmp_path, capsys, recipe, argv, words, lines
):
    from diffuseq.cli import main

    source = [] if lines else ['--in', os.devnull]
    assert main([*generating(tiny, recipe=recipe, to=tmp_path / 'out.txt'), *source, *argv]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'recipe, argv',
    [
        ('fast', ['--order', 'left-to-right', '--end', 'predicted', '--temperature', '0.5']),
        ('fast', ['--order', 'confidence', '--steps', '3']),
        ('fast', ['--order', 'parallel', '--sampler', 'ddim', '--eta', '0.5', '--no-rounding']),
        ('fast', ['--order', 'parallel', '--sampler', 'ddpm', '--variance', 'large']),
        ('paper', ['--steps', '4', '--variance', 'large', '--noise-bound', '2', '--readout', 'logits', '--no-replace']),
        ('paper', ['--steps', '4', '--sampler', 'repredict', '--published-stride']),
        ('autoregressive', ['--n', '3', '--rerank', '--beam', '4']),
        ('gpvae-t5', ['--latent-scale', '4', '--n', '3', '--mbr']),
    ],
)
def test_every_setting_reaches_the_model(tiny, tmp_path, recipe, argv):
    from diffuseq.cli import main

    assert main(generating(tiny, *argv, recipe=recipe, to=tmp_path / 'out.txt')) == 0
    begun = json.loads((tmp_path / 'out.txt.settings.json').read_text())
    for i, word in enumerate(argv):
        if word.startswith('--'):
            name = word[2:].replace('-', '_')
            on = i + 1 == len(argv) or argv[i + 1].startswith('--')
            value = begun[name.removeprefix('no_')]
            assert value == (not name.startswith('no_') if on else type(value)(argv[i + 1]))


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--likeliest'], '--likeliest is now called --rerank'),
        (['--official-stride'], '--official-stride is now called --published-stride'),
        (['--order', 'left'], "order='left' is now called 'left-to-right'"),
        (['--order', 'surest'], "order='surest' is now called 'confidence'"),
        (['--order', 'together'], "order='together' is now called 'parallel'"),
        (['--end=open'], "end='open' is now called 'eos'"),
        (['--end', 'given'], "end='given' is now called 'predicted'"),
        (['--temprature', '1'], 'unknown option --temprature; did you mean --temperature?'),
        (['--colour', '1'], 'unknown option --colour'),
        (['--sampler', 'ddmp'], 'did you mean ddpm?'),
        (['--steps', '0'], 'steps=0'),
        (['--steps', 'many'], 'argument --steps'),
        (['--temperature', 'nan'], 'temperature=nan'),
        (['--n', '0'], '0 is below 1'),
        (['--n', '2', '--mbr', '--rerank'], 'not allowed with'),
        (['more'], 'more'),
    ],
)
def test_what_no_model_takes_is_one_line_with_the_remedy(capsys, argv, words):
    from diffuseq.cli import main

    assert main(['generate', '--model', 'none', *argv]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    'argv, words',
    [
        ([], 'COMMAND'),
        (['generat'], 'did you mean generate?'),
        (['generate'], '--model'),
        (['generate', '--modle', 'm'], 'did you mean --model?'),
        (['evaluate', '--in', os.devnull], 'is empty'),
        (['show', 'no-such-run'], 'make train'),
        (['demo', '--port', '70000'], 'name another'),
    ],
)
def test_a_command_that_is_wrong_is_one_line_with_the_remedy(capsys, argv, words):
    from diffuseq.cli import main

    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize('argv, words', [(['--n', '3'], '--json'), (['--mbr'], '--n 2'), (['--rerank'], '--n 2')])
def test_candidates_without_a_place_or_a_use(tmp_path, capsys, argv, words):
    from diffuseq.cli import main

    (tmp_path / 'in.txt').write_text('a\n')
    assert main(['generate', '--model', 'none', '--in', str(tmp_path / 'in.txt'), *argv]) == 2
    assert words in capsys.readouterr().err


def test_every_setting_of_decoding_is_an_option_and_every_option_has_a_help_text():
    from diffuseq.cli import parsers
    from diffuseq.config import DECODINGS

    _, commands = parsers()
    known = commands['generate'].options()
    for kind in DECODINGS.values():
        assert all(f'--{f.name.replace("_", "-")}' in known for f in fields(kind))
    for p in commands.values():
        assert all(len(action.help) > 5 for action in p._actions)
        p.format_help()


def test_a_model_that_is_none_is_one_message(tmp_path, capsys):
    from diffuseq.cli import main

    (tmp_path / 'in').write_text('a\n')
    status, _, err = command('generate', '--model', 'no-such-model', '--in', 'in', cwd=tmp_path)
    assert status == 2 and 'no-such-model' in err and len(err.splitlines()) == 1
    assert main(['generate', '--model', f'{tmp_path}', '--in', f'{tmp_path / "in"}']) == 2
    assert 'no config.json' in capsys.readouterr().err


def test_a_device_that_is_none_is_one_message(tiny, capsys):
    from diffuseq.cli import main

    assert main(generating(tiny, '--device', 'cudaa')) == 2
    assert "device='cudaa' cannot be used here" in capsys.readouterr().err


# ---- the other commands


def test_the_package_is_a_command():
    from diffuseq import __version__

    assert command('--version') == (0, f'diffuseq {__version__}\n', '')


def test_evaluate_in_a_process(tmp_path):
    (tmp_path / 'out.jsonl').write_text(
        '{"source": "a b c d", "reference": "A b, c d.", "generated": ["a b , c d .", "a b"]}\n'
        '{"source": "e f g h", "reference": ["e f", "E g."], "generated": ["e g .", "e"]}\n'
    )
    argv = ['evaluate', '--in', 'out.jsonl', '--bertscore', 'none', '--out', 'scores.json']
    status, said, err = command(*argv, cwd=tmp_path)
    assert status == 0 and not err, err
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert scores['n'] == 2 and f'bleu               {scores["bleu"]:.4f}' in said and 'sacrebleu: BLEU|' in said


def test_references_of_another_number_are_refused(tmp_path, capsys):
    from diffuseq.cli import main

    outputs, references = tmp_path / 'o.txt', tmp_path / 'r.txt'
    outputs.write_text('a\nb\nc\n')
    references.write_text('one\ntwo\n')
    assert main(['evaluate', '--in', str(outputs), '--references', str(references)]) == 2
    assert 'has 2 lines, the outputs 3' in capsys.readouterr().err


def test_a_run_that_was_not_evaluated(tmp_path, capsys):
    from diffuseq.cli import main

    assert main(['show', str(tmp_path)]) == 2
    assert 'was not evaluated yet' in capsys.readouterr().err


def test_show_in_a_process(tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'metrics.json').write_text(json.dumps(dict(title='A run', table=[dict(model='it', bleu=0.5)])))
    samples = [dict(source=f'{i}\u2028b', generated=['x', 'y'], reference='z') for i in range(3)]
    (run / 'samples.jsonl').write_text(''.join(json.dumps(s, ensure_ascii=False) + '\n' for s in samples))
    status, said, err = command('show', run, '--triples', '2')
    assert status == 0 and not err, err
    assert said.startswith('A run\n\nmodel   bleu\nit     0.500\n') and said.count('generated  x') == 2
    assert said.endswith('samples.jsonl\n')


def test_every_option_says_what_it_does():
    _, commands = parsers()
    for command, p in commands.items():
        for action in p._actions:
            words = (action.help or '').partition('[')[0]
            assert len(words.split()) > 1, f'{command}: {action.option_strings or action.dest} has no help'
