"Real pairs, models of a few thousand weights, processes that can be killed: what tests of training and model share."

import functools, json, multiprocessing, os
from pathlib import Path
import datasets, pytest, torch
from safetensors.torch import load_file
from diffuseq.config import make_config
from diffuseq.core import read_tensors
from diffuseq.data import load_pairs
from diffuseq.hub import new_model
from diffuseq.text import make_tokenizer
from diffuseq.training import Run

root = Path(__file__).resolve().parents[1]
slow = pytest.mark.skipif(not os.environ.get('SLOW'), reason='takes minutes in all; SLOW=1 runs it')
# a clean server imports once and forks: real processes that start at once
processes = multiprocessing.get_context('forkserver')
networks = [f'transformers.models.{m}.modeling_{m}' for m in ('bert', 'gpt2', 'pegasus', 't5')]
processes.set_forkserver_preload(['tiny', 'torch.utils.tensorboard', 'accelerate.data_loader', *networks])
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root / 'tests'), os.environ.get('PYTHONPATH')]))

LEFT = ('autoregressive', 'gru', 'transformer', 'gpt2')  # recipes whose models write from the left and do nothing else
SOURCES = [
    'and he said',
    'in the beginning god made the heaven and the earth , and the earth was waste and without form',
    'yes',
    'the lord is my shepherd ; i will not want',
    'go',
    'what is your name ? he said',
]


@functools.cache
def pairs(n=150, words=14):
    "The first `n` verses of the valid split whose sides have less than `words` words."
    short = [r for r in load_pairs('basic-english', 'valid') if all(len(r[k].split()) < words for k in ('src', 'trg'))]
    return datasets.Dataset.from_list(short[:n])


def config(recipe='fast', **changes):
    """Profile smoke with everything that a resume could forget.

    Dropout, frequent saves, and (paper) a history of losses that is soon full.
    """
    small = dict(eval_every=7, save_every=5)
    small |= dict(T=10) if recipe == 'paper' else dict(dropout=0.1, lr=5e-3)
    return make_config(recipe=recipe, profile='smoke', **(small | changes))


@functools.cache
def tokenizer():
    return make_tokenizer(pairs(), config())


def model(*args, decoding=None, **changes):
    "An untrained model; `args` is a configuration, or `changes` to `config`."
    return new_model(args[0] if args else config(**changes), tokenizer(), decoding)


def still(**changes):
    "A configuration without noise and dropout: what an update does is the same however its batch is shared out."
    exactly = dict(dropout=0.0, word_dropout=0.0, batch_tokens=1024, precision='fp32')
    return config('autoregressive', **(exactly | changes))


def train(run_dir, c, max_updates, *, started=None, **settings):
    "Train in this process (one of its own, if `started` is to be set when the first update begins)."
    m = model(c)
    if started:
        tell_when_it_begins(started)
    settings = dict(max_updates=max_updates, device='cpu', progress=False) | settings
    return m, m.fit(pairs(), pairs(40), run_dir, **settings)


def tell_when_it_begins(started):
    "Set an event at each update of this process's runs, before it is made."
    advance = Run.advance

    def tell_and_advance(run, rows):
        started.set()
        return advance(run, rows)

    Run.advance = tell_and_advance


def start(f, *args, **kwargs):
    "f in a process of its own."
    p = processes.Process(target=f, args=args, kwargs=kwargs)
    p.start()
    return p


def begin(f, *args, **kwargs):
    "f(*args, started=event) in a process of its own, once it has set the event, or has ended."
    started = processes.Event()
    p = start(f, *args, started=started, **kwargs)
    while p.is_alive() and not started.is_set():
        p.join(0.01)
    return p


def finish(f, *args, **kwargs):
    "The same, to its end; returns the exit status (negative: the signal that killed it)."
    p = start(f, *args, **kwargs)
    p.join()
    return p.exitcode


def state(run_dir):
    "The tensors in the state of a run."
    return load_file(Path(run_dir) / 'last' / 'state.safetensors')


def numbers(run_dir):
    "The plain numbers in the state of a run."
    return json.loads(read_tensors(Path(run_dir) / 'last' / 'state.safetensors')[1]['numbers'])


def different(a, b):
    "Names of tensors that are not the same bits in both."
    return [
        k
        for k in a.keys() | b.keys()
        if k not in a or k not in b or a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])
    ]


tokenizer()  # once, and with it the pairs, in the server of the processes too
pairs(40)
