"How the site, README.md and the checks see notebooks: which there are, what a cell exports, what is shown."

import re
import nbformat


def paths(folder):
    "The notebooks of a folder, in order, without those in hidden folders."
    return sorted(
        p
        for p in folder.rglob('*.ipynb')
        if not any(part.startswith(('.', '_')) or part == 'runs' for part in p.relative_to(folder).parts)
    )


def is_exported(source):
    return re.search(r'^#\|\s*exports?\s*$', source, re.M)


def python(source):
    return '\n'.join('' if line.startswith(('%', '!')) else line for line in source.splitlines())


def read(text):
    "A notebook from its JSON text, minus `#| hide` cells and every `#|` line."
    nb = nbformat.reads(text, 4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\s*$', c.source, re.M)]
    for c in nb.cells:
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    nb.cells = [c for c in nb.cells if c.source.strip()]
    return nb
