"How the site, README.md and the checks see notebooks: which there are, what a cell exports, what is shown."

import ast, re
import nbformat


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


def read(text):
    "A notebook from its JSON text, minus `#| hide` cells and every `#|` line."
    nb = nbformat.reads(text, 4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\s*$', c.source, re.M)]
    for c in nb.cells:
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    nb.cells = [c for c in nb.cells if c.source.strip()]
    return nb
