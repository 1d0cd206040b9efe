"""Lays out the sources of the site in FOLDER/source and builds FOLDER/html: `python docs/pages.py [FOLDER]`.

The sources are nbs/, texts of the repository, and a page for each module of the library.
"""

import ast, shutil, sys
from fnmatch import fnmatch
from pathlib import Path
import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import nbread

root = Path(__file__).resolve().parents[1]
# captions of the sidebar, and which notebooks stand below each
GROUPS = {
    'Start': ['guide', 'symbols', 'glossary', 'equations', 'bibliography'],
    'Method': ['0*', '1[0-2]_*'],
    'Models': ['1[3-8]_*'],
    'Baselines': ['baselines/*'],
    'Machine room': ['19_*', '2[0-9]_*', '3[0-9]_*'],
    'Experiments': ['experiments/*'],
}
FIRST = ['block', 'base', 'paper', 'hub', 'baselines.*', '*']  # modules in the order of the reference
# what is called most: what for, names
CALLED = {
    'load a model': ['base.TextModel.from_pretrained'],
    'write texts': ['block.BlockDiffuSeq.generate', 'paper.PaperDiffuSeq.generate'],
    'see a text come about': ['base.TextModel.trace'],
    'know what a text costs': ['base.TextModel.score', 'base.DiffuSeq.nelbo', 'block.BlockDiffuSeq.log_prob'],
    'train': ['data.load_pairs', 'config.make_config', 'hub.new_model', 'base.TextModel.fit'],
    'save, publish': ['base.TextModel.save_pretrained', 'base.TextModel.push_to_hub'],
    'judge texts': ['metrics.evaluate', 'mbr.mbr_select'],
}
# pages that are files of the repository: label in the sidebar, file
FILES = {
    'models/basic-english': ('Model card', 'diffuseq/pretrained/basic-english/README.md'),
    'data': ('Data cards', 'data/README.md'),
    'changelog': ('Changelog', 'CHANGELOG.md'),
    'contributing': ('Contributing', 'CONTRIBUTING.md'),
}
SHOWN = {'citation': 'CITATION.cff', 'licence': 'LICENSE'}  # such that are no Markdown


def notebooks(folder=root / 'nbs'):
    "{caption: {page: path}} of the notebooks that the sidebar names, in its order."
    found = {p.relative_to(folder).with_suffix('').as_posix(): p for p in nbread.paths(folder)}
    return {
        caption: {page: found[page] for pattern in patterns for page in found if fnmatch(page, pattern)}
        for caption, patterns in GROUPS.items()
    }


def label(page, path):
    "A notebook's title, behind the number that prose calls it by."
    number = path.stem.split('_')[0]
    return (f'{number} ' if number.isdigit() else '') + nbread.title(nbformat.read(path, 4))


def exported(page, path):
    "The module of a notebook, and [(name, whether it is a class, page, heading above it)] of its public names."
    cells = nbformat.read(path, 4).cells
    heading, names = '', []
    for c in cells:
        if c.cell_type == 'markdown':
            heading = [heading, *nbread.headings(c.source)][-1]
        elif c.cell_type == 'code':
            offered = nbread.offered(c.source)
            names += [(name, isinstance(node, ast.ClassDef), page, heading) for name, node in offered]
    return nbread.module([c.source for c in cells if c.cell_type == 'code']), names


def exports():
    "{module: what `exported` finds} of the modules with public names, in the order of the reference."
    found = dict(exported(page, path) for group in notebooks().values() for page, path in group.items())
    return {home: found[home] for pattern in FIRST for home in found if found[home] and fnmatch(home, pattern)}


def module_file(home):
    "Where a module stands in the repository."
    return f'diffuseq/{home.replace(".", "/")}.py'


def role(name):
    "A link to a name's place in the reference."
    return f'{{py:obj}}`{".".join(name.split(".")[-2:])} <diffuseq.{name}>`'


def toctree(caption, entries):
    "A list of pages in the sidebar."
    return '\n'.join(['```{toctree}', ':hidden:', *[f':caption: {caption}'] * bool(caption), '', *entries, '```'])


def sidebar():
    "The lists of all pages, as one cell."
    lists = [
        toctree(caption, [f'{label(page, path)} <{page}>' for page, path in group.items()])
        for caption, group in notebooks().items()
    ]
    lists.append(toctree('Reference', ['reference/index']))
    lists.append(toctree('Project', [*(f'{name} <{page}>' for page, (name, _) in FILES.items()), *SHOWN]))
    return nbformat.v4.new_markdown_cell('\n\n'.join(lists))


INTRODUCTION = """# Reference

Every public class and function, from its signature and the comments beside its parameters. Each links to the section
that derives it, and that section links back.
"""


def reference(found):
    "{page: text} of the reference: what is called most and a list of modules, then a page for each."
    says = {home: ast.get_docstring(ast.parse((root / module_file(home)).read_text('utf8'))) for home in found}
    called = [f'| {what} | {", ".join(map(role, names))} |' for what, names in CALLED.items()]
    modules = [f'| [diffuseq.{home}]({home}.rst) | {text} |' for home, text in says.items()]
    tables = ['| to | call |\n|---|---|', *called, '\n| module | what it holds |\n|---|---|', *modules]
    pages = {'index.md': '\n'.join([INTRODUCTION, *tables, '', toctree('', found)])}
    for home, names in found.items():
        title = f'diffuseq.{home}'
        parts = [title, '=' * len(title), f'.. automodule:: {title}']
        parts += [f'.. autoclass:: {title}.{name}\n   :members:' for name, is_class, *_ in names if is_class]
        parts += [f'.. autofunction:: {title}.{name}' for name, is_class, *_ in names if not is_class]
        pages[f'{home}.rst'] = '\n\n'.join(parts).replace('\n\n=', '\n=', 1)
    return pages


def write(path, text):
    "A text file, and its folder."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, 'utf8')


def lay(folder):
    "The sources of the site."
    source = folder / 'source'
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / 'nbs', source, ignore=shutil.ignore_patterns('.*', '_*', 'runs', 'fixtures'))
    shutil.copytree(root / 'figures', folder / 'figures', dirs_exist_ok=True)
    front = nbformat.read(root / 'nbs/index.ipynb', 4)
    cite = next(c.source for c in front.cells if c.source.startswith('## How to cite'))
    front.cells.append(sidebar())
    nbformat.write(front, source / 'index.ipynb')
    for page, (_, name) in FILES.items():
        write(source / f'{page}.md', (root / name).read_text('utf8'))
    for page, name in SHOWN.items():
        before = cite.removeprefix('#') + f'\n\n`{name}`:\n' if page == 'citation' else f'# {page.capitalize()}\n'
        write(source / f'{page}.md', f'{before}\n```text\n{(root / name).read_text("utf8")}```\n')
    for page, text in reference(exports()).items():
        write(source / 'reference' / page, text)
    return source


def main(folder='_docs'):
    from sphinx.cmd.build import build_main

    folder = Path(folder).resolve()
    strict = ['-q', '-W', '--keep-going']
    places = ['-c', root / 'docs', '-b', 'html', '-d', folder / 'doctrees', lay(folder), folder / 'html']
    sys.exit(build_main([*strict, *map(str, places)]))


if __name__ == '__main__':
    main(*sys.argv[1:])
