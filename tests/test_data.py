"Data as users really bring it: broken files, killed conversions, races, a full disk, other folders, streams."

import gzip, itertools, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest, yaml
import datasets
from diffuseq.config import make_config
from diffuseq.corpora import raw_verses
from diffuseq.data import as_pairs, cache_folder, load_card, load_pairs, normalize_text, pick_columns, task_names
from diffuseq.dates import conditional, true_entropy
from diffuseq.text import (
    FixedWindow,
    SplitWindow,
    coverage_report,
    decode,
    encode_pairs,
    encode_rows,
    encode_sources,
    load_tokenizer,
    pair_texts,
    save_tokenizer,
    train_batches,
    train_tokenizer,
)

GOOD = b'{"src": "a good pair", "trg": "is kept"}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DIFFUSEQ_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def folder(tmp_path):
    def write(data, split='train'):
        (tmp_path / 'set').mkdir(exist_ok=True)
        (tmp_path / 'set' / f'{split}.jsonl').write_bytes(data)
        return tmp_path / 'set'

    return write


@pytest.fixture(scope='module')
def bpe():
    return train_tokenizer(['the quick brown fox jumps over the lazy dog', 'a good pair is kept'] * 20, 120)


def cached_files():
    return [p for p in cache_folder().rglob('*.arrow') if not any(q.name.startswith('.') for q in p.parents)]


# each line breaks in its own way; the message names the file, the line, what was expected and what to do
BROKEN = dict(
    cut_off=(b'{"src": "a", "trg": "b"', 'not valid JSON', 'mend or delete the line'),
    two_on_a_line=(b'{"src": "a", "trg": "b"} {"src": "a", "trg": "b"}', 'not valid JSON', 'mend or delete the line'),
    a_list=(b'["a", "b"]', 'found list', 'one pair a line'),
    a_bare_string=(b'"a"', 'found str', 'one pair a line'),
    no_target=(b'{"src": "a", "target": "b"}', "no field 'trg', only 'src', 'target'", 'trg_column'),
    nothing=(b'{}', "no field 'src', only nothing", 'src_column'),
    null=(b'{"src": null, "trg": "b"}', "'src' is NoneType", 'expected a string'),
    number=(b'{"src": "a", "trg": 7}', "'trg' is int", 'expected a string'),
    list_of_words=(b'{"src": ["a"], "trg": "b"}', "'src' is list", 'expected a string'),
    nul_escaped=(b'{"src": "a\\u0000b", "trg": "b"}', 'U+0000 at place 2', 'delete the character'),
    nul_raw=(b'{"src": "a\x00b", "trg": "b"}', 'not valid JSON', 'mend or delete the line'),
    escape_code=(b'{"src": "a", "trg": "\\u001b[1mb"}', 'U+001B', 'delete the character'),
    half_a_surrogate=(b'{"src": "a", "trg": "\\ud83d"}', 'U+D83D', 'convert the file anew'),
    latin_1=('{"src": "café", "trg": "b"}'.encode('latin-1'), 'byte 13 is not UTF-8', 'iconv'),
    refs_a_string=(b'{"src": "a", "trg": "b", "refs": "b"}', "'refs' must be a list", 'leave the field out'),
    refs_of_numbers=(b'{"src": "a", "trg": "b", "refs": [1]}', "'refs' is int", 'expected a string'),
)


@pytest.mark.parametrize('name', BROKEN)
def test_broken_line(name, folder):
    line, says, remedy = BROKEN[name]
    where = folder(GOOD * 2345 + line + b'\n' + GOOD)
    with pytest.raises(ValueError) as e:
        load_pairs(where, 'train')
    for part in (f'{where}/train.jsonl, line 2346', says, remedy):
        assert part in str(e.value)
    assert not cached_files()  # nothing half-converted is left for the next start
    folder(GOOD)
    assert load_pairs(where, 'train')[:] == dict(src=['a good pair'], trg=['is kept'])


def test_other_encodings(folder):
    for bom, codec in ((b'', 'utf-16'), (b'', 'utf-32')):
        with pytest.raises(ValueError, match='line 1.*(not UTF-8|not valid JSON)'):
            load_pairs(folder(bom + GOOD.decode().encode(codec)), 'train')
    with pytest.raises(ValueError, match='line 1: byte 2 is not UTF-8'):
        load_pairs(folder(gzip.compress(GOOD)), 'train')


def test_one_json_list(folder):
    with pytest.raises(ValueError, match='one JSON list: write each element on one line'):
        load_pairs(folder(json.dumps([dict(src='a', trg='b')] * 3, indent=1).encode()), 'train')


def test_an_object_over_several_lines(folder):
    with pytest.raises(ValueError, match='line 1.*over several lines: write each object on one line'):
        load_pairs(folder(json.dumps(dict(src='a', trg='b'), indent=1).encode()), 'train')
    with pytest.raises(
        ValueError, match='line 1: list instead|line 1: expected an object .* found list; write one pair'
    ):
        load_pairs(folder(json.dumps([dict(src='a', trg='b')] * 3).encode()), 'train')


def test_nested_too_deeply(folder):
    with pytest.raises(ValueError, match='line 2: nested too deeply'):
        load_pairs(folder(GOOD + b'[' * 100_000), 'train')


def test_harmless_oddities(folder):
    "BOM, CRLF, blank lines, blanks around, further fields, no newline at the end, DEL, every space of Unicode."
    lines = [
        b'\xef\xbb\xbf' + GOOD.strip(),
        b'',
        b'  ',
        '{"id": 3, "src": "  été\\n", "trg": "\u3000summer\\t"}'.encode(),
        b'{"src": "x\x7fy", "trg": "z"}',
    ]
    assert load_pairs(folder(b'\r\n'.join(lines)), 'train')[:] == dict(
        src=['a good pair', 'été', 'xy'], trg=['is kept', 'summer', 'z']
    )


def test_empty_sides_are_counted_once_a_start(folder, caplog):
    where = folder(GOOD + b'{"src": "", "trg": "b"}\n' + GOOD + b'{"src": "a", "trg": " \\t\\u00a0"}\n')
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert len(load_pairs(where, 'train')) == 2
        assert [r.message for r in caplog.records] == [
            f'{where}/train.jsonl: 2 of 4 pairs skipped, a side is empty (the first in line 2)'
        ]


@pytest.mark.parametrize(
    'data,says',
    [
        (b'', 'it is empty'),
        (b'\n\r\n', 'it is empty'),
        (b'{"src": "", "trg": ""}\n' * 3, 'only 3 with an empty side'),
    ],
)
def test_nothing_in_the_file(data, says, folder):
    with pytest.raises(ValueError, match=f'no pairs, {says}; expected one'):
        load_pairs(folder(data), 'train')


def test_missing_things(folder, tmp_path):
    where = folder(GOOD)
    with pytest.raises(
        FileNotFoundError, match='no valid.jsonl here; expected train.jsonl, valid.jsonl and test.jsonl'
    ):
        load_pairs(where, 'valid')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='expected train.jsonl'):
        load_pairs(tmp_path / 'empty', 'train')
    for name in ('basic-englsh', tmp_path / 'nowhere', where / 'train.jsonl'):
        with pytest.raises(ValueError, match='unknown task .*basic-english'):
            load_pairs(name, 'train')
    with pytest.raises(ValueError, match='did you mean basic-english[?]'):
        load_pairs('basic-englsh', 'train')
    with pytest.raises(ValueError, match="unknown split 'dev'; choose one of train, valid, test"):
        load_pairs('basic-english', 'dev')
    for name in (n for n in task_names() if load_card(n)['kind'] == 'files'):
        with pytest.raises(FileNotFoundError) as e:
            load_pairs(name, 'train', data_dir=tmp_path / 'empty')
        for part in (
            f'{name}: no train.jsonl in {tmp_path}/empty/{name} or {tmp_path}/empty',
            'Put train.jsonl, valid.jsonl and test.jsonl there',
            'data_dir',
            'github.com',
        ):
            assert part in str(e.value)


def test_data_dir_and_references(folder, tmp_path):
    folder(b'{"src": "q", "trg": "a", "refs": ["a", "b"]}\n' + GOOD, 'test')
    for at in (tmp_path / 'set', tmp_path):
        if at == tmp_path:
            (tmp_path / 'set').rename(tmp_path / 'qqp')
        pairs = load_pairs('qqp', 'test', data_dir=at)
        assert pairs[:] == dict(src=['q', 'a good pair'], trg=['a', 'is kept'], refs=[['a', 'b'], None])


def test_a_changed_file_is_read_anew_and_the_old_copy_goes(folder):
    where = folder(GOOD)
    load_pairs(where, 'train')
    for i in range(3):
        assert load_pairs(folder(GOOD + GOOD.replace(b'good', b'g%dod' % i)), 'train')[1]['src'] == f'a g{i}od pair'
    assert len(cached_files()) == 1


# --- processes

LOAD = """import sys
from diffuseq.data import load_pairs
p = load_pairs(sys.argv[1], 'train')
print(len(p), p[len(p) - 1]['src'])"""


def test_killed_conversion_leaves_nothing_half_made(folder):
    where = folder(b''.join(b'{"src": "line %d", "trg": "t"}\n' % i for i in range(400_000)))
    for pause in (0.05, 0.5):
        p = subprocess.Popen([sys.executable, '-c', LOAD, where], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.time() + 60
        while time.time() < end and p.poll() is None and not list(cache_folder().rglob('pairs.arrow')):
            time.sleep(0.01)
        time.sleep(pause)
        p.send_signal(signal.SIGKILL)
        p.wait()
    out = subprocess.run([sys.executable, '-c', LOAD, where], capture_output=True, text=True, check=True).stdout
    assert out.split() == ['400000', 'line', '399999']
    assert len(cached_files()) == 1 and not list(cache_folder().rglob('.*'))


def test_processes_may_race(folder):
    where = folder(b''.join(b'{"src": "line %d", "trg": "t"}\n' % i for i in range(30_000)))
    runs = [
        subprocess.Popen([sys.executable, '-c', LOAD, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for p in runs:
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0 and out.split() == ['30000', 'line', '29999'], err
    assert len(cached_files()) == 1 and not [p for p in cache_folder().rglob('.*')]


def test_full_disk(folder):
    where = folder(b''.join(b'{"src": "line %d", "trg": "t"}\n' % i for i in range(50_000)))
    limited = f"""import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
{LOAD}"""
    run = subprocess.run([sys.executable, '-c', limited, where], capture_output=True, text=True)
    assert (
        run.returncode and 'while filling the cache' in run.stderr and 'DIFFUSEQ_CACHE' in run.stderr.splitlines()[-1]
    )
    assert not cached_files() and not list(cache_folder().rglob('.*'))
    assert len(load_pairs(where, 'train')) == 50_000


def test_a_tokenizer_and_the_batches_are_the_same_in_every_process(folder, tmp_path):
    where = folder(
        b''.join(
            b'{"src": "say %d words of %d", "trg": "%s"}\n' % (i, i * 7 % 50, b'word ' * (i % 13 + 1))
            for i in range(600)
        )
    )
    code = """import sys, itertools, hashlib
from diffuseq.config import make_config
from diffuseq.data import load_pairs
from diffuseq.text import *
pairs = load_pairs(sys.argv[1], 'train')
config = make_config(vocab_size=100, batch_tokens=512)
tokenizer, window = make_tokenizer(pairs, config), SplitWindow(config)
batches = list(itertools.islice(train_batches(encode_pairs(pairs, tokenizer, window), window, 0), 60))
print(hashlib.sha256((tokenizer.backend_tokenizer.to_str() + repr(batches)).encode()).hexdigest())"""
    seen = {
        subprocess.run(
            [sys.executable, '-c', code, where],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | dict(PYTHONHASHSEED=str(i), DIFFUSEQ_CACHE=str(tmp_path / f'cache{i}')),
        ).stdout
        for i in range(2)
    }
    assert len(seen) == 1


# --- any datasets source


def parquet(tmp_path):
    table = datasets.Dataset.from_dict(
        dict(
            n=list(range(300)),
            q=[f'question {i} ?' for i in range(300)],
            a=['' if i == 7 else f'answer {i} .' for i in range(300)],
        )
    )
    (tmp_path / 'news').mkdir()
    table.to_parquet(tmp_path / 'news' / 'train.parquet')
    table.select(range(10)).to_csv(tmp_path / 'test.csv')
    return table


def test_sources_of_the_datasets_library(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf')
    table = parquet(tmp_path)
    pairs = load_pairs(tmp_path / 'news', 'train')  # a folder of Parquet files: two columns of text, taken in order
    assert (len(pairs), pairs.column_names, pairs[7]) == (
        299,
        ['src', 'trg'],
        dict(src='question 8 ?', trg='answer 8 .'),
    )
    load_pairs(tmp_path / 'news', 'train')  # from the cache: what was skipped is said again
    said = [m for m in caplog.messages if '1 of 300 pairs skipped, a side is empty (the first in row 7)' in m]
    assert len(said) == 2
    table.rename_columns(dict(q='src', a='trg')).save_to_disk(tmp_path / 'one')
    datasets.DatasetDict(train=table, validation=table.select([1])).save_to_disk(tmp_path / 'saved')
    assert load_pairs(tmp_path / 'saved', 'valid')[:] == dict(src=['question 1 ?'], trg=['answer 1 .'])
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        load_pairs(tmp_path / 'saved', 'test')
    card = dict(
        kind='files', hub_id='csv', data_files={'test': str(tmp_path / 'test.csv')}, src_column='a', trg_column='q'
    )
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(card))
    assert load_pairs(tmp_path / 'mine.yaml', 'test')[0] == dict(src='answer 0 .', trg='question 0 ?')
    assert len(load_pairs(tmp_path / 'mine.yaml', 'test')) == 9  # an empty cell of a table is an empty side
    for change, says in (
        (dict(src_column='b'), "no columns 'b' and 'q'; there are n, q, a"),
        (dict(trg_column='n'), "'n' is int; expected a string"),
        (dict(data_files={'test': 'nowhere.csv'}), 'cannot load'),
    ):
        (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(card | change))
        with pytest.raises(ValueError, match=says):
            load_pairs(tmp_path / 'mine.yaml', 'test')


BROKEN_FILES = dict(
    more_cells=('train.csv', b'src,trg\na,b\nc,d,e,f\n', 'Expected 2 fields in line 3, saw 4'),
    open_quote=('train.csv', b'src,trg\na,"b\nc,d\n', 'EOF inside string'),
    latin_1=('train.csv', 'src,trg\ncafé,b\n'.encode('latin-1'), "can't decode byte 0xe9"),
    empty=('train.csv', b'', 'No columns to parse'),
    cut_off=('train.json', b'{"src": "a", "trg": "b"}\n{"src": "a", "trg', 'Missing a closing quotation mark'),
    no_parquet=('train.parquet', b'not parquet', 'Parquet magic bytes not found'),
)


@pytest.mark.parametrize('name', BROKEN_FILES)
def test_a_file_that_datasets_cannot_read_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf')
    file, data, says = BROKEN_FILES[name]
    where = tmp_path / 'set'
    where.mkdir()
    (where / f'valid{Path(file).suffix}').write_bytes(b'src,trg\na,b\n' if file.endswith('csv') else data)
    (where / file).write_bytes(data)
    with pytest.raises(ValueError) as e:
        load_pairs(where, 'train')
    for part in (f'{where}/{file}: ', says, 'mend the file', 'train.jsonl'):
        assert part in str(e.value)
    assert '\n' not in str(e.value)


def test_a_source_that_is_not_there(tmp_path):
    (tmp_path / 'c.yaml').write_text('kind: files\nhub_id: csv\ndata_files: {train: nowhere.csv}')
    with pytest.raises(ValueError, match='datasets cannot load .*Check hub_id, hub_config and data_files'):
        load_pairs(tmp_path / 'c.yaml', 'train')


def test_a_stream_is_never_stored_and_trains(tmp_path, bpe):
    parquet(tmp_path)
    (tmp_path / 's.yaml').write_text(
        yaml.safe_dump(
            dict(
                kind='files',
                hub_id='parquet',
                data_files={'train': str(tmp_path / 'news' / 'train.parquet')},
                src_column='q',
                trg_column='a',
                streaming=True,
            )
        )
    )
    stream = load_pairs(tmp_path / 's.yaml', 'train')
    window = SplitWindow(make_config(profile='smoke', batch_tokens=256))
    assert isinstance(stream, datasets.IterableDataset) and not cached_files()
    assert coverage_report(stream, bpe, window, limit=100)['pairs'] == 100
    assert sum(map(len, pair_texts(stream, 10))) > 0
    encoded = encode_pairs(stream, bpe, window)

    def first(n, **k):
        return list(itertools.islice(train_batches(encoded, window, 0, pool=100, **k), n))

    run = first(80)  # several epochs
    assert first(2, start=78) == run[78:] and all(window.collate(b)['ids'].numel() <= 256 for b in run)
    assert [a + b for a, b in zip(first(9, rank=0, world=2), first(9, rank=1, world=2))] != run[:9]
    assert [sorted(map(str, a + b)) for a, b in zip(first(9, rank=0, world=2), first(9, rank=1, world=2))] == [
        sorted(map(str, b)) for b in run[:9]
    ]


# --- dates


def test_dates_are_the_same_everywhere(tmp_path):
    "In another process with another language, time zone and seed of hashes: the digests that the notebook prints."
    code = """import hashlib, locale
locale.setlocale(locale.LC_ALL, '')
from diffuseq.dates import date_splits
print(*(hashlib.sha256(repr(date_splits(p)[0]).encode()).hexdigest()[:16] for p in (0.0, 0.3)))"""
    env = os.environ | dict(LC_ALL='C.UTF-8', TZ='Pacific/Kiritimati', PYTHONHASHSEED='7')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.split() == ['c83a405bd972e0ca', 'c3559cb8805aa88e']


@pytest.mark.parametrize('name', ['dates', 'dates-ambiguous'])
def test_dates_are_tasks(name):
    rows = {split: list(load_pairs(name, split)) for split in ('train', 'valid', 'test')}
    assert {split: len(r) for split, r in rows.items()} == dict(train=22_000, valid=500, test=1000)
    chance = load_card(name).get('month_first', 0.0)
    assert (true_entropy(rows['test'], chance) > 0) == (name == 'dates-ambiguous')
    assert all(row['trg'] in conditional(row['src'], chance) for row in rows['test'])
    forms = {re.sub('[a-z]+', 'a', re.sub('[0-9]+', '1', row['src'])) for row in rows['valid']}
    assert len(forms) == 7


# --- pairs that a caller gives


def test_pairs_of_a_caller(caplog):
    want = dict(src=['a', 'c'], trg=['b', 'd'])
    rows = [dict(src=x, trg=y) for x, y in zip(*want.values())]
    table = datasets.Dataset.from_list(rows)
    for given in ([('a', 'b'), ('c', 'd')], [['a', 'b'], ['c', ' d\n']], rows, rows + [('', 'x')], table):
        assert as_pairs(given, 'train')[:] == want
    assert caplog.messages == ['train: 1 of 3 pairs skipped, a side is empty (the first is train[2])']
    assert as_pairs(table, 'train') is table
    assert as_pairs([dict(src='a', trg='b', refs=['b', 'c']), ('a', 'b')], 'x')[:]['refs'] == [['b', 'c'], None]
    for stream in (table.to_iterable_dataset(), datasets.IterableDataset.from_generator(lambda: iter(rows))):
        assert list(as_pairs(stream, 'train')) == rows


def stream_of(*rows):
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


NO_PAIRS = dict(
    string=('a b', 'train is str'),
    nothing=(None, 'train is NoneType'),
    table=(dict(src=['a'], trg=['b']), 'train is dict'),
    splits=(datasets.DatasetDict(), 'train is DatasetDict'),
    no_rows=([], 'train: no pairs'),
    only_empty=([('', 'b'), ('a', ' ')], 'train: no pairs, only 2 with an empty side'),
    one_string=([('a', 'b'), 'c d'], r'train\[1\]: expected .* found str'),
    three=([('a', 'b', 'c')], r'train\[0\] has 3 parts'),
    number=([('a', 'b'), ('a', 3)], r"train\[1\]: 'trg' is int; expected a string"),
    missing=([dict(src='a', target='b')], r"train\[0\]: no field 'trg', only 'src', 'target'"),
    surrogate=([('a\ud83d', 'b')], r"train\[0\]: 'src' holds the character U\+D83D at place 2"),
    columns=(datasets.Dataset.from_dict(dict(src=['a'], target=['b'])), "train: no column 'trg', only src, target"),
    numbers=(datasets.Dataset.from_dict(dict(src=['a'], trg=[1])), "train: column 'trg' holds int64"),
    hole=(datasets.Dataset.from_dict(dict(src=['a', 'b'], trg=['c', None])), r"train\[1\]: 'trg' is NoneType"),
    empty_table=(datasets.Dataset.from_dict(dict(src=[], trg=[])), 'train: no pairs'),
    stream_columns=(stream_of(dict(src='a', t='b')), r"train\[0\]: no field 'trg'"),
    stream_numbers=(stream_of(dict(src='a', trg=1)), r"train\[0\]: 'trg' is int"),
    empty_stream=(stream_of(), 'train: no pairs'),
)


@pytest.mark.parametrize('name', NO_PAIRS)
def test_what_is_no_pairs_is_refused(name):
    given, says = NO_PAIRS[name]
    with pytest.raises(ValueError, match=says) as e:
        as_pairs(given, 'train')
    assert '\n' not in str(e.value)


# --- windows and tokenizers


def test_what_is_no_text_is_named_before_the_tokenizer_sees_it(bpe):
    good = ['a', 'b', 'c']
    table = datasets.Dataset.from_dict(dict(src=['a'] * 1500, trg=['b'] * 1400 + [None] * 100))
    escape = datasets.Dataset.from_dict(dict(src=['a'] * 3, trg=['b', 'b', 'b\x1b']))
    for window in (SplitWindow(make_config()), FixedWindow(make_config(recipe='paper'))):
        doors = [
            (lambda: encode_sources([*good, 'd\ud800'], bpe, window), r'sources\[3\] holds .* U\+D800 at place 2'),
            (lambda: encode_sources('abc', bpe, window), 'sources is one string; expected a list'),
            (lambda: encode_rows([*good, None], [*good, 'd'], bpe, window), r'sources\[3\] is NoneType'),
            (lambda: encode_rows(good, ['a', '\udfff', 'c'], bpe, window), r'targets\[1\] holds'),
            (lambda: encode_rows(good, ['a'], bpe, window), 'as many targets as sources; got 3 and 1'),
            (lambda: encode_pairs(table, bpe, window), r"pairs\['trg'\]\[1400\] is NoneType"),
            (lambda: encode_pairs(escape, bpe, window), r"pairs\['trg'\]\[2\] holds the character U\+001B"),
            (lambda: list(encode_pairs(stream_of(dict(src='\ud800', trg='b')), bpe, window)), r"\['src'\]\[0\] holds"),
            (lambda: train_tokenizer([*good, '\ud800'], 100), r'texts\[3\] holds'),
        ]
        for door, says in doors:
            with pytest.raises(ValueError, match=says):
                door()


ROLES = dict(
    no_json=('{"sep', 'not valid JSON'),
    a_list=('[1]', 'list instead of an object that names special tokens'),
    a_number=('{"sep_token": 3}', 'sep_token is 3, expected a string'),
    a_list_of_tokens=('{"cls_token": ["[CLS]"]}', 'cls_token is .*, expected a string'),
    content_of_another_type=('{"pad_token": {"content": 3}}', 'pad_token is 3, expected a string'),
    no_content=('{"sep_token": {}}', "sep_token is ''"),
    a_word=('{"sep_token": "the"}', "sep_token is 'the', which tokenizer.json does not list"),
    a_word_as_stand_in=('{"eos_token": "dog"}', "eos_token is 'dog', which"),
    an_absent_token=('{"sep_token": "[END]"}', r"sep_token is '\[END\]', which"),
    latin_1=('\xff', 'not UTF-8'),
    too_deep=('[' * 100_000, 'nested too deeply'),
)


@pytest.mark.parametrize('name', ROLES)
def test_a_damaged_list_of_roles(name, tmp_path, bpe):
    text, says = ROLES[name]
    save_tokenizer(bpe, tmp_path)
    (tmp_path / 'tokenizer_config.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=says) as e:
        load_tokenizer(tmp_path)
    message = str(e.value)
    assert message.startswith(f'{tmp_path}/tokenizer_config.json') and '\n' not in message
    (tmp_path / 'tokenizer_config.json').write_text(
        '{"sep_token": "[SEP]", "model_max_length": 512, "bos_token": null}'
    )
    assert load_tokenizer(tmp_path).sep_token == '[SEP]'


def test_longer_than_the_window(folder, bpe, caplog):
    pairs = load_pairs(
        folder(
            GOOD + b'{"src": "%s", "trg": "b"}\n' % (b'dog ' * 80) + b'{"src": "a", "trg": "%s"}\n' % (b'dog ' * 64)
        ),
        'train',
    )
    window = SplitWindow(make_config())
    assert len(encode_pairs(pairs, bpe, window)) == 1
    assert '2 of 3 pairs have more than 64 sub-words of source or 64 of target: dropped' in caplog.text
    assert [len(r['trg_ids']) for r in encode_pairs(pairs, bpe, window, truncate=True)][2] == 64
    caplog.clear()
    assert len(encode_sources([pairs[1]['src']], bpe, window)[0]['src_ids']) == 64 and '1 of 1 sources' in caplog.text
    with pytest.raises(ValueError, match='none is left; raise max_source and max_target'):
        encode_pairs(pairs.select([1, 2]), bpe, window)
    fixed = FixedWindow(make_config(recipe='paper', window=32))
    batch = fixed.collate(list(encode_pairs(pairs, bpe, fixed)))
    assert batch['ids'].shape == (3, 32) and (batch['ids'][1:] == bpe.sep_token_id).sum(1).tolist() == [3, 3]


def test_fewer_pairs_than_a_batch_or_than_processes(bpe):
    pairs = datasets.Dataset.from_dict(dict(src=['a', 'b', 'c'], trg=['d', 'e', 'f']))
    for window in (SplitWindow(make_config()), FixedWindow(make_config(recipe='paper'))):
        encoded = encode_pairs(pairs, bpe, window)
        assert [len(b) for b in itertools.islice(train_batches(encoded, window, 0), 4)] == [3] * 4
        with pytest.raises(ValueError, match='update 5 has 3 pairs for 4 processes'):
            next(train_batches(encoded, window, 0, start=5, world=4))


def test_no_tokenizer(tmp_path, bpe, monkeypatch):
    save_tokenizer(bpe, tmp_path)
    with pytest.raises(ValueError, match='no tokenizer here'):
        load_tokenizer(tmp_path / 'elsewhere' / 'tokenizer.json')
    (tmp_path / 'set').mkdir()
    with pytest.raises(ValueError, match='no tokenizer here'):
        load_tokenizer(tmp_path / 'set')
    for damage in ((tmp_path / 'tokenizer.json').read_text()[:-40], '{}', ''):
        (tmp_path / 'set' / 'tokenizer.json').write_text(damage)
        with pytest.raises(ValueError, match='damaged'):
            load_tokenizer(tmp_path / 'set')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match="'bpe' and 'wordpiece' are trained on the task"):
        load_tokenizer('nobody/has-this-tokenizer')


def test_round_trip_of_every_character_that_python_knows():
    "One text for each 200 characters of the Basic Multilingual Plane: decoded, it is the normalized text."
    import unicodedata

    chars = [c for c in map(chr, range(32, 0x10000)) if unicodedata.category(c) not in ('Cs', 'Cn', 'Co', 'Cc')]
    texts = [' '.join('x' + c + 'y' for c in chars[i : i + 200]) for i in range(0, len(chars), 200)]
    t = train_tokenizer(texts, 400_000)
    differ = [
        (a, b)
        for text in texts
        for a, b in zip(
            decode(t.backend_tokenizer.encode(text, add_special_tokens=False).ids, t).split(),
            normalize_text(text).split(),
        )
        if a != b
    ]
    assert len(differ) < 50, differ[
        :10
    ]  # none where both know the same edition of Unicode; a newer Python may know a few letters more


# --- cards, columns, texts that packages and people bring


CARDS = dict(
    unknown=('kind: files\nhub_idd: x', r'hub_idd \(unknown\)'),
    type=('kind: files\nstreaming: 1', 'expected bool'),
    kind=('kind: film', 'kind must be'),
    no_target=('kind: bible', 'needs a target'),
    no_sources=('kind: bible\ntarget: bbe\nsources: []', 'at least one of sources'),
    probability=('kind: dates\nmonth_first: 1.5', 'expected 0.0 to 1.0'),
    no_yaml=('[', 'YAML'),
    empty=('', 'kind must be'),
)


@pytest.mark.parametrize('name', CARDS)
def test_a_broken_card_is_named(name, tmp_path):
    text, says = CARDS[name]
    (tmp_path / 'mine.yaml').write_text(text)
    with pytest.raises(ValueError, match=f'mine.yaml: .*{says}'):
        load_card(str(tmp_path / 'mine.yaml'))


def test_a_column_that_is_not_there_is_named():
    text = datasets.Value('string')
    with pytest.raises(ValueError, match="no columns 'z'"):
        pick_columns(dict(a=text, b=text), dict(src_column='z'), 'd')


def test_a_bible_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match='pip install pythonbible-vulgate'):
        raw_verses('vulgate')


@pytest.mark.parametrize('source', ['', 'once upon a time', '31 / 31 / 1976', '30 february 1976', 'july 1976'])
def test_what_is_no_date_is_refused(source):
    with pytest.raises(ValueError, match='is no date in a known form'):
        conditional(source, 0.3)


def test_a_tokenizer_of_nothing_or_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of tokenizer 'char'.*wordpiece"):
        train_tokenizer(['a'], 100, 'char')
    with pytest.raises(ValueError, match='no text to train a tokenizer on'):
        train_tokenizer([], 100)


def test_a_stream_without_pairs_is_refused(bpe):
    window = SplitWindow(make_config())
    stream = encode_pairs(stream_of(dict(src='a', trg='b')), bpe, window).filter(lambda row: False)
    with pytest.raises(ValueError, match='the stream holds no pairs'):
        next(train_batches(stream, window, 0))
