"Fills in the tables of nbs/index.ipynb that are found elsewhere, and writes README.md from it."

import json, os, re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

sys.path.insert(0, str(Path(__file__).parent))
import nbread, pages

root = Path(__file__).resolve().parents[1]
# rows of figures/orders-package.json, and what they are called on the front page
RESULTS = {
    'copy of the source': 'the source, copied unchanged',
    'DiffuSeq left to right': 'left to right, word by word',
    'DiffuSeq semi-autoregressive, no limit': '**left to right, several words per call (the default)**',
    'DiffuSeq semi-autoregressive, 20 steps': 'the same, 20 calls at most',
    'DiffuSeq left to right, beam of 5': 'left to right, beam of 5',
    'DiffuSeq by confidence, 20 steps': 'by confidence, 20 calls',
    'DiffuSeq parallel, 20 steps': "in parallel (the paper's order), 20 calls",
}


def results():
    "What each way of writing is worth, from the record."
    record = json.loads((root / 'figures/orders-package.json').read_text('utf8'))
    rows = {row['model']: row for row in record['rows']}
    out = ['| | BLEU | 95% interval | ROUGE-L | BERTScore | SARI |', '|---|---|---|---|---|---|']
    for name, shown in RESULTS.items():
        row = rows[name]
        interval = f'{row["low"]:.3f}–{row["high"]:.3f}' if 'low' in row else ''
        scores = f'{row["rouge_l"]:.3f} | {row["bertscore"]:.3f} | {row["sari"]:.1f}'
        out.append(f'| {shown} | {row["bleu"]:.3f} | {interval} | {scores} |')
    return '\n'.join(out)


def contents():
    "All notebooks, a row for each caption of the sidebar."
    rows = [
        f'| {caption} | {" · ".join(f"[{pages.label(page, path)}]({page}.ipynb)" for page, path in group.items())} |'
        for caption, group in pages.notebooks().items()
    ]
    return '\n'.join(['| | |', '|---|---|', *rows])


def fill(nb):
    "Put each table behind its mark."
    for mark, table in {'<!-- results -->': results, '<!-- contents -->': contents}.items():
        cell = next(c for c in nb.cells if mark in c.source)
        cell.source = re.sub(rf'{mark}(?:\n+\|.*)*', lambda _: f'{mark}\n\n{table()}', cell.source)


def relink(match):
    "A link that was relative to nbs/ becomes relative to the repository; one to a page of the site, to what it shows."
    text, target = match.groups()
    if re.match(r'\w+:|#|index_files/', target):
        return match[0]
    if found := re.match(r'reference/([\w.]+)\.', target):
        return f'{text}({"diffuseq" if found[1] == "index" else pages.module_file(found[1])})'
    if target.removesuffix('.md') in pages.FILES:
        return f'{text}({pages.FILES[target.removesuffix(".md")][1]})'
    return f'{text}({os.path.normpath(os.path.join("nbs", target))})'


def main():
    path = root / 'nbs/index.ipynb'
    nb = nbformat.read(path, 4)
    fill(nb)
    nbformat.write(nb, path)
    nb = nbread.read(path.read_text('utf8'))
    nb.cells = [c for c in nb.cells if c.cell_type == 'markdown']  # what moves stays on the site
    nb.metadata['language_info'] = {'name': 'python'}
    body, resources = MarkdownExporter().from_notebook_node(
        nb, {'unique_key': 'index', 'output_files_dir': 'index_files'}
    )
    body = re.sub(r'<!--.*?-->', '', body)
    body = re.sub(r'(!?\[[^]]*\])\(([^)\s]+)\)', relink, body)
    body = re.sub(r'\n{3,}', '\n\n', '\n'.join(line.rstrip() for line in body.splitlines())).strip() + '\n'
    (root / 'README.md').write_text(body, 'utf8')
    for name, data in resources['outputs'].items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)


if __name__ == '__main__':
    main()
