"What a caller may do wrong: the library answers at once, by one line that says what was found."

import pytest, signal, torch
from contextlib import contextmanager
import tiny
from tiny import SOURCES
from diffuseq.config import RENAMED_SETTINGS, RENAMED_VALUES, make_config, make_decoding
from diffuseq.hub import load_model, new_model

quiet = dict(progress=False)


@contextmanager
def refused(says, error=ValueError, seconds=20):
    "The body raises an error of one line that holds `says`, within `seconds`."

    def too_long(*_):
        pytest.fail(f'no answer within {seconds} seconds')

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        with pytest.raises(error) as e:
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert says in str(e.value) and '\n' not in str(e.value), str(e.value)


@pytest.fixture(scope='module')
def all_models(models):
    "One of each class."
    return models | {recipe: tiny.model(tiny.config(recipe)).double().eval() for recipe in (*tiny.LEFT, 'gpvae-t5')}


# ---- settings of generate


@pytest.mark.parametrize(
    'wrong, says',
    [
        (dict(n=0), 'n=0: must be a whole number, at least 1'),
        (dict(n=-3), 'n=-3'),
        (dict(n=2.5), 'n=2.5'),
        (dict(n=None), 'n=None'),
        (dict(n=[2]), 'n=[2]'),
        (dict(mbr=True), 'n=1: must be a whole number, at least 2'),
        (dict(seed=None), 'seed=None'),
        (dict(seed=-1), 'seed=-1'),
        (dict(first='a'), "first='a'"),
        (dict(batch_size=0), 'batch_size=0'),
        (dict(batch_size=-2), 'batch_size=-2'),
        (dict(batch_size=1.5), 'batch_size=1.5'),
        (dict(beams=4), 'generate: this model has no setting beams; it has '),
    ],
    ids=str,
)
@pytest.mark.parametrize('recipe', ['fast', 'paper', *tiny.LEFT, 'gpvae-t5'])
def test_wrong_arguments_of_every_model(all_models, recipe, wrong, says):
    with refused(says):
        all_models[recipe].generate(SOURCES, **wrong, **quiet)


@pytest.mark.parametrize(
    'wrong, says',
    [
        (dict(steps=0), 'steps=0 must be finite and greater than 0'),
        (dict(steps=51), 'steps=51 is larger than T: ask for at most 50'),
        (dict(steps=-1), 'steps=-1'),
        (dict(steps=2.5), 'steps=2.5 is float; expected int'),
        (dict(steps='3'), "steps='3' is str"),
        (dict(steps=True), 'steps=True is bool'),
        (dict(sampler='euler'), "sampler='euler'; choose one of ddpm"),
        (dict(sampler=['ddpm']), 'sampler=['),
        (dict(sampler='ddim', eta=2.0), 'eta=2.0 must be finite and at most 1'),
        (dict(sampler='ddim', eta='x'), "eta='x' is str"),
        (dict(sampler='ddpm', variance='x'), "variance='x'; choose one of posterior, large"),
        (dict(rounding=1), 'rounding=1 is int; expected bool'),
    ],
    ids=str,
)
@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_wrong_settings_of_a_chain(models, recipe, wrong, says):
    order = dict(order='parallel') if recipe == 'fast' else {}
    with refused(says):
        models[recipe].generate(SOURCES, **order, **wrong, **quiet)


@pytest.mark.parametrize(
    'recipe, wrong, says',
    [
        (
            'fast',
            dict(order='right'),
            "order='right'; choose one of left-to-right, semi-autoregressive, confidence, parallel",
        ),
        ('fast', dict(order={}), 'order={} is dict'),
        ('fast', dict(end='never'), "end='never'; choose one of eos, predicted"),
        ('fast', dict(temperature=-1.0), 'temperature=-1.0 must be finite and at least 0'),
        ('fast', dict(temperature=float('nan')), 'temperature=nan'),
        ('fast', dict(temperature=float('inf')), 'temperature=inf'),
        ('fast', dict(temperature='warm'), "temperature='warm' is str; expected float"),
        ('fast', dict(beam=0), 'beam=0'),
        ('fast', dict(beam=2.0), 'beam=2.0 is float'),
        ('fast', dict(order='left-to-right', beam=3, temperature=1.0), 'beam search draws nothing'),
        ('fast', dict(order='parallel', sampler='repredict'), "sampler='repredict'; choose one of"),
        ('fast', dict(readout='logits'), 'no setting readout'),
        ('fast', dict(noise_bound=1.0), 'no setting noise_bound'),
        ('fast', dict(n=2, mbr=True, rerank=True), 'two ways to choose: take one'),
        ('autoregressive', dict(beam=3, temperature=1.0), 'beam search draws nothing'),
        ('autoregressive', dict(order='left-to-right'), 'no setting order; it has beam, groups'),
        ('paper', dict(readout='x'), "readout='x'; choose one of nearest, logits"),
        ('paper', dict(noise_bound=-1.0), 'noise_bound=-1.0'),
        ('paper', dict(replace=None, published_stride=0), 'published_stride=0 is int; expected bool'),
        ('paper', dict(order='left-to-right'), 'no setting order; it has sampler, steps'),
        ('paper', dict(temperature=1.0), 'no setting temperature'),
        ('paper', dict(n=2, rerank=True), 'has no exact log_prob to choose by'),
        ('gpvae-t5', dict(n=2, rerank=True), 'has no exact log_prob to choose by'),
        ('gpvae-t5', dict(latent_scale=-1.0), 'latent_scale=-1.0 must be finite and at least 0'),
    ],
    ids=str,
)
def test_wrong_settings_of_one_model(all_models, recipe, wrong, says):
    with refused(says):
        all_models[recipe].generate(SOURCES, **wrong, **quiet)


VALUES = dict(
    end='predicted',
    beam=2,
    temperature=0.5,
    calls=3,
    steps=3,
    sampler='ddpm',
    variance='large',
    eta=0.5,
    rounding=False,
)
USED = {
    ('left-to-right', 'eos', 'renoise'): {'end', 'beam', 'temperature'},
    ('left-to-right', 'predicted', 'renoise'): {'end', 'temperature'},
    ('semi-autoregressive', 'eos', 'renoise'): {'temperature', 'calls'},
    ('confidence', 'eos', 'renoise'): {'temperature', 'steps'},
    ('parallel', 'eos', 'renoise'): {'temperature', 'steps', 'sampler', 'rounding'},
    ('parallel', 'eos', 'ddpm'): {'temperature', 'steps', 'sampler', 'rounding', 'variance'},
    ('parallel', 'eos', 'ddim'): {'temperature', 'steps', 'sampler', 'rounding', 'eta'},
    ('parallel', 'eos', 'dpmpp'): {'temperature', 'steps', 'sampler', 'rounding'},
}


@pytest.mark.parametrize('order, end, sampler', USED, ids=str)
@pytest.mark.parametrize('name', VALUES)
def test_a_setting_that_the_order_does_not_use_is_refused(order, end, sampler, name):
    c = tiny.config()
    m = tiny.model(c, decoding=make_decoding(c, order=order, end=end, sampler=sampler))
    setting = {name: VALUES[name]}
    if name in USED[order, end, sampler]:
        assert m.generate([], **setting, **quiet) == []
    else:
        with refused(f'generate: {name} has no effect with '):
            m.generate([], **setting, **quiet)


@pytest.mark.parametrize(
    'sampler, name, used',
    [
        (sampler, name, sampler in users)
        for name, users in dict(variance=['ddpm'], eta=['ddim'], noise_bound=['ddpm', 'ddim', 'renoise']).items()
        for sampler in ('ddpm', 'ddim', 'dpmpp', 'renoise', 'repredict')
    ],
)
def test_a_setting_that_the_sampler_does_not_use_is_refused(models, sampler, name, used):
    m = models['paper']
    setting = {'sampler': sampler, name: dict(VALUES, noise_bound=1.0)[name]}
    if used:
        assert m.generate([], **setting, **quiet) == []
    else:
        with refused(f'generate: {name} has no effect with sampler={sampler!r}'):
            m.generate([], **setting, **quiet)


# ---- names of before


@pytest.mark.parametrize('name, value', RENAMED_VALUES, ids=str)
def test_an_earlier_value_says_the_new_one(models, name, value):
    with refused(f'{name}={value!r} is now called {RENAMED_VALUES[name, value]!r}'):
        if name == 'levels':
            tiny.config(levels=value)
        else:
            models['fast'].generate(SOURCES, **{name: value}, **quiet)


@pytest.mark.parametrize('name', RENAMED_SETTINGS)
@pytest.mark.parametrize('recipe', ['fast', 'paper', *tiny.LEFT, 'gpvae-t5'])
def test_an_earlier_setting_says_the_new_one(all_models, recipe, name):
    with refused(f'{name} is now called {RENAMED_SETTINGS[name]}'):
        all_models[recipe].generate(SOURCES, **{name: True}, **quiet)


def test_an_earlier_recipe_says_the_new_one():
    with refused("recipe 'twin' is now called 'autoregressive'"):
        make_config(recipe='twin')


# ---- sources, targets, candidates


@pytest.mark.parametrize(
    'sources, says',
    [
        (None, 'sources is NoneType; pass a list of strings'),
        (3, 'sources is int'),
        (2.5, 'sources is float'),
        (True, 'sources is bool'),
        ('one string', 'sources is one string; pass a list of strings'),
        (b'bytes', 'sources is bytes'),
        ({'src': ['a']}, 'sources is dict'),
        (['a', None], 'sources[1] is NoneType; expected a string'),
        ([b'a'], 'sources[0] is bytes'),
        ([['a']], 'sources[0] is list'),
        ([('a', 'b')], 'sources[0] is tuple'),
        (torch.ones(2), 'sources[0] is Tensor'),
        (['a', 'b\x00c'], 'sources[1] holds the character U+0000 at place 2'),
        (['\x01\u200b'], 'sources[0] holds the character U+0001 at place 1'),
        (['a\x1b[0m'], 'sources[0] holds the character U+001B at place 2'),
        (['ab\ud83d'], 'sources[0] holds the character U+D83D at place 3'),
    ],
    ids=ascii,
)
def test_sources_that_are_none(all_models, sources, says):
    for m in all_models.values():
        with refused(says):
            m.generate(sources, **quiet)


ASKED = [('fast', 'log_prob'), ('fast', 'nelbo'), ('paper', 'nelbo'), ('gpvae-t5', 'nelbo')]
ASKED += [(recipe, 'log_prob') for recipe in tiny.LEFT]


@pytest.mark.parametrize('recipe, ask', ASKED)
@pytest.mark.parametrize(
    'x, y, says',
    [
        (['a', 'b', 'c'], ['d', 'e'], 'got 3 and 2'),
        ([], [], 'got 0 and 0'),
        ('abc', 'def', 'sources is one string'),
        (['abc'], 'def', 'targets is one string'),
        (None, ['a'], 'sources is NoneType'),
        (['a'], None, 'targets is NoneType'),
        (['a'], 7, 'targets is int'),
        (['a'], {'a': 'b'}, 'targets is dict'),
        (['a'], [['b']], 'targets[0] is list'),
        (['a'], ['\x00'], 'targets[0] holds the character U+0000'),
        (['a', ' '], ['b', 'c'], 'source 1 is empty'),
    ],
    ids=ascii,
)
def test_pairs_that_are_none_and_the_model_stays_as_it_was(all_models, recipe, ask, x, y, says):
    m = all_models[recipe]
    m.train()
    with refused(says):
        getattr(m, ask)(x, y)
    assert m.training
    m.eval()


@pytest.mark.parametrize('recipe, ask', ASKED)
def test_generators_are_as_good_as_lists(all_models, recipe, ask):
    ask = getattr(all_models[recipe], ask)
    how = dict(samples=2) if ask.__name__ == 'nelbo' and recipe != 'gpvae-t5' else {}
    lists = ask(SOURCES[:2], SOURCES[1:3], **how)
    generators = ask((s for s in SOURCES[:2]), iter(SOURCES[1:3]), **how)
    assert all(torch.equal(lists[key], generators[key]) for key in lists)


@pytest.mark.parametrize(
    'wrong, says',
    [
        (dict(samples=0), 'samples=0: must be a whole number, at least 1'),
        (dict(samples=10**6), 'samples=1000000: the sum has no more than T=50 terms'),
        (dict(samples=2.5), 'samples=2.5'),
        (dict(samples='a'), "samples='a'"),
        (dict(draws=1), 'draws=1: must be a whole number, at least 2'),
        (dict(draws=10**6), 'draws=1000000: at most 1000'),
    ],
    ids=str,
)
def test_a_bound_of_no_terms_or_of_too_many(models, wrong, says):
    for m in models.values():
        with refused(says):
            m.nelbo(['a'], ['b'], **wrong)


def test_candidates_of_unequal_number(all_models):
    m = all_models['fast']
    candidates = [[SOURCES[1], SOURCES[2], SOURCES[3]], [SOURCES[4]]]
    bits = m.candidate_bits(SOURCES[:2], candidates)
    assert [len(b) for b in bits] == [3, 1]
    one_by_one = [m.log_prob([s], [c])['bits_per_token'] for s, some in zip(SOURCES, candidates) for c in some]
    torch.testing.assert_close(torch.cat(bits), torch.cat(one_by_one))
    assert m.rerank(SOURCES[:2], candidates) == [candidates[0][int(bits[0].argmin())], SOURCES[4]]
    assert m.rerank((s for s in SOURCES[:2]), (c for c in candidates)) == m.rerank(SOURCES[:2], candidates)
    assert m.rerank([], []) == []


@pytest.mark.parametrize(
    'sources, candidates, says',
    [
        (['a'], [['b'], ['c']], 'at least one, for each of 1 sources'),
        (['a', 'b'], [['b'], []], 'at least one, for each of 2 sources'),
        (['a'], ['bc'], 'candidates[0] is one string'),
        (['a'], [3], 'candidates[0] is int'),
        (['a'], [['b', None]], 'candidates[0][1] is NoneType'),
        (None, [['a']], 'sources is NoneType'),
    ],
    ids=str,
)
def test_candidates_that_are_none(all_models, sources, candidates, says):
    for ask in (all_models['fast'].rerank, all_models['autoregressive'].candidate_bits):
        with refused(says):
            ask(sources, candidates)


# ---- levels, models


def test_levels_outside_the_schedule(models):
    z = torch.zeros(1, 16, models['paper'].config.d_embed, dtype=torch.float64)
    target = torch.arange(16)[None] >= 8
    for t in (-1, 51):
        with refused('levels must lie in 0..T=50'):
            models['fast'].denoise(z, torch.tensor([t]), target)
        with refused('levels must lie in 0..T=50'):
            models['paper'].denoise(z, torch.tensor([t]))


def test_targets_that_begin_at_different_columns(models):
    target = torch.arange(16) >= torch.tensor([[8], [9]])
    z = torch.zeros(2, 16, models['fast'].config.d_embed, dtype=torch.float64)
    with refused('windows whose sources all end at one column'):
        models['fast'].denoise(z, torch.tensor([3, 3]), target)


@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64], ids=str)
def test_weights_are_not_saved_as_what_destroys_them(all_models, dtype, tmp_path):
    for m in all_models.values():
        with refused(f'dtype={dtype}: weights are floating-point numbers'):
            m.save_pretrained(tmp_path / 'm', dtype=dtype)
    assert not (tmp_path / 'm').exists()


# ---- not yet


@pytest.mark.parametrize(
    'ask, says',
    [
        pytest.param(lambda m: m.generate(['a'], beam=10**6, **quiet), 'beam=1000000', id='beam'),
        pytest.param(lambda m: m.generate(['a'], n=10**6, **quiet), 'n=1000000', id='n'),
        pytest.param(lambda m: m.generate(['a'], callback=3, **quiet), 'callback', id='callback'),
        pytest.param(lambda m: m.log_prob(['a'], ['b'], 0), 'batch_size=0', id='batch 0'),
        pytest.param(lambda m: m.log_prob(['a'], ['b'], 'x'), "batch_size='x'", id='batch x'),
        pytest.param(lambda m: m.rerank(['a'], None), 'candidates is NoneType', id='no candidates'),
        pytest.param(lambda m: m.candidate_bits(['a'], 3), 'candidates is int', id='candidates 3'),
        pytest.param(lambda m: m.score(None), 'pairs', id='score'),
        pytest.param(lambda m: m.save_pretrained(None), 'folder', id='save to None'),
        pytest.param(lambda m: m.save_pretrained('m', 'float16'), 'dtype', id='dtype by name'),
        pytest.param(lambda m: load_model(None), 'None', id='load None'),
        pytest.param(lambda m: load_model(3), '3', id='load 3'),
        pytest.param(lambda m: new_model(None, tiny.tokenizer()), 'config', id='no config'),
        pytest.param(lambda m: new_model(m.config, None), 'tokenizer', id='no tokenizer'),
        pytest.param(
            lambda m: new_model(m.config, m.tokenizer, make_decoding(tiny.config('paper'))),
            'decoding',
            id='decoding of another model',
        ),
    ],
)
def test_more_doors(all_models, ask, says):
    with refused(says, seconds=2):
        ask(all_models['autoregressive'])


def test_candidates_may_be_generators(all_models):
    m = all_models['fast']
    assert m.rerank(['a'], [iter(['b', 'c'])]) == m.rerank(['a'], [['b', 'c']])


@pytest.mark.parametrize(
    'wrong, says',
    [
        (dict(n=2, rerank=True), 'has no exact log_prob to choose by'),
        (dict(beam=3), 'it has rounds, temperature'),
        (dict(rounds=0), 'rounds=0'),
    ],
    ids=str,
)
def test_wrong_settings_of_levt(wrong, says):
    m = tiny.model(tiny.config('levt'))
    with refused(says):
        m.generate(SOURCES, **wrong, **quiet)
