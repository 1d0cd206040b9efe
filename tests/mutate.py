"""Makes one mistake at a time in exported cells of a copy of the repository, and says whether a check notices.

    python tests/mutate.py --chosen                  # the mistakes of CHOSEN
    python tests/mutate.py --random 100 --seed 0     # so many tokens, the notebooks of LATER in turn
    python tests/mutate.py --again                   # those that were not caught, by the notebooks as they are now

One JSON line a mutant goes to --out (runs/mutants.jsonl); what stands there is not run again. Verdicts: caught,
survived, timeout.
"""

import argparse, ast, hashlib, importlib, io, itertools, json, os, re, resource, shutil, signal, sys, tempfile, time
import tokenize, traceback
from pathlib import Path
import nbformat
import conftest  # noqa: F401 (a quiet environment, and docs/ on the path)
from nbread import is_exported, module

root = Path(__file__).resolve().parents[1]
limit = 120  # seconds of computing for one check of one mutant

CHOSEN = {
    'a sign': ('04_posterior', 'mean = U * z_t + E * z_0', 'mean = U * z_t - E * z_0'),
    'beta for alpha-bar': (
        '03_forward',
        'alpha_bar_t = level(alpha_bar, t)\n    steps',
        'alpha_bar_t = level(betas(alpha_bar), t)\n    steps',
    ),
    't off by one': ('03_forward', 'a.to(t.device)[t]', 'a.to(t.device)[t - 1]'),
    'a missing square': ('05_objective', '(var_q + (mean_q - mean_p) ** 2)', '(var_q + (mean_q - mean_p))'),
    'a mask inverted': ('05_objective', '(x.double().sum(-1) * target)', '(x.double().sum(-1) * ~target)'),
    'the wrong KL order': (
        '05_objective',
        'gaussian_kl(E * z_0.double(), factor**2 * v, E * z_0_hat.double(), factor**2 * var)',
        'gaussian_kl(E * z_0_hat.double(), factor**2 * var, E * z_0.double(), factor**2 * v)',
    ),
    'the wrong stride': ('09_sampling', 'list(pairwise(grid))', '[(t, t - 1) for t in grid[:-1]]'),
    'rounding by dot product': ('08_anchoring', '(r @ W.T - half)', '(r @ W.T)'),
    'the normaliser of Eq. 3': ('07_importance', '(1 - self.uniform) * p / p.sum()', '(1 - self.uniform) * p'),
    'source noised': (
        '03_forward',
        'torch.where(target[..., None] & (steps > 0), z_t, z_0)',
        'torch.where(steps > 0, z_t, z_0)',
    ),
}

# What else is run when the notebook itself has noticed nothing: other notebooks, then tests.
parity = ['tests/test_parity.py']
model = ['tests/test_model.py', '-k', 'not memory and not large']
saved = ['tests/test_saved.py', 'tests/test_doors.py']
hub = ['tests/test_hub.py']
metrics = ['tests/test_metrics.py']
training = 'average or pieces or held_out or patience or best_weights or learns or log'
LATER = {
    '02_schedule': [parity],
    '03_forward': ['04_posterior', parity],
    '04_posterior': [parity],
    '06_denoiser': [parity, '14_paper', model],
    '15_two_stream': ['17_block', model],
    '05_objective': [parity],
    '07_importance': [parity],
    '16_levels': ['17_block', model],
    '25_training': [parity, ['tests/test_training.py', '-k', training]],
    '08_anchoring': [parity],
    '12_decoding': ['17_block', model],
    '09_sampling': [parity, '14_paper', model],
    '10_mbr': [metrics, parity],
    '26_metrics': [metrics, parity],
    '13_base': ['17_block', model, saved],
    '17_block': [model, saved],
    '28_card': [hub],
    '27_hub': [saved, hub, model],
    '29_official': [parity],
    '14_paper': [parity, model],
    '11_connections': [],
    'baselines/autoregressive': [model, saved],
    'baselines/gpvae': [model, saved],
}

# ---- what can be changed

SWAP = {
    ast.Add: '-',
    ast.Sub: '+',
    ast.Mult: '/',
    ast.Div: '*',
    ast.FloorDiv: '*',
    ast.BitAnd: '|',
    ast.BitOr: '&',
    ast.Mod: '//',
    ast.Lt: '<=',
    ast.LtE: '<',
    ast.Gt: '>=',
    ast.GtE: '>',
    ast.Eq: '!=',
    ast.NotEq: '==',
    ast.Is: 'is not',
    ast.IsNot: 'is',
    ast.In: 'not in',
    ast.NotIn: 'in',
    ast.And: 'or',
    ast.Or: 'and',
}
SIGN = {
    ast.Add: '+',
    ast.Sub: '-',
    ast.Mult: '*',
    ast.Div: '/',
    ast.FloorDiv: '//',
    ast.BitAnd: '&',
    ast.BitOr: '|',
    ast.Mod: '%',
    ast.Pow: '**',
    ast.Lt: '<',
    ast.LtE: '<=',
    ast.Gt: '>',
    ast.GtE: '>=',
    ast.Eq: '==',
    ast.NotEq: '!=',
    ast.Is: 'is',
    ast.IsNot: 'is not',
    ast.In: 'in',
    ast.NotIn: 'not in',
    ast.And: 'and',
    ast.Or: 'or',
}
OTHER = dict(
    argmax='argmin',
    argmin='argmax',
    amax='amin',
    max='min',
    min='max',
    sqrt='square',
    square='sqrt',
    rsqrt='sqrt',
    mean='sum',
    sum='mean',
    any='all',
    all='any',
    sin='cos',
    cos='sin',
    cumsum='cumprod',
    cumprod='cumsum',
    zeros='ones',
    ones='zeros',
    floor='ceil',
    ceil='floor',
    log='log1p',
    log1p='log',
    softmax='log_softmax',
    exp='expm1',
    randn='rand',
    rand='randn',
)
MASKS = {'target', 'pad', 'hidden', 'mask', 'valid', 'keep', 'take'}


def blank_comments(source):
    "The source with blanks for its comments, so that a sign that is looked for between two names is none of theirs."
    lines = source.splitlines(keepends=True)
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type == tokenize.COMMENT:
            row, column = t.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + ' ' * len(t.string) + line[column + len(t.string) :]
    return ''.join(lines)


class Sites(ast.NodeVisitor):
    """Collects (start, end, new text) of every change, in characters of the source.

    Messages, annotations and strings are left alone.
    """

    def __init__(self, source):
        self.source = source
        self.code = blank_comments(source)
        self.split = source.splitlines()
        self.found = []
        self.lines = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]
        self.visit(ast.parse(source))

    def at(self, node, end=False):
        "Where a node begins or ends; ast counts bytes."
        line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)
        return self.lines[line - 1] + len(self.split[line - 1].encode()[:column].decode())

    def text(self, node):
        return self.source[self.at(node) : self.at(node, True)]

    def change(self, start, end, new):
        self.found.append((start, end, new))

    def visit_Raise(self, node):
        pass

    visit_JoinedStr = visit_Import = visit_ImportFrom = visit_AnnAssign = visit_Raise

    def visit_FunctionDef(self, node):
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        for child in node.body:
            self.visit(child)

    def between(self, left, op, right):
        "The operator that stands between two nodes."
        start = self.code.index(SIGN[type(op)], self.at(left, True), self.at(right))
        return start, start + len(SIGN[type(op)])

    def visit_BinOp(self, node):
        self.generic_visit(node)
        is_text = lambda x: isinstance(getattr(x, 'value', 0), str) or isinstance(x, ast.JoinedStr)
        if is_text(node.left) or is_text(node.right):
            return  # a path, or words
        if type(node.op) in SWAP:
            self.change(*self.between(node.left, node.op, node.right), SWAP[type(node.op)])
        if isinstance(node.op, ast.Pow) and getattr(node.right, 'value', 0) == 2:
            self.change(self.between(node.left, node.op, node.right)[0], self.at(node.right, True), '')

    def visit_BoolOp(self, node):
        self.generic_visit(node)
        self.change(*self.between(node.values[0], node.op, node.values[1]), SWAP[type(node.op)])

    def visit_Compare(self, node):
        self.generic_visit(node)
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators):
            self.change(*self.between(left, op, right), SWAP[type(op)])

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        self.change(self.at(node), self.at(node.operand) if isinstance(node.op, ast.Not) else self.at(node) + 1, '')

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = value + 1
        elif isinstance(value, float):
            other = 2 * value or 1.0
        else:
            return
        self.change(self.at(node), self.at(node, True), repr(other))

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if node.attr in OTHER:
            self.change(self.at(node, True) - len(node.attr), self.at(node, True), OTHER[node.attr])

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
        if isinstance(node.func, ast.Name) and name in OTHER:
            self.change(self.at(node.func), self.at(node.func, True), OTHER[name])
        starred = any(isinstance(a, ast.Starred) for a in node.args[:2])
        if len(node.args) > 1 and not starred and name not in ('isinstance', 'getattr', 'hasattr', 'min', 'max'):
            self.swap(*node.args[:2])
        if name in ('where', 'masked_fill') and node.args:
            self.invert(node.args[0])

    def swap(self, a, b):
        "The first two arguments, the other way round."
        if self.text(a) != self.text(b):
            between = self.source[self.at(a, True) : self.at(b)]
            self.change(self.at(a), self.at(b, True), self.text(b) + between + self.text(a))

    def visit_Subscript(self, node):
        self.generic_visit(node)
        self.invert(node.value if 'None' in self.text(node.slice) else node.slice)

    def invert(self, node):
        "A mask that says the opposite; `~` binds less than an index."
        if isinstance(node, ast.Name) and node.id in MASKS:
            self.change(self.at(node), self.at(node), '~')


def exported_cells(folder, name):
    "The cells of a notebook that are exported."
    cells = nbformat.read(folder / f'nbs/{name}.ipynb', 4).cells
    return [c for c in cells if c.cell_type == 'code' and is_exported(c.source)]


def mutants(folder, name):
    "(label, cell id, new source) of every single change in the exported cells of a notebook."
    for cell in exported_cells(folder, name):
        for start, end, new in Sites(cell.source).found:
            source = cell.source[:start] + new + cell.source[end:]
            was, now = (line_at(text, start) for text in (cell.source, source))
            yield f'{name} {cell.id} {start}: {was}  ->  {now}', cell.id, source


def line_at(text, place):
    "The line that holds a place, without its indentation."
    return text[text.rfind('\n', 0, place) + 1 :].split('\n', 1)[0].strip()


def is_code(mutant):
    "Whether a mutant still is Python."
    try:
        ast.parse(mutant[-1])
    except SyntaxError:
        return False
    return True


def chosen(folder, label):
    "The same for a mistake of CHOSEN."
    name, was, now = CHOSEN[label]
    cells = [c for c in exported_cells(folder, name) if was in c.source]
    if len(cells) != 1 or cells[0].source.count(was) != 1:
        raise ValueError(
            f'{label}: {was!r} should stand in one exported cell of {name}.ipynb, once; bring CHOSEN up to date'
        )
    first = lambda text: text.splitlines()[0]
    return f'{label}: {first(was)}  ->  {first(now)}', cells[0].id, cells[0].source.replace(was, now)


def shuffled(folder, name, seed):
    "(notebook, label, cell id, new source) of a notebook's mutants, in an order that is a function of the seed."
    order = lambda mutant: hashlib.sha256(f'{seed} {mutant[0]}'.encode()).digest()
    for mutant in filter(is_code, sorted(mutants(folder, name), key=order)):
        yield name, *mutant


def draw(folder, n, seed):
    "`n` mutants, the notebooks in turn; edits elsewhere in a notebook do not change which ones."
    rows = itertools.zip_longest(*(shuffled(folder, name, seed) for name in LATER))
    return list(itertools.islice((m for row in rows for m in row if m), n))


# ---- does anything notice?


def copy_of(folder=root):
    "The repository's sources in a temporary folder; yours to change."
    to = Path(tempfile.mkdtemp(prefix='mutants-')) / 'diffuseq'
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.*')
    for part in ('nbs', 'diffuseq', 'tests', 'docs', 'data'):
        shutil.copytree(folder / part, to / part, ignore=skip)
    for p in folder.iterdir():
        if p.is_file() and not p.name.startswith('.'):
            shutil.copy(p, to)
    return to


def in_child(job, cwd, seconds):
    """Run a function in a fork of this process, which has imported what is large.

    Returns its exit status, None for one that took too long, and what it printed.
    """
    with tempfile.TemporaryFile('w+', errors='replace') as log:
        pid = os.fork()
        if not pid:
            be_child(job, cwd, seconds, log)
        end = time.monotonic() + 6 * seconds  # of a clock on the wall, where others compute, too
        while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.02)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if not ended[0]:
            os.waitpid(pid, 0)
        log.seek(0)
        return None if not ended[0] or os.WIFSIGNALED(ended[1]) else os.WEXITSTATUS(ended[1]), log.read()


def be_child(job, cwd, seconds, log):
    "Import from the copy, print into `log`, end by force after `seconds` of computing."
    code = 1
    try:
        os.setsid()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.chdir(cwd)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds + int(time.process_time()), -1))
        sys.path[:] = [str(cwd), *(p for p in sys.path if Path(p or '.').resolve() not in (root, root / 'tests'))]
        os.environ['PYTHONPATH'] = str(cwd)
        sys.stdout = open(1, 'w', closefd=False)
        sys.stderr = open(2, 'w', closefd=False)
        code = job()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0))


def test_notebook(to, name):
    "As nbdev_test does: 0 if every cell that is not slow ran."
    from nbdev.test import test_nb

    return not test_nb(to / f'nbs/{name}.ipynb', skip_flags=['slow', 'gpu'])[0]


def test_files(args):
    import pytest

    return pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *args])


def export(to, name):
    from nbdev.export import nb_export

    nb_export(to / f'nbs/{name}.ipynb', to / 'diffuseq')


def look(to, check, seconds=limit):
    "What one check says: (exit status or None, its last words)."
    status, out = in_child(
        lambda: test_notebook(to, check) if isinstance(check, str) else test_files(check), to, seconds
    )
    words = [line for line in re.sub(r'\x1b\[[\d;]*m', '', out).splitlines() if line.strip()]
    errors = [line for line in words if re.match(r'(E  +)?\w*(Error|Exception)\b', line)]
    return status, (errors or words or [''])[-1][:200]


def attempt(to, name, cell_id, source, sound):
    """Make the change, export it, see who notices, and undo it: (verdict, which check, what it said).

    `sound` remembers which checks pass without any change.
    """
    path = to / f'nbs/{name}.ipynb'
    before = path.read_bytes()
    nb = nbformat.read(path, 4)
    generated = to / 'diffuseq' / (module([c.source for c in nb.cells]).replace('.', '/') + '.py')
    exported = generated.read_bytes()
    for c in nb.cells:
        if c.id == cell_id:
            c.source = source
    nbformat.write(nb, path)
    verdict = 'survived', '', ''
    try:
        status, out = in_child(lambda: export(to, name), to, limit)
        if status != 0 or generated.read_bytes() == exported:
            raise RuntimeError(f'{name}: the change was not exported\n{out}')
        for check in [name, *LATER[name]]:
            status, said = look(to, check)
            if status != 0:
                verdict = 'timeout' if status is None else 'caught', str(check), said
                break
    finally:
        path.write_bytes(before)
        generated.write_bytes(exported)
    if status != 0 and str(check) not in sound:
        status, said = look(to, check, 3 * limit)
        if status != 0:
            raise RuntimeError(f'{check} fails without any mutation, so nothing can be learned from it: {said}')
        sound.add(str(check))
    return verdict


def judge(to, todo, report):
    "Run mutants (notebook, label, cell id, source); `report` gets a dict for each."
    sound = set()
    for name, label, cell_id, source in todo:
        started = time.monotonic()
        verdict, check, said = attempt(to, name, cell_id, source, sound)
        seconds = round(time.monotonic() - started, 1)
        made = dict(notebook=name, cell=cell_id, source=source)
        report(dict(mutant=label, verdict=verdict, check=check, said=said, seconds=seconds) | made)


LARGE = 'torch transformers.models.bert.modeling_bert datasets accelerate matplotlib.pyplot seaborn pandas sympy'
LARGE += ' scipy.stats nltk.translate.bleu_score sacrebleu rouge_score.rouge_scorer fastcore.test nbdev.test'
LARGE += ' nbdev.export pytest tokenizers safetensors.torch matplotlib_inline.backend_inline'


def warm():
    "Import what notebooks and tests import, but nothing of the library, so that a fork need not."
    for name in LARGE.split():
        try:
            importlib.import_module(name)
        except ImportError:
            pass


def asked_for(labels):
    "Which mistakes of CHOSEN the option --chosen means: all if it names none, none if it is not there."
    if labels is None:
        return []
    return labels or list(CHOSEN)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--chosen', nargs='*', metavar='MISTAKE', help='all of them if none is named')
    parser.add_argument('--random', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--again', action='store_true')
    parser.add_argument('--out', type=Path, default=root / 'runs/mutants.jsonl')
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in args.out.read_text('utf8').splitlines()] if args.out.is_file() else []
    last = {d['mutant']: d for d in done}
    warm()
    to = copy_of()

    def report(result):
        with args.out.open('a', encoding='utf8') as f:
            f.write(json.dumps(result, ensure_ascii=False) + '\n')
        last[result['mutant']] = result
        print('{verdict:8} {seconds:5.0f} s  {mutant}   [{check}]'.format(**result), flush=True)

    try:
        todo = [(CHOSEN[label][0], *chosen(to, label)) for label in asked_for(args.chosen)]
        todo += draw(to, args.random, args.seed)
        todo = [m for m in todo if m[1] not in last]
        if args.again:
            missed = [d for d in last.values() if d['verdict'] != 'caught']
            todo += [(d['notebook'], d['mutant'], d['cell'], d['source']) for d in missed]
        judge(to, todo, report)
    finally:
        shutil.rmtree(to.parent)
    print({v: sum(d['verdict'] == v for d in last.values()) for v in ('caught', 'survived', 'timeout')})


if __name__ == '__main__':
    main()
