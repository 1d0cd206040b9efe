"Training as life treats it: killed, interrupted, on a full disk, in a folder of somebody else, in two processes."

import errno, functools, io, itertools, json, os, random, re, shutil, signal, socket, subprocess, sys
from dataclasses import replace
from pathlib import Path
import datasets, pytest, torch
from safetensors.torch import load_file, save_file
import tiny
from diffuseq import training
from diffuseq.core import check_device, digest_of, read_tensors, seed_of
from diffuseq.hub import MODELS, load_model, new_model
from diffuseq.text import encode_pairs, make_tokenizer, train_batches
from diffuseq.training import Run, backward_pass, ema_decay, held_out_loss, read_log

N = 44


def log_of(run_dir):
    "The log without what a clock says."
    return [{k: v for k, v in line.items() if k not in ('seconds', 'tokens_per_s')} for line in read_log(run_dir)]


def assert_same_run(a, b):
    assert not tiny.different(tiny.state(a), tiny.state(b))
    assert not tiny.different(load_file(a / 'model.safetensors'), load_file(b / 'model.safetensors'))
    assert log_of(a) == log_of(b)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Makes a run that nobody disturbs, once for each recipe: its configuration, folder, and how long it took."

    @functools.cache
    def make(recipe):
        folder, c = tmp_path_factory.mktemp(recipe), tiny.config(recipe)
        assert tiny.finish(tiny.train, folder, c, N) == 0
        return c, folder, read_log(folder)[-1]['seconds']

    return make


@pytest.fixture(
    params=['fast', 'paper', *(pytest.param(recipe, marks=tiny.slow) for recipe in (*tiny.LEFT, 'gpvae-t5'))]
)
def whole(request, undisturbed):
    return undisturbed(request.param)


@pytest.fixture
def one(undisturbed):
    return undisturbed('fast')


# ---- exact resume


def test_a_run_learns_and_ends_with_its_best_weights(whole):
    c, folder, _ = whole
    losses = [line['valid_loss'] for line in read_log(folder) if 'valid_loss' in line]
    assert min(losses) < 0.9 * losses[0] and len(losses) == -(-N // c.eval_every)
    best = load_model(folder)
    rows = list(encode_pairs(tiny.pairs(40), best.tokenizer, best.window))[: c.n_valid]
    with torch.autocast('cpu', torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):  # as the run did
        assert held_out_loss(best, rows) == pytest.approx(min(losses), rel=1e-5)
    if getattr(c, 'level_distribution', None) == 'loss_aware':  # the history was full, so Eq. 3 really drew the steps
        steps = new_model(c, best.tokenizer)
        steps.load_extra_state({k[6:]: v for k, v in tiny.state(folder).items() if k.startswith('extra.')})
        p = steps.steps.probabilities()
        assert p.max() > 1.2 * p.min()


def test_killed_at_random_moments(whole, tmp_path):
    c, folder, seconds = whole
    rng, kills, states = random.Random(f'kill {c.recipe} 1'), 0, set()
    for _ in range(60):
        p = tiny.begin(tiny.train, tmp_path, c, N)
        p.join(rng.uniform(0, 0.8 * seconds))
        if p.is_alive():
            p.kill()
            kills += 1
        p.join()
        if p.exitcode == 0:
            break
        assert p.exitcode == -signal.SIGKILL
        if (tmp_path / 'last' / 'state.safetensors').exists():
            states.add(tiny.numbers(tmp_path)['update'])
    assert p.exitcode == 0 and kills >= 2 and states - {N}  # killed more than once, and it did go on from the middle
    assert_same_run(folder, tmp_path)


def train_and_die(run_dir, c, name, place, count):
    "Train until the `count`-th time that `name` is written; die before or after it takes the place of the old file."
    move = os.replace

    def deadly(src, dst):
        nonlocal count
        count -= Path(dst).name == name
        if count == 0 and place == 'before':
            os.kill(os.getpid(), signal.SIGKILL)
        move(src, dst)
        if count == 0 and place == 'after':
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly
    tiny.train(run_dir, c, N)


@pytest.mark.parametrize('recipe', ['gru', 'transformer', 'gpvae-t5'])
def test_baselines_killed_once(recipe, tmp_path):
    "What `whole` asks of them where there is time, once: at a save, and then to the end."
    c = tiny.config(recipe)
    assert tiny.finish(tiny.train, tmp_path / 'whole', c, N) == 0
    assert tiny.finish(train_and_die, tmp_path / 'killed', c, 'state.safetensors', 'after', 3) == -signal.SIGKILL
    assert 0 < tiny.numbers(tmp_path / 'killed')['update'] < N
    assert tiny.finish(tiny.train, tmp_path / 'killed', c, N) == 0
    assert_same_run(tmp_path / 'whole', tmp_path / 'killed')


def test_killed_while_saving(whole, tmp_path):
    "At every file that a run writes, just before and just after the new one takes its place."
    c, folder, _ = whole
    left = 0
    for name, place, count in [
        ('config.json', 'before', 1),
        ('config.json', 'after', 1),
        ('log.jsonl', 'before', 1),
        ('state.safetensors', 'before', 1),
        ('model.safetensors', 'after', 1),
        ('state.safetensors', 'after', 2),
        ('state.safetensors', 'before', 3),
        ('model.safetensors', 'before', 1),
        ('log.jsonl', 'after', 1),
    ]:
        assert tiny.finish(train_and_die, tmp_path, c, name, place, count) == -signal.SIGKILL
        left += len(list(tmp_path.rglob('.*')))
    assert tiny.finish(tiny.train, tmp_path, c, N) == 0
    assert left >= 5 and not list(
        tmp_path.rglob('.*')
    )  # half-written files were left behind, and the next start cleared them away
    assert_same_run(folder, tmp_path)


@pytest.mark.parametrize('sign', ['SIGTERM', 'SIGINT'])
def test_asked_to_stop_saves_and_goes_on(whole, sign, tmp_path):
    c, folder, seconds = whole
    rng, asked = random.Random(sign), []
    for _ in range(4):
        p = tiny.begin(tiny.train, tmp_path, c, N)
        p.join(rng.uniform(0, 0.3 * seconds))
        if p.is_alive():
            os.kill(p.pid, getattr(signal, sign))
        p.join()
        assert p.exitcode == 0  # a stop that was asked for is no failure
        update = tiny.numbers(tmp_path)['update']
        if update == N:
            break
        asked.append(update)
    assert asked and len({*asked}) == len(asked)  # every start made progress, and kept it to the last update
    assert tiny.finish(tiny.train, tmp_path, c, N) == 0
    assert_same_run(folder, tmp_path)


def test_in_pieces_is_as_in_one_go(whole, tmp_path):
    c, folder, _ = whole
    for k in (1, 6, 23, N):
        _, r = tiny.train(tmp_path, c, k)
        assert r['update'] == k and r['stopped'] == 'done'
    assert not tiny.different(tiny.state(folder), tiny.state(tmp_path))
    before = (tmp_path / 'log.jsonl').read_bytes()
    m, r = tiny.train(tmp_path, c, N)  # a run that is over stays as it is
    assert r['update'] == N and (tmp_path / 'log.jsonl').read_bytes() == before
    assert not tiny.different(dict(m.named_parameters()), load_file(tmp_path / 'model.safetensors'))


def test_a_stream_resumes_too(tmp_path):
    "An IterableDataset is replayed to the update where the run stopped."
    c = tiny.config('fast', batch_tokens=256)

    def go(folder, updates):
        stream = tiny.pairs().to_iterable_dataset(num_shards=3)
        m = tiny.model(c)
        return m.fit(
            stream,
            tiny.pairs(40).to_iterable_dataset(),
            tmp_path / folder,
            max_updates=updates,
            device='cpu',
            progress=False,
        )

    go('a', 40)
    for k in (3, 18, 40):
        go('b', k)  # the data are seen more than once
    assert not tiny.different(tiny.state(tmp_path / 'a'), tiny.state(tmp_path / 'b'))


def test_bf16_resumes_too_and_precisions_may_follow_each_other(tmp_path):
    c = tiny.config('fast', precision='bf16')
    tiny.train(tmp_path / 'a', replace(c, precision='fp32'), 3)
    tiny.train(tmp_path / 'b', c, 12)
    for k in (4, 12):
        tiny.train(tmp_path / 'c', c, k)
    assert not tiny.different(tiny.state(tmp_path / 'b'), tiny.state(tmp_path / 'c'))
    assert all(v.dtype == torch.float32 for k, v in tiny.state(tmp_path / 'b').items() if k.startswith('weights.'))


# ---- compiled blocks


def compiling(folder, c, updates, started=None, cache=None, **env):
    "Train with compiled blocks; report how many graphs there were."
    os.environ.update(env | (dict(TORCHINDUCTOR_CACHE_DIR=str(cache)) if cache else {}))
    tiny.train(folder, c, updates, started=started)
    from torch._dynamo.utils import counters

    (Path(folder) / 'graphs').write_text(str(counters['stats']['unique_graphs']))


def compiled_eagerly(folder, c, updates):
    "The same without machine code: graphs and their guards are made. Fails where an update would need another graph."
    from functools import partialmethod

    stance = torch.compiler.set_stance
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend='aot_eager')
    torch.compiler.set_stance = lambda _: stance('fail_on_recompile')
    training.held_out_loss = lambda *_: 1.0
    compiling(folder, c, updates)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        pytest.param(dict(width=24, n_heads=1, max_source=24), marks=tiny.slow),
        pytest.param(dict(batch_tokens=1024, dropout=0.0), marks=tiny.slow),
        *(pytest.param(dict(recipe=recipe), marks=tiny.slow) for recipe in ('autoregressive', 'transformer')),
    ],
    ids=str,
)
def test_code_of_one_artificial_batch_serves_all(changes, tmp_path):
    "Whatever the shapes of the data, no update meets a case that was not compiled before the first one."
    c = tiny.config(**dict(recipe='fast', compile=True, precision='bf16', n_layers=1) | changes)
    assert tiny.finish(compiled_eagerly, tmp_path, c, 20) == 0
    assert (tmp_path / 'graphs').read_text() == '2'  # source and target


def test_without_a_working_compiler_it_trains_all_the_same(tmp_path):
    c = tiny.config('fast', compile=True, precision='bf16', n_layers=1)
    for name in ('g++', 'c++', 'clang++'):
        (tmp_path / name).write_text(
            '#!/bin/sh\ncase "$*" in *--version*|*-v) echo "g++ 14.2.0" ;; '
            '*) echo "Python.h: No such file or directory" >&2; exit 1 ;; esac\n'
        )
        (tmp_path / name).chmod(0o755)
    for name, env in (('none', dict(PATH='/nowhere')), ('broken', dict(PATH=f'{tmp_path}:/usr/bin:/bin'))):
        assert tiny.finish(compiling, tmp_path / name, c, 3, cache=tmp_path / 'cache', **env) == 0
        assert read_log(tmp_path / name)[-1]['update'] == 3
    assert tiny.finish(tiny.train, tmp_path / 'plain', replace(c, compile=False), 3) == 0
    assert not tiny.different(tiny.state(tmp_path / 'none'), tiny.state(tmp_path / 'plain')) and not tiny.different(
        tiny.state(tmp_path / 'broken'), tiny.state(tmp_path / 'plain')
    )


@tiny.slow
def test_compiled_and_killed_at_random_moments(tmp_path):
    "With machine code made anew at every start, from an empty cache."
    c = tiny.config('fast', compile=True, precision='bf16')
    assert tiny.finish(compiling, tmp_path / 'whole', c, N, cache=tmp_path / 'cache') == 0
    seconds, rng, kills, states = read_log(tmp_path / 'whole')[-1]['seconds'], random.Random('compiled'), 0, set()
    for i in range(20):
        p = tiny.begin(compiling, tmp_path / 'killed', c, N, cache=tmp_path / f'cache{i // 2}')
        p.join(rng.uniform(0.1, 0.25) * (i + 1) * seconds)  # longer and longer, so that it ends
        if p.is_alive():
            p.kill()
            kills += 1
        p.join()
        if p.exitcode == 0:
            break
        if (tmp_path / 'killed' / 'last').exists():
            states.add(tiny.numbers(tmp_path / 'killed')['update'])
    assert (
        p.exitcode == 0
        and kills >= 2
        and states - {N}
        and (tmp_path / 'whole' / 'graphs').read_text() == (tmp_path / 'killed' / 'graphs').read_text() == '3'
    )
    assert_same_run(tmp_path / 'whole', tmp_path / 'killed')
    assert tiny.finish(tiny.train, tmp_path / 'plain', replace(c, compile=False), N) == 0
    assert tiny.different(
        tiny.state(tmp_path / 'plain'), tiny.state(tmp_path / 'whole')
    )  # the code does matter to the last bits


# ---- what a run folder may hold


def edit_header(path, **numbers):
    tensors, header = read_tensors(path)
    save_file(tensors, path, dict(numbers=json.dumps(json.loads(header['numbers']) | numbers)))


@pytest.fixture
def run(whole, tmp_path):
    "A copy of a finished run, to be damaged, and a function that goes on with it."
    c, folder, _ = whole
    shutil.copytree(folder, tmp_path / 'run')
    return c, tmp_path / 'run', lambda c=c, updates=N + 3: tiny.train(tmp_path / 'run', c, updates)


@pytest.fixture
def one_run(one, tmp_path):
    "The same, of the default recipe only."
    c, folder, _ = one
    shutil.copytree(folder, tmp_path / 'run')
    return c, tmp_path / 'run', lambda c=c, updates=N + 3: tiny.train(tmp_path / 'run', c, updates)


def test_a_truncated_state_is_reported(run):
    _, folder, go_on = run
    path = folder / 'last' / 'state.safetensors'
    whole_file = path.read_bytes()
    for k in (0, 5, 100, len(whole_file) // 2, len(whole_file) - 1):
        path.write_bytes(whole_file[:k])
        with pytest.raises(ValueError, match='state.safetensors: not a readable.*cut short.*restore it, or remove it'):
            go_on()
    path.write_bytes(whole_file)
    assert go_on()[1]['update'] == N + 3


def test_a_damaged_best_model_is_reported_before_the_training(run):
    "Not hours later, when the run ends and wants to read it; once it is removed the run goes on and writes another."
    c, folder, go_on = run
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-9])
    state = (folder / 'last' / 'state.safetensors').read_bytes()
    with pytest.raises(ValueError, match='model.safetensors: not a readable'):
        go_on()
    with pytest.raises(ValueError, match='model.safetensors: not a readable'):
        load_model(folder)
    assert (folder / 'last' / 'state.safetensors').read_bytes() == state
    path.unlink()
    edit_header(folder / 'last' / 'state.safetensors', best=-1.0)  # a best that is never reached again
    m, _ = go_on()
    assert not tiny.different(dict(m.named_parameters()), load_file(path))


def test_foreign_tensors_are_refused(run):
    c, folder, go_on = run
    path = folder / 'last' / 'state.safetensors'
    shutil.copy(folder / 'model.safetensors', path)
    with pytest.raises(ValueError, match='state.safetensors: these weights belong to another model.*missing'):
        go_on()
    save_file(dict(a=torch.ones(3)), path)
    with pytest.raises(ValueError, match='another model'):
        go_on()
    save_file({f'weights.{k}': v for k, v in load_file(folder / 'model.safetensors').items()}, path)
    with pytest.raises(ValueError, match='state.safetensors.*not the state of a run'):
        go_on()
    path.write_bytes(b'PK\x03\x04' + bytes(1000))  # what torch.save writes
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        go_on()


@pytest.mark.parametrize('device', ['cup', 'cuda:1', 'tpu'])
def test_a_device_that_it_would_not_use_is_refused(device, tmp_path):
    with pytest.raises(ValueError, match=f"device='{device}'"):
        tiny.model().fit(tiny.pairs(), tiny.pairs(40), tmp_path / 'run', max_updates=1, device=device, progress=False)
    assert not (tmp_path / 'run').exists()


def test_a_run_with_other_settings_is_refused_and_left_alone(run):
    c, folder, go_on = run
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    with pytest.raises(
        ValueError,
        match=r'holds a run with other settings \(lr: .* there, 0.125 now; dropout|'
        r'\(dropout: .*; lr: .* there, 0.125 now\)',
    ):
        go_on(replace(c, lr=0.125, dropout=0.2))
    other = tiny.config('paper' if c.recipe == 'fast' else 'fast')
    with pytest.raises(ValueError, match=f"recipe: '{c.recipe}' there, '{other.recipe}' now"):
        go_on(other)
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before


def test_another_vocabulary_of_the_same_size_is_refused(run):
    "Ids would mean other words, and nothing else would tell."
    c, folder, _ = run
    other = make_tokenizer(
        datasets.Dataset.from_dict(dict(src=[t.upper()[::-1] for t in tiny.pairs()['trg']], trg=tiny.pairs()['src'])), c
    )
    assert len(other) == len(tiny.tokenizer())
    with pytest.raises(ValueError, match='tokenizer.json.*another vocabulary'):
        new_model(c, other).fit(tiny.pairs(), tiny.pairs(40), folder, max_updates=N + 3, device='cpu', progress=False)


@pytest.mark.parametrize(
    'text, says',
    [
        ('{"task": ', 'not valid JSON'),
        ('[]', 'list instead of the configuration of a run'),
        ('{"task": "x", "colour": 1}', 'not a configuration of this version'),
        ('{"model": "block", "run": {"colour": 1}}', 'not a configuration of this version; unknown: colour'),
    ],
)
def test_a_damaged_configuration_is_reported(run, text, says):
    _, folder, go_on = run
    (folder / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=f'config.json: {says}'):
        go_on()
    with pytest.raises(ValueError, match=f'config.json: {says}'):
        load_model(folder)


@pytest.mark.parametrize(
    'end',
    [b'{"update": 60, "sec', b'\x00' * 200, b'\xff\xfe\x80', b'\n\n', b'17\n', b'"x"\n', b'{"loss": 3}\n'],
    ids=['half a line', 'zeros', 'no text', 'blank', 'number', 'string', 'no update'],
)
def test_a_damaged_log_loses_its_last_line_only(run, end):
    "A crash of the machine may leave anything at the end of a file that was being written."
    c, folder, go_on = run
    before = read_log(folder)
    with open(folder / 'log.jsonl', 'ab') as f:
        f.write(end)
    assert read_log(folder) == before
    go_on()
    after = read_log(folder)
    assert after[: len(before)] == before and len(after) > len(before)
    for line in (folder / 'log.jsonl').read_text().splitlines():
        json.loads(line)


def test_no_held_out_pairs_and_no_end(tmp_path):
    m = tiny.model()
    with pytest.raises(ValueError, match='say when to stop'):
        m.fit(tiny.pairs(), tiny.pairs(), tmp_path)
    with pytest.raises(ValueError, match='valid: no pairs'):
        m.fit(tiny.pairs(), tiny.pairs().select([]), tmp_path, max_updates=3)
    long = datasets.Dataset.from_dict(dict(src=['word ' * 90], trg=['word ' * 90]))
    with pytest.raises(ValueError, match='none is left; raise max_source'):
        m.fit(long, tiny.pairs(), tmp_path, max_updates=3)
    assert not list(tmp_path.iterdir())  # nothing was begun


def rewrite(path, change, **header):
    "Write a state again without a digest, as an older version wrote it, after `change` of its tensors."
    tensors, old = read_tensors(path)
    save_file(change(tensors), path, dict(numbers=old['numbers']) | header)


def without(prefix):
    return lambda tensors: {n: x for n, x in tensors.items() if not n.startswith(prefix)}


def spoilt(prefix):
    "The first tensor of that name holds one number that is none."

    def change(tensors):
        name = min(n for n in tensors if n.startswith(prefix) and tensors[n].is_floating_point() and tensors[n].dim())
        tensors[name].flatten()[0] = float('nan')
        return tensors

    return change


@pytest.mark.parametrize('prefix', ['weights.', 'average.', 'optimizer.'])
def test_a_state_with_numbers_that_are_not_finite_is_refused(one_run, prefix):
    _, folder, go_on = one_run
    rewrite(folder / 'last' / 'state.safetensors', spoilt(prefix))
    with pytest.raises(ValueError, match=f'state.safetensors: {prefix}.* not finite; restore it, or remove it'):
        go_on()


@pytest.mark.parametrize('prefix', ['average.', 'optimizer.', 'optimizer.1', 'average.net.blocks.0'])
def test_half_a_state_is_refused(one_run, prefix):
    "It used to go on as if that memory had never been."
    _, folder, go_on = one_run
    rewrite(folder / 'last' / 'state.safetensors', without(prefix))
    with pytest.raises(ValueError, match=f'state.safetensors: not the whole state.*missing: {prefix}.*restore it'):
        go_on()


def test_a_state_of_losses_without_them_is_refused(undisturbed, tmp_path):
    c, folder, _ = undisturbed('paper')
    shutil.copytree(folder, tmp_path / 'run')
    rewrite(tmp_path / 'run' / 'last' / 'state.safetensors', without('extra.'))
    with pytest.raises(ValueError, match='missing: extra.history'):
        tiny.train(tmp_path / 'run', c, N + 3)


def test_a_refused_state_leaves_the_model_as_it_was(one_run):
    c, folder, _ = one_run
    rewrite(folder / 'last' / 'state.safetensors', without('optimizer.'))
    m = tiny.model(c)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    with pytest.raises(ValueError, match='not the whole state'):
        m.fit(tiny.pairs(), tiny.pairs(40), folder, max_updates=N + 3, device='cpu', progress=False)
    assert not tiny.different(before, dict(m.named_parameters()))


def test_a_flipped_byte_is_a_sentence_or_nothing(one_run):
    "At places all over the file, most of them in its header: either refused by name, or the same state."
    c, folder, _ = one_run
    path = folder / 'last' / 'state.safetensors'
    whole_file = path.read_bytes()
    header = 8 + int.from_bytes(whole_file[:8], 'little')
    numbers = whole_file.index(b'numbers')
    rng = random.Random('bytes')
    places = [
        *range(numbers - 4, numbers + 120, 2),
        *rng.sample(range(header), 60),
        *range(header, len(whole_file), 9973),
    ]
    for place in places:
        flipped = bytearray(whole_file)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        m = tiny.model(c)
        memory = training.make_optimizers(m, c)
        ema = {n: p.detach().clone() for n, p in m.named_parameters()}
        try:
            said = training.load_state(path, m, ema, memory)
        except ValueError as e:
            assert 'state.safetensors' in str(e) and '\n' not in str(e), place
            continue
        assert said == json.loads(read_header(whole_file)['numbers']), place
    path.write_bytes(whole_file)


def read_header(data):
    "The header of the bytes of a safetensors file."
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])['__metadata__']


@pytest.mark.parametrize(
    'numbers',
    ['{"update": 44', '[]', '{}', '{"update": "x"}', 'whole seconds=nan', 'whole best=nan', 'whole update=-1'],
)
def test_numbers_that_are_none_are_refused(one_run, numbers):
    _, folder, go_on = one_run
    path = folder / 'last' / 'state.safetensors'
    if numbers.startswith('whole'):
        name, value = numbers.split()[1].split('=')
        numbers = json.dumps(tiny.numbers(folder) | {name: float(value)})
    rewrite(path, lambda tensors: tensors, numbers=numbers)
    with pytest.raises(ValueError, match='state.safetensors: not the state of a run, its numbers are') as e:
        go_on()
    assert '\n' not in str(e.value)


def test_a_state_of_an_older_version_is_gone_on_with(one_run):
    "It had no digest."
    c, folder, go_on = one_run
    path = folder / 'last' / 'state.safetensors'
    assert read_tensors(path)[1]['digest'] == digest_of(load_file(path))
    rewrite(path, lambda tensors: tensors)
    assert set(read_tensors(path)[1]) == {'numbers'}
    assert go_on()[1]['update'] == N + 3


def test_a_held_out_loss_that_is_not_finite_stops_before_it_replaces_the_best(one_run, monkeypatch):
    c, folder, go_on = one_run
    best = (folder / 'model.safetensors').read_bytes()
    monkeypatch.setattr(training, 'held_out_loss', lambda *_: float('nan'))
    with pytest.raises(FloatingPointError, match='held-out loss nan at update 45.*lower lr') as e:
        go_on(updates=N + 1)
    assert '\n' not in str(e.value) and (folder / 'model.safetensors').read_bytes() == best
    assert tiny.numbers(folder)['evaluated'] == N
    monkeypatch.undo()
    assert go_on(updates=N + 1)[1]['best'] < 10


# ---- a run folder from which something is missing


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
def test_what_says_what_a_run_is_is_written_again(one_run, name):
    c, folder, go_on = one_run
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    go_on()
    assert (folder / name).read_bytes() == before
    load_model(folder)


def test_without_its_configuration_a_run_of_other_weights_is_refused(one_run):
    c, folder, go_on = one_run
    (folder / 'config.json').unlink()
    with pytest.raises(ValueError, match='safetensors: these weights belong to another model'):
        go_on(replace(c, width=48, n_heads=3))
    with pytest.raises(ValueError, match='state.safetensors: not the whole state.*optimizer'):
        go_on(replace(c, optimizer='adamw'))
    assert not (folder / 'config.json').exists()


@pytest.mark.parametrize('updates', [N, N + 3])
def test_a_best_model_that_is_gone_is_written_again(one_run, updates):
    c, folder, go_on = one_run
    average = {n[8:]: x for n, x in tiny.state(folder).items() if n.startswith('average.')}
    seen = log_of(folder)
    (folder / 'model.safetensors').unlink()
    m, r = go_on(updates=updates)
    assert r['best'] == pytest.approx(min(x['valid_loss'] for x in log_of(folder) if x['update'] >= N), rel=1e-5)
    assert r['best_update'] in (N, updates) and tiny.numbers(folder)['best'] == r['best']
    if updates == N:
        assert not tiny.different(average, load_file(folder / 'model.safetensors')) and log_of(folder) == seen
    again = (folder / 'model.safetensors').read_bytes()
    assert go_on(updates=updates)[1]['best'] == r['best'] and (folder / 'model.safetensors').read_bytes() == again


def test_a_best_model_without_its_state_is_not_replaced(one_run):
    c, folder, go_on = one_run
    (folder / 'last' / 'state.safetensors').unlink()
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match='model.safetensors.*no .*state.safetensors.*choose another run_dir'):
        go_on()
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before
    (folder / 'model.safetensors').unlink()
    assert go_on(updates=3)[1]['update'] == 3


def test_a_foreign_best_model_is_refused_before_the_training(one_run, tmp_path):
    c, folder, go_on = one_run
    path = folder / 'model.safetensors'
    save_file({n: x[..., None] for n, x in load_file(path).items()}, path)
    with pytest.raises(ValueError, match='model.safetensors: these weights belong to another model'):
        go_on()


def test_a_first_best_model_never_stands_without_its_state(undisturbed, tmp_path):
    "Held-out losses before the first save, and death just after the file is there."
    c = tiny.config('fast', eval_every=3, save_every=50)
    tiny.train(tmp_path / 'whole', c, 8)
    for place in ('before', 'after'):
        for name in ('state.safetensors', 'model.safetensors'):
            folder = tmp_path / f'{place} {name}'
            assert tiny.finish(train_and_die, folder, c, name, place, 1) == -signal.SIGKILL
            assert tiny.finish(tiny.train, folder, c, 8) == 0
            assert_same_run(tmp_path / 'whole', folder)


def test_two_trainings_in_one_folder(tmp_path):
    c = tiny.config('fast', save_every=1)
    p = tiny.begin(tiny.train, tmp_path / 'run', c, 10_000)
    try:
        with pytest.raises(ValueError, match=f'run is in use by training, process {p.pid} on .*another place') as e:
            tiny.train(tmp_path / 'run', c, 3)
        assert '\n' not in str(e.value) and p.is_alive()
    finally:
        p.kill()
        p.join()
    so_far = tiny.numbers(tmp_path / 'run')['update'] if (tmp_path / 'run/last/state.safetensors').exists() else 0
    assert tiny.train(tmp_path / 'run', c, so_far + 2)[1]['update'] == so_far + 2  # a killed one leaves it open


# ---- what is asked of it


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(minutes='3'), "minutes='3'"),
        (dict(minutes=-1), 'minutes=-1'),
        (dict(minutes=float('nan')), 'minutes=nan'),
        (dict(minutes=True), 'minutes=True'),
        (dict(max_updates=-1), 'max_updates=-1'),
        (dict(max_updates=2.5), 'max_updates=2.5'),
        (dict(max_updates='3'), "max_updates='3'"),
        (dict(train=None), 'train is NoneType'),
        (dict(valid=None), 'valid is NoneType'),
        (dict(train='rows'), 'train is generator'),
        (dict(valid='rows'), 'valid is generator'),
    ],
    ids=str,
)
def test_wrong_arguments(given, says, tmp_path):
    m = tiny.model()
    rows = encode_pairs(tiny.pairs(40), m.tokenizer, m.window)
    given = {k: (r for r in rows) if v == 'rows' else v for k, v in given.items()}
    given = dict(model=m, train=rows, valid=rows, run_dir=tmp_path / 'run', max_updates=1) | given
    with pytest.raises(ValueError, match=re.escape(says)) as e:
        training.fit(**given)
    assert '\n' not in str(e.value) and not (tmp_path / 'run').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="device='cuda': PyTorch finds no GPU here; take 'cpu', or None"):
        training.check_training_device('cuda')
    assert check_device('cpu') == check_device(None) == torch.device('cpu')


def test_the_generator_of_the_caller_is_left_alone(tmp_path):
    torch.manual_seed(5)
    m = tiny.model(tiny.config('fast'))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    m.fit(tiny.pairs(), tiny.pairs(40), tmp_path, max_updates=3, device='cpu', progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('limit', [dict(max_updates=23), dict(max_updates=23, minutes=60)], ids=str)
def test_the_bar_says_how_far_it_is(limit, tmp_path, monkeypatch):
    from tqdm.std import tqdm

    said = io.StringIO()
    monkeypatch.setattr(
        training, 'tqdm', lambda **given: tqdm(**(given | dict(disable=False, file=said, mininterval=0, ncols=150)))
    )
    tiny.train(tmp_path, tiny.config('fast'), **(limit | dict(progress=True)))
    last = said.getvalue().split('\r')[-1]
    assert 's/s' not in said.getvalue() and re.search(r'loss \d\.\d+, held-out loss \d\.\d+', last), last
    expected = r'23 of 23 updates' if 'minutes' not in limit else r'\d+\.\d of 60 min, 23 updates'
    assert re.search(expected, last), last


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path):
    "A file system of so many bytes; `grow` makes it larger. Needs the rights to mount."
    where = tmp_path / 'disk'
    where.mkdir()

    def resize(size, *how):
        return (
            subprocess.run(
                ['mount', '-t', 'tmpfs', '-o', ','.join([*how, f'size={size}']), 'tmpfs', where], capture_output=True
            ).returncode
            == 0
        )

    if os.getuid() or not shutil.which('mount') or not resize(1 << 20):
        pytest.skip('no rights to mount a small disk')
    subprocess.run(['umount', where])
    yield where, resize
    subprocess.run(['umount', '-l', where])


@pytest.mark.parametrize('room', [0.3, 1.2, 1.6, 2.1])
def test_full_disk(one, small_disk, room):
    "One message that names the file and the remedy, old files intact; with more space the run ends as if undisturbed."
    c, folder, _ = one
    (where, resize), size = small_disk, (folder / 'last' / 'state.safetensors').stat().st_size
    assert resize(int(room * size))
    run = where / 'run'
    with pytest.raises(OSError, match=r'cannot write .*/run/.*(No space left|previous file).*Free some space') as e:
        tiny.train(run, c, N)
    assert e.value.errno == errno.ENOSPC
    assert not list(run.rglob('.*'))  # no half-written file fills the disk further
    if (run / 'last' / 'state.safetensors').exists():
        tiny.state(run)
    assert resize(100 << 20, 'remount')
    tiny.train(run, c, N)
    assert_same_run(folder, run)


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_disk_full_in_the_last_moment_of_a_save(one, tmp_path, monkeypatch, call):
    c, folder, _ = one
    tiny.train(tmp_path, c, 5)
    before = (tmp_path / 'last' / 'state.safetensors').read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as m:
        m.setattr(Run, 'log', lambda self, **_: m.setattr(os, call, full) if self.numbers['update'] == 10 else None)
        with pytest.raises(
            OSError, match='cannot write .*state.safetensors.*previous file, if any, is intact. Free some space'
        ):
            tiny.train(tmp_path, c, N)
    assert (tmp_path / 'last' / 'state.safetensors').read_bytes() == before and [
        p.name for p in (tmp_path / 'last').iterdir()
    ] == ['state.safetensors']
    tiny.train(tmp_path, c, N)
    assert not tiny.different(tiny.state(folder), tiny.state(tmp_path))


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
def test_disk_full_at_a_line_of_the_log(one, tmp_path, monkeypatch):
    c, folder, _ = one

    def advance(self, rows):
        if self.numbers['update'] == 6:
            (self.dir / 'log.jsonl').unlink()
            (self.dir / 'log.jsonl').symlink_to('/dev/full')
        return original(self, rows)

    original = Run.advance
    monkeypatch.setattr(Run, 'advance', advance)
    with pytest.raises(
        OSError, match=f'cannot write the log in {tmp_path} .No space left on device.*Free some space and start again'
    ) as e:
        tiny.train(tmp_path, c, N)
    assert e.value.errno == errno.ENOSPC
    monkeypatch.undo()
    (tmp_path / 'log.jsonl').unlink()  # reading /dev/full would never end
    tiny.train(tmp_path, c, N)
    assert not tiny.different(tiny.state(folder), tiny.state(tmp_path))


# ---- a loss that is not a number


def test_nan_keeps_weights_and_state(whole, tmp_path, monkeypatch):
    c, folder, _ = whole
    m = tiny.model(c)
    kept = {}
    kind = type(m)
    forward, calls = kind.forward, itertools.count(1)

    def poisoned(self, batch, generator):
        out = forward(self, batch, generator)
        if self.training and next(calls) == 24:
            out['loss'] = out['loss'] * float('nan')
            out.pop('parts', None)
        return out

    advance = Run.advance

    def spy(self, rows):
        kept.update({n: p.detach().clone() for n, p in self.bare.named_parameters()})
        return advance(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(kind, 'forward', poisoned)
        patch.setattr(Run, 'advance', spy)
        with pytest.raises(
            FloatingPointError, match='(?s)loss nan.*at update 24 .*last holds the last saved state'
        ) as e:
            m.fit(tiny.pairs(), tiny.pairs(40), tmp_path, max_updates=N, device='cpu', progress=False)
    assert not tiny.different(kept, dict(m.named_parameters()))  # the poisoned step was not taken
    rows = next(train_batches(encode_pairs(tiny.pairs(), m.tokenizer, m.window), m.window, c.seed, start=23))
    assert f'{len(rows)} pairs' in str(e.value) and m.tokenizer.decode(
        rows[0]['trg_ids'], skip_special_tokens=True
    ) in str(e.value)  # which pairs
    saved = tiny.state(tmp_path)
    assert all(v.isfinite().all() for v in saved.values())
    tiny.train(tmp_path, c, N)  # had it been a soft error of the machine, nothing would be lost
    assert_same_run(folder, tmp_path)


def test_divergence_is_caught(tmp_path):
    c = tiny.config('paper', lr=1e30, clip=0.0, lr_decay='constant', save_every=1)
    with pytest.raises(FloatingPointError, match='at update [2-9] with learning rate 1e\\+30.*Lower lr'):
        tiny.train(tmp_path, c, N)


# ---- gathered gradients, averages, ends


def each_row_by_itself(m, batch, generator):
    "The forward pass under noise that belongs to the pair, so that a batch and its pieces mean the same loss."
    losses = []
    for i in range(len(batch['ids'])):
        own = torch.Generator().manual_seed(int(batch['ids'][i].sum()))
        losses.append(type(m).forward(m, {k: v[i : i + 1] for k, v in batch.items()}, own)['loss'])
    return dict(loss=torch.stack(losses).mean())


def of_one_width(m):
    "Eight encoded pairs whose batches have one shape, whatever pieces they are cut into."
    rows = encode_pairs(tiny.pairs(), m.tokenizer, m.window)
    return [row for row in rows if all(16 < len(row[k]) <= 24 for k in row)][:8]


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_pieces_give_the_gradient_of_the_whole(recipe):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run may have left its precision there
    grads, losses, acc = [], [], Accelerator(cpu=True, mixed_precision='no')
    for size in (0, 1, 3, 100):
        c = tiny.config(recipe, micro_batch=size, dropout=0.0)
        m = tiny.model(c)
        m.forward = functools.partial(each_row_by_itself, m)
        rows = of_one_width(m)
        assert len(rows) == 8
        if recipe == 'paper':
            m.steps.sample = lambda n, generator: (torch.randint(1, c.T + 1, (n,), generator=generator), torch.ones(n))
        out = backward_pass(m, rows, acc, torch.Generator())
        grads.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
        losses.append(out['loss'])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    for g in grads[1:]:
        assert (g - grads[0]).norm() < 1e-5 * grads[0].norm()


@pytest.mark.parametrize('recipe', ['fast', *tiny.LEFT])
def test_pieces_of_unequal_texts_give_the_gradient_of_the_whole(recipe):
    "A loss is a mean over words: pieces count by their words, not by their pairs."
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    grads, losses = [], []
    for size in (0, 1, 3):
        c = tiny.config(recipe, micro_batch=size, dropout=0.0)
        m = tiny.model(c)
        rows = sorted(encode_pairs(tiny.pairs(), m.tokenizer, m.window), key=lambda r: len(r['trg_ids']))[::9][:8]
        if recipe == 'fast':  # noise that belongs to the pair, and pairs of one width, whose noise has one shape
            rows = of_one_width(m)
            m.forward = functools.partial(row_by_row, m)
        assert len({len(r['trg_ids']) for r in rows}) > 3
        before = torch.Generator().manual_seed(1)
        out = backward_pass(m, rows, Accelerator(cpu=True, mixed_precision='no'), before)
        grads.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
        losses.append(out['loss'])
    for g, loss in zip(grads[1:], losses[1:]):
        assert (g - grads[0]).norm() < 1e-5 * grads[0].norm() and loss == pytest.approx(losses[0], rel=1e-5)


def row_by_row(m, batch, generator):
    "The forward pass of the default recipe, pair by pair under noise of its own: loss, and its parts."
    parts = []
    for i in range(len(batch['ids'])):
        seed = torch.Generator().manual_seed(int(batch['ids'][i].sum()))
        parts.append(type(m).forward(m, {k: v[i : i + 1] for k, v in batch.items()}, seed)['parts'])
    joined = []
    for column in zip(*parts):
        total = sum(n for _, n in column)
        joined.append((sum(term * (n / total) for term, n in column), total))
    return dict(loss=sum(term for term, _ in joined), parts=joined)


def test_counting_the_pieces_draws_nothing(monkeypatch):
    "Where noise and dropout decide, the pieces see the same draws as if nobody had counted."
    from accelerate import Accelerator

    c = tiny.config('fast', micro_batch=3, dropout=0.3)
    m = tiny.model(c)
    rows = list(encode_pairs(tiny.pairs(), m.tokenizer, m.window))[:8]

    def ended():
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4)
        backward_pass(m, rows, Accelerator(cpu=True), generator)
        return torch.get_rng_state(), generator.get_state()

    forward = type(m).forward
    with_counts = ended()
    monkeypatch.setattr(type(m), 'forward', lambda *a: {k: v for k, v in forward(*a).items() if k != 'parts'})
    assert all(torch.equal(a, b) for a, b in zip(with_counts, ended()))


@pytest.mark.parametrize('recipe', ['fast', *tiny.LEFT, 'gpvae-t5', 'paper'])
def test_a_loss_is_the_sum_of_its_parts(recipe):
    c = tiny.config(recipe)
    m = tiny.model(c)
    rows = list(encode_pairs(tiny.pairs(), m.tokenizer, m.window))[:8]
    out = m(m.batch(rows), torch.Generator().manual_seed(0))
    parts = out.get('parts', [(out['loss'], len(rows))])
    assert sum(term for term, _ in parts) == out['loss'] and all(isinstance(n, int) and n > 0 for _, n in parts)
    assert parts[0][1] == (len(rows) if recipe == 'paper' else sum(len(r['trg_ids']) for r in rows))


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_pieces_of_an_update_draw_their_own_noise(recipe, monkeypatch):
    "The same pair in each piece: equal noise would make equal losses. What is counted ahead is the same draws."
    from accelerate import Accelerator

    c = tiny.config(recipe, micro_batch=2, dropout=0.0)
    m = tiny.model(c)
    where = sys.modules[MODELS[type(c)].__module__]
    row = list(encode_pairs(tiny.pairs(), m.tokenizer, m.window))[0]
    seen, ahead, q_sample = [], [], where.q_sample

    def spy(z, t, a, target, noise, **more):
        (seen if torch.is_grad_enabled() else ahead).append(noise.clone())
        return q_sample(z, t, a, target, noise, **more)

    monkeypatch.setattr(where, 'q_sample', spy)
    backward_pass(m, [row] * 8, Accelerator(cpu=True), torch.Generator().manual_seed(seed_of(0, 0, 0)))
    assert len(ahead) == (3 if recipe == 'fast' else 0) and all(map(torch.equal, ahead, seen[1:]))
    assert len(seen) == 4 and all((a - b).abs().max() > 0.1 for a, b in itertools.combinations(seen, 2))


def test_average_follows_its_recurrence(tmp_path):
    c = tiny.config('fast', save_every=1)
    a = {n: p.detach().clone() for n, p in tiny.model(c).named_parameters()}
    for u in range(6):
        tiny.train(tmp_path, c, u + 1)
        s, g = tiny.state(tmp_path), ema_decay(u, c)
        for n in a:
            a[n] = g * a[n] + (1 - g) * s[f'weights.{n}']
            torch.testing.assert_close(s[f'average.{n}'], a[n])


def test_no_average_means_the_weights_themselves(tmp_path):
    m, _ = tiny.train(tmp_path, tiny.config('fast', ema=0.0, eval_every=4, save_every=4), 4)
    s = tiny.state(tmp_path)
    assert not [k for k in s if k.startswith('average.')]
    assert not tiny.different({k[8:]: v for k, v in s.items() if k.startswith('weights.')}, dict(m.named_parameters()))


def test_the_held_out_loss_changes_with_the_weights_only():
    "For loss-aware steps too: what was remembered of the training must not move it."
    c = tiny.config('paper')
    m = tiny.model(c)
    rows = list(encode_pairs(tiny.pairs(40), m.tokenizer, m.window))[:16]
    before = held_out_loss(m, rows)
    m.observe(torch.arange(1, c.T + 1).repeat(10), torch.rand(10 * c.T) * torch.arange(1, c.T + 1).repeat(10) ** 2)
    assert m.steps.probabilities().std() > 0.01
    assert held_out_loss(m, rows) == before and m.training


def test_best_weights_are_those_of_the_least_loss(tmp_path, monkeypatch):
    "Losses by decree: 5, 3, 4, 3, 2.5, 9: the fifth is the best and stays."
    losses, kept = iter([5.0, 3.0, 4.0, 3.0, 2.5, 9.0]), []

    def decreed(model, *_):
        kept.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return next(losses)

    monkeypatch.setattr(training, 'held_out_loss', decreed)
    c = tiny.config('fast', eval_every=2, save_every=3)
    m, r = tiny.train(tmp_path, c, 12)
    assert (r['best'], r['best_update']) == (2.5, 10)
    assert not tiny.different(kept[4], load_file(tmp_path / 'model.safetensors')) and not tiny.different(
        kept[4], dict(m.named_parameters())
    )


def test_patience_ends_a_run_and_it_stays_ended(tmp_path):
    c = tiny.config('fast', lr=1e-30, ema=0.0, eval_every=2, save_every=2, patience=3)
    _, r = tiny.train(tmp_path, c, 100)
    assert (r['update'], r['best_update']) == (8, 2)
    _, r = tiny.train(tmp_path, c, 100)
    assert r['update'] == 8


def test_minutes_are_counted_over_all_starts(tmp_path):
    c = tiny.config('fast')
    so_far = 0
    for minutes in (0.01, 0.01, 0.03):
        _, r = tiny.train(tmp_path, c, None, minutes=minutes)
        assert 60 * minutes <= r['seconds'] < 60 * minutes + 5
        assert r['update'] > so_far if minutes > 0.01 or not so_far else r['update'] == so_far
        so_far = r['update']
    assert read_log(tmp_path)[-1]['seconds'] == pytest.approx(r['seconds'], abs=0.02)


# ---- two processes

TWO = """
import os, signal, sys
from pathlib import Path
import tiny, torch
from diffuseq.training import Run

out = Path(sys.argv[1])
rank = int(os.environ['RANK'])
seen = []
advance = Run.advance


def spy(self, rows):
    torch.manual_seed(0)
    if self.dir.name == 'asked' and self.numbers['update'] == 12 and rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    r = advance(self, rows)
    seen.append(dict(rows=[x['trg_ids'] for x in rows], drawn=torch.randn(1).item(), loss=r['loss']))
    return r


Run.advance = spy


def go(name, c, updates):
    m, r = tiny.train(out / name, c, updates, device=None)
    weights = {n: p.detach().clone() for n, p in m.named_parameters()}
    history = getattr(m, 'extra_state', dict)()
    torch.save(dict(seen=seen[:], r=r, weights=weights, history=history), out / f'{name}.{updates}.{rank}')
    seen.clear()


fast = tiny.config('fast', batch_tokens=1024)
go('whole', fast, 30)
go('pieces', fast, 11)
go('pieces', fast, 30)
go('paper', tiny.config('paper', batch_size=7), 31)
go('uneven', tiny.config('paper', batch_size=7, micro_batch=3), 9)
go('asked', fast, 30)
for size in (0, 3):
    go(f'autoregressive{size}', tiny.still(micro_batch=size), 20)
"""


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "A script that `accelerate launch` runs in two processes; what each of them ended with."
    folder = tmp_path_factory.mktemp('two')
    (folder / 'two.py').write_text(TWO)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    p = subprocess.run(
        [
            sys.executable,
            '-m',
            'accelerate.commands.launch',
            '--multi_gpu',
            '--num_processes',
            '2',
            '--num_machines',
            '1',
            '--mixed_precision',
            'no',
            '--dynamo_backend',
            'no',
            '--main_process_port',
            str(port),
            folder / 'two.py',
            folder,
        ],
        env=os.environ | dict(ACCELERATE_USE_CPU='1'),
        capture_output=True,
        text=True,
        timeout=400,
    )  # as the Makefile does: with --cpu it starts a single process
    assert p.returncode == 0, p.stderr[-3000:]
    return folder, lambda name, rank: torch.load(folder / f'{name}.{rank}', weights_only=False)


@pytest.mark.parametrize('name', ['whole.30', 'pieces.30', 'paper.31', 'asked.30'])
def test_two_processes_end_with_equal_weights(two, name):
    a, b = (two[1](name, rank) for rank in (0, 1))
    assert not tiny.different(a['weights'], b['weights'])
    assert all(torch.equal(a['history'][k], b['history'][k]) for k in a['history'])


def test_two_processes_learn_from_different_pairs_under_different_noise(two):
    a, b = (two[1]('whole.30', rank)['seen'] for rank in (0, 1))
    losses = [line['valid_loss'] for line in read_log(two[0] / 'whole') if 'valid_loss' in line]
    assert len(a) == len(b) == 30 and losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    assert all(x['drawn'] != y['drawn'] for x, y in zip(a, b))
    assert not any(r in y['rows'] for x, y in zip(a, b) for r in x['rows'])


def test_two_processes_resume_exactly(two):
    folder, _ = two
    assert not tiny.different(tiny.state(folder / 'whole'), tiny.state(folder / 'pieces'))


def test_two_processes_remember_the_losses_of_both(two):
    "A batch of 7 pairs: one process has 4 of them, the other 3."
    history = two[1]('paper.31', 0)['history']
    pairs_seen = sum(len(x['rows']) for rank in (0, 1) for x in two[1]('paper.31', rank)['seen'])
    assert history['seen'].sum() == pairs_seen


@pytest.mark.parametrize('name', ['autoregressive0', 'autoregressive3'])
def test_the_gradient_does_not_ask_how_a_batch_was_shared_out(two, name, tmp_path):
    "Two processes, whole or in pieces, against one: equal up to rounding, since every word counts the same."
    m, _ = tiny.train(tmp_path, tiny.still(), 20)
    weights = two[1](f'{name}.20', 0)['weights']
    start = dict(tiny.model(tiny.still()).named_parameters())
    for n, p in m.named_parameters():
        assert (weights[n] - p).abs().max() < 3e-5  # single precision; processors round differently
    assert max((p - start[n]).abs().max() for n, p in m.named_parameters()) > 0.05
    losses = [[line['loss'] for line in read_log(folder) if 'loss' in line] for folder in (tmp_path, two[0] / name)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_processes_with_unequal_numbers_of_pieces(two):
    "Seven pairs in pieces of three: two pieces in the first process, one in the second."
    a, b = (two[1]('uneven.9', rank) for rank in (0, 1))
    assert not tiny.different(a['weights'], b['weights'])
    assert {len(x['rows']) for x in a['seen']} >= {4} and {len(x['rows']) for x in b['seen']} >= {3}
    assert [x['loss'] for x in a['seen']] == [x['loss'] for x in b['seen']]


def test_two_processes_stop_together_when_the_first_is_asked(two):
    for rank in (0, 1):
        r = two[1]('asked.30', rank)['r']
        assert (r['update'], r['stopped']) == (13, 'asked')


def test_the_notebook_begins_from_a_trained_model(tmp_path):
    "Its words, size and weights, with the settings that are changed; a second start goes on with the run."
    import papermill

    tiny.model(width=48, n_heads=3).save_pretrained(tmp_path / 'given')

    def go(updates):
        papermill.execute_notebook(
            tiny.root / 'nbs/experiments/train.ipynb',
            None,
            kernel_name='python3',
            cwd=tiny.root,
            progress_bar=False,
            parameters=dict(
                start=str(tmp_path / 'given'),
                run_dir=str(tmp_path / 'run'),
                max_updates=updates,
                changes=dict(lr=1e-9, eval_every=1, save_every=1),
            ),
        )

    go(1)
    given, run = load_model(tmp_path / 'given'), load_model(tmp_path / 'run')
    assert (run.config.width, run.config.lr, run.config.dropout) == (
        48,
        1e-9,
        given.config.dropout,
    ) and run.tokenizer.get_vocab() == given.tokenizer.get_vocab()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(run.parameters(), given.parameters()))
    go(2)
    assert [line['update'] for line in read_log(tmp_path / 'run') if 'valid_loss' in line] == [1, 2]


@pytest.mark.parametrize('numbers', [[], ['update'], {}, dict(seconds=1.0), dict(update=1, other=2), dict(update=-1)])
def test_numbers_of_a_state_that_cannot_be(numbers):
    from diffuseq.training import are_numbers

    assert not are_numbers(numbers) and are_numbers(dict(update=1))
