"""Our functions against the authors' released code, by the numbers in nbs/fixtures/official (each file's JSON says how it was made).

Every row measures max|ours - theirs| / max(1, max|theirs|) and has a tolerance. `parity_table()` runs them all and returns the deviations; the test run prints it at its end."""

import functools, json, os, pickle, tempfile
from pathlib import Path
from unittest.mock import patch
import datasets, pytest, tokenizers, torch
from accelerate import Accelerator
from safetensors.torch import load_file
from diffuseq.config import make_config
from diffuseq.data import read_jsonl
from diffuseq.text import collate, decode, encode_pairs, load_tokenizer
from diffuseq.schedule import make_alpha_bar, betas
from diffuseq.forward import level, q_z0, q_sample
from diffuseq.posterior import posterior_coefs, posterior_mean
from diffuseq.denoiser import BertDenoiser, timestep_embedding
from diffuseq.objective import simple_loss, token_loss
from diffuseq.importance import LossAware
from diffuseq.training import learning_rate, make_optimizers, one_update
from diffuseq.anchoring import anchor, replace_source
from diffuseq.sampling import ddim_step, ddpm_step, official_pairs, reabsorb, repredict_step, sample
from diffuseq.mbr import bleu, bleu_matrix, mbr_select, self_bleu
from diffuseq.metrics import evaluate, official_length, read_official_outputs
from diffuseq.official import DiffuSeq, find_checkpoint

FIXTURES = Path(__file__).parent.parent / 'nbs' / 'fixtures' / 'official'
ROWS, MEASURED = {}, {}
f32, f64 = 1e-5, 1e-10


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
    "The largest deviation of all pairs, relative to the size of theirs where that is above 1; infinite if a number is not finite or a shape differs."
    gaps = []
    for ours, theirs in pairs:
        ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
        same = ours.shape == theirs.shape and ours.isfinite().all()
        gaps.append((ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item()) if same else float('inf'))
    return max(gaps)


def measure(name):
    f, tol = ROWS[name]
    return dict(row=name, deviation=deviation(f()), tolerance=tol)


def parity_table():
    return [measure(name) for name in ROWS]


def in_both(title, *names):
    "Register f(d, p, dtype, alpha_bar), which compares one fixture d in one precision, as two rows: float32 and float64. p is the prefix of that precision's tensors."

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
        now, prev, b = a[1:], a[:-1], betas(a)[1:]
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
    emb, target, t = table_of('checkpoint_main').to(dtype)[d['ids']], d['mask'] == 1, d['t_index'] + 1
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
    ck, target = fixture('checkpoint_main'), d['mask'] == 1
    W, bias, z_0, out = (
        ck['lm_head.weight'].to(dtype),
        ck['lm_head.bias'].to(dtype),
        d[p + 'z_0'],
        d[p + 'model_output'],
    )
    terms = simple_loss(
        z_0, W[d['ids']], out, z_0 @ W.T + bias, d['ids'], d['t_index'] + 1, target, a[-1], loss_on='all'
    )
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
    d, s, warm = fixture('importance'), LossAware(50), None
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
    t = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(note('batch')['vocab'])}, unk_token='[UNK]')
    )
    t.normalizer, t.pre_tokenizer = (
        tokenizers.normalizers.BertNormalizer(),
        tokenizers.pre_tokenizers.BertPreTokenizer(),
    )
    return t


@row('collated batch: ids and mask, truncated and padded', 0)
def _():
    d = note('batch')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        words().save(str(folder / 'tokenizer.json'))
        (folder / 'train.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in d['rows']))
        pairs, tokenizer = list(read_jsonl(folder / 'train.jsonl')), load_tokenizer(folder)
    for window, theirs in d['windows'].items():
        config = make_config(recipe='official', window=int(window))
        ours = collate(list(encode_pairs(datasets.Dataset.from_list(pairs), tokenizer, config)), config)
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
    d, (outputs, refs) = note('metrics')['clean'], seeds()
    for texts, single in zip(outputs, d['single']):
        yield tensor([bleu(*pair) for pair in zip(texts, refs)]), tensor(single['each']['bleu'])
    for n, key in ((4, 'diversity'), (3, 'diversity_3')):
        yield tensor([self_bleu(bleu_matrix(list(c))) for c in zip(*outputs[:n])]), tensor(d[key]['each']['self_bleu'])


@row('MBR: share of choices that differ, ties among them', 0)
def _():
    d, (outputs, _), m = note('metrics')['clean'], seeds(), note('mbr')
    assert m['lead'].count(0.0) >= 10
    cases = [(m['candidates'], [c[i] for c, i in zip(m['candidates'], m['chosen'])])] + [
        ([list(c) for c in zip(*outputs[:n])], d[key]['chosen']) for n, key in ((4, 'mbr'), (3, 'mbr_3'))
    ]
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
    "Means and scores of every example: each seed alone, the sets of 3 and 4 seeds, the choice among them; plain texts and files with markers."
    for kind in kinds:
        d = note('metrics')[kind]
        alone = [((i,), x) for i, x in enumerate(d['single'])]
        sets = [
            ((0, 1, 2), d['mbr_3']),
            ((0, 1, 2, 3), d['mbr']),
            ((0, 1, 2), d['diversity_3']),
            ((0, 1, 2, 3), d['diversity']),
        ]
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
def _():  # its network is float32: nothing differs on the machine that made the file, and another may add in another order
    yield from evaluation_rows(('bertscore',), 'all-MiniLM-L6-v2', ('raw',))


# training


class Pulled(torch.nn.Module):
    "A few weights whose gradient is given, and one more that brings the whole gradient to a given norm."

    def __init__(self, weights):
        super().__init__()
        self.w = torch.nn.ParameterDict(
            {k.replace('.', '-'): torch.nn.Parameter(v.clone()) for k, v in weights.items()}
        )
        self.rest = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch, generator):
        rest = (self.norm**2 - sum(g.double().square().sum() for g in self.grads.values())).sqrt().float()
        return dict(
            loss=sum((self.w[k.replace('.', '-')] * g).sum() for k, g in self.grads.items()) + rest * self.rest.sum()
        )


@row('learning rate of every update', f64)
def _():
    config = make_config(recipe='official', profile='smoke', lr=5e-3, lr_updates=12)
    yield tensor([learning_rate(i, config) for i in range(12)]), fixture('training_main')['lr']


@row('12 updates: learning rate, clipping, AdamW, EMA', f32)
def _():
    for d in (fixture('training_main'), fixture('training_v2')):
        watched = [k.removeprefix('param.') for k in d if k.startswith('param.')]
        config = make_config(
            recipe='official', profile='smoke', lr=5e-3, lr_updates=12, weight_decay=0.01, clip=1.0, ema=0.9
        )
        model = Pulled({k: d['param.' + k][0] for k in watched})
        optimizers = make_optimizers(model, config)
        average = {n: p.detach().clone() for n, p in model.named_parameters()}
        for i in range(12):
            model.norm, model.grads = d['norm_before'][i], {k: d['before.' + k][i] for k in watched}
            out = one_update(
                model,
                model,
                [dict(src_ids=[2, 3], trg_ids=[2, 3])],
                i,
                config,
                Accelerator(cpu=True),
                optimizers,
                average,
            )
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
    net = BertDenoiser(
        make_config(
            recipe='official',
            profile='smoke',
            window=24,
            positions=24,
            d_embed=8,
            width=32,
            n_layers=2,
            n_heads=2,
            dropout=0.0,
        ),
        50,
    )
    net.load_state_dict(d)
    return net.eval().to(dtype)


def guess(name, T, dtype=torch.float32):
    "f_theta(z_t, t) for t in 1..T."
    net = network(name, dtype)
    return lambda z, t: net(z, (t - 1) * 1000 / T)


@torch.no_grad()
def chain(d, T, rounding, x, pairs, sampler='ddpm', checkpoint='checkpoint_main', **options):
    "Our `sample` over pairs (t, s) from x, with the noise of the fixture for the index t - 1; every state after the first."
    table, target, denoise, states = table_of(checkpoint).to(x.dtype), d['mask'] == 1, guess(checkpoint, T, x.dtype), []
    source, times = table[d['ids']], iter(pairs)

    def predict(z, t):
        pred = denoise(z, torch.full((len(z),), t))
        return anchor(pred, table) if rounding else pred

    def noise(z):
        return d['noise'][(next(times)[0] - 1) % 50].to(z)

    def repair(z):
        states.append(replace_source(z, source, target))
        return states[-1]

    sample(
        predict,
        x,
        pairs,
        make_alpha_bar('sqrt', T),
        sampler,
        noise=noise if 'noise' in d else torch.zeros_like,
        repair=repair,
        **({'large': True} if sampler == 'ddpm' else {}) | options,
    )
    return torch.stack(states)


def beginning(d, dtype=torch.float32):
    source = table_of('checkpoint_main').to(dtype)[d['ids']]
    return replace_source(d['start'].to(dtype), source, d['mask'] == 1)


def down(T):
    return [(t, t - 1) for t in range(T, 0, -1)]


@row('network: model(z_t, t), its logits, the sine table', f32)
def _():
    d, net = fixture('model_main'), network('checkpoint_main')
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
    net, target, t = network('checkpoint_main', dtype), d['mask'] == 1, d['t_index'] + 1
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
    norms = torch.stack([named[k].grad.double().norm() for k in note('loss_T2000')['parameters']])
    yield norms, d['grad_norms'] if dtype == torch.float32 else norms


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
        d, a = fixture(name), make_alpha_bar('sqrt', T)
        t = d['t_index'] + 1
        for eta in (0, 1):
            z = ddim_step(
                d['z_t'], d['f32.plain.pred_xstart'], level(a, t), level(a, t - 1), d['noise'], eta=float(eta)
            )
            yield (
                replace_source(z, table_of('checkpoint_main')[d['ids']], d['mask'] == 1),
                d[f'f32.ddim_eta{eta}.sample'],
            )


# their files, through from_official and back


def laid_out(name, folder):
    "A folder as their trainer writes it."
    d, n, folder = fixture(name), note(name), Path(folder)
    torch.save(
        {k: d[k] if k in ('lm_head.weight', 'position_ids') else torch.nn.Parameter(d[k]) for k in n['key_order']},
        folder / n.get('file', 'ema_0.9999_000000.pt'),
    )
    (folder / 'training_args.json').write_text(json.dumps(n['training_args']))
    words().save(str(folder / 'tokenizer.json'))
    return folder


def official(name, folder):
    return DiffuSeq.from_official(laid_out(name, folder), num_heads=note(name)['bert_config']['num_attention_heads'])


@row('from_official: denoise(z_t, t) of main, of v2, of one initialised from BERT', f32)
def _():
    for name, z, t, theirs in (
        (
            'checkpoint_main',
            fixture('model_main')['x'],
            fixture('model_main')['timesteps'],
            fixture('model_main')['output'],
        ),
        (
            'checkpoint_v2',
            fixture('v2_loss')['f32.z_t'],
            fixture('v2_loss')['t_index'] / 2,
            fixture('v2_loss')['f32.model_output'],
        ),
        ('checkpoint_bert_init', *(fixture('checkpoint_bert_init')[f'test.{k}'] for k in ('x', 'timesteps', 'output'))),
    ):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            yield official(name, folder).denoise(z, (t * 2 + 1).long()), theirs


@row('save_official: every tensor of their files, after a way through ours', 0)
def _():
    for name in ('checkpoint_main', 'checkpoint_v2', 'checkpoint_bert_init'):
        with (
            tempfile.TemporaryDirectory() as folder,
            tempfile.TemporaryDirectory() as kept,
            tempfile.TemporaryDirectory() as back,
        ):
            official(name, folder).save_pretrained(kept)
            ours, theirs = (
                torch.load(p, weights_only=True)
                for p in (DiffuSeq.from_pretrained(kept).save_official(back), find_checkpoint(folder))
            )
            assert list(ours) == list(theirs) and (Path(back) / 'training_args.json').read_text() == json.dumps(
                note(name)['training_args'], indent=2
            )
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
    "The recipe's loss of a batch with its gradients; nothing but t, its weights, and the random numbers are put in its hands."
    model.training, model.steps = (
        True,
        Fixed((d['t_index'] + 1, d['weights'])),
    )  # the network itself stays in eval mode: no dropout
    with (
        patch('torch.randn', side_effect=[d['noise_0'], d['noise_t']]),
        patch('torch.rand', return_value=d.get('uniform')),
    ):
        out = model(
            dict(ids=d['ids'], target=d['mask'] == 1, pad=torch.zeros_like(d['mask'], dtype=torch.bool)),
            torch.Generator(),
        )
    out['loss'].backward()
    return out


def whole_rows(checkpoint, kept):
    "Losses, their weighted mean, and every gradient that was kept."
    d = fixture(kept)
    with tempfile.TemporaryDirectory() as folder:
        m = official(checkpoint, folder)
    out, weights = whole_loss(m, d), dict(m.net.named_parameters())
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
    c, d, words, last, states = fixture('chain'), fixture('chain_words'), [], [], []

    def kept(*args, **more):
        states.append(replace_source(*args, **more))
        return states[-1]

    with tempfile.TemporaryDirectory() as folder:
        m = official('checkpoint_main', folder)
    rows = [dict(src_ids=ids[on == 0][:-1].tolist(), trg_ids=[]) for ids, on in zip(d['ids'], d['mask'])]
    m.net.lm_head.register_forward_pre_hook(lambda _, z: last.append(z[0]))
    with (
        torch.no_grad(),
        patch('diffuseq.model.replace_source', kept),
        patch(
            'diffuseq.model.RowNoise', lambda *a: Fixed(c['start'], *(c['noise'][i % 50] for i in range(1999, 0, -1)))
        ),
    ):
        texts = m._generate_rows(rows, [(0, 0), (1, 0)], m.config, 0, lambda guess, target, now: words.append(guess))
    yield last[0], d['final']
    yield torch.stack([states[2000 - i] for i in c['T2000.kept']]), c['T2000.rounded.after']  # states[0] is the start
    same = torch.stack(words) == d['words']  # at every step, every position
    for i, example, place, _ in note('chain_words')['ties']:
        same[1999 - i, example, place] = True  # two embeddings as near as each other
    yield same.sum(), same.numel()
    assert texts == [decode(r[on == 1], m.tokenizer) for r, on in zip(d['read'], d['mask'])]


# v2


@in_both('v2: forward process, before and after absorbing by a coin', 'v2_loss')
def _(d, p, dtype, a):
    ck = fixture('checkpoint_v2')
    m, target, t = ck['mean_embed'].to(dtype), d['mask'] == 1, d['t_index'] + 1
    z_0 = q_z0(ck['lm_head.weight'].to(dtype)[d['ids']], betas(a)[1].to(dtype), d['noise_0'].to(dtype))
    yield z_0, d[p + 'z_0']
    for rate, key in ((0.0, 'z_t_soft'), (0.5, 'z_t')):
        yield q_sample(z_0, t, a, target, d['noise_t'].to(dtype), absorb=m, rate=rate, uniform=d['uniform']), d[p + key]


@row('v2: regularised loss', f32)
def _():
    d, ck = fixture('v2_loss'), fixture('checkpoint_v2')
    W = ck['lm_head.weight']
    z_0 = d['f32.z_0']
    terms = simple_loss(
        z_0,
        W[d['ids']],
        d['f32.model_output'],
        z_0 @ W.T + ck['lm_head.bias'],
        d['ids'],
        d['t_index'] + 1,
        d['mask'] == 1,
        make_alpha_bar('sqrt', 2000)[-1],
        loss_on='all',
    )
    yield sum(terms.values()) + 0.01 * ck['mean_embed'].norm(), d['f32.loss']


@in_both('v2: training step, loss and gradients through our network', 'v2_loss')
def _(d, p, dtype, a):
    with tempfile.TemporaryDirectory() as folder:
        net = official('checkpoint_v2', folder).to(dtype).net
    target, t = d['mask'] == 1, d['t_index'] + 1
    emb = net.table()[d['ids']]
    z_0 = q_z0(emb, betas(a)[1].to(dtype), d['noise_0'].to(dtype))
    out = net(
        q_sample(z_0, t, a, target, d['noise_t'].to(dtype), absorb=net.absorb, rate=0.5, uniform=d['uniform']),
        (t - 1) * 1000 / 2000,
    )
    terms = simple_loss(z_0, emb, out, net.logits(z_0), d['ids'], t, target, a[-1], loss_on='all')
    loss = sum(terms.values()) + 0.01 * net.absorb.norm()
    (loss * d['weights'].to(dtype)).mean().backward()
    yield loss.detach(), d[p + 'loss']
    for ours, theirs in (('absorb', 'mean_embed'), ('word_embedding.weight',) * 2, ('output_down_proj.2.bias',) * 2):
        yield dict(net.named_parameters())[ours].grad, d[p + 'grad.' + theirs]


@row('v2: one ancestral step, before and after absorbing', f32)
def _():
    d, a, ck = fixture('v2_step'), make_alpha_bar('sqrt', 2000), fixture('checkpoint_v2')
    t = d['t_index'] + 1
    W = ck['lm_head.weight']
    for kind in ('plain', 'rounded'):
        pred = anchor(d['f32.plain.pred_xstart'], W) if kind == 'rounded' else d['f32.plain.pred_xstart']
        z = ddpm_step(d['z_t'], pred, level(a, t), level(a, t - 1), d['noise'], large=True)
        coined = reabsorb(z, level(a, t, 2), level(a, t - 1, 2), ck['mean_embed'], 0.5, d['uniform'])
        yield (
            replace_source(torch.where((t > 1)[:, None, None], coined, z), W[d['ids']], d['mask'] == 1),
            d[f'f32.{kind}.sample'],
        )


@row('v2: chain of 50 steps with absorbing, plain and rounded', f32)
def _():
    c, d, ck = fixture('chain'), fixture('v2_chain'), fixture('checkpoint_v2')
    m = ck['mean_embed']
    source, target = ck['lm_head.weight'][c['ids']], c['mask'] == 1
    x = replace_source(c['start'] + m, source, target)
    for kind in ('plain', 'rounded'):
        coins = iter(d['uniform'].flip(0))
        states = chain(
            c,
            50,
            kind == 'rounded',
            x,
            down(50),
            checkpoint='checkpoint_v2',
            jump=lambda z, a_t, a_s: reabsorb(z, a_t, a_s, m, 0.5, next(coins)),
        )
        yield torch.cat([x[None], states])[:: 5 if kind == 'plain' else 1], d[f'{kind}.states']


@torch.no_grad()
def solved(d, steps, dtype):
    "v2's solver in our parts: between steps of the grid log alpha-bar is linear."
    net, source, target = network('checkpoint_v2', dtype), table_of('checkpoint_v2').to(dtype)[d['ids']], d['mask'] == 1
    log_a, u = make_alpha_bar('sqrt', 2000).log(), torch.linspace(1, 1 / 2000, steps + 1, dtype=torch.float64)
    low = (u * 2000 + 1e-9).long().clamp(max=1999)
    a = torch.lerp(log_a[low], log_a[low + 1], u * 2000 - low).exp()
    z, last = replace_source(d['start'].to(dtype), source, target), None
    for k in range(steps):
        pred = replace_source(net(z, 1000 * u[k].expand(len(z))), source, target)
        z = replace_source(
            repredict_step(z, pred, a[k], a[k + 1], last=None if steps < 10 and k == steps - 1 else last),
            source,
            target,
        )
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
    assert deviation([(good, good)]) == 0 and deviation([(good + 1e-4, good)]) > f32
    assert deviation([(good * float('nan'), good)]) == deviation([(good[:1], good)]) == float('inf')


# files that are wrong: one sentence, nothing half loaded, nothing run


class Program:
    "An object whose pickle writes a file when it is opened."

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.mkdir, (str(self.where),)


def spoiled(how, folder):
    "The message for a folder of theirs that was spoiled."
    heads, file, args = 2, find_checkpoint(folder), folder / 'training_args.json'
    if how == 'truncated file':
        file.write_bytes(file.read_bytes()[:-5000])
    if how == 'program in torch.save':
        torch.save(dict(a=torch.ones(1), b=Program(folder / 'was-run')), file)
    if how == 'program in a pickle':
        file.write_bytes(pickle.dumps(dict(a=Program(folder / 'was-run'))))
    if how == 'wrong heads':
        heads = 5
    if how == 'wrong vocabulary':
        args.write_text(json.dumps(json.loads(args.read_text()) | dict(vocab_size=30522)))
    if how == 'words of another model':
        words().save(str(folder / 'tokenizer.json'))
        (folder / 'tokenizer.json').write_text(
            (folder / 'tokenizer.json').read_text().replace('"##n":', '"##m": 50, "##n":')
        )
    if how == 'missing JSON':
        args.unlink()
    if how == 'damaged JSON':
        args.write_text('{"diffusion_steps": 20')
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        DiffuSeq.from_official(folder, num_heads=heads)
    return str(e.value)


@pytest.mark.parametrize(
    'how, says',
    [
        ('truncated file', 'cut short'),
        ('program in torch.save', 'not opened'),
        ('program in a pickle', 'not opened'),
        ('wrong heads', 'num_heads=5'),
        ('wrong vocabulary', 'vocab_size is 30522 there and 50'),
        ('words of another model', 'a tokenizer of 51'),
        ('missing JSON', 'training_args.json: missing'),
        ('damaged JSON', 'damaged'),
    ],
)
def test_wrong_file(how, says, tmp_path):
    message = spoiled(how, laid_out('checkpoint_main', tmp_path))
    assert says in message and str(tmp_path) in message, message
    assert not (tmp_path / 'was-run').exists()


@pytest.fixture(scope='module', autouse=True)
def print_table(request):
    yield
    with request.config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
        print()
        for r in MEASURED.values():
            print(f'{r["row"]:<72} {r["deviation"]:9.1e}  of {r["tolerance"]:.0e}')
