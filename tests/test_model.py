"The model as it is used: what it was taught comes out by every way of sampling, a batch is no more than its texts, and nonsense is refused in words."

import json, logging, resource, shutil
from pathlib import Path
import datasets, pytest, torch
from safetensors.torch import load_file, save_file
import tiny
from diffuseq.config import make_config
from diffuseq.data import normalize_text
from diffuseq.mbr import bleu
from diffuseq.model import DiffuSeq, load_run, new_model
from diffuseq.text import collate, encode_pairs, load_tokenizer, make_tokenizer

quiet = dict(progress=False)

# ---- training and sampling agree

BIG = dict(width=64, d_embed=32, dropout=0.0, eval_every=1000, save_every=1000, n_valid=8)
LEARNS = dict(
    fast=(160, dict(lr=0.01, lr_hold=100, batch_tokens=1500)),
    paper=(320, dict(T=50, steps=50, window=40, lr=4e-3, lr_decay='constant', batch_size=32)),
)


@pytest.fixture(scope='module', params=list(LEARNS))
def learned(request, tmp_path_factory):
    "A model that has read thirty short pairs until it knew them, and those pairs."
    updates, changes = LEARNS[request.param]
    few = tiny.pairs(30, 9)
    m = tiny.model(tiny.config(request.param, **BIG | changes))
    m.fit(few, few, tmp_path_factory.mktemp('learned'), max_updates=updates, device='cpu', progress=False)
    return m, few


WAYS = dict(
    fast=[
        dict(order='surest', steps=5),
        dict(order='surest', steps=20),
        dict(order='left'),
        dict(order='left', beam=3),
        dict(order='left', end='given'),
        dict(order='together', steps=1),
        *(dict(order='together', sampler=s, steps=k) for s in ('ddpm', 'ddim', 'dpmpp', 'renoise') for k in (5, 20)),
        dict(order='together', sampler='ddim', eta=1.0, steps=20),
        dict(order='together', rounding=False, steps=20),
        dict(order='together', noise_bound=1.0, steps=20),
    ],
    paper=[
        *(dict(sampler=s, steps=k) for s in ('ddpm', 'ddim', 'dpmpp', 'renoise') for k in (10, 50)),
        dict(sampler='ddim', eta=1.0, steps=10),
        dict(sampler='ddpm', variance='large', steps=50),
        dict(rounding=False, sampler='ddim', steps=50),
        dict(readout='logits', steps=10),
        dict(noise_bound=1.0, steps=10),
    ],
)


def test_what_was_learned_comes_out(learned):
    "By every order and sampler: a wrong scale, level, shift or mask anywhere between training and sampling would show."
    m, few = learned
    score = lambda texts: sum(bleu(normalize_text(t), normalize_text(r)) for t, r in zip(texts, few['trg'])) / len(few)
    assert score(few['src']) < 0.5
    reached = {json.dumps(way): score(m.generate(few['src'], **way, **quiet)) for way in WAYS[m.config.recipe]}
    assert min(reached.values()) > 0.8, reached
    if m.config.recipe == 'paper':
        assert (
            score(m.generate(few['src'], replace=False, steps=10, **quiet)) < 0.5
        )  # without anchoring (b) the source itself wanders off


def test_the_bound_knows_what_was_learned(learned):
    "A target that was learned has more probability than the target of another source."
    m, few = learned
    s, y = few['src'][:8], few['trg'][:8]
    right, wrong = (m.bound(s, t, samples=10)['bits_per_token'] for t in (y, y[1:] + y[:1]))
    assert (right < wrong).float().mean() > 0.9


# ---- a batch is no more than its texts

SOME = dict(
    fast=[
        dict(order='surest'),
        dict(order='left'),
        dict(order='left', end='given'),
        dict(order='surest', temperature=0.7),
        dict(order='left', temperature=1.0),
        *(dict(order='together', sampler=s) for s in ('ddpm', 'ddim', 'dpmpp', 'renoise')),
        dict(order='together', sampler='ddim', eta=0.5),
        dict(order='together', sampler='ddpm', variance='large', temperature=1.0),
        dict(order='together', rounding=False),
        dict(order='together', noise_bound=1.0),
    ],
    paper=[
        *(dict(sampler=s) for s in ('ddpm', 'ddim', 'dpmpp', 'renoise')),
        dict(sampler='ddim', eta=0.5),
        dict(variance='large'),
        dict(rounding=False),
        dict(replace=False),
        dict(readout='logits'),
        dict(noise_bound=1.0),
        dict(official_stride=True),
    ],
)


@pytest.fixture(scope='module')
def models():
    "Models of random weights in double precision: their texts hang on every digit, and no two places tie, as they do where weights start at zero."
    out, g = (
        {r: tiny.model(tiny.config(r, T=50, steps=4)).double().eval() for r in ('fast', 'paper')},
        torch.Generator().manual_seed(0),
    )
    for p in out['fast'].parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return out


SOURCES = [
    'and he said',
    'in the beginning god made the heaven and the earth , and the earth was waste and without form',
    'yes',
    'the lord is my shepherd ; i will not want',
    'go',
    'what is your name ? he said',
]


@pytest.mark.parametrize('recipe, way', [(r, w) for r, ways in SOME.items() for w in ways], ids=str)
def test_batches_change_nothing(models, recipe, way):
    m = models[recipe]
    whole = m.generate(SOURCES, n=3, batch_size=64, **way, **quiet)
    for size in (1, 2, 5):
        assert m.generate(SOURCES, n=3, batch_size=size, **way, **quiet) == whole
    best = dict(beam=3) if way == dict(order='left') else {}  # n best are the beams of a search that is n wide
    assert m.generate(SOURCES, batch_size=4, **way, **best, **quiet) == [
        w[0] for w in whole
    ]  # the first candidate is what n = 1 gives
    assert m.generate(SOURCES[2:4], n=3, first=2, **way, **quiet) == whole[2:4]  # a call that continues another
    assert any(len({*w}) > 1 for w in whole) or not (
        way.get('temperature') or recipe == 'paper' or way['order'] == 'together'
    )


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_seeds(models, recipe):
    m, way = models[recipe], dict(temperature=1.0) if recipe == 'fast' else {}
    before = torch.get_rng_state()
    a, b, again = (m.generate(SOURCES, seed=s, **way, **quiet) for s in (0, 1, 0))
    assert a == again != b
    assert torch.equal(before, torch.get_rng_state())  # nobody else's random numbers were used
    m.train()
    m.generate(SOURCES[:1], **quiet)
    assert m.training
    m.eval()


# ---- what a caller may do wrong


@pytest.mark.parametrize(
    'wrong, says',
    [
        (dict(n=0), 'n=0: must be a whole number, at least 1'),
        (dict(n=-3), 'n=-3'),
        (dict(n=2.5), 'n=2.5'),
        (dict(mbr=True), 'n=1: must be a whole number, at least 2'),
        (dict(steps=0), 'steps=0 must be finite and greater than 0'),
        (dict(steps=51), 'steps is larger than T'),
        (dict(steps=-1), 'steps=-1'),
        (dict(steps=2.5), 'steps=2.5 is float; expected int'),
        (dict(steps='3'), 'steps'),
        (dict(sampler='euler'), "sampler='euler'; choose one of ddpm"),
        (dict(order='right'), "order='right'; choose one of"),
        (dict(temperature=-1.0), 'temperature=-1.0'),
        (dict(temperature=float('nan')), 'temperature=nan'),
        (dict(eta=2.0), 'eta lies in 0..1'),
        (dict(eta='x'), 'eta'),
        (dict(readout='x'), 'readout'),
        (dict(variance='x'), 'variance'),
        (dict(noise_bound=-1.0), 'noise_bound'),
        (dict(rounding=1), 'rounding=1 is int; expected bool'),
        (dict(beams=4), 'unknown setting beams; generate knows'),
        (dict(batch_size=0), 'batch_size=0'),
        (dict(batch_size=-2), 'batch_size=-2'),
        (dict(batch_size=1.5), 'batch_size=1.5'),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_words(models, wrong, says):
    for m in models.values():
        with pytest.raises(ValueError) as e:
            m.generate(SOURCES, **wrong, **quiet)
        assert says in str(e.value)


@pytest.mark.parametrize(
    'sources, says',
    [
        ('one string', 'pass a list of strings'),
        (['a', None], 'sources[1] is NoneType'),
        ([b'a'], 'sources[0] is bytes'),
        ([['a']], 'sources[0] is list'),
    ],
    ids=str,
)
def test_wrong_sources_are_refused_in_words(models, sources, says):
    with pytest.raises(ValueError) as e:
        models['fast'].generate(sources, **quiet)
    assert says in str(e.value)


@pytest.mark.parametrize(
    'x, y, says',
    [
        (['a', 'b', 'c'], ['d', 'e'], 'got 3 and 2'),
        ([], [], 'got 0 and 0'),
        ('abc', 'def', 'got one string'),
        (['a', ' '], ['b', 'c'], 'source 1 is empty'),
    ],
    ids=str,
)
def test_pairs_that_are_none_are_refused_and_the_model_stays_as_it_was(models, x, y, says):
    for m, ask in (
        (models['fast'], models['fast'].log_prob),
        (models['fast'], models['fast'].bound),
        (models['paper'], models['paper'].bound),
    ):
        m.train()
        with pytest.raises(ValueError) as e:
            ask(x, y)
        assert says in str(e.value) and m.training
        m.eval()


def test_no_terms_are_no_bound(models):
    with pytest.raises(ValueError, match='samples=0'):
        models['fast'].bound(['a'], ['b'], samples=0)


def test_a_model_in_training_says_what_it_says_at_rest():
    "Neither dropout nor blank words take part in a likelihood, whichever function asks for it."
    from diffuseq.connections import model_log_prob

    m, x, y = tiny.model(word_dropout=0.5), SOURCES[:2], SOURCES[1:3]
    for ask in (
        m.log_prob,
        lambda a, b: model_log_prob(m, a, b),
        lambda a, b: model_log_prob(m, a, b, order='surest', steps=3),
    ):
        m.eval()
        rest = ask(x, y)['log_prob']
        m.train()
        assert torch.equal(ask(x, y)['log_prob'], rest) and m.training


def test_some_pairs_have_several_references(models):
    pairs = datasets.Dataset.from_dict(
        dict(src=SOURCES[:2], trg=SOURCES[1:3], refs=[[SOURCES[0], 'something else'], None])
    )
    alone = datasets.Dataset.from_dict(
        dict(src=SOURCES[:2], trg=SOURCES[1:3], refs=[[SOURCES[0], 'something else'], [SOURCES[2]]])
    )
    score = lambda p: models['fast'].score(p, metrics=dict(bertscore_model=None), **quiet)
    assert score(pairs) == score(alone)


def test_orders_of_the_paper(models):
    for order in ('left', 'surest'):
        with pytest.raises(ValueError, match='needs a level for each token'):
            models['paper'].generate(SOURCES, order=order, **quiet)


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_empty_sources(models, recipe):
    m = models[recipe]
    assert m.generate([], **quiet) == [] == m.generate([], n=3, **quiet) == m.generate([], n=3, mbr=True, **quiet)
    alone = m.generate(['', SOURCES[1], ' \t\n', SOURCES[3]], **quiet)
    assert alone[0] == alone[2] == '' and alone == [
        t if s.strip() else ''
        for s, t in zip(['', 'x', ' ', 'x'], m.generate(['go', SOURCES[1], 'go', SOURCES[3]], **quiet))
    ]
    assert m.generate(['', ''], n=2, **quiet) == [['', '']] * 2 and m.generate(['', ' '], n=3, mbr=True, **quiet) == [
        '',
        '',
    ]
    assert (
        m.generate((s for s in SOURCES), **quiet)
        == m.generate(datasets.Dataset.from_dict(dict(src=SOURCES))['src'], **quiet)
        == m.generate(SOURCES, **quiet)
    )  # any iterable of strings


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_a_source_longer_than_the_window(models, recipe, caplog):
    m = models[recipe]
    limit = m.config.max_source if recipe == 'fast' else m.config.window * 3 // 4 - 3
    long = ' '.join(['and' * 3] * 500)
    with caplog.at_level(logging.WARNING, 'diffuseq'):
        a = m.generate([long, SOURCES[0]], **quiet)
    assert f'1 of 2 sources have more than {limit} sub-words: cut there' in caplog.text
    assert a == m.generate([long + ' and more', SOURCES[0]], **quiet)  # what lies beyond is not seen


@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_unknown_characters(models, recipe):
    m = models[recipe]
    odd = [
        '\u4f60\u597d',
        '\U0001f600',
        'caf\u00e9 \u200b',
        '\x00\x01',
        '\ufeff',
        'a\x7fb',
        '[SEP] [PAD] [CLS] [MASK]',
        '\u2028',
        'e\u0301',
        '\ud83d'[:0] + '\U0010ffff',
    ]
    texts = m.generate(odd, **quiet)
    assert len(texts) == len(odd) and all(isinstance(t, str) for t in texts)
    assert m.generate(odd, batch_size=1, **quiet) == texts


def test_sources_without_a_single_word_piece():
    "A tokenizer that drops control characters leaves nothing of such a source: that is an empty text too."
    tok = load_tokenizer('bert-base-uncased')
    assert tok.backend_tokenizer.encode('\x01\u200b', add_special_tokens=False).ids == []
    for recipe in ('fast', 'paper'):
        m = new_model(
            tiny.config(
                recipe, tokenizer='bert-base-uncased', T=50, steps=3, layout='split' if recipe == 'fast' else 'fixed'
            ),
            tok,
        ).double()
        assert m.generate(['\x01\u200b', 'go on', '\x02'], n=2, **quiet) == [
            ['', ''],
            m.generate(['x', 'go on'], n=2, **quiet)[1],
            ['', ''],
        ]


@pytest.fixture
def eot(tmp_path):
    "A tokenizer in a folder, whose one token for start and end has a name that nobody would guess."
    from tokenizers import Tokenizer, models as kinds, pre_tokenizers

    t = Tokenizer(
        kinds.WordLevel(
            {
                w: i
                for i, w in enumerate(
                    [
                        '<nothing>',
                        '<eot>',
                        '?',
                        *{w: 0 for p in tiny.pairs() for k in ('src', 'trg') for w in p[k].split()},
                    ]
                )
            },
            unk_token='?',
        )
    )
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens(['<nothing>', '<eot>'])
    (tmp_path / 'words').mkdir()
    t.save(str(tmp_path / 'words' / 'tokenizer.json'))
    (tmp_path / 'words' / 'tokenizer_config.json').write_text(
        json.dumps(dict(bos_token='<eot>', eos_token='<eot>', pad_token='<nothing>', unk_token='?'))
    )
    return str(tmp_path / 'words')


def test_a_pad_that_is_also_the_end(eot):
    "Beams are filled up with pads; those are not read as ends of texts that have none yet."
    roles = Path(eot) / 'tokenizer_config.json'
    roles.write_text(json.dumps(dict(json.loads(roles.read_text()), pad_token='<eot>')))
    m = new_model(tiny.config('fast', tokenizer=str(eot), max_source=16, max_target=16), load_tokenizer(eot)).eval()
    m.net.bias.data[m.tokenizer.sep_token_id] -= 100
    for way in (dict(), dict(beam=3), dict(n=2)):
        assert all(
            len(t.split()) == 16
            for some in m.generate(['and he said', 'yes'], **way, **quiet)
            for t in ([some] if isinstance(some, str) else some)
        )


@pytest.mark.parametrize('recipe', ['fast', 'twin'])
def test_one_token_for_start_and_end_under_an_unusual_name(recipe, eot, tmp_path):
    "Texts end, have a likelihood, and what was saved or trained is loaded again."
    c = tiny.config(recipe, tokenizer=eot, max_source=16, max_target=16)
    pairs = tiny.pairs()
    for k in (1, 2):
        m = new_model(c, load_tokenizer(eot))
        m.fit(pairs, pairs, tmp_path / 'run', max_updates=k, device='cpu', progress=False)
    m.save_pretrained(tmp_path / 'saved')
    x, y = list(pairs['src'][:3]), list(pairs['trg'][:3])
    for again in (load_run(tmp_path / 'run'), load_run(tmp_path / 'saved')):
        assert (
            again.tokenizer.special_tokens_map == m.tokenizer.special_tokens_map
            and m.tokenizer.sep_token == m.tokenizer.cls_token == '<eot>'
        )
        assert (
            torch.equal(again.log_prob(x, y)['log_prob'], m.log_prob(x, y)['log_prob'])
            and m.log_prob(x, y)['log_prob'].isfinite().all()
        )
        assert again.generate(x, **quiet) == m.generate(x, **quiet)
    if recipe == 'twin':
        m.net.bias.data[m.tokenizer.sep_token_id] += 100
        assert m.generate(x, **quiet) == [''] * 3


def test_windows_of_fixed_length_need_a_pad_that_is_word_0():
    with pytest.raises(ValueError, match="fills its windows with word 0, and here that is '!'"):
        from tokenizers import Tokenizer, models as kinds
        from transformers import PreTrainedTokenizerFast

        new_model(
            tiny.config('paper'),
            PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(
                    kinds.WordLevel({'!': 0, '[PAD]': 1, '[CLS]': 2, '[SEP]': 3}, unk_token='!')
                ),
                pad_token='[PAD]',
                cls_token='[CLS]',
                sep_token='[SEP]',
            ),
        )


def test_a_recipe_that_is_none_is_no_model():
    from dataclasses import replace

    with pytest.raises(ValueError, match="unknown recipe 'fats'; choose one of fast"):
        new_model(replace(tiny.config(), recipe='fats'), tiny.tokenizer())


def test_levels_outside_the_schedule(models):
    for r, m in models.items():
        z = torch.zeros(1, 16, m.config.d_embed, dtype=torch.float64)
        target = torch.arange(16)[None] >= 8
        for t in (-1, m.config.T + 1):
            with pytest.raises(ValueError, match='levels must lie in 0..T=50'):
                m.denoise(z, torch.tensor([t]), target=target)
    with pytest.raises(ValueError, match='pass target='):
        models['fast'].denoise(torch.zeros(1, 16, 16, dtype=torch.float64), torch.tensor([3]))


# ---- folders


@pytest.fixture(params=['fast', 'paper'])
def saved(request, models, tmp_path):
    m = tiny.model(models[request.param].config)
    m.save_pretrained(tmp_path / 'm')
    return m, tmp_path / 'm'


def test_saved_and_loaded(saved):
    m, folder = saved
    again = DiffuSeq.from_pretrained(folder)
    assert (
        not tiny.different(dict(m.named_parameters()), dict(again.named_parameters()))
        and not again.training
        and again.config == m.config
    )
    assert again.double().generate(SOURCES, **quiet) == m.double().generate(SOURCES, **quiet)
    again.save_pretrained(folder)
    assert not tiny.different(
        dict(DiffuSeq.from_pretrained(str(folder)).double().named_parameters()), dict(m.named_parameters())
    )


def test_nonsense_is_not_a_model(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'empty').mkdir()
    for name in (tmp_path / 'empty', tmp_path / 'file', ''):
        with pytest.raises(FileNotFoundError, match='no config.json in it; expected a run folder'):
            DiffuSeq.from_pretrained(name)
    for name in (tmp_path / 'nowhere', 'no/such-model', 'not a name at all !', '../..//y'):
        with pytest.raises(FileNotFoundError, match='neither a folder nor a model that comes with the package'):
            DiffuSeq.from_pretrained(name)


def test_missing_and_damaged_files(saved, tmp_path):
    m, folder = saved

    def broken(name, data):
        shutil.rmtree(tmp_path / 'b', ignore_errors=True)
        shutil.copytree(folder, tmp_path / 'b')
        (tmp_path / 'b' / name).unlink() if data is None else (tmp_path / 'b' / name).write_bytes(data)
        return tmp_path / 'b'

    weights, config = (folder / 'model.safetensors').read_bytes(), (folder / 'config.json').read_bytes()
    for name, data, error, says in [
        ('model.safetensors', None, FileNotFoundError, 'model.safetensors: no such file'),
        ('tokenizer.json', None, ValueError, 'tokenizer.json: no tokenizer here'),
        ('tokenizer.json', b'{"a": 1}', ValueError, 'tokenizer.json: not a tokenizer'),
        ('tokenizer.json', b'', ValueError, 'tokenizer.json: not a tokenizer'),
        ('config.json', config[:-20], ValueError, 'config.json: not valid JSON'),
        ('config.json', config.replace(b'"T": 50', b'"T": -50'), ValueError, 'T=-50'),
        ('config.json', config.replace(b'"width": 32', b'"width": "32"'), ValueError, 'width'),
        ('config.json', config.replace(b'"width": 32', b'"width": 34'), ValueError, 'another model'),
        *(
            ('model.safetensors', weights[:k], ValueError, 'model.safetensors: not a readable safetensors file')
            for k in (0, 7, 50, len(weights) // 2, len(weights) - 1)
        ),
        ('model.safetensors', b'PK\x03\x04' + bytes(500), ValueError, 'not a readable safetensors file'),
        (
            'model.safetensors',
            b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n',
            ValueError,
            'not a readable safetensors file',
        ),
    ]:
        with pytest.raises(error) as e:
            load_run(broken(name, data))
        assert says in str(e.value), str(e.value)


def test_foreign_weights(saved, tmp_path):
    m, folder = saved
    for tensors, says in [
        ({'bert.encoder.layer.0.weight': torch.ones(2)}, 'missing: '),
        ({}, 'missing: '),
        (load_file(folder / 'model.safetensors') | {'more': torch.ones(1)}, 'unknown: more'),
        (
            {k: v for k, v in load_file(folder / 'model.safetensors').items() if 'word_embedding' not in k},
            'missing: net.word_embedding.weight',
        ),
    ]:
        save_file(tensors, folder / 'model.safetensors')
        with pytest.raises(ValueError, match='model.safetensors: these weights belong to another model') as e:
            load_run(folder)
        assert says in str(e.value)
        m.save_pretrained(folder)


def test_a_vocabulary_that_does_not_match(saved):
    m, folder = saved
    other = make_tokenizer(tiny.pairs(), tiny.config(vocab_size=350))
    (folder / 'tokenizer.json').write_text(other.backend_tokenizer.to_str())
    with pytest.raises(ValueError, match=f'the weights know {len(m.tokenizer)} words and tokenizer.json {len(other)}'):
        load_run(folder)


# ---- memory


def peak(steps, out, c):
    "Most memory that a process ever held, in bytes, after a generation of so many steps."
    m = tiny.model(c)
    m.generate(SOURCES * 4, steps=3, progress=False)
    m.generate(SOURCES * 4, steps=steps, progress=False)
    out.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@pytest.mark.parametrize('recipe, way', [('paper', 'dpmpp'), ('fast', 'ddpm')])
def test_memory_is_flat_in_steps(recipe, way):
    "95 more steps would need 75 MB for their states if they were kept."
    c = tiny.config(
        recipe,
        T=100,
        steps=5,
        sampler=way,
        d_embed=256,
        vocab_size=300,
        **(dict(order='together') if recipe == 'fast' else {}),
    )
    used = []
    for steps in (5, 100):
        out = tiny.processes.SimpleQueue()
        p = tiny.start(peak, steps, out, c)
        p.join()
        assert p.exitcode == 0
        used.append(out.get())
    assert used[1] - used[0] < 25e6, used


# ---- the profiles for graphics cards


@pytest.mark.parametrize(
    'recipe, profile',
    [
        ('fast', 'gpu'),
        ('twin', 'gpu'),
        pytest.param('fast', 'full', marks=tiny.slow),
        pytest.param('paper', 'gpu', marks=tiny.slow),
    ],
)
def test_large_profiles_learn_a_batch(recipe, profile, tmp_path):
    "At their own size, on a handful of pairs: three updates lower the loss of the batch, and what was saved writes a text."
    c = make_config(
        recipe=recipe,
        profile=profile,
        warmup=0,
        dropout=0.0,
        ema=0.0,
        compile=False,
        **(
            dict(batch_size=4, micro_batch=2, T=50, tokenizer='bpe', lr_decay='constant')
            if recipe == 'paper'
            else dict(batch_tokens=128)
        ),
        steps=3,
    )
    m = tiny.model(c)
    few = tiny.pairs().select(range(4))
    batch = collate(list(encode_pairs(few, m.tokenizer, c)), c)
    with torch.no_grad():
        before = m.eval()(batch, torch.Generator().manual_seed(0))['loss'].item()
    m.fit(few, few, tmp_path, max_updates=3, device='cpu', progress=False)
    with torch.no_grad():
        after = m.eval()(batch, torch.Generator().manual_seed(0))['loss'].item()
    assert after < before and isinstance(load_run(tmp_path).generate(few['src'][:1], **quiet)[0], str)
