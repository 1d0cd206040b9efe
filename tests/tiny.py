"Real pairs, models of a few thousand weights, and processes that can be killed: what the tests of training and of the model share."

import os

os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', TQDM_DISABLE='1')
import functools, multiprocessing, sys
from pathlib import Path
import datasets, pytest, torch
from safetensors.torch import load_file
from diffuseq.config import make_config
from diffuseq.data import load_pairs
from diffuseq.model import new_model
from diffuseq.text import make_tokenizer
from diffuseq.training import Run

root = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
datasets.disable_progress_bars()
slow = pytest.mark.skipif(not os.environ.get('SLOW'), reason='takes minutes in all; SLOW=1 runs it')
processes = multiprocessing.get_context(
    'forkserver'
)  # a clean server imports once and forks: real processes that start at once
processes.set_forkserver_preload(['tiny', 'torch.utils.tensorboard'])
os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])])


@functools.cache
def pairs(n=150, words=14):
    "The first `n` verses of the valid split whose sides have less than `words` words."
    short = [r for r in load_pairs('basic-english', 'valid') if all(len(r[k].split()) < words for k in ('src', 'trg'))]
    return datasets.Dataset.from_list(short[:n])


def config(recipe='fast', **changes):
    "Profile smoke with everything that a resume could forget: dropout, frequent saves, and (paper) a history of losses that is soon full."
    small = (
        dict(dropout=0.1, eval_every=7, save_every=5, lr=5e-3)
        if recipe != 'paper'
        else dict(T=10, steps=10, eval_every=7, save_every=5)
    )
    return make_config(recipe=recipe, profile='smoke', **(small | changes))


@functools.cache
def tokenizer():
    return make_tokenizer(pairs(), config())


def model(*args, **changes):
    "An untrained model; `args` is a Config, or `changes` to `config`."
    return new_model(args[0] if args else config(**changes), tokenizer())


def train(run_dir, c, max_updates, *, started=None, **settings):
    "Train in this process (one of its own, if `started` is to be set when the first update begins)."
    m = model(c)
    if started:
        advance = Run.advance
        Run.advance = lambda self, rows: (started.set(), advance(self, rows))[1]
    return m, m.fit(
        pairs(), pairs(40), run_dir, **(dict(max_updates=max_updates, device='cpu', progress=False) | settings)
    )


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
    return load_file(Path(run_dir) / 'last' / 'state.safetensors')


def different(a, b):
    "Names of tensors that are not the same bits in both."
    return [
        k
        for k in a.keys() | b.keys()
        if k not in a or k not in b or a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])
    ]


pairs(), pairs(40), tokenizer()  # once, in the server of the processes too
