"""Models that go to the hub and come back, by the hub's own client: what answers it is a small server of this machine.

The server keeps files in memory and speaks as much of the hub's interface as saving and loading a model needs.
"""

import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import huggingface_hub, pytest, torch
from huggingface_hub import ModelCard
import tiny
from tiny import SOURCES
from diffuseq.hub import load_model, model_folder

quiet = dict(progress=False)
ID = 'someone/verses'


class Hub(BaseHTTPRequestHandler):
    "Answers for `server.shelf`: {repository: {file: bytes}}."

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def answer(self, status, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def absent(self, code):
        self.answer(404, dict(error=code), X_Error_Code=code)

    def commit(self, repo):
        "A digest of all files of a repository: its revision."
        files = self.server.shelf[repo]
        return hashlib.sha1(
            repr(sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items())).encode()
        ).hexdigest()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.server.asked.append((self.path, self.headers.get('Authorization')))
        if self.path == '/api/repos/create':
            wanted = json.loads(body)
            name = '/'.join(filter(None, [wanted.get('organization'), wanted['name']]))
            name = name if '/' in name else f'someone/{name}'
            known = name in self.server.shelf
            self.server.shelf.setdefault(name, {'.gitattributes': b''})
            return self.answer(409 if known else 200, dict(url=f'{self.server.url}/{name}', name=name))
        if self.path == '/api/validate-yaml':
            self.server.cards.append(json.loads(body)['content'])
            return self.answer(200, dict(errors=[], warnings=[]))
        found = re.fullmatch(r'/api/models/(.+)/(preupload|commit)/main', self.path)
        repo, what = found.groups()
        if what == 'preupload':
            files = [dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]
            return self.answer(200, dict(files=files))
        for line in map(json.loads, body.splitlines()):
            if line['key'] == 'file':
                self.server.shelf[repo][line['value']['path']] = base64.b64decode(line['value']['content'])
            else:
                self.server.messages.append(line['value']['summary'])
        sha = self.commit(repo)
        self.answer(200, dict(commitUrl=f'{self.server.url}/{repo}/commit/{sha}', commitOid=sha, hookOutput=''))

    def do_GET(self):
        path, _, _ = self.path.partition('?')
        self.server.asked.append((path, self.headers.get('Authorization')))
        if found := re.fullmatch(r'/(.+)/resolve/[^/]+/(.+)', path):
            repo, name = found.groups()
            if repo not in self.server.shelf:
                return self.absent('RepoNotFound')
            if name not in self.server.shelf[repo]:
                return self.absent('EntryNotFound')
            data = self.server.shelf[repo][name]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(200, data, ETag=etag, X_Repo_Commit=self.commit(repo))
        repo, _, rest = path.removeprefix('/api/models/').partition('/revision/')
        repo, _, tree = repo.partition('/tree/')
        if repo not in self.server.shelf:
            return self.absent('RepoNotFound')
        files = self.server.shelf[repo]
        if tree:
            listed = [dict(type='file', path=n, size=len(b), oid=hashlib.sha1(b).hexdigest()) for n, b in files.items()]
            return self.answer(200, listed)
        siblings = [dict(rfilename=n) for n in files]
        self.answer(200, dict(id=repo, modelId=repo, sha=self.commit(repo), siblings=siblings, tags=[], private=False))

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub, empty at first, where the client looks for one; and an empty cache."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.shelf, server.asked, server.cards, server.messages = {}, [], [], []
    server.url = f'http://127.0.0.1:{server.server_port}'
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, 'ENDPOINT', server.url)
    template = server.url + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    huggingface_hub.close_session()
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    huggingface_hub.close_session()


@pytest.mark.parametrize('recipe', ['fast', 'paper', *tiny.LEFT, 'gpvae-t5'])
def test_pushed_and_loaded_by_its_id(recipe, hub):
    m = tiny.model(tiny.config(recipe))
    m.push_to_hub(ID, commit_message='first', token='hf_of_a_test')
    keys = {key for path, key in hub.asked if 'repos' in path or ID in path}
    assert hub.messages == ['first'] and keys == {'Bearer hf_of_a_test'}
    hub.shelf[ID]['training.log'] = b'of no use'
    again = load_model(ID)
    assert type(again) is type(m) and (again.config, again.decoding) == (m.config, m.decoding)
    assert all(torch.equal(a, b) for a, b in zip(m.parameters(), again.parameters()))
    assert again.generate(SOURCES, **quiet) == m.generate(SOURCES, **quiet)
    assert not (model_folder(ID) / 'training.log').exists() and not (model_folder(ID) / 'README.md').exists()
    next(m.parameters()).data += 1
    m.push_to_hub(ID)
    assert torch.equal(next(load_model(ID).parameters()), next(m.parameters()))


def test_a_card_goes_with_it_and_is_brought_up_to_date(hub):
    m = tiny.model()
    m.push_to_hub(ID)
    card = ModelCard(hub.shelf[ID]['README.md'].decode())
    assert (
        card.data.language == 'en'
        and card.data.datasets == ['basic-english']
        and card.text.strip().startswith('# verses')
    )
    assert card.data.get('model-index') is None and card.data.eval_results is None
    m.push_to_hub(ID, metrics=dict(bleu=0.412349, sari=61.0))
    card = ModelCard(hub.shelf[ID]['README.md'].decode())
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [('bleu', 0.4123), ('sari', 61.0)]
    assert len({*hub.cards}) == 2  # the hub was asked whether their heads are right


def test_a_card_that_a_person_wrote_on_the_hub_stays(hub, caplog):
    m = tiny.model()
    m.push_to_hub(ID)
    theirs = hub.shelf[ID]['README.md'].replace(b'## Limits', b'## Known limits')
    hub.shelf[ID]['README.md'] = theirs
    next(m.parameters()).data += 1
    m.push_to_hub(ID, metrics=dict(bleu=0.4))
    assert hub.shelf[ID]['README.md'] == theirs
    assert [r for r in caplog.messages if 'README.md was written or changed by hand and stays' in r]
    assert torch.equal(next(load_model(ID).parameters()), next(m.parameters()))


def test_an_id_that_the_hub_does_not_know(hub):
    says = "'someone/else' is neither a folder nor .* did not give it .RepositoryNotFoundError"
    with pytest.raises(FileNotFoundError, match=says):
        load_model('someone/else')
    with pytest.raises(FileNotFoundError, match='did you mean basic-english[?]'):
        load_model('basic-englsh')


def test_without_a_network_what_was_loaded_once_is_loaded_again(hub, monkeypatch):
    m = tiny.model()
    m.push_to_hub(ID)
    load_model(ID)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')  # nobody is there
    again = load_model(ID)
    assert all(torch.equal(a, b) for a, b in zip(m.parameters(), again.parameters()))


# ---- a folder


def test_the_card_of_the_model_that_comes_with_the_package_is_not_overwritten(tmp_path, caplog):
    shipped = model_folder('basic-english')
    theirs = (shipped / 'README.md').read_bytes()
    (tmp_path / 'README.md').write_bytes(theirs)
    m = load_model('basic-english')
    m.save_pretrained(tmp_path)
    assert (tmp_path / 'README.md').read_bytes() == theirs
    assert [r for r in caplog.messages if f'{tmp_path / "README.md"} was written or changed by hand and stays' in r]
    m.save_pretrained(tmp_path / 'verses')
    assert (tmp_path / 'verses' / 'README.md').read_text().splitlines()[0] == '---'


def test_the_card_that_comes_with_the_package_says_the_scores_of_its_table():
    card = ModelCard.load(model_folder('basic-english') / 'README.md')
    assert (card.data.license, card.data.language, card.data.datasets) == ('mit', 'en', ['basic-english'])
    row = next(r for r in card.text.splitlines() if r.startswith('| left to right |'))
    bleu, rouge, _, sacrebleu, sari, _ = (float(x) for x in row.strip('| ').split('|')[1:])
    assert [r.metric_value for r in card.data.eval_results] == [bleu, rouge, sacrebleu, sari]
    assert all(r.metric_name.endswith(', left to right') for r in card.data.eval_results)


def test_scores_that_are_none_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match='metrics is .* expected what score gives'):
        tiny.model().save_pretrained(tmp_path / 'm', metrics=[0.4])
    assert not (tmp_path / 'm').exists()
