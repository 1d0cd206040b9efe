"The site: Sphinx over the notebooks of nbs/ with their committed outputs; a local MathJax, so that it reads offline."

import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from docutils import nodes

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here.parent / 'settings.ini', encoding='utf8')

project = 'DiffuSeq'
author = cfg['DEFAULT']['author']
release = cfg['DEFAULT']['version']
html_title = f'DiffuSeq {release}'
html_theme = 'furo'
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_custom_formats = {'.ipynb': 'nbread.read'}
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ['misc.highlighting_failure']
exclude_patterns = ['**.ipynb_checkpoints', 'fixtures', 'runs']
mathjax = Path(find_spec('sphinx-mathjax-offline').submodule_search_locations[0]) / 'static/mathjax/tex-svg-full.js'
mathjax_path = mathjax.name
html_static_path = [str(mathjax), str(here / 'site.css')]
html_css_files = ['site.css']
mathjax3_config = {'chtml': {'scale': 0.95}, 'svg': {'scale': 0.95}}
html_copy_source = False
html_show_sourcelink = False


def raw_display_math(app, doctree):
    r"Sphinx would wrap a display that holds `\\` in `split`, where MathJax refuses `\tag`: hand it over as written."
    for n in doctree.findall(nodes.math_block):
        if n.get('no-wrap') or n.get('nowrap') or 'amsmath' in n['classes']:
            continue
        text = n.astext()
        n.clear()
        n += nodes.Text('\\[' + text + '\\]')
        n['no-wrap'] = n['nowrap'] = True


def setup(app):
    app.connect('doctree-read', raw_display_math)
