"""The map from equations to derivations, names, checks and experiments: found in the notebooks, written into index.ipynb.

Derived: the heading above `\\tag{n}`. Exported: public names whose docstring says "Eq. n". Checked: the heading above a cell
that asserts and says "Eq. n" in a comment. Several numbers are written "Eq. 4, 18". Used: by experiments, through whatever they call."""

import ast, io, re, sys, tokenize
from collections import defaultdict
from pathlib import Path
import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import nbread
from nbread import is_exported, python

root = Path(__file__).resolve().parents[1]
GROUPS = [
    (1, 15),
    (2,),
    (3,),
    (4, 18),
    (5, 19),
    (6,),
    (7, 21),
    (8, 24),
    (9, 23),
    (10,),
    (11,),
    (12,),
    (13,),
    (14,),
    (16,),
    (17,),
    (20,),
    (22,),
    (25,),
    (26,),
    ('C1',),
    ('C2',),
]
NUMBERS = [str(n) for group in GROUPS for n in group]
MARK = '<!-- docs/equations.py -->'
number = r'(?:\d+|C[12])\b'
mention = re.compile(rf'\bEq\. ({number}(?:, {number})*)')


def said(text):
    "The equations that a docstring or a comment names."
    return {n for m in mention.findall(text) for n in m.split(', ')}


def slug(title):
    "The anchor of a heading, as the site makes it: without its formulas."
    return re.sub(r'[^\w\-]', '', re.sub(r'\$[^$]*\$', '', title).lower().replace(' ', '-'))


def comments(source):
    return '\n'.join(
        t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    )


def asserts(tree):
    "Whether code can fail by itself: `assert`, or a call of `test_close` and its like."
    return any(
        isinstance(n, ast.Assert) or isinstance(n, ast.Call) and getattr(n.func, 'id', '').startswith('test_')
        for n in ast.walk(tree)
    )


def patched(node):
    "The class that a function is patched on, or None."
    if isinstance(node, ast.FunctionDef) and any('patch' in ast.unparse(d) for d in node.decorator_list):
        return ast.unparse(node.args.args[0].annotation)


def names(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        '.' + n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
    }


def definitions(tree):
    "(name, node) of what a cell defines; a method is Class.method, also where it is patched on."
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from ((t.id, node) for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield (f'{patched(node)}.' if patched(node) else '') + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from (
                (f'{node.name}.{child.name}', child) for child in node.body if isinstance(child, ast.FunctionDef)
            )


def nothing():
    "What is found where nothing is said: {'tags', 'names', 'checks': {number: [(place, heading) or name]}, 'uses', 'calls', 'stray'}."
    return {k: defaultdict(list) for k in ('tags', 'names', 'checks', 'uses')} | dict(calls=defaultdict(set), stray=[])


def read(folder=root / 'nbs'):
    "All that the notebooks say, as `nothing` lays it out."
    found = nothing()
    for path in nbread.paths(folder):
        place = str(path.relative_to(folder))
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == 'markdown':
                for line in re.findall(
                    r'^#+ .*|\\tag\{[^}]*\}', re.sub(r'```.*?```', '', cell.source, flags=re.S), re.M
                ):
                    if line[0] == '#':
                        heading = line.lstrip('# ')
                    else:
                        for n in line[5:-1].split(', '):
                            found['tags'][n].append((place, heading))
            elif cell.cell_type == 'code':
                read_code(python(cell.source), place, heading, found)
    return found


def read_code(source, place, heading, found):
    "Names, checks and calls of one code cell."
    tree, notes = ast.parse(source), comments(source)
    public = [
        (ast.get_docstring(node) or '', name)
        for name, node in definitions(tree)
        if not isinstance(node, ast.Assign) and not re.search(r'(^|\.)_', name)
    ]
    for text, name in public if is_exported(source) else [(notes, None)]:
        if re.search(rf'Eq\. {number}(?: and |-| to | = ){number}', text):
            found['stray'].append(f'{place}: {text!r}')
        if not name and (not asserts(tree) or 'plot only' in notes):
            continue
        key, value = ('names', name) if name else ('checks', (place, heading))
        for n in said(text):
            if value not in found[key][n]:
                found[key][n].append(value)
    if place.startswith(('experiments/', 'baselines/')):
        found['uses'][place] = {*found['uses'][place], *names(tree)}
    if is_exported(source):
        for name, node in definitions(tree):
            parts = (
                [x for x in node.body if not isinstance(x, ast.FunctionDef)] + node.bases
                if isinstance(node, ast.ClassDef)
                else [node]
            )
            found['calls'][name] |= set().union(*map(names, parts))


def reached(start, calls):
    "Everything that is called from the names in `start`: a method `.m` is that of every class reached; `forward` and `__init__` need no call."
    seen, todo = {'.forward', '.__init__', '.__call__'}, set(start)
    while todo:
        seen |= todo
        methods = {a + b for a in seen & {c.split('.')[0] for c in calls if '.' in c} for b in seen if b[0] == '.'}
        todo = set().union(*(calls[n] for n in (seen | methods) & calls.keys()), methods & calls.keys()) - seen
    return seen


def table(found):
    "The map in Markdown."
    link = lambda place, heading: f'[{re.sub("_.*", "", Path(place).stem)} {heading}]({place}#{slug(heading)})'
    used = {place: reached(start, found['calls']) for place, start in found['uses'].items()}
    unique = lambda key, group: list(dict.fromkeys(x for n in group for x in found[key][str(n)]))
    rows = ['| Eq. | derived in | exported as | checked in | used by |', '|---|---|---|---|---|']
    for group in GROUPS:
        exported = unique('names', group)
        by = [f'[{Path(p).stem}]({p})' for p in sorted(used) if used[p] & set(exported)]
        rows.append(
            '| '
            + ' | '.join(
                [
                    ' = '.join(map(str, group)),
                    '<br>'.join(link(*x) for x in unique('tags', group)),
                    ', '.join(f'`{n}`' for n in exported),
                    '<br>'.join(link(*x) for x in unique('checks', group)),
                    ', '.join(by),
                ]
            )
            + ' |'
        )
    return '\n'.join(rows)


def holes(found):
    "What is missing, one line each; nothing if every equation is derived, exported and checked."
    what = dict(
        tags='derivation: no \\tag{%s} in any text',
        names='export: no public docstring says "Eq. %s"',
        checks='check: no asserting cell has a comment with "Eq. %s"',
    )
    return [f'Eq. {n} has no {text % n}' for n in NUMBERS for key, text in what.items() if not found[key][n]] + [
        f'write "Eq. 4, 18", not a range or an equality of numbers: {s}' for s in found['stray']
    ]


def main():
    found, path = read(), root / 'nbs/index.ipynb'
    nb = nbformat.read(path, 4)
    cell = next(c for c in nb.cells if MARK in c.source)
    cell.source = cell.source.split(MARK)[0] + MARK + '\n\n' + table(found)
    nbformat.write(nb, path)
    sys.exit('\n'.join(holes(found)) or None)


if __name__ == '__main__':
    main()
