"""Our functions against the authors' released code, by the numbers in nbs/fixtures/official.

Each of those files has a JSON that says how it was made. Every row measures max|ours - theirs| / max(1, max|theirs|)
and has a tolerance. `parity_table()` runs them all and returns the deviations; the test run prints it at its end.
"""

import functools, json, os, pickle, tempfile
from pathlib import Path
from unittest.mock import patch
import datasets, pytest, tokenizers, torch
from accelerate import Accelerator
from safetensors.torch import load_file
from diffuseq import DiffuSeq
from diffuseq.config import make_config
from diffuseq.data import read_jsonl
from diffuseq.text import FixedWindow, decode, encode_pairs, load_tokenizer
from diffuseq.schedule import make_alpha_bar, betas
from diffuseq.forward import level, q_z0, q_sample
from diffuseq.posterior import posterior_coefs, posterior_mean
from diffuseq.denoiser import BertDenoiser, timestep_embedding
from diffuseq.objective import simple_loss, token_loss
from diffuseq.importance import LossAware
from diffuseq.training import backward_pass, learning_rate, make_optimizers, take_step
from diffuseq.anchoring import anchor, replace_source
from diffuseq.sampling import ddim_step, ddpm_step, official_pairs, reabsorb, repredict_step, sample
from diffuseq.mbr import bleu, bleu_matrix, mbr_select, self_bleu
from diffuseq.metrics import evaluate, official_length, read_official_outputs
from diffuseq.official import find_checkpoint, load_official

FIXTURES = Path(__file__).parent.parent / 'nbs' / 'fixtures' / 'official'
ROWS = {}
MEASURED = {}
f32, f64 = 1e-5, 1e-10  # tolerances


def row(name, tol):
    "Register a function that yields pairs (ours, theirs) as a row of the table."

    def keep(f):
        ROWS[name] = (f, tol)
        return f

    return keep


def fixture(name):
    return load_file(FIXTURES / f'{name}.safetensors')


def table_of(name):
    return fixture(name)['lm_head.weight']  # what their loader leaves in the tied table


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def note(name):
    return json.loads((FIXTURES / f'{name}.json').read_text())


def deviation(pairs):
    """The largest deviation of all pairs, relative to the size of theirs where that is above 1.

    Infinite if a number is not finite or a shape differs.
    """
    gaps = []
    for ours, theirs in pairs:
        assert ours is not theirs, 'a tensor is compared with itself'
        ours = torch.as_tensor(ours).double()
        theirs = torch.as_tensor(theirs).double()
        gap = float('inf')
        if ours.shape == theirs.shape and ours.isfinite().all():
            gap = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
        gaps.append(gap)
    return max(gaps)


def measure(name):
    f, tol = ROWS[name]
    return dict(row=name, deviation=deviation(f()), tolerance=tol)


def parity_table():
    return [measure(name) for name in ROWS]


def in_both(title, *names):
    """Register f(d, p, dtype, alpha_bar), which compares one fixture d in one precision, as two rows.

    They are float32 and float64; p is the prefix of that precision's tensors.
    """

    def keep(f):
        for p, dtype, tol in (('f32.', torch.float32, f32), ('f64.', torch.float64, f64)):

            def both(p=p, dtype=dtype):
                for name in names:
                    yield from f(fixture(name), p, dtype, make_alpha_bar('sqrt', 50 if name.endswith('T50') else 2000))

            ROWS[f'{title}, {str(dtype)[6:]}'] = (both, tol)
        return f

    return keep


# the schedule


@row('beta and every derived array, sqrt', f64)
def _():
    d = fixture('schedule')
    for T in (50, 2000):
        a = make_alpha_bar('sqrt', T)
        now, prev = a[1:], a[:-1]
        b = betas(a)[1:]
        U, E, var = posterior_coefs(now, prev)
        ours = dict(
            betas=b,
            alphas_cumprod=now,
            posterior_mean_coef2=U,
            posterior_mean_coef1=E,
            posterior_variance=var,
            log_one_minus_alphas_cumprod=(1 - now).log(),
            posterior_log_variance_clipped=torch.cat([var[1:2], var[1:]]).log(),
            model_variance=torch.cat([var[1:2], b[1:]]),
        )
        if T == 50:
            ours |= dict(
                alphas_cumprod_prev=prev,
                alphas_cumprod_next=torch.cat([a[2:], a.new_zeros(1)]),
                sqrt_alphas_cumprod=now.sqrt(),
                sqrt_one_minus_alphas_cumprod=(1 - now).sqrt(),
                sqrt_recip_alphas_cumprod=now.rsqrt(),
                sqrt_recipm1_alphas_cumprod=(1 / now - 1).sqrt(),
            )
        for k, v in ours.items():
            yield v, d[f'sqrt.{T}.{k}']


@row('alpha-bar, linear and cosine', f64)
def _():
    d = fixture('schedule')
    for s in ('linear', 'cosine'):
        for T in (50, 2000):
            yield make_alpha_bar(s, T)[1:], d[f'{s}.{T}.alphas_cumprod']
        yield betas(make_alpha_bar(s, 50))[1:], d[f'{s}.50.betas']


# forward process, posterior, losses


@in_both('z_0 and q_sample with the mask', 'loss_T2000', 'loss_T50')
def _(d, p, dtype, a):
    emb = table_of('checkpoint_main').to(dtype)[d['ids']]
    target = d['mask'] == 1
    t = d['t_index'] + 1
    z_0 = q_z0(emb, betas(a)[1].to(dtype), d['noise_0'].to(dtype))
    yield z_0, d[p + 'z_0']
    yield q_sample(d[p + 'z_0'], t, a, target, d['noise_t'].to(dtype)), d[p + 'z_t']


@in_both('posterior mean and variance', 'loss_T2000', 'loss_T50')
def _(d, p, dtype, a):
    t = d['t_index'] + 1
    now, prev = level(a, t), level(a, t - 1)
    yield posterior_mean(d[p + 'z_t'], d[p + 'z_0'], now, prev), d[p + 'posterior_mean']
    yield posterior_coefs(now, prev)[2].flatten().to(dtype), d[p + 'posterior_variance']


@in_both('mse, decoder_nll, tT_loss, nll, loss', 'loss_T2000', 'loss_T50')
def _(d, p, dtype, a):
    ck = fixture('checkpoint_main')
    W, bias = ck['lm_head.weight'].to(dtype), ck['lm_head.bias'].to(dtype)
    z_0, out = d[p + 'z_0'], d[p + 'model_output']
    ids, t, target = d['ids'], d['t_index'] + 1, d['mask'] == 1
    terms = simple_loss(z_0, W[ids], out, z_0 @ W.T + bias, ids, t, target, a[-1], loss_on='all')
    yield terms['mse'], d[p + 'mse']
    yield terms['rounding'], d[p + 'decoder_nll']
    yield terms['tT'], d[p + 'tT_loss']
    yield token_loss(out @ W.T + bias, d['ids'], target), d[p + 'nll']
    yield sum(terms.values()), d[p + 'loss']
    yield (sum(terms.values()) * d['weights'].to(dtype)).mean()[None], d[p + 'weighted_mean']


# one ancestral step from their prediction


@in_both('one p_sample step: plain, rounded, truncated noise', 'step_T2000', 'step_T50')
def _(d, p, dtype, a):
    t, target = d['t_index'] + 1, d['mask'] == 1
    now, prev = level(a, t), level(a, t - 1)
    table = table_of('checkpoint_main').to(dtype)
    source, z = table[d['ids']], d['z_t'].to(dtype)
    sigma = torch.where(t == 1, 0, betas(a)[t].sqrt()).to(dtype).view(-1, 1, 1)
    yield anchor(d[p + 'plain.pred_xstart'], table), d[p + 'rounded.pred_xstart']
    for kind, noise in (('plain', d['noise']), ('rounded', d['noise']), ('topp', d['topp_noise'])):
        pred = d[p + 'plain.pred_xstart'] if kind == 'topp' else d[f'{p}{kind}.pred_xstart']
        mean = posterior_mean(z, pred, now, prev)
        if kind != 'topp':
            yield mean, d[f'{p}{kind}.mean']
        yield replace_source(mean + sigma * noise.to(dtype), source, target), d[f'{p}{kind}.sample']


# importance sampling


@row('loss-aware steps: history, probabilities, weights', f64)
def _():
    d = fixture('importance')
    s = LossAware(50)
    warm = None
    for k, (t, losses) in enumerate(zip(d['t_index'], d['losses'])):
        s.update(t + 1, losses)
        if warm is None and s.seen.min() >= 10:
            warm = k
        if k not in d['marks']:
            continue
        seen = s.seen.clamp(max=10)
        yield seen, d[f'after{k}.counts']
        yield s.history.sort(1).values, d[f'after{k}.history'].sort(1).values
        yield s.probabilities(), d[f'after{k}.probabilities']
        yield 1 / (50 * s.probabilities()), d[f'after{k}.weights']
    yield float(warm), float(note('importance')['first_warm_row'])


# text


def words():
    "Their tokenizer of the fixtures, 50 words and pieces."
    pieces = {w: i for i, w in enumerate(note('batch')['vocab'])}
    t = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token='[UNK]'))
    t.normalizer = tokenizers.normalizers.BertNormalizer()
    t.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return t


@row('collated batch: ids and mask, truncated and padded', 0)
def _():
    d = note('batch')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        words().save(str(folder / 'tokenizer.json'))
        (folder / 'train.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in d['rows']))
        pairs = datasets.Dataset.from_list(list(read_jsonl(folder / 'train.jsonl')))
        tokenizer = load_tokenizer(folder)
    for width, theirs in d['windows'].items():
        window = FixedWindow(make_config(recipe='official', window=int(width)))
        ours = window.collate(list(encode_pairs(pairs, tokenizer, window)))
        yield ours['ids'], tensor(theirs['ids'])
        yield ours['target'], tensor(theirs['mask'])
        assert not ours['pad'].any()


# evaluation


def seeds(kind='clean'):
    "Files of the evaluation script: for every seed the outputs, and the references."
    files = note('metrics')[kind]['files']
    return [[r['recover'] for r in f] for f in files], [r['reference'] for r in files[0]]


@row('sentence BLEU and self-BLEU', 1e-9)
def _():
    d = note('metrics')['clean']
    outputs, refs = seeds()
    for texts, single in zip(outputs, d['single']):
        yield tensor([bleu(*pair) for pair in zip(texts, refs)]), tensor(single['each']['bleu'])
    for n, key in ((4, 'diversity'), (3, 'diversity_3')):
        yield tensor([self_bleu(bleu_matrix(list(c))) for c in zip(*outputs[:n])]), tensor(d[key]['each']['self_bleu'])


@row('MBR: share of choices that differ, ties among them', 0)
def _():
    d, m = note('metrics')['clean'], note('mbr')
    outputs, _ = seeds()
    assert m['lead'].count(0.0) >= 10
    cases = [(m['candidates'], [c[i] for c, i in zip(m['candidates'], m['chosen'])])]
    cases += [([list(c) for c in zip(*outputs[:n])], d[key]['chosen']) for n, key in ((4, 'mbr'), (3, 'mbr_3'))]
    for candidates, chosen in cases:
        yield sum(a != b for a, b in zip(mbr_select(candidates), chosen)) / len(chosen), 0.0


@functools.cache
def scored(kind, seeds, bertscore_model=None):
    "Our evaluation of their first `seeds` output files, or of the file of one seed if `seeds` is a tuple of one."
    files = note('metrics')[kind]['files']
    chosen = [files[i] for i in seeds]
    with tempfile.TemporaryDirectory() as folder:
        for i, rows in enumerate(chosen):
            (Path(folder) / f'seed{i}.json').write_text(''.join(json.dumps(r) + '\n' for r in rows))
        texts = read_official_outputs(folder)
    return texts, evaluate(*texts, per_pair=True, bertscore_model=bertscore_model)


def evaluation_rows(keys, model=None, kinds=('clean', 'raw')):
    """Means and scores of every example, of plain texts and of files with markers.

    Of each seed alone, of the sets of 3 and 4 seeds, and of the choice among them.
    """
    for kind in kinds:
        d = note('metrics')[kind]
        alone = [((i,), x) for i, x in enumerate(d['single'])]
        sets = [((0, 1, 2), d['mbr_3']), ((0, 1, 2, 3), d['mbr'])]
        sets += [((0, 1, 2), d['diversity_3']), ((0, 1, 2, 3), d['diversity'])]
        for seeds, theirs in alone + sets:
            ours = scored(kind, seeds, model)[1]
            for k in set(keys) & set(theirs):
                yield ours[k], theirs[k]
                yield tensor(ours['per_pair'][k]), tensor(theirs['each'][k])


@row('evaluation: BLEU, ROUGE-L, dist-1, self-BLEU, div-4', 1e-9)
def _():
    yield from evaluation_rows(('bleu', 'rouge_l', 'dist_1', 'self_bleu', 'div_4'))


@row('evaluation: length, as their script counts', 1e-9)
def _():
    for kind in ('clean', 'raw'):
        for i, theirs in enumerate(note('metrics')[kind]['single']):
            yield official_length([c[0] for c in scored(kind, (i,))[0][2]]), theirs['length']


@row('evaluation: BERTScore with the small encoder', 1e-6)
def _():  # its network is float32, and another machine than that which made the file may add in another order
    yield from evaluation_rows(('bertscore',), 'all-MiniLM-L6-v2', ('raw',))


# training


class Pulled(torch.nn.Module):
    "A few weights whose gradient is given, and one more that brings the whole gradient to a given norm."

    def __init__(self, weights):
        super().__init__()
        named = {k.replace('.', '-'): torch.nn.Parameter(v.clone()) for k, v in weights.items()}
        self.w = torch.nn.ParameterDict(named)
        self.rest = torch.nn.Parameter(torch.zeros(1))

    def batch(self, rows):
        return rows

    def forward(self, batch, generator):
        rest = (self.norm**2 - sum(g.double().square().sum() for g in self.grads.values())).sqrt().float()
        loss = sum((self.w[k.replace('.', '-')] * g).sum() for k, g in self.grads.items())
        return dict(loss=loss + rest * self.rest.sum())


@row('learning rate of every update', f64)
def _():
    config = make_config(recipe='official', profile='smoke', lr=5e-3, lr_updates=12)
    yield tensor([learning_rate(i, config) for i in range(12)]), fixture('training_main')['lr']


@row('12 updates: learning rate, clipping, AdamW, EMA', f32)
def _():
    settings = dict(lr=5e-3, lr_updates=12, weight_decay=0.01, clip=1.0, ema=0.9)
    config = make_config(recipe='official', profile='smoke', **settings)
    pairs = [dict(src_ids=[2, 3], trg_ids=[2, 3])]
    for d in (fixture('training_main'), fixture('training_v2')):
        watched = [k.removeprefix('param.') for k in d if k.startswith('param.')]
        model = Pulled({k: d['param.' + k][0] for k in watched})
        model.config = config
        optimizers = make_optimizers(model, config)
        average = {n: p.detach().clone() for n, p in model.named_parameters()}
        for i in range(12):
            model.norm = d['norm_before'][i]
            model.grads = {k: d['before.' + k][i] for k in watched}
            out = backward_pass(model, pairs, Accelerator(cpu=True), torch.Generator())
            out |= take_step(model, out['loss'], i, config, optimizers, average)
            yield out['lr'], d['lr'][i]
            yield out['norm'], d['norm_before'][i]
            for k in watched:
                yield model.w[k.replace('.', '-')].detach(), d['param.' + k][i + 1]
                yield average['w.' + k.replace('.', '-')], d['ema.' + k][i + 1]


# the network from their checkpoint, and whole chains


@functools.cache
def network(name, dtype=torch.float32):
    "BertDenoiser with the weights of a file of theirs, as their own loader leaves them."
    d = {k: v for k, v in fixture(name).items() if k not in ('position_ids', 'mean_embed')}
    sizes = dict(window=24, positions=24, d_embed=8, width=32, n_layers=2, n_heads=2, dropout=0.0)
    net = BertDenoiser(make_config(recipe='official', profile='smoke', **sizes), 50)
    net.load_state_dict(d)
    return net.eval().to(dtype)


def guess(name, T, dtype=torch.float32):
    "f_theta(z_t, t) for t in 1..T."
    net = network(name, dtype)
    return lambda z, t: net(z, (t - 1) * 1000 / T)


@torch.no_grad()
def chain(d, T, rounding, x, pairs, sampler='ddpm', checkpoint='checkpoint_main', hooks=()):
    """Our `sample` over pairs (t, s) from x, with the noise of the fixture for the index t - 1.

    Returns every state after the first, as it is when the hooks are through and the source is put back.
    """
    table = table_of(checkpoint).to(x.dtype)
    target = d['mask'] == 1
    denoise = guess(checkpoint, T, x.dtype)
    source = table[d['ids']]
    times = iter(pairs)
    states = []

    def predict(z, t):
        pred = denoise(z, torch.full((len(z),), t))
        return anchor(pred, table) if rounding else pred

    def noise(z):
        return d['noise'][(next(times)[0] - 1) % 50].to(z)

    def put_back(z, alpha_bar_t, alpha_bar_s):
        states.append(replace_source(z, source, target))
        return states[-1]

    sample(
        predict,
        x,
        pairs,
        make_alpha_bar('sqrt', T),
        sampler,
        noise=noise if 'noise' in d else torch.zeros_like,
        after_step=[*hooks, put_back],
        large=sampler == 'ddpm',
    )
    return torch.stack(states)


def beginning(d, dtype=torch.float32):
    source = table_of('checkpoint_main').to(dtype)[d['ids']]
    return replace_source(d['start'].to(dtype), source, d['mask'] == 1)


def down(T):
    return [(t, t - 1) for t in range(T, 0, -1)]


@row('network: model(z_t, t), its logits, the sine table', f32)
def _():
    d = fixture('model_main')
    net = network('checkpoint_main')
    with torch.no_grad():
        out = net(d['x'], d['timesteps'])
    yield out, d['output']
    with torch.no_grad():
        yield net.logits(out[:2]), d['logits']
    yield timestep_embedding(d['timesteps'], 8), d['sine_table']
    d = fixture('v2_loss')
    with torch.no_grad():
        yield guess('checkpoint_v2', 2000)(d['f32.z_t'], d['t_index'] + 1), d['f32.model_output']


@in_both('training step: loss and gradients through our network', 'loss_T2000')
def _(d, p, dtype, a):
    net = network('checkpoint_main', dtype)
    target, t = d['mask'] == 1, d['t_index'] + 1
    emb = net.table()[d['ids']]
    z_0 = q_z0(emb, betas(a)[1].to(dtype), d['noise_0'].to(dtype))
    out = guess('checkpoint_main', 2000, dtype)(q_sample(z_0, t, a, target, d['noise_t'].to(dtype)), t)
    terms = simple_loss(z_0, emb, out, net.logits(z_0), d['ids'], t, target, a[-1], loss_on='all')
    net.zero_grad()
    (sum(terms.values()) * d['weights'].to(dtype)).mean().backward()
    yield sum(terms.values()).detach(), d[p + 'loss']
    named = dict(net.named_parameters())
    for k in d:
        if k.startswith(p + 'grad.'):
            yield named[k.removeprefix(p + 'grad.')].grad, d[k]
    if dtype == torch.float32:  # of all parameters; in float64 the file has those gradients alone that are above
        norms = [named[k].grad.double().norm() for k in note('loss_T2000')['parameters']]
        yield torch.stack(norms), d['grad_norms']


@row('chain of 50 steps, every state, plain and rounded, float32', f32)
def _():
    d = fixture('chain')
    for rounding, key in ((False, 'T50.plain.states'), (True, 'T50.rounded.states')):
        yield chain(d, 50, rounding, beginning(d), down(50)), d[key][1:]


@row('chain of 2000 steps without rounding, float32', 1e-4)
def _():
    d = fixture('chain')
    yield chain(d, 2000, False, beginning(d), down(2000))[-1], d['T2000.plain.final_f32']


@row('chain of 2000 steps without rounding, its end and 15 states before, float64', f64)
def _():
    d = fixture('chain')
    states = chain(d, 2000, False, beginning(d, torch.float64), down(2000))
    yield states[1999 - d['T2000.kept']], d['T2000.plain.some_f64']


@row('chain of 2000 steps with rounding, 16 steps from their state, float32', f32)
def _():
    d = fixture('chain')
    assert (d['T2000.rounded.margin'] > 1e-5).all()  # no ties among them
    for i, before, after in zip(d['T2000.kept'].tolist(), d['T2000.rounded.before'], d['T2000.rounded.after']):
        yield chain(d, 2000, True, before, [(i + 1, i)])[0], after


@row('DDIM as released (official_pairs), every state, plain and rounded', f32)
def _():
    d = fixture('ddim')
    for T, steps in ((2000, 20), (2000, 10), (2000, 5), (50, 10), (50, 5)):
        pairs = official_pairs(steps, T)
        for kind in ('plain', 'rounded'):
            k = f'T{T}.gap{T // steps}.{kind}'
            yield tensor([t - 1 for t, _ in pairs]), d[k + '.indices']
            yield chain(d, T, kind == 'rounded', beginning(d), pairs, 'ddim'), d[k + '.states'][1:]


@row('DDIM over all steps, where theirs is right, plain and rounded', f32)
def _():
    d = fixture('ddim')
    for kind in ('plain', 'rounded'):
        yield chain(d, 50, kind == 'rounded', beginning(d), down(50), 'ddim')[-1], d[f'T50.gap1.{kind}.final']


@row('one DDIM step with eta 0 and eta 1', f32)
def _():
    for name, T in (('step_T2000', 2000), ('step_T50', 50)):
        d = fixture(name)
        a = make_alpha_bar('sqrt', T)
        t = d['t_index'] + 1
        source = table_of('checkpoint_main')[d['ids']]
        pred = d['f32.plain.pred_xstart']
        for eta in (0, 1):
            z = ddim_step(d['z_t'], pred, level(a, t), level(a, t - 1), d['noise'], eta=float(eta))
            yield replace_source(z, source, d['mask'] == 1), d[f'f32.ddim_eta{eta}.sample']


# their files, through from_official and back


def laid_out(name, folder):
    "A folder as their trainer writes it."
    d = fixture(name)
    n = note(name)
    folder = Path(folder)
    plain = ('lm_head.weight', 'position_ids')
    saved = {k: d[k] if k in plain else torch.nn.Parameter(d[k]) for k in n['key_order']}
    torch.save(saved, folder / n.get('file', 'ema_0.9999_000000.pt'))
    (folder / 'training_args.json').write_text(json.dumps(n['training_args']))
    words().save(str(folder / 'tokenizer.json'))
    return folder


def official(name, folder):
    return DiffuSeq.from_official(laid_out(name, folder), note(name)['bert_config']['num_attention_heads'])


@row('from_official: denoise(z_t, t) of main, of v2, of one initialised from BERT', f32)
def _():
    main, v2, init = fixture('model_main'), fixture('v2_loss'), fixture('checkpoint_bert_init')
    for name, z, t, theirs in (
        ('checkpoint_main', main['x'], main['timesteps'], main['output']),
        ('checkpoint_v2', v2['f32.z_t'], v2['t_index'] / 2, v2['f32.model_output']),
        ('checkpoint_bert_init', init['test.x'], init['test.timesteps'], init['test.output']),
    ):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            yield official(name, folder).denoise(z, (t * 2 + 1).long()), theirs


@row('save_official: every tensor of their files, after a way through ours', 0)
def _():
    for name in ('checkpoint_main', 'checkpoint_v2', 'checkpoint_bert_init'):
        with tempfile.TemporaryDirectory() as place:
            folder, kept, back = (Path(place) / part for part in ('theirs', 'ours', 'back'))
            folder.mkdir()
            official(name, folder).save_pretrained(kept)
            file = DiffuSeq.from_pretrained(kept).save_official(back)
            ours = torch.load(file, weights_only=True)
            theirs = torch.load(find_checkpoint(folder), weights_only=True)
            assert list(ours) == list(theirs)
            settings = file.with_name('training_args.json').read_text()
            assert settings == json.dumps(note(name)['training_args'], indent=2)
            for k in theirs:
                yield ours[k], theirs[k]


# the recipe as a whole: only the random numbers are given, everything else is what `fit` and `generate` do


class Fixed:
    "A step sampler, or the noise of a generation, that gives what it was given."

    def __init__(self, *values):
        self.values = iter(values)

    def sample(self, n, generator):
        return next(self.values)

    def normal(self, z, bound=0.0):
        return next(self.values).to(z)


def whole_loss(model, d):
    """The recipe's loss of a batch with its gradients.

    Nothing but t, its weights, and the random numbers are put in its hands.
    """
    model.training = True  # the network itself stays in eval mode: no dropout
    model.steps = Fixed((d['t_index'] + 1, d['weights']))
    batch = dict(ids=d['ids'], target=d['mask'] == 1, pad=torch.zeros_like(d['mask'], dtype=torch.bool))
    with (
        patch('torch.randn', side_effect=[d['noise_0'], d['noise_t']]),
        patch('torch.rand', return_value=d.get('uniform')),
    ):
        out = model(batch, torch.Generator())
    out['loss'].backward()
    return out


def whole_rows(checkpoint, kept):
    "Losses, their weighted mean, and every gradient that was kept."
    d = fixture(kept)
    with tempfile.TemporaryDirectory() as folder:
        m = official(checkpoint, folder)
    out = whole_loss(m, d)
    weights = dict(m.net.named_parameters())
    yield out['losses'], d['f32.loss']
    yield out['loss'].detach()[None], d['f32.weighted_mean']
    for k in d:
        if k.startswith('f32.grad.'):
            yield weights[k.removeprefix('f32.grad.').replace('mean_embed', 'absorb')].grad, d[k]


@row('recipe official as a whole: losses and gradients of a batch', f32)
def _():
    yield from whole_rows('checkpoint_main', 'loss_T2000')


@row('recipe official as a whole, with the switches of v2: losses and gradients', f32)
def _():
    yield from whole_rows('checkpoint_v2', 'v2_loss')


@row('recipe official as a whole: generation in 2000 steps, states and every word', f32)
def _():
    c, d = fixture('chain'), fixture('chain_words')
    words = []
    last = []
    states = []

    def kept(*args, **more):
        states.append(replace_source(*args, **more))
        return states[-1]

    def noise(*_):
        return Fixed(c['start'], *(c['noise'][i % 50] for i in range(1999, 0, -1)))

    with tempfile.TemporaryDirectory() as folder:
        m = official('checkpoint_main', folder)
    rows = [dict(src_ids=ids[on == 0][:-1].tolist(), trg_ids=[]) for ids, on in zip(d['ids'], d['mask'])]
    m.net.lm_head.register_forward_pre_hook(lambda _, z: last.append(z[0]))
    with (
        torch.no_grad(),
        patch('diffuseq.paper.replace_source', kept),
        patch('diffuseq.paper.RowNoise', noise),
    ):
        texts = m.texts(rows, [(0, 0), (1, 0)], m.decoding, 0, lambda ids, masked, now, said: words.append(now))
    yield last[-1], d['final']
    yield torch.stack([states[2000 - i] for i in c['T2000.kept']]), c['T2000.rounded.after']  # states[0] is the start
    same = torch.stack(words) == d['words']  # at every step, every position
    for i, example, place, _ in note('chain_words')['ties']:
        same[1999 - i, example, place] = True  # two embeddings as near as each other
    same = same[:-1]  # the last are those of the text, which the scores read
    yield same.sum(), same.numel()
    assert texts == [decode(r[on == 1], m.tokenizer) for r, on in zip(d['read'], d['mask'])]


# v2


@in_both('v2: forward process, before and after absorbing by a Bernoulli mask', 'v2_loss')
def _(d, p, dtype, a):
    ck = fixture('checkpoint_v2')
    m = ck['mean_embed'].to(dtype)
    target, t = d['mask'] == 1, d['t_index'] + 1
    z_0 = q_z0(ck['lm_head.weight'].to(dtype)[d['ids']], betas(a)[1].to(dtype), d['noise_0'].to(dtype))
    yield z_0, d[p + 'z_0']
    for rate, key in ((0.0, 'z_t_soft'), (0.5, 'z_t')):
        yield q_sample(z_0, t, a, target, d['noise_t'].to(dtype), absorb=m, rate=rate, uniform=d['uniform']), d[p + key]


@row('v2: regularised loss', f32)
def _():
    d, ck = fixture('v2_loss'), fixture('checkpoint_v2')
    W = ck['lm_head.weight']
    z_0, out = d['f32.z_0'], d['f32.model_output']
    logits = z_0 @ W.T + ck['lm_head.bias']
    last = make_alpha_bar('sqrt', 2000)[-1]
    terms = simple_loss(z_0, W[d['ids']], out, logits, d['ids'], d['t_index'] + 1, d['mask'] == 1, last, loss_on='all')
    yield sum(terms.values()) + 0.01 * ck['mean_embed'].norm(), d['f32.loss']


@in_both('v2: training step, loss and gradients through our network', 'v2_loss')
def _(d, p, dtype, a):
    with tempfile.TemporaryDirectory() as folder:
        net = official('checkpoint_v2', folder).to(dtype).net
    target, t = d['mask'] == 1, d['t_index'] + 1
    emb = net.table()[d['ids']]
    z_0 = q_z0(emb, betas(a)[1].to(dtype), d['noise_0'].to(dtype))
    noise = d['noise_t'].to(dtype)
    z_t = q_sample(z_0, t, a, target, noise, absorb=net.absorb, rate=0.5, uniform=d['uniform'])
    out = net(z_t, (t - 1) * 1000 / 2000)
    terms = simple_loss(z_0, emb, out, net.logits(z_0), d['ids'], t, target, a[-1], loss_on='all')
    loss = sum(terms.values()) + 0.01 * net.absorb.norm()
    (loss * d['weights'].to(dtype)).mean().backward()
    yield loss.detach(), d[p + 'loss']
    named = dict(net.named_parameters())
    for theirs in ('mean_embed', 'word_embedding.weight', 'output_down_proj.2.bias'):
        yield named[theirs.replace('mean_embed', 'absorb')].grad, d[p + 'grad.' + theirs]


@row('v2: one ancestral step, before and after absorbing', f32)
def _():
    d, ck = fixture('v2_step'), fixture('checkpoint_v2')
    a = make_alpha_bar('sqrt', 2000)
    t = d['t_index'] + 1
    W = ck['lm_head.weight']
    for kind in ('plain', 'rounded'):
        pred = anchor(d['f32.plain.pred_xstart'], W) if kind == 'rounded' else d['f32.plain.pred_xstart']
        z = ddpm_step(d['z_t'], pred, level(a, t), level(a, t - 1), d['noise'], large=True)
        coined = reabsorb(z, level(a, t, 2), level(a, t - 1, 2), ck['mean_embed'], 0.5, d['uniform'])
        z = torch.where((t > 1)[:, None, None], coined, z)
        yield replace_source(z, W[d['ids']], d['mask'] == 1), d[f'f32.{kind}.sample']


@row('v2: chain of 50 steps with absorbing, plain and rounded', f32)
def _():
    c, d, ck = fixture('chain'), fixture('v2_chain'), fixture('checkpoint_v2')
    m = ck['mean_embed']
    source, target = ck['lm_head.weight'][c['ids']], c['mask'] == 1
    x = replace_source(c['start'] + m, source, target)
    for kind in ('plain', 'rounded'):
        coins = iter(d['uniform'].flip(0))

        def throw(z, a_t, a_s):
            return reabsorb(z, a_t, a_s, m, 0.5, next(coins)) if a_s < 1 else z

        states = chain(c, 50, kind == 'rounded', x, down(50), checkpoint='checkpoint_v2', hooks=[throw])
        yield torch.cat([x[None], states])[:: 5 if kind == 'plain' else 1], d[f'{kind}.states']


@torch.no_grad()
def solved(d, steps, dtype):
    "v2's solver in our parts: between steps of the grid log alpha-bar is linear."
    net = network('checkpoint_v2', dtype)
    source = table_of('checkpoint_v2').to(dtype)[d['ids']]
    target = d['mask'] == 1
    log_a = make_alpha_bar('sqrt', 2000).log()
    u = torch.linspace(1, 1 / 2000, steps + 1, dtype=torch.float64)
    low = (u * 2000 + 1e-9).long().clamp(max=1999)
    a = torch.lerp(log_a[low], log_a[low + 1], u * 2000 - low).exp()
    z = replace_source(d['start'].to(dtype), source, target)
    last = None
    for k in range(steps):
        pred = replace_source(net(z, 1000 * u[k].expand(len(z))), source, target)
        before = None if steps < 10 and k == steps - 1 else last
        z = replace_source(repredict_step(z, pred, a[k], a[k + 1], last=before), source, target)
        last = (pred, a[k])
    return z


@row('v2: solver as released (repredict), float32', 1e-4)
def _():  # theirs divides by alpha_T = 4.5e-4 in float32; the float64 row is exact
    for steps in (2, 5, 10, 20):
        yield solved(fixture('v2_solver'), steps, torch.float32), fixture('v2_solver')[f'steps{steps}.final']


@row('v2: solver as released (repredict), float64', f64)
def _():
    for steps in (5, 10):
        yield solved(fixture('v2_solver'), steps, torch.float64), fixture('v2_solver')[f'steps{steps}.final_f64']


@pytest.mark.parametrize('name', list(ROWS))
def test_parity(name):
    r = MEASURED[name] = measure(name)
    assert r['deviation'] <= r['tolerance'], f'{name}: deviation {r["deviation"]:.2e}, allowed {r["tolerance"]:.0e}'


def test_a_wrong_number_is_seen():
    d = fixture('step_T50')
    good = d['f32.plain.sample']
    assert deviation([(good.clone(), good)]) == 0 and deviation([(good + 1e-4, good)]) > f32
    assert deviation([(good * float('nan'), good)]) == deviation([(good[:1], good)]) == float('inf')
    with pytest.raises(AssertionError, match='with itself'):
        deviation([(good, good)])


# files that are wrong: one sentence, nothing half loaded, nothing run


class Program:
    "An object whose pickle writes a file when it is opened."

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.mkdir, (str(self.where),)


def truncated(folder):
    file = find_checkpoint(folder)
    file.write_bytes(file.read_bytes()[:-5000])


def program(folder):
    torch.save(dict(a=torch.ones(1), b=Program(folder / 'was-run')), find_checkpoint(folder))


def pickled_program(folder):
    find_checkpoint(folder).write_bytes(pickle.dumps(dict(a=Program(folder / 'was-run'))))


def not_finite(folder):
    file = find_checkpoint(folder)
    tensors = torch.load(file, weights_only=True)
    torch.save(tensors | {'lm_head.bias': tensors['lm_head.bias'] / 0}, file)


def with_settings(**changes):
    "A folder whose settings are changed."

    def change(folder):
        path = folder / 'training_args.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_file(name, content):
    "A folder with a file of that content."

    def change(folder):
        (folder / name).write_bytes(content)

    return change


def word_list(content):
    "A folder that was trained on a list of words, and whose vocab.json has that content."

    def change(folder):
        with_settings(vocab='words.txt')(folder)
        with_file('vocab.json', content)(folder)

    return change


def other_words(folder):
    path = folder / 'tokenizer.json'
    words().save(str(path))
    path.write_text(path.read_text().replace('"##n":', '"##m": 50, "##n":'))


SPOILED = {
    'truncated file': (truncated, 'cut short'),
    'program in torch.save': (program, 'not opened'),
    'program in a pickle': (pickled_program, 'not opened'),
    'numbers that are not finite': (not_finite, 'lm_head.bias holds numbers that are not finite'),
    'wrong vocabulary': (with_settings(vocab_size=30522), 'vocab_size is 30522 there and 50'),
    'words of another model': (other_words, 'a tokenizer of 51'),
    'missing JSON': (lambda folder: (folder / 'training_args.json').unlink(), 'training_args.json: missing'),
    'damaged JSON': (with_file('training_args.json', b'{"diffusion_steps": 20'), 'training_args.json: not valid JSON'),
    'JSON of another kind': (with_file('training_args.json', b'[]'), 'training_args.json: list instead of'),
    'JSON that is no text': (with_file('training_args.json', b'\xff\xfe'), 'training_args.json: not UTF-8'),
    'a setting that is no number': (with_settings(dropout='0.1'), "training_args.json: dropout='0.1' is no float"),
    'a setting out of range': (with_settings(dropout=2), 'training_args.json: config: dropout=2.0'),
    'damaged word list': (word_list(b'{"[START]": 0'), 'vocab.json: not valid JSON'),
    'word list of another kind': (word_list(b'3'), 'vocab.json: int instead of'),
    'word list without numbers': (word_list(b'{"[START]": "a"}'), 'vocab.json: [START], [END], [UNK], [PAD] must be'),
}


@pytest.mark.parametrize('how', SPOILED)
def test_wrong_file(how, tmp_path):
    change, says = SPOILED[how]
    change(laid_out('checkpoint_main', tmp_path))
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        load_official(tmp_path, num_heads=2)
    message = str(e.value)
    assert says in message and str(tmp_path) in message and '\n' not in message, message
    assert not (tmp_path / 'was-run').exists()


def test_wrong_heads(tmp_path):
    with pytest.raises(ValueError, match='num_heads=5') as e:
        load_official(laid_out('checkpoint_main', tmp_path), num_heads=5)
    assert str(tmp_path) in str(e.value)


@pytest.fixture(scope='module', autouse=True)
def print_table(request):
    yield
    with request.config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
        print()
        for r in MEASURED.values():
            print(f'{r["row"]:<72} {r["deviation"]:9.1e}  of {r["tolerance"]:.0e}')
