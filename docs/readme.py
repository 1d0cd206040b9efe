"Writes README.md, and the pictures it shows into index_files/, from nbs/index.ipynb."

import os, re, sys
from pathlib import Path
from nbconvert import MarkdownExporter

sys.path.insert(0, str(Path(__file__).parent))
import nbread

root = Path(__file__).resolve().parents[1]


def relink(match):
    "A link that was relative to nbs/ becomes relative to the repository."
    text, target = match.groups()
    if re.match(r'\w+:|#|index_files/', target):
        return match[0]
    return f'{text}({os.path.normpath(os.path.join("nbs", target))})'


def main():
    nb = nbread.read((root / 'nbs/index.ipynb').read_text('utf8'))
    nb.cells = [c for c in nb.cells if '{toctree}' not in c.source]
    nb.metadata['language_info'] = {'name': 'python'}
    body, resources = MarkdownExporter().from_notebook_node(
        nb, {'unique_key': 'index', 'output_files_dir': 'index_files'}
    )
    body = re.sub(r'(!?\[[^]]*\])\(([^)\s]+)\)', relink, body)
    body = re.sub(r'\n{3,}', '\n\n', '\n'.join(line.rstrip() for line in body.splitlines())).strip() + '\n'
    (root / 'README.md').write_text(body, 'utf8')
    for name, data in resources['outputs'].items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)


if __name__ == '__main__':
    main()
