"What a notebook shows while a model is trained and writes: a real kernel runs a cell, its widgets are read."

import html, re
import nbclient, nbformat, pytest

CELL = """
from diffuseq.config import make_config
from diffuseq.hub import load_model, new_model

model = load_model('basic-english')
model.generate(['and he said', 'yes'])
model.generate(['in silence'], progress=False)
pairs = [('and he said', 'he said')] * 20
small = new_model(make_config(profile='smoke'), model.tokenizer)
small.fit(pairs, pairs, RUN, minutes=0.02, device='cpu')
"""


def shown(code):
    "The text of each bar when a cell has ended."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = nbclient.NotebookClient(nb, kernel_name='python3', timeout=120)
    client.execute()
    said = [state['value'] for state in client.widget_state.values() if state.get('_model_name') == 'HTMLModel']
    return [html.unescape(text).replace('\u2007', ' ').strip() for text in said]


@pytest.fixture
def loud(monkeypatch):
    "Bars are as a user has them, but those of other libraries."
    monkeypatch.delenv('TQDM_DISABLE')


def test_bars_in_a_notebook(loud, tmp_path):
    texts = shown(CELL.replace('RUN', repr(str(tmp_path / 'run'))))
    (generated,) = (t for t in texts if 'text/s' in t)
    assert generated.startswith('2/2 [')
    (trained,) = (t for t in texts if 'held-out loss' in t)
    assert re.fullmatch(r'0\.0 of 0\.02 min, \d+ updates, loss \d\.\d{3}, held-out loss \d\.\d{3}, 00:00 left', trained)
    assert not [t for t in texts if 's/s' in t.replace('text/s', '').replace('examples/s', '')]
