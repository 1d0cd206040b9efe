"The model as it writes: what it was taught comes out by every order and sampler; a batch is no more than its texts."

import json, logging, resource
from pathlib import Path
from types import SimpleNamespace
import datasets, pytest, torch
import tiny
from tiny import SOURCES
from diffuseq.config import make_config, make_decoding
from diffuseq.corpora import normalize_texts
from diffuseq.hub import MODELS, load_model, new_model
from diffuseq.mbr import bleu
from diffuseq.text import decode, encode_pairs, load_tokenizer

quiet = dict(progress=False)
SAMPLERS = ('ddpm', 'ddim', 'dpmpp', 'renoise')

# ---- training and sampling agree

BIG = dict(width=64, d_embed=32, dropout=0.0, eval_every=1000, save_every=1000, n_valid=8)
LEARNS = dict(
    fast=(160, dict(lr=0.01, lr_hold=100, batch_tokens=1500)),
    paper=(320, dict(T=50, window=40, lr=4e-3, lr_decay='constant', batch_size=32)),
)


@pytest.fixture(scope='module', params=list(LEARNS))
def learned(request, tmp_path_factory):
    "A model that has read thirty short pairs until it knew them, and those pairs."
    updates, changes = LEARNS[request.param]
    few = tiny.pairs(30, 9)
    m = tiny.model(tiny.config(request.param, **BIG | changes))
    m.fit(few, few, tmp_path_factory.mktemp('learned'), max_updates=updates, device='cpu', progress=False)
    return m, few


def score(texts, references):
    "Mean BLEU of texts, 0..1."
    pairs = list(zip(normalize_texts(texts), normalize_texts(references)))
    return sum(bleu(text, reference) for text, reference in pairs) / len(pairs)


WAYS = dict(
    fast=[
        dict(order='confidence', steps=5),
        dict(order='confidence', steps=20),
        dict(order='left-to-right'),
        dict(order='left-to-right', beam=3),
        dict(order='left-to-right', end='predicted'),
        dict(order='semi-autoregressive'),
        dict(order='semi-autoregressive', calls=5),
        dict(order='parallel', steps=1),
        *(dict(order='parallel', sampler=s, steps=k) for s in SAMPLERS for k in (5, 20)),
        dict(order='parallel', sampler='ddim', eta=1.0, steps=20),
        dict(order='parallel', rounding=False, steps=20),
    ],
    paper=[
        *(dict(sampler=s, steps=k) for s in SAMPLERS for k in (10, 50)),
        dict(sampler='ddim', eta=1.0, steps=10),
        dict(sampler='ddpm', variance='large', steps=50),
        dict(rounding=False, sampler='ddim', steps=50),
        dict(readout='logits', steps=10),
        dict(noise_bound=1.0, steps=10),
    ],
)


def test_what_was_learned_comes_out(learned):
    "By every order and sampler: a wrong scale, level, shift or mask between training and sampling would show."
    m, few = learned
    assert score(few['src'], few['trg']) < 0.5
    written = {json.dumps(way): m.generate(few['src'], **way, **quiet) for way in WAYS[m.config.recipe]}
    reached = {way: score(texts, few['trg']) for way, texts in written.items()}
    assert min(reached.values()) > 0.8, reached
    if m.config.recipe == 'paper':  # without anchoring (b) the source itself wanders off
        assert score(m.generate(few['src'], replace=False, steps=10, **quiet), few['trg']) < 0.5


def test_the_nelbo_knows_what_was_learned(learned):
    "A target that was learned costs fewer bits than the target of another source."
    m, few = learned
    sources = few['src'][:8]
    targets = few['trg'][:8]
    right = m.nelbo(sources, targets, samples=10)['bits_per_token']
    wrong = m.nelbo(sources, targets[1:] + targets[:1], samples=10)['bits_per_token']
    assert (right < wrong).float().mean() > 0.9


# ---- a batch is no more than its texts

SOME = dict(
    fast=[
        dict(order='confidence'),
        dict(order='left-to-right'),
        dict(order='left-to-right', end='predicted'),
        dict(order='semi-autoregressive'),
        dict(order='semi-autoregressive', calls=1),
        dict(order='semi-autoregressive', temperature=1.0),
        dict(order='confidence', temperature=0.7),
        dict(order='left-to-right', temperature=1.0),
        *(dict(order='parallel', sampler=s) for s in SAMPLERS),
        dict(order='parallel', sampler='ddim', eta=0.5),
        dict(order='parallel', sampler='ddpm', variance='large', temperature=1.0),
        dict(order='parallel', rounding=False),
    ],
    paper=[
        *(dict(sampler=s) for s in SAMPLERS),
        dict(sampler='ddim', eta=0.5),
        dict(variance='large'),
        dict(rounding=False),
        dict(replace=False),
        dict(readout='logits'),
        dict(noise_bound=1.0),
        dict(published_stride=True),
    ],
)
every_way = pytest.mark.parametrize('recipe, way', [(r, way) for r, ways in SOME.items() for way in ways], ids=str)


@every_way
def test_batches_change_nothing(models, recipe, way):
    m = models[recipe]
    whole = m.generate(SOURCES, n=3, batch_size=64, **way, **quiet)
    for size in (1, 2, 5):
        assert m.generate(SOURCES, n=3, batch_size=size, **way, **quiet) == whole
    best = dict(beam=3) if way == dict(order='left-to-right') else {}  # the n best are beams of a search n wide
    first = m.generate(SOURCES, batch_size=4, **way, **best, **quiet)
    assert first == [texts[0] for texts in whole]
    continued = m.generate(SOURCES[2:4], n=3, first=2, **way, **quiet)
    assert continued == whole[2:4]
    if recipe == 'paper' or way.get('temperature') or way['order'] == 'parallel':
        assert any(len(set(texts)) > 1 for texts in whole)


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_seeds(models, recipe):
    m = models[recipe]
    way = dict(temperature=1.0) if recipe == 'fast' else {}
    a, b, again = (m.generate(SOURCES, seed=s, **way, **quiet) for s in (0, 1, 0))
    assert a == again != b


@pytest.mark.parametrize('recipe', ['fast', 'paper', *tiny.LEFT, 'gpvae-t5'])
def test_the_global_generator_is_left_alone(recipe, tmp_path):
    "Building, saving, loading, writing and scoring leave PyTorch's generator as it was, and do not depend on it."
    told = [everything_said_by(recipe, tmp_path, seed) for seed in (1, 2)]
    assert told[0] == told[1]


def everything_said_by(recipe, folder, seed):
    "What a new model writes and scores while PyTorch's generator stands at `seed`."
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    tiny.model(tiny.config(recipe, **dict(T=10) if recipe in ('fast', 'paper') else {})).save_pretrained(folder)
    m = load_model(folder)
    drawn = {} if recipe == 'paper' else dict(temperature=1.0)
    told = [m.generate(SOURCES[:3], n=2, mbr=True, **drawn, **quiet)]
    if m.exact:
        told.append(m.log_prob(SOURCES[:2], SOURCES[1:3])['log_prob'].tolist())
    if hasattr(m, 'nelbo'):
        told.append(m.nelbo(SOURCES[:2], SOURCES[1:3], draws=2)['total'].tolist())
    assert torch.equal(before, torch.get_rng_state())
    return told


def test_a_model_in_training_stays_in_training(models):
    m = models['fast']
    m.train()
    m.generate(SOURCES[:1], **quiet)
    assert m.training
    m.eval()


def same_at_rest(m, ask, what):
    "Whether a model in training says what it says at rest, and is still in training afterwards."
    m.eval()
    rest = ask(SOURCES[:2], SOURCES[1:3])[what]
    m.train()
    return torch.equal(ask(SOURCES[:2], SOURCES[1:3])[what], rest) and m.training


def test_a_model_in_training_says_what_it_says_at_rest():
    "Neither dropout nor blank words take part in a likelihood, whichever function asks for it."
    m = tiny.model(word_dropout=0.5)
    assert same_at_rest(m, m.log_prob, 'log_prob')
    assert same_at_rest(m, lambda x, y: m.log_prob(x, y, end='predicted'), 'log_prob')
    assert same_at_rest(m, lambda x, y: m.nelbo(x, y, samples=2), 'total')


def test_the_likelihood_of_an_order_knows_no_dropout():
    from diffuseq.any_order import model_log_prob

    m = tiny.model(word_dropout=0.5)
    assert same_at_rest(m, lambda x, y: model_log_prob(m, x, y), 'log_prob')
    assert same_at_rest(m, lambda x, y: model_log_prob(m, x, y, order='confidence', steps=3), 'log_prob')


@pytest.mark.parametrize(
    'recipe, way, calls',
    [
        ('fast', dict(order='confidence', steps=3), 3),
        ('fast', dict(order='parallel', steps=3), 3),
        ('fast', dict(order='left-to-right'), None),
        ('fast', dict(order='semi-autoregressive'), None),
        ('fast', dict(order='semi-autoregressive', calls=2), 2),
        ('paper', dict(steps=3), 3),
    ],
    ids=str,
)
def test_a_trace_ends_in_the_text(models, recipe, way, calls):
    m = models[recipe]
    steps = m.trace(SOURCES[0], **way)
    assert calls is None or len(steps) == calls
    ids = m.tokenizer.convert_tokens_to_ids([word for word, _ in steps[-1]])
    assert decode(ids, m.tokenizer).endswith(m.generate(SOURCES[:1], **way, **quiet)[0])
    if way.get('order') == 'confidence':
        left = [sum(masked for _, masked in step) for step in steps]
        assert left == sorted(left, reverse=True) and left[-1] == 0


# ---- sources of every kind


def test_some_pairs_have_several_references(models):
    first = [SOURCES[0], 'something else']
    pairs = dict(src=SOURCES[:2], trg=SOURCES[1:3])
    some = datasets.Dataset.from_dict(pairs | dict(refs=[first, None]))
    every = datasets.Dataset.from_dict(pairs | dict(refs=[first, [SOURCES[2]]]))
    assert models['fast'].score(some, metrics=dict(bertscore_model=None), **quiet) == models['fast'].score(
        every, metrics=dict(bertscore_model=None), **quiet
    )


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_empty_sources(models, recipe):
    m = models[recipe]
    for how in (dict(), dict(n=3), dict(n=3, mbr=True)):
        assert m.generate([], **how, **quiet) == []
    assert m.generate(['', ''], n=2, **quiet) == [['', '']] * 2
    assert m.generate(['', ' '], n=3, mbr=True, **quiet) == ['', '']
    some = m.generate(['', SOURCES[1], ' \t\n', SOURCES[3]], **quiet)
    full = m.generate(['go', SOURCES[1], 'go', SOURCES[3]], **quiet)
    assert some == ['', full[1], '', full[3]]


def test_any_iterable_of_strings_is_a_list_of_sources(models):
    m = models['fast']
    column = datasets.Dataset.from_dict(dict(src=SOURCES))['src']
    written = m.generate(SOURCES, **quiet)
    for sources in ((s for s in SOURCES), tuple(SOURCES), column, dict.fromkeys(SOURCES).keys()):
        assert m.generate(sources, **quiet) == written


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_a_source_longer_than_the_window(models, recipe, caplog):
    m = models[recipe]
    limit = m.config.max_source if recipe == 'fast' else m.config.window * 3 // 4 - 3
    long = ' '.join(['andandand'] * 500)
    with caplog.at_level(logging.WARNING, 'diffuseq'):
        written = m.generate([long, SOURCES[0]], **quiet)
    assert f'1 of 2 sources have more than {limit} sub-words: cut there' in caplog.text
    assert written == m.generate([long + ' and more', SOURCES[0]], **quiet)  # what lies beyond is not seen


ODD = [
    '\u4f60\u597d',
    '\U0001f600',
    'caf\u00e9 \u200b',
    '\ufeff',
    'a\x7fb',
    '[SEP] [PAD] [CLS] [MASK]',
    '\u2028',
    'e\u0301',
    '\U0010ffff',
    'a\tb\nc\rd',
]


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_unknown_characters(models, recipe):
    m = models[recipe]
    texts = m.generate(ODD, **quiet)
    assert len(texts) == len(ODD) and all(isinstance(text, str) for text in texts)
    assert m.generate(ODD, batch_size=1, **quiet) == texts


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_sources_without_a_single_word_piece(recipe):
    "A tokenizer that drops characters without width leaves nothing of such a source: that is an empty text too."
    tok = load_tokenizer('bert-base-uncased')
    assert tok.backend_tokenizer.encode('\u200b\ufeff', add_special_tokens=False).ids == []
    c = tiny.config(recipe, tokenizer='bert-base-uncased', T=50)
    m = new_model(c, tok, make_decoding(c, steps=3)).double()
    written = m.generate(['\u200b\ufeff', 'go on', '\u200b'], n=2, **quiet)
    assert written == [['', ''], m.generate(['x', 'go on'], n=2, **quiet)[1], ['', '']]


# ---- tokenizers of other people


@pytest.fixture
def eot(tmp_path):
    "A tokenizer in a folder, whose one token for start and end has a name that nobody would guess."
    from tokenizers import Tokenizer, models as kinds, pre_tokenizers

    words = dict.fromkeys(w for p in tiny.pairs() for k in ('src', 'trg') for w in p[k].split())
    vocabulary = {w: i for i, w in enumerate(['<nothing>', '<eot>', '?', *words])}
    t = Tokenizer(kinds.WordLevel(vocabulary, unk_token='?'))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens(['<nothing>', '<eot>', '?'])
    folder = tmp_path / 'words'
    folder.mkdir()
    t.save(str(folder / 'tokenizer.json'))
    roles = dict(bos_token='<eot>', eos_token='<eot>', pad_token='<nothing>', unk_token='?')
    (folder / 'tokenizer_config.json').write_text(json.dumps(roles))
    return str(folder)


def test_a_pad_that_is_also_the_end(eot):
    "Beams are filled up with pads; those are not read as ends of texts that have none yet."
    roles = Path(eot) / 'tokenizer_config.json'
    roles.write_text(json.dumps(json.loads(roles.read_text()) | dict(pad_token='<eot>')))
    m = new_model(tiny.config('fast', tokenizer=eot, max_source=16, max_target=16), load_tokenizer(eot)).eval()
    m.net.bias.data[m.tokenizer.sep_token_id] -= 100
    sources = ['and he said', 'yes']
    texts = [
        *m.generate(sources, **quiet),
        *m.generate(sources, order='left-to-right', beam=3, **quiet),
        *sum(m.generate(sources, n=2, **quiet), []),
    ]
    assert [len(text.split()) for text in texts] == [16] * len(texts)


@pytest.mark.parametrize('recipe', ['fast', *tiny.LEFT])
def test_one_token_for_start_and_end_under_an_unusual_name(recipe, eot, tmp_path):
    "Texts end, have a likelihood, and what was saved or trained is loaded again."
    c = tiny.config(recipe, tokenizer=eot, max_source=16, max_target=16)
    pairs = tiny.pairs()
    for k in (1, 2):
        m = new_model(c, load_tokenizer(eot))
        m.fit(pairs, pairs, tmp_path / 'run', max_updates=k, device='cpu', progress=False)
    m.save_pretrained(tmp_path / 'saved')
    assert m.tokenizer.sep_token == m.tokenizer.cls_token == '<eot>'
    x = list(pairs['src'][:3])
    y = list(pairs['trg'][:3])
    log_prob = m.log_prob(x, y)['log_prob']
    assert log_prob.isfinite().all()
    for again in (load_model(tmp_path / 'run'), load_model(tmp_path / 'saved')):
        assert again.tokenizer.special_tokens_map == m.tokenizer.special_tokens_map
        assert torch.equal(again.log_prob(x, y)['log_prob'], log_prob)
        assert again.generate(x, **quiet) == m.generate(x, **quiet)


def test_a_text_may_end_before_it_begins(eot):
    m = new_model(tiny.config('autoregressive', tokenizer=eot, max_source=16, max_target=16), load_tokenizer(eot))
    m.net.bias.data[m.tokenizer.sep_token_id] += 100
    assert m.generate(SOURCES, **quiet) == [''] * len(SOURCES)


def test_windows_of_fixed_length_need_a_pad_that_is_word_0():
    from tokenizers import Tokenizer, models as kinds
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(kinds.WordLevel({'!': 0, '[PAD]': 1, '[CLS]': 2, '[SEP]': 3}, unk_token='!'))
    roles = dict(pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]')
    with pytest.raises(ValueError, match="window is filled with word 0, and here that is '!'"):
        new_model(tiny.config('paper'), PreTrainedTokenizerFast(tokenizer_object=backend, **roles))


# ---- memory


def peak(steps, out, c, way):
    "Most memory that a process ever held, in bytes, after a generation of so many steps."
    m = tiny.model(c)
    m.generate(SOURCES * 4, steps=3, **way, **quiet)
    m.generate(SOURCES * 4, steps=steps, **way, **quiet)
    out.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@pytest.mark.parametrize(
    'recipe, way',
    [('paper', dict(sampler='dpmpp')), ('fast', dict(order='parallel', sampler='ddpm'))],
    ids=str,
)
def test_memory_is_flat_in_steps(recipe, way):
    "95 more steps would need 75 MB for their states if they were kept."
    c = tiny.config(recipe, T=100, d_embed=256, vocab_size=300)
    used = []
    for steps in (5, 100):
        out = tiny.processes.SimpleQueue()
        p = tiny.start(peak, steps, out, c, way)
        p.join()
        assert p.exitcode == 0
        used.append(out.get())
    assert used[1] - used[0] < 25e6, used


# ---- sizes

FROM_NOTHING = ('gru', 'transformer')  # baselines that are trained from nothing


@pytest.mark.parametrize('recipe', FROM_NOTHING)
@pytest.mark.parametrize('profile', ['cpu', 'gpu', 'full'])
def test_baselines_have_as_many_weights_as_the_default_model(recipe, profile):
    "Within 5%, at the vocabulary of the profile; weights that are drawn at random and nowhere stored."

    def count(recipe):
        c = make_config(recipe=recipe, profile=profile)
        with torch.device('meta'):
            net = MODELS[type(c)].make_network(SimpleNamespace(tokenizer=tiny.tokenizer()), c, c.vocab_size)
        return sum(p.numel() for p in net.parameters())

    assert abs(count(recipe) / count('fast') - 1) < 0.05, (count(recipe), count('fast'))


# ---- the profiles for graphics cards


@pytest.mark.parametrize(
    'recipe, profile',
    [
        ('fast', 'gpu'),
        *(pytest.param(recipe, 'gpu', marks=tiny.slow) for recipe in tiny.LEFT),
        pytest.param('fast', 'full', marks=tiny.slow),
        pytest.param('paper', 'gpu', marks=tiny.slow),
    ],
)
def test_large_profiles_learn_a_batch(recipe, profile, tmp_path):
    "At their own size, on a handful of pairs: three updates lower the loss, and what was saved writes a text."
    changes = dict(dropout=0.0, ema=0.0, compile=False, warmup=0)
    if recipe == 'paper':
        changes |= dict(batch_size=4, micro_batch=2, T=50, tokenizer='bpe', lr_decay='constant')
    else:
        changes |= dict(batch_tokens=128)
    m = tiny.model(make_config(recipe=recipe, profile=profile, **changes))
    few = tiny.pairs().select(range(4))
    batch = m.batch(list(encode_pairs(few, m.tokenizer, m.window)))

    def loss():
        with torch.no_grad():
            return m.eval()(batch, torch.Generator().manual_seed(0))['loss'].item()

    before = loss()
    m.fit(few, few, tmp_path, max_updates=3, device='cpu', progress=False)
    assert loss() < before
    (text,) = load_model(tmp_path).generate(few['src'][:1], **quiet)
    assert isinstance(text, str)


def test_the_last_state_is_read_as_asked():
    "By the highest logit, where another word is nearer."
    m = tiny.model(tiny.config('official'))
    word = m.tokenizer.vocab['the'] if 'the' in m.tokenizer.vocab else 50
    m.net.lm_head.bias.data[word] = 1e6
    how = dict(steps=3, seed=0, progress=False)
    told = {}
    for readout in ('logits', 'nearest'):
        m.generate(SOURCES[:1], readout=readout, callback=lambda *said: told.update({readout: said}), **how)
    ids = {readout: said[0][said[3]['asked']] for readout, said in told.items()}
    assert (ids['logits'] == word).all() and (ids['nearest'] != word).any()
