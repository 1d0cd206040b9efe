"What is shown of a generation is what happened: every way of writing, in HTML that nothing in a sentence can break."

import html, json, math, os, re, signal, socket, struct, subprocess, sys, threading
from html.parser import HTMLParser
from http.client import HTTPConnection
from urllib.parse import urlencode
from xml.etree import ElementTree
import pytest, tiny, torch
from diffuseq.base import TextModel
from diffuseq.cli import main
from diffuseq.config import ORDERS, make_decoding
from diffuseq.trace import LEAST, Demo, Recorder, evenly, every_order, open_demo, said_in, show_trace, watch
from tiny import SOURCES

quiet = dict(progress=False)
SAMPLERS = ('ddpm', 'ddim', 'dpmpp', 'renoise')
WAYS = [
    ('fast', dict(order='left-to-right')),
    ('fast', dict(order='left-to-right', beam=3)),
    ('fast', dict(order='left-to-right', end='predicted')),
]
WAYS += [('fast', dict(order='confidence', steps=3)), ('fast', dict(order='confidence', temperature=1.0))]
WAYS += [
    ('fast', dict(order='left-to-right', temperature=1.0)),
    ('autoregressive', {}),
    ('autoregressive', dict(beam=2)),
]
WAYS += [('fast', dict(order='parallel', sampler=sampler)) for sampler in SAMPLERS]
WAYS += [('fast', dict(order='parallel', temperature=1.0)), ('fast', dict(order='parallel', rounding=False))]
WAYS += [(recipe, dict(sampler=s)) for recipe in ('paper', 'v2') for s in (*SAMPLERS, 'repredict')]
WAYS += [('paper', dict(rounding=False)), ('official', dict(readout='logits'))]
FEW = [('fast', dict(order='semi-autoregressive', calls=calls)) for calls in (0, 2)]
WAYS += [*FEW, ('fast', dict(order='semi-autoregressive', temperature=1.0))]
every_way = pytest.mark.parametrize('recipe, way', WAYS, ids=str)


@pytest.fixture(scope='module')
def writers(models):
    "Tiny models of all recipes with random weights, in double precision."
    out = dict(models)
    for recipe, changes in (('autoregressive', {}), ('official', dict(T=50)), ('v2', dict(T=50))):
        c = tiny.config(recipe, **changes) if recipe == 'autoregressive' else tiny.config('paper', **changes)
        if recipe != 'autoregressive':
            c = tiny.make_config(recipe=recipe, profile='smoke', T=50)
        steps = {} if recipe == 'autoregressive' else dict(steps=4)
        out[recipe] = tiny.model(c, decoding=make_decoding(c, **steps)).double().eval()
    generator = torch.Generator().manual_seed(1)
    for p in out['autoregressive'].parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return out


def written(step):
    "The last line of a step as a text, up to its end, without what `decode` leaves out."
    said = said_in(step, len(step.places[0][2]) - 1) if step.places else []
    text = ''.join(' ' * blank + word for blank, word, _, _ in said)
    return re.sub(r'·|\[(PAD|CLS|MASK)\]', '', text.split('[SEP]')[0])


def same(a, b):
    "Whether two texts are the same but for blanks, and for the sign that a first word goes on with another one."
    return a.removeprefix('##').split() == b.removeprefix('##').split()


# ---- what is shown is what was written


@every_way
def test_the_last_step_is_the_text_and_looking_changes_nothing(writers, recipe, way):
    m = writers[recipe]
    trace = show_trace(m, SOURCES[1], **way)
    assert [trace.text] == m.generate([SOURCES[1]], **way, **quiet)
    assert same(written(trace.steps[-1]), trace.text)
    _, k, _, n = re.split(r'[ ,]', trace.steps[-1].label)[:4]
    assert k == n and len(trace.steps) == min(int(n), 24)


@every_way
def test_a_callback_is_told_probabilities_of_what_it_is_asked_about(writers, recipe, way):
    m = writers[recipe]
    calls = []
    m.generate(SOURCES[:3], **way, callback=lambda *told: calls.append(told), **quiet)
    assert calls
    for ids, masked, words, said in calls:
        p = said['p']
        assert said['asked'].shape == ids.shape == masked.shape == words.shape
        assert p.shape == (int(said['asked'].sum()), len(m.tokenizer)) and (p >= 0).all()
        # of the whole vocabulary, less what is never written
        assert (p.sum(-1) < 1 + 1e-9).all() and (p.sum(-1) > 0.5).all()


@every_way
def test_numbers_of_a_trace(writers, recipe, way):
    for step in show_trace(writers[recipe], SOURCES[1], **way).steps:
        for _, call, views in step.places:
            for view in views:
                p, near = view[0][1], view[1:]
                assert p is None or 0 <= p <= near[0][1] + 1e-9 <= 1 + 2e-9
                assert [q for _, q in near] == sorted((q for _, q in near), reverse=True)
                assert sum(q for _, q in near) < 1 + 1e-9 and call >= 1
                assert p is None or all(q >= LEAST for _, q in near[1:])


def test_left_to_right_the_numbers_multiply_to_the_probability_of_the_text(writers):
    for recipe, way in WAYS[:2] + WAYS[6:8] + FEW[:1]:
        m = writers[recipe]
        recorder = Recorder(m)
        m.generate([SOURCES[1]], callback=recorder, **way, **quiet)
        places = [place for place in recorder.calls[-1][1][0] if place]
        ids = [place.word for place in places]
        logs = sum(math.log(place.p) for place in places)
        rows = [
            dict(src_ids=m.window.encode_source(m.tokenizer.encode(SOURCES[1], add_special_tokens=False), m.tokenizer))
        ]
        cache, last, total = m.encode(rows), torch.tensor([m.tokenizer.cls_token_id]), 0.0
        with torch.no_grad():
            for k, word in enumerate(ids):
                p, cache = m.next_word(last, cache, k)
                total += (p[0, word] / p[0].sum()).log()
                last = torch.tensor([word])
        assert abs(total - logs) < 1e-9, (recipe, way)


@pytest.mark.parametrize('recipe, way', [WAYS[0], WAYS[3], WAYS[8], WAYS[14], FEW[0]], ids=str)
def test_every_candidate_is_watched_as_it_is_written(writers, recipe, way):
    m = writers[recipe]
    how = way | (dict(temperature=1.0) if recipe == 'fast' else {})
    traces = watch(m, SOURCES[1], n=3, **how)
    assert [t.text for t in traces] == m.generate([SOURCES[1]], n=3, **how, **quiet)[0]
    for t in traces:
        assert same(written(t.steps[-1]), t.text)


@pytest.mark.parametrize('recipe, way', WAYS[:2] + WAYS[6:8], ids=str)
def test_left_to_right_word_k_is_written_in_call_k(writers, recipe, way):
    recorder = Recorder(writers[recipe])
    writers[recipe].generate([SOURCES[1]], callback=recorder, **way, **quiet)
    for k, (_, [row]) in enumerate(recorder.calls, 1):
        assert [place.call for place in row if place] == list(range(1, k + 1))[: len([p for p in row if p])]


def test_of_a_beam_the_best_is_watched(writers):
    beams = dict(n=3, order='left-to-right', beam=3)
    traces = watch(writers['fast'], SOURCES[1], **beams)
    assert [bool(t.steps) for t in traces] == [True, False, False]
    for trace in traces:
        assert Page(trace._repr_html_()).names.count('script') == 2 * bool(trace.steps)
        ElementTree.fromstring(trace._repr_mimebundle_()['image/svg+xml'])
    assert [t.text for t in traces] == writers['fast'].generate([SOURCES[1]], **beams, **quiet)[0]


def test_candidates_that_were_begun_anew_are_not_mixed(writers):
    recorder = Recorder(writers['fast'])
    with pytest.raises(RuntimeError, match='watch fewer'):
        writers['fast'].generate([SOURCES[1]], n=3, order='confidence', batch_size=2, callback=recorder, **quiet)


def test_of_many_calls_some_are_shown(writers):
    trace = show_trace(writers['paper'], SOURCES[1], steps=50)
    assert [step.label.split()[1] for step in trace.steps] == [str(k + 1) for k in evenly(50, 24)]
    assert 't = 50 ' in trace.steps[0].label and trace.steps[-1].label.endswith('→ 0')


def test_orders_that_were_not_taught_are_left_out(writers):
    assert [w['order'] for w in every_order(writers['fast'])] == list(ORDERS)
    assert every_order(tiny.model(levels='shared')) == [dict(order='parallel')]
    assert every_order(writers['paper']) == [dict(steps=4)] and every_order(writers['autoregressive']) == [{}]


# ---- what it looks like


class Page(HTMLParser):
    "Elements of a page, what they would load, and that each is closed."

    def __init__(self, text):
        super().__init__()
        self.names, self.open, self.loads = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        self.loads += [v for key, v in attributes if key in ('src', 'href', 'action', 'srcset') and v != 'data:,']
        self.open += [name] * (name not in ('br', 'meta', 'link', 'input'))

    def handle_endtag(self, name):
        assert self.open.pop() == name


BAD = ['</script><script>alert(1)</script>', '<b>&amp;"\' -->', '<!-- <img src=x onerror=alert(1)>', '\u2028]]>{}']


@pytest.mark.parametrize('source', BAD)
@pytest.mark.parametrize('recipe', ['fast', 'paper'])
def test_markup_in_a_sentence_is_text(writers, recipe, source):
    bundle = show_trace(writers[recipe], source)._repr_mimebundle_()
    page = Page(bundle['text/html'])
    assert page.names.count('script') == 2 and not page.loads and not {'b', 'img'} & set(page.names)
    assert html.escape(source) in bundle['text/html']
    assert source in ''.join(ElementTree.fromstring(bundle['image/svg+xml']).itertext())


@pytest.mark.parametrize('recipe, way', [WAYS[0], WAYS[3], WAYS[8], WAYS[14], FEW[0]], ids=str)
def test_the_data_of_the_slider_say_the_same(writers, recipe, way):
    trace = show_trace(writers[recipe], SOURCES[1], **way)
    text = trace._repr_html_()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.S)[1])
    assert data['names'] == trace.names and len(data['steps']) == len(trace.steps)
    before = []
    for told, step in zip(data['steps'], trace.steps):
        before = [place or before[i] for i, place in enumerate(told['places'])]
        for (masked, call, views), place in zip(before, step.places, strict=True):
            assert (masked, call) == (place[0], place[1])
            for flat, view in zip(views, place[2], strict=True):
                words = [data['words'][i] for i in flat[::2]]
                assert words == [word for word, _ in view]
                assert all(p == q or abs(p / 1000 - q) <= 0.0005 for p, (_, q) in zip(flat[1::2], view))
    assert len(text.encode()) < 100_000


def test_what_cannot_be_watched_is_refused(writers):
    with pytest.raises(ValueError, match='nothing to watch'):
        show_trace(writers['fast'], ' ')
    with pytest.raises(ValueError, match='choose afterwards'):
        show_trace(writers['fast'], 'a', n=2, mbr=True)


# ---- the page where one types


@pytest.fixture(scope='module')
def demo(writers):
    server = open_demo(writers['fast'], 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(server, path, method='GET', **headers):
    "Status and body of an answer."
    c = HTTPConnection('127.0.0.1', server.server_port, timeout=60)
    c.request(method, path, headers=headers)
    answer = c.getresponse()
    return answer.status, answer.read().decode()


def test_the_demo_answers(demo, writers):
    asked = dict(source=f'{SOURCES[1]} <b>', order='confidence', steps='3', temperature='', n='2')
    status, body = get(demo, '/?' + urlencode(asked))
    page = Page(body)
    assert status == 200 and not page.loads and page.names.count('b') == 0
    for text in writers['fast'].generate([asked['source']], n=2, order='confidence', steps=3, **quiet)[0]:
        assert html.escape(text) in body
    assert get(demo, '/')[0] == 200


@pytest.mark.parametrize(
    'query, words',
    [
        (dict(source=' \n'), 'type a sentence'),
        (dict(source='a', steps='0', order='confidence'), 'steps=0'),
        (dict(source='a', steps='9999999', order='confidence'), 'larger than T'),
        (dict(source='a', order='left-to-right', steps='3'), 'no effect with order'),
        (dict(source='a', steps='<script>'), '&lt;script&gt;'),
        (dict(source='a', temperature='nan'), 'finite'),
        (dict(source='a', n='-1'), 'n=-1'),
        (dict(source='a', n='11'), 'at most 10'),
        (dict(source='a', seed='-1'), 'seed=-1'),
        (dict(source='a\0b'), 'U+0000'),
        (dict(source='a' * 3000), 'at most 2000'),
        (dict(source='a', batch_size='3'), 'no field'),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_on_the_page(demo, query, words):
    status, body = get(demo, '/?' + urlencode(query))
    assert status == 400 and words in re.search(r'role="alert">(.*?)</p>', body)[1] and Page(body)


def test_the_demo_refuses_other_hosts_paths_and_methods(demo):
    assert get(demo, '/', Host='example.com')[0] == 403 and get(demo, '/', Host='127.0.0.1.example.com:80')[0] == 403
    assert get(demo, '/', Host=f'localhost:{demo.server_port}')[0] == 200
    assert get(demo, '/../etc/passwd')[0] == 404 and get(demo, '/', method='POST')[0] == 501
    assert demo.server_address[0] == '127.0.0.1'
    with pytest.raises(ValueError, match='is in use; name another'):
        open_demo(demo.model, demo.server_port)
    with pytest.raises(ValueError, match='cannot be opened'):
        open_demo(demo.model, 70000)


def test_a_browser_that_goes_elsewhere_is_no_error(demo, capfd):
    for _ in range(3):
        s = socket.create_connection(demo.server_address)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # closes with a reset
        s.sendall(b'GET /?source=a HTTP/1.0\r\nHost: localhost:1\r\n\r\n')
        s.close()
    assert get(demo, '/?source=a')[0] == 200  # after the others
    assert capfd.readouterr().err == ''


def test_one_text_at_a_time(demo, monkeypatch):
    monkeypatch.setattr(Demo, 'patience', 0.05)
    with demo.writing:
        status, body = get(demo, '/?source=a')
    assert status == 503 and 'another text is being written' in body
    assert get(demo, '/?source=a')[0] == 200


def test_memory_that_runs_out_is_said_on_the_page(demo, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(TextModel, 'write_all', fail)
    status, body = get(demo, '/?source=a')
    assert status == 503 and 'memory ran out' in body


def test_interrupted_while_it_writes_it_ends_quietly(tmp_path, writers):
    writers['fast'].save_pretrained(tmp_path / 'model')
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    p = subprocess.Popen(
        [sys.executable, '-m', 'diffuseq', 'demo', '--port', '0', '--model', tmp_path / 'model'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(HF_HUB_OFFLINE='1'),
        preexec_fn=heard,
    )
    port = int(re.search(r':(\d+)/', p.stdout.readline())[1])
    for query in ({}, dict(source=SOURCES[1], order='parallel', steps=50, n=10)):
        c = HTTPConnection('127.0.0.1', port, timeout=60)
        c.request('GET', '/?' + urlencode(query))
        assert query or c.getresponse().read()  # it serves; the second answer is not waited for
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert (p.returncode, err) == (0, ''), err


def test_show_leaves_a_page_with_every_order(tmp_path, writers, capsys):
    writers['fast'].save_pretrained(tmp_path)
    (tmp_path / 'metrics.json').write_text(json.dumps(dict(title='A run', table=[dict(model='it', bleu=0.5)])))
    sample = dict(source=f'{SOURCES[1]} <b>', generated='x', reference='z')
    (tmp_path / 'samples.jsonl').write_text(json.dumps(sample) + '\n')
    path = tmp_path / 'trace.html'
    assert main(['show', str(tmp_path), '--trace', str(path)]) == 0
    assert f'step by step how a text is generated: {path}\n' in capsys.readouterr().out
    page = Page(path.read_text('utf8'))
    assert page.names.count('table') == len(ORDERS) and page.names.count('b') == 0 and not page.loads


def test_in_parallel_a_chain_begins_at_the_absorbing_state(writers):
    m = writers['fast']
    told = []
    m.generate(SOURCES[:1], order='parallel', steps=3, callback=lambda *said: told.append(said[3]), **quiet)
    at_m = [(said['z'][said['asked']] == m.absorb).all().item() for said in told]
    assert [said['t'] for said in told][0] == m.config.T and at_m == [True, False, False]
