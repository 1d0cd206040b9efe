"""The map from equations to derivations, names and checks, found in the notebooks; written to equations.ipynb.

Derived: the heading above `\\tag{n}`. Exported: public names, also methods, whose docstring says "Eq. n". Checked: the
heading above a cell that asserts and says "Eq. n" in a comment. Several numbers are written "Eq. 4, 18". Run: an
experiment or a baseline calls a name of it, through whatever it calls.
"""

import ast, io, re, sys, tokenize
from collections import defaultdict
from pathlib import Path
import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import nbread
from nbread import definitions, functions, is_exported, is_public, python, slug

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
mention = re.compile(rf'\bEq\.\s+({number}(?:,\s+{number})*)')


def said(text):
    "The equations that a docstring or a comment names."
    return {n for numbers in mention.findall(text) for n in re.split(r',\s+', numbers)}


def comments(source):
    "The comments of a cell, one a line."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return '\n'.join(t.string for t in tokens if t.type == tokenize.COMMENT)


def asserts(tree):
    "Whether code can fail by itself: `assert`, or a call of `test_close` and its like."
    is_test = lambda n: isinstance(n, ast.Call) and getattr(n.func, 'id', '').startswith('test_')
    return any(isinstance(n, ast.Assert) or is_test(n) for n in ast.walk(tree))


def names(node):
    "What code mentions: `name`, and `.name` for an attribute."
    plain = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return plain | {'.' + n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def nothing():
    """What is found where nothing is said.

    tags, names, checks: {number: [(place, heading) or name]}; uses: {place: names}; calls: {name: names}; stray: texts.
    """
    return {k: defaultdict(list) for k in ('tags', 'names', 'checks', 'uses')} | dict(calls=defaultdict(set), stray=[])


def read(folder=root / 'nbs'):
    "All that the notebooks say, as `nothing` lays it out."
    found = nothing()
    for path in nbread.paths(folder):
        place = str(path.relative_to(folder))
        heading = ''
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == 'markdown':
                heading = read_text(cell.source, place, heading, found)
            elif cell.cell_type == 'code':
                read_code(python(cell.source), place, heading, found)
    return found


def read_text(source, place, heading, found):
    "Numbered formulas of one cell of text; returns the heading that stands above what follows it."
    without_code = re.sub(r'```.*?```', '', source, flags=re.S)
    for title, tag in re.findall(r'^#+ (.*)|\\tag\{([^}]*)\}', without_code, re.M):
        heading = title or heading
        for n in filter(None, tag.split(', ')):
            found['tags'][n].append((place, heading))
    return heading


def read_code(source, place, heading, found):
    "Names, checks and calls of one code cell."
    tree = ast.parse(source)
    if is_exported(source):
        read_definitions(tree, place, found)
    else:
        notes = comments(source)
        note(notes, place, found, 'checks' if asserts(tree) and 'plot only' not in notes else None, (place, heading))
    if place.startswith(('experiments/', 'baselines/')):
        found['uses'][place] = {*found['uses'][place], *names(tree)}


def note(text, place, found, key, value):
    "Put a value beside each equation that a docstring or comment names."
    if re.search(rf'Eq\. {number}(?: and |-| to | = ){number}', text):
        found['stray'].append(f'{place}: {text!r}')
    for n in said(text) if key else ():
        if value not in found[key][n]:
            found[key][n].append(value)


def read_definitions(tree, place, found):
    "What an exported cell defines: its docstrings, and what each name calls."
    for name, node in definitions(tree):
        if is_public(name):
            note(ast.get_docstring(node) or '', place, found, 'names', name)
        parts = [node]
        if isinstance(node, ast.ClassDef):
            methods = functions(node.body)
            parts = [child for child in node.body if child not in methods] + node.bases
        found['calls'][name] |= set().union(*map(names, parts))
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found['calls'][target.id] |= names(node)


def reached(start, calls):
    """Everything that is called from the names in `start`.

    A method `.m` is that of every class reached; `forward` and `__init__` need no call.
    """
    classes = {name.split('.')[0] for name in calls if '.' in name}
    seen = {'.forward', '.__init__', '.__call__'}
    todo = set(start)
    while todo:
        seen |= todo
        methods = {kind + name for kind in seen & classes for name in seen if name[0] == '.'} & calls.keys()
        todo = methods.union(*(calls[name] for name in (seen | methods) & calls.keys())) - seen
    return seen


def table(found):
    "The map in Markdown."
    used = set().union(*(reached(start, found['calls']) for start in found['uses'].values()))
    rows = ['| Eq. | derived in | exported as | checked in | run |', '|---|---|---|---|:-:|']
    for group in GROUPS:
        exported = unique(found['names'], group)
        row = [
            ' = '.join(map(str, group)),
            '<br>'.join(link(*x) for x in unique(found['tags'], group)),
            ', '.join(f'`{name}`' for name in exported),
            '<br>'.join(link(*x) for x in unique(found['checks'], group)),
            '✓' if used & set(exported) else '',
        ]
        rows.append(f'| {" | ".join(row)} |')
    return '\n'.join(rows)


def unique(by_number, group):
    "What stands beside the equations of a group, once each."
    return list(dict.fromkeys(x for n in group for x in by_number[str(n)]))


def link(place, heading):
    "A link to a heading of a notebook."
    notebook = re.sub('_.*', '', Path(place).stem)
    return f'[{notebook} {heading}]({place}#{slug(heading)})'


def holes(found):
    "What is missing, one line each; nothing if every equation is derived, exported and checked."
    what = dict(
        tags='derivation: no \\tag{%s} in any text',
        names='export: no public docstring says "Eq. %s"',
        checks='check: no asserting cell has a comment with "Eq. %s"',
    )
    missing = [f'Eq. {n} has no {text % n}' for n in NUMBERS for key, text in what.items() if not found[key][n]]
    return missing + [f'write "Eq. 4, 18", not a range or an equality of numbers: {text}' for text in found['stray']]


def main():
    found = read()
    path = root / 'nbs/equations.ipynb'
    nb = nbformat.read(path, 4)
    cell = next(c for c in nb.cells if MARK in c.source)
    cell.source = cell.source.split(MARK)[0] + MARK + '\n\n' + table(found)
    nbformat.write(nb, path)
    sys.exit('\n'.join(holes(found)) or None)


if __name__ == '__main__':
    main()
