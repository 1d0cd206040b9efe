"Data as users really bring it: broken files, killed conversions, races, a full disk, other folders, streams."

import gzip, hashlib, itertools, json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest, yaml
import datasets
from diffuseq.config import make_config
from diffuseq.data import cache_folder, load_card, load_pairs, normalize_text, task_names
from diffuseq.text import (
    collate,
    coverage_report,
    decode,
    encode_pairs,
    encode_sources,
    load_tokenizer,
    make_tokenizer,
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
    cut_off=(b'{"src": "a", "trg": "b"', 'not JSON', 'mend or delete the line'),
    two_on_a_line=(b'{"src": "a", "trg": "b"} {"src": "a", "trg": "b"}', 'not JSON', 'mend or delete the line'),
    a_list=(b'["a", "b"]', 'found list', 'one pair a line'),
    a_bare_string=(b'"a"', 'found str', 'one pair a line'),
    no_target=(b'{"src": "a", "target": "b"}', "no field 'trg', only 'src', 'target'", 'trg_column'),
    nothing=(b'{}', "no field 'src', only nothing", 'src_column'),
    null=(b'{"src": null, "trg": "b"}', "'src' is NoneType, expected a string", 'mend or delete'),
    number=(b'{"src": "a", "trg": 7}', "'trg' is int, expected a string", 'mend or delete'),
    list_of_words=(b'{"src": ["a"], "trg": "b"}', "'src' is list, expected a string", 'mend or delete'),
    nul_escaped=(b'{"src": "a\\u0000b", "trg": "b"}', 'U+0000 at place 2', 'delete the character'),
    nul_raw=(b'{"src": "a\x00b", "trg": "b"}', 'not JSON', 'mend or delete the line'),
    escape_code=(b'{"src": "a", "trg": "\\u001b[1mb"}', 'U+001B', 'delete the character'),
    half_a_surrogate=(b'{"src": "a", "trg": "\\ud83d"}', 'U+D83D', 'convert the file anew'),
    latin_1=('{"src": "café", "trg": "b"}'.encode('latin-1'), 'byte 13 is not UTF-8', 'iconv'),
    refs_a_string=(b'{"src": "a", "trg": "b", "refs": "b"}', "'refs' must be a list", 'leave the field out'),
    refs_of_numbers=(b'{"src": "a", "trg": "b", "refs": [1]}', "'refs' is int, expected a string", 'mend or delete'),
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
        with pytest.raises(ValueError, match='line 1.*(not UTF-8|not JSON)'):
            load_pairs(folder(bom + GOOD.decode().encode(codec)), 'train')
    with pytest.raises(ValueError, match='line 1: byte 2 is not UTF-8'):
        load_pairs(folder(gzip.compress(GOOD)), 'train')


def test_one_json_list(folder):
    with pytest.raises(ValueError, match='one JSON list: write each element on a line of its own'):
        load_pairs(folder(json.dumps([dict(src='a', trg='b')] * 3, indent=1).encode()), 'train')


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
        (b'', 'the file is empty'),
        (b'\n\r\n', 'the file is empty'),
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

LOAD = 'import sys; from diffuseq.data import load_pairs; p = load_pairs(sys.argv[1], "train"); print(len(p), p[len(p)-1]["src"])'


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
    limited = (
        'import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); '
        + LOAD
    )
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
    code = """import sys, itertools, hashlib; from diffuseq.config import make_config; from diffuseq.data import load_pairs; from diffuseq.text import *
pairs = load_pairs(sys.argv[1], 'train'); c = make_config(vocab_size=100, batch_tokens=512); t = make_tokenizer(pairs, c)
print(hashlib.sha256((t.backend_tokenizer.to_str() + repr(list(itertools.islice(train_batches(encode_pairs(pairs, t, c), c), 60)))).encode()).hexdigest())"""
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
    assert '1 pairs skipped, a side is empty (the first in row 7)' in caplog.text
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
        (dict(trg_column='n'), "'n' is int, expected a string"),
        (dict(data_files={'test': 'nowhere.csv'}), 'cannot load'),
    ):
        (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(card | change))
        with pytest.raises(ValueError, match=says):
            load_pairs(tmp_path / 'mine.yaml', 'test')


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
    config = make_config(profile='smoke', batch_tokens=256)
    assert isinstance(stream, datasets.IterableDataset) and not cached_files()
    assert coverage_report(stream, bpe, config, limit=100)['pairs'] == 100
    assert sum(map(len, pair_texts(stream, 10))) > 0
    encoded = encode_pairs(stream, bpe, config)

    def first(n, **k):
        return list(itertools.islice(train_batches(encoded, config, pool=100, **k), n))

    run = first(80)  # several epochs
    assert first(2, start=78) == run[78:] and all(collate(b, config)['ids'].numel() <= 256 for b in run)
    assert [a + b for a, b in zip(first(9, rank=0, world=2), first(9, rank=1, world=2))] != run[:9]
    assert [sorted(map(str, a + b)) for a, b in zip(first(9, rank=0, world=2), first(9, rank=1, world=2))] == [
        sorted(map(str, b)) for b in run[:9]
    ]


# --- windows and tokenizers


def test_longer_than_the_window(folder, bpe, caplog):
    pairs = load_pairs(
        folder(
            GOOD + b'{"src": "%s", "trg": "b"}\n' % (b'dog ' * 80) + b'{"src": "a", "trg": "%s"}\n' % (b'dog ' * 64)
        ),
        'train',
    )
    config = make_config()
    assert (
        len(encode_pairs(pairs, bpe, config)) == 1
        and '2 of 3 pairs have more than 64 sub-words of source or 64 of target: dropped' in caplog.text
    )
    assert [len(r['trg_ids']) for r in encode_pairs(pairs, bpe, config, truncate=True)][2] == 64
    caplog.clear()
    assert len(encode_sources([pairs[1]['src']], bpe, config)[0]['src_ids']) == 64 and '1 of 1 sources' in caplog.text
    with pytest.raises(ValueError, match='none is left; raise max_source and max_target'):
        encode_pairs(pairs.select([1, 2]), bpe, config)
    fixed = make_config(recipe='paper', window=32)
    window = collate(list(encode_pairs(pairs, bpe, fixed)), fixed)
    assert window['ids'].shape == (3, 32) and (window['ids'][1:] == bpe.sep_token_id).sum(1).tolist() == [3, 3]


def test_fewer_pairs_than_a_batch_or_than_processes(bpe):
    pairs = datasets.Dataset.from_dict(dict(src=['a', 'b', 'c'], trg=['d', 'e', 'f']))
    for config in (make_config(), make_config(recipe='paper')):
        encoded = encode_pairs(pairs, bpe, config)
        assert [len(b) for b in itertools.islice(train_batches(encoded, config), 4)] == [3] * 4
        with pytest.raises(ValueError, match='update 5 has 3 pairs for 4 processes'):
            next(train_batches(encoded, config, start=5, world=4))


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
