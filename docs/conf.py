"The site: Sphinx over the notebooks of nbs/ with their committed outputs; formulas by a local MathJax, so that it reads offline."

import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from docutils import nodes

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here.parent / 'settings.ini', encoding='utf8')

project, author, release = 'DiffuSeq', cfg['DEFAULT']['author'], cfg['DEFAULT']['version']
html_title = f'DiffuSeq {release}'
extensions, html_theme, nb_execution_mode = ['myst_nb'], 'furo', 'off'
nb_custom_formats = {'.ipynb': 'nbread.read'}
myst_enable_extensions, myst_dmath_double_inline = ['dollarmath', 'amsmath'], True
myst_heading_anchors = 3
suppress_warnings = ['misc.highlighting_failure']
exclude_patterns = ['**.ipynb_checkpoints', 'fixtures', 'runs']
mathjax = Path(find_spec('sphinx-mathjax-offline').submodule_search_locations[0]) / 'static/mathjax/tex-svg-full.js'
html_static_path, mathjax_path = [str(mathjax), str(here / 'site.css')], mathjax.name
html_css_files = ['site.css']
mathjax3_config = {'chtml': {'scale': 0.95}, 'svg': {'scale': 0.95}}
html_copy_source, html_show_sourcelink = False, False


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
