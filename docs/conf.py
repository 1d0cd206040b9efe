"The site: Sphinx over the notebooks, outputs included, and the library; a local MathJax, so that it reads offline."

import dataclasses, inspect, re, sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from docutils import nodes
from fastcore.docments import docments

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent)]
import nbread, pages

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here.parent / 'settings.ini', encoding='utf8')

project = 'DiffuSeq'
author = cfg['DEFAULT']['author']
release = cfg['DEFAULT']['version']
html_title = f'DiffuSeq {release}'
html_theme = 'furo'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
nb_execution_mode = 'off'
nb_custom_formats = {'.ipynb': 'nbread.read'}
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence']
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ['misc.highlighting_failure']
default_role = 'code'
smartquotes = False  # comments quote strings
autodoc_member_order = 'bysource'
autodoc_default_options = {'show-inheritance': True}
autodoc_inherit_docstrings = False
napoleon_google_docstring = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'
mathjax = Path(find_spec('sphinx-mathjax-offline').submodule_search_locations[0]) / 'static/mathjax/tex-svg-full.js'
mathjax_path = mathjax.name
templates_path = [str(here / 'templates')]
html_static_path = [str(mathjax), str(here / 'site.css')]
html_css_files = ['site.css']
html_theme_options = {'top_of_page_buttons': ['view']}  # templates/: the notebook, to be downloaded
html_sourcelink_suffix = ''
html_domain_indices = False  # reference/index lists the modules
mathjax3_config = {'chtml': {'scale': 0.95}, 'svg': {'scale': 0.95}}

derived = {
    f'diffuseq.{home}.{name}': (page, heading)
    for home, names in pages.exports().items()
    for name, _, page, heading in names
}


def raw_display_math(app, doctree):
    r"Sphinx would wrap a display that holds `\\` in `split`, where MathJax refuses `\tag`: hand it over as written."
    for n in doctree.findall(nodes.math_block):
        if n.get('no-wrap') or n.get('nowrap') or 'amsmath' in n['classes']:
            continue
        text = n.astext()
        n.clear()
        n += nodes.Text('\\[' + text + '\\]')
        n['no-wrap'] = n['nowrap'] = True


def escaped(text):
    "A line without markup but `code`."
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(part if part.startswith('`') else re.sub(r'([*|\\]|_\b)', r'\\\1', part) for part in parts)


def parameters(what, obj):
    "What is called with, as fields: from the comments beside parameters, or the fields of a configuration."
    if dataclasses.is_dataclass(obj):
        own = [field for field in dataclasses.fields(obj) if field.name in vars(obj)['__annotations__']]
        return [line for field in own for line in setting(obj, field)]
    if what == 'class':
        obj = vars(obj).get('__init__')
    if not inspect.isroutine(obj):
        return []
    said = {name: text.replace('\n', ' ') for name, text in docments(obj).items() if text}
    result = [f':returns: {escaped(said.pop("return"))}'] if 'return' in said else []
    return [f':param {name}: {escaped(text)}' for name, text in said.items()] + result


def setting(owner, field):
    "One field of a configuration: its type, what it means, its default."
    said = docments(owner).get(field.name) or ''
    default = '' if field.default is dataclasses.MISSING else f' (default `{field.default!r}`)'
    return [f':param {field.name}: {escaped(said)}{default}', f':type {field.name}: {field.type.__name__}']


def before_sections(app, what, name, obj, options, lines):
    "Docstrings are plain text with `code`."
    lines[:] = [line if re.fullmatch(r'\s*-+', line) else escaped(line) for line in lines]
    if what == 'property':
        lines.insert(0, '')  # or napoleon takes what stands before a colon for a type


def after_sections(app, what, name, obj, options, lines):
    "Parameters before what is raised; where a name is derived."
    at = next((i for i, line in enumerate(lines) if line.startswith(':raises')), len(lines))
    lines[at:at] = ['', *parameters(what, obj)] if at == len(lines) else parameters(what, obj)
    if name in derived:
        page, heading = derived[name]
        title = escaped(re.sub(r'\$[^$]*\$', '…', heading))
        lines += ['', f'*Derived in* `{Path(page).stem}, {title} <../{page}.html#{nbread.slug(heading)}>`__', '']


def without_fields(app, what, name, obj, options, signature, returned):
    "The fields of a configuration stand below it, each with what it means."
    return ('', None) if dataclasses.is_dataclass(obj) else None


def setup(app):
    app.connect('doctree-read', raw_display_math)
    app.connect('autodoc-process-signature', without_fields)
    app.connect('autodoc-process-docstring', before_sections, priority=400)  # napoleon: 500
    app.connect('autodoc-process-docstring', after_sections, priority=600)
