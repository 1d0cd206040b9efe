"How the site, README.md and the checks see notebooks: which there are, what a cell exports, what is shown."

import ast, re
from pathlib import Path
import nbformat, yaml

# the text of each picture, by the id of the cell that draws it
ALT = {
    cell: text
    for cells in yaml.safe_load(Path(__file__).with_name('figures.yaml').read_text('utf8')).values()
    for cell, text in cells.items()
}


def paths(folder):
    "The notebooks of a folder, in order, without those in hidden folders."
    return sorted(
        p
        for p in folder.rglob('*.ipynb')
        if not any(part.startswith(('.', '_')) or part == 'runs' for part in p.relative_to(folder).parts)
    )


def is_exported(source):
    "Whether a cell goes into the library: `#| export`, `exports`, `exporti`, with or without a module."
    return re.search(r'^#\|\s*export[si]?(\s+[\w.]+)?\s*$', source, re.M) is not None


def module(cells):
    "The module that a notebook's cells are exported to, or None."
    found = [m[1] for source in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', source, re.M))]
    return found[0] if found else None


def python(source):
    "A cell without its magics."
    return '\n'.join('' if line.startswith(('%', '!')) else line for line in source.splitlines())


def functions(body):
    "The functions of a body."
    return [node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def patched(node):
    "The class that a function is patched on, or None."
    if any('patch' in ast.unparse(decorator) for decorator in node.decorator_list):
        return ast.unparse(node.args.args[0].annotation)


def definitions(tree):
    "(name, node) of the classes and functions of a cell; a method is Class.method, also where it is patched on."
    for node in functions(tree.body):
        yield (f'{patched(node)}.' if patched(node) else '') + node.name, node
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, node
            yield from ((f'{node.name}.{child.name}', child) for child in functions(node.body))


def is_public(name):
    "Whether a name, of a class or of a method, has no part that begins with an underscore."
    return not re.search(r'(^|\.)_', name)


def title(nb):
    "The heading that a notebook begins with."
    return next(c.source for c in nb.cells if c.cell_type == 'markdown').splitlines()[0].removeprefix('# ')


def slug(heading):
    "The anchor of a heading, as the site makes it: without its formulas."
    return re.sub(r'[^\w\-]', '', re.sub(r'\$[^$]*\$', '', heading).lower().replace(' ', '-'))


def headings(source):
    "The headings of a cell of text."
    return re.findall(r'^#+ (.*)', re.sub(r'```.*?```', '', source, flags=re.S), re.M)


def offered(source):
    "(name, node) of the public functions and classes, methods left out, of a cell; nothing if it is not exported."
    found = definitions(ast.parse(python(source))) if is_exported(source) else ()
    return [(name, node) for name, node in found if is_public(name) and '.' not in name]


def links(cell, home):
    "Below a cell that exports: where the reference describes its names."
    roles = [f'{{py:obj}}`{name} <diffuseq.{home}.{name}>`' for name, _ in offered(cell.source)]
    return [nbformat.v4.new_markdown_cell(f':::{{container}} reference\nReference: {", ".join(roles)}\n:::')] * bool(
        roles
    )


def read(text):
    """A notebook from its JSON text as the site shows it.

    Without `#| hide` cells and `#|` lines; with texts for pictures, and links from what it exports to the reference.
    """
    nb = nbformat.reads(text, 4)
    home = module([c.source for c in nb.cells if c.cell_type == 'code'])
    cells = []
    for c in nb.cells:
        if re.search(r'^#\|\s*hide\s*$', c.source, re.M):
            continue
        after = links(c, home) if c.cell_type == 'code' else []
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        if c.id in ALT:
            c.metadata['mystnb'] = {'image': {'alt': ALT[c.id]}}
        cells += [c, *after] if c.source.strip() else []
    nb.cells = cells
    return nb
