"What a notebook shows while a model is trained and writes: a real kernel runs a cell, its widgets are read."

import html, re
import nbclient, nbformat

CELL = """
from diffuseq.config import make_config
from diffuseq.hub import load_model, new_model

model = load_model('basic-english')
model.generate(['and he said', 'yes'])
model.generate(['in silence'], progress=False)
pairs = [('and he said', 'he said')] * 20
small = new_model(make_config(profile='smoke'), model.tokenizer)
small.fit(pairs, pairs, RUN, minutes=60, max_updates=20, device='cpu')
"""


def shown(code):
    "The text of each bar when a cell has ended."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = nbclient.NotebookClient(nb, kernel_name='python3', timeout=120)
    client.execute()
    said = [state['value'] for state in client.widget_state.values() if state.get('_model_name') == 'HTMLModel']
    return [html.unescape(text).replace('\u2007', ' ').strip() for text in said]


def test_bars_in_a_notebook(monkeypatch, tmp_path):
    monkeypatch.delenv('TQDM_DISABLE')
    texts = shown(CELL.replace('RUN', repr(str(tmp_path / 'run'))))
    (generated,) = (t for t in texts if 'text/s' in t)
    assert generated.startswith('2/2 [')
    (trained,) = (t for t in texts if 'held-out loss' in t)
    says = r'\d+\.\d of 60 min, 20 updates, loss \d+\.\d{3}, held-out loss \d+\.\d{3}, \S+ left'
    assert re.fullmatch(says, trained), trained
