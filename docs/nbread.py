"How the site and README.md see a notebook: without hidden cells and without the lines that speak to nbdev."
import re
import nbformat

def read(text):
    "A notebook from its JSON text, minus `#| hide` cells and every `#|` line."
    nb = nbformat.reads(text, 4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\s*$', c.source, re.M)]
    for c in nb.cells: c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    nb.cells = [c for c in nb.cells if c.source.strip()]
    return nb
