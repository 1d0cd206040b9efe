"""What the notebooks 10 and 11 cannot test: a fresh process, no network, a cache of models, odd files, long texts;
and the metrics as the installed package gives them."""

import json, logging, math, os, subprocess, sys, tracemalloc
from pathlib import Path
import numpy as np
import pytest
import diffuseq.metrics
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from diffuseq import evaluate, mbr_select
from diffuseq.mbr import bleu, bleu_matrix
from diffuseq.metrics import (
    COPY,
    SMALL_ENCODER,
    baseline_rows,
    bertscore,
    find_encoder,
    nearest_neighbour,
    read_official_outputs,
    results_table,
    rouge_l,
    sari,
    sari_corpus,
)

GOLDEN = json.loads((Path(__file__).parents[1] / 'nbs' / 'fixtures' / 'metrics.json').read_text('utf-8'))
rng = np.random.default_rng(5)


def random_text(low=0, high=12, words='a b c d e f g'):
    return ' '.join(rng.choice(words.split(), rng.integers(low, high)))


def run_python(code, **env):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'TRANSFORMERS_'))}
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=keep | env, timeout=300)


def nltk_bleu(hypothesis, references):
    "Sentence BLEU of the library that the paper's script uses, smoothing method 4."
    method4 = SmoothingFunction().method4
    return sentence_bleu([r.split() for r in references], hypothesis.split(), smoothing_function=method4)


WORDS = ['a b c', 'a b c d e f g h i j k l m n o p', "the The , . ? it's é 你好 42"]


@pytest.mark.parametrize('words', WORDS)
def test_bleu_is_nltks(words):
    for _ in range(300):
        hypothesis = random_text(0, 12, words)
        references = [random_text(0, 12, words) for _ in range(rng.integers(1, 4))]
        assert bleu(hypothesis, references) == nltk_bleu(hypothesis, references)


@pytest.mark.parametrize('words', WORDS)
def test_choice_and_scores_are_nltks(words):
    for _ in range(60):
        c = [random_text(0, 10, words) for _ in range(rng.integers(1, 11))]
        plain = [[0 if i == j else nltk_bleu(h, [r]) for j, r in enumerate(c)] for i, h in enumerate(c)]
        ours = bleu_matrix(c) * (1 - np.eye(len(c)))
        assert np.array_equal(ours, np.array(plain, float))
        assert mbr_select([c]) == [c[int(np.argmax(np.sum(plain, -1)))]]


@pytest.mark.parametrize('words', WORDS)
def test_rouge_l_is_googles(words):
    scorer = RougeScorer(['rougeL'])
    for _ in range(300):
        c, r = random_text(0, 40, words), random_text(0, 40, words)
        assert rouge_l([c], [[r]])[0] == np.float32(scorer.score(r, c)['rougeL'].fmeasure)


def test_choice_does_not_depend_on_the_order_of_candidates():
    for _ in range(100):
        c = [random_text(3, 10) for _ in range(6)]
        m = bleu_matrix(c)
        sums = np.sort((m * (1 - np.eye(6))).sum(-1))
        if sums[-1] - sums[-2] > 1e-9:
            assert mbr_select([list(reversed(c))]) == mbr_select([c])


def test_bleu_is_1_only_for_the_same_words_in_the_same_order():
    assert bleu('a b c d e', 'a b c d e') == 1
    assert bleu('e d c b a', 'a b c d e') < 1
    assert bleu('a b c d e e', 'a b c d e') < 1
    assert bleu('a b c d', 'a b c d e') == pytest.approx(math.exp(-1 / 4))


def test_authors_numbers_through_the_package(tmp_path):
    for name, lines in GOLDEN['files'].items():
        (tmp_path / name).write_text(''.join(json.dumps(x) + '\n' for x in lines))
    e = evaluate(*read_official_outputs(str(tmp_path)), bertscore_model=None)
    want = GOLDEN['expected']
    for k in ('bleu', 'rouge_l', 'dist_1'):
        assert e[k] == pytest.approx(want['mbr'][k], abs=1e-9)
        assert e[k + '_single'] == pytest.approx(want['files'][0][k], abs=1e-9)
    for k in ('self_bleu', 'div_4'):
        assert e[k] == pytest.approx(want['diversity'][k], abs=1e-9)
    for s in GOLDEN['sets']:
        assert mbr_select([s['candidates']]) == [s['chosen']]


def test_pairs_are_scored_apart():
    s, r, c = ([random_text(1) for _ in range(30)] for _ in range(3))
    whole = evaluate(s, r, c, per_pair=True, bertscore_model=None)['per_pair']
    order = rng.permutation(30)
    mixed = evaluate(*([x[i] for i in order] for x in (s, r, c)), per_pair=True, bertscore_model=None)['per_pair']
    for k, v in whole.items():
        assert [v[i] for i in order] == mixed[k]


def test_more_references_never_hurt():
    for _ in range(50):
        s, c, refs = random_text(1), random_text(1), [random_text(1) for _ in range(3)]
        one, all3 = (evaluate([s], [r], [c], bertscore_model=None) for r in (refs[:1], refs))
        assert all3['rouge_l'] >= one['rouge_l']


def test_sari_limits():
    for _ in range(100):
        s, r = (' '.join(rng.permutation(list('abcdefghij'))[: rng.integers(5, 10)]) for _ in range(2))  # no word twice
        assert sari(s, [r], r) == pytest.approx(100)
        assert 0 <= sari(s, [r], random_text(1)) <= 100
        refs = [random_text(2) for _ in range(3)]
        assert sari(s, refs, r) == pytest.approx(sari(s, refs[::-1], r))
        assert sari(s, [refs[0]] * 3, r) == pytest.approx(sari(s, refs[:1], r))
        assert sari_corpus([s] * 2, [refs] * 2, [r] * 2) == pytest.approx(sari_corpus([s], [refs], [r]))


def test_neighbours_one_by_one_and_together():
    train = [random_text(1, words='a b c d e f g h i j k l m') for _ in range(200)]
    asked = [random_text(0, words='a b c d e f g h i j k l m z') for _ in range(40)]
    assert nearest_neighbour(train, train, asked) == [nearest_neighbour(train, train, [a])[0] for a in asked]
    # a training source finds itself, or an earlier one of the same words
    for a, b in zip(nearest_neighbour(train, train, train[:20]), train[:20]):
        assert sorted(a.split()) == sorted(b.split())


def test_table_says_who_does_not_beat_the_copy():
    data = dict(src=['the cat sat on it', 'dogs bark at me'], trg=['the cat sat on it .', 'the dogs bark at me'])
    rows = baseline_rows(data, data, bertscore_model=None)
    ours = dict(model='m', **evaluate(data['src'], data['trg'], data['src'], bertscore_model=None))
    table = results_table([ours, *rows])
    assert table.loc['m', 'beats the copy'] == 'NO'  # as good is not better
    assert table.loc['nearest training pair', 'bleu'] == 1
    assert table.loc[COPY, 'bleu'] < 1


TEXTS = ['a', 'b', 'c', 'd']


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(references=['a', 'b', 'c', {'text': 'd'}]),
            'references[3] is dict; expected a string or a list of strings',
        ),
        (dict(references=['a', ['b', 2], 'c', 'd']), 'references[1][1] is int; expected a string'),
        (dict(references=None), 'references is None; expected a list with one entry for each source'),
        (dict(references=dict(a='b')), 'references is dict; expected a list with one entry for each source'),
        (dict(references=TEXTS[:3]), '4 sources, 3 references, 4 candidates'),
        (dict(sources=['a', ['b'], 'c', 'd']), 'sources[1] is list; expected a string'),
        (dict(sources=['a', None, 'c', 'd']), 'sources[1] is None; expected a string'),
        (dict(sources='a b c d'), 'sources is str; expected a list with one entry for each source'),
        (dict(sources=4), 'sources is int; expected a list with one entry for each source'),
        (dict(candidates=['a', 'b', 0.5, 'd']), 'candidates[2] is float; expected a string or a list of strings'),
        (dict(candidates=['a', 'b', [], 'd']), 'candidates[2] is an empty list; expected at least one text'),
        (dict(candidates=[['a', 'b'], ['b'], 'c', 'd']), 'candidates[1] has 1 texts but candidates[0] has 2'),
        (dict(candidates=3), 'candidates is int; expected a list with one entry for each source'),
        (dict(references=['a', None, 'c', 'd']), 'references[1] is None; expected a string or a list of strings'),
        (dict(references=['a', 'b', [], 'd']), 'references[2] is an empty list; expected at least one text'),
        (dict(candidates=[['a', None], 'b', 'c', 'd']), 'candidates[0][1] is None; expected a string'),
        (dict(sources=[], references=[], candidates=[]), 'nothing to score, the lists are empty'),
    ],
)
def test_wrong_arguments_are_named_with_their_place(change, message):
    arguments = dict(sources=TEXTS, references=TEXTS, candidates=TEXTS) | change
    with pytest.raises(ValueError) as error:
        evaluate(**arguments, bertscore_model=None)
    text = str(error.value)
    assert text.startswith(f'evaluate: {message}')
    assert '\n' not in text


def long_texts(words, n=5):
    "Random texts of so many words from five thousand."
    known = np.array([f'w{i}' for i in range(5000)])
    return [' '.join(known[rng.integers(5000, size=words)]) for _ in range(n)]


def test_memory_for_long_texts():
    "Five texts of 10,000 words on each side: below 64 MiB (a table of ROUGE-L alone would hold 100 million numbers)."
    texts = [long_texts(10_000) for _ in range(3)]
    evaluate(['a'], ['a'], ['a'], bertscore_model=None)  # what is imported is not counted
    tracemalloc.start()
    try:
        scores = evaluate(*texts, bertscore_model=None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20, f'{peak / 2**20:.0f} MiB'
    assert scores['length'] == 10_000
    assert 0 < scores['rouge_l'] < 0.1


def test_longest_texts_are_cut_with_one_counted_warning(monkeypatch, caplog):
    monkeypatch.setattr(diffuseq.metrics, 'LONGEST', 20)
    sources, references, candidates = TEXTS, [*TEXTS[:3], ['d', 'x ' * 30]], [*TEXTS[:3], 'a b c d e f g h i j k l']
    with caplog.at_level(logging.WARNING, 'diffuseq'):
        cut = evaluate(sources, references, candidates, per_pair=True, bertscore_model=None)
    (record,) = caplog.records
    assert record.name == 'diffuseq'
    assert '2 of 13 texts are longer than 20 characters' in record.getMessage()
    monkeypatch.undo()
    caplog.clear()
    by_hand = evaluate(
        sources,
        [*TEXTS[:3], ['d', 'x ' * 10]],
        [*TEXTS[:3], 'a b c d e f g h i j '],
        per_pair=True,
        bertscore_model=None,
    )
    assert not caplog.records
    for k in ('bleu', 'rouge_l', 'sari', 'sacrebleu', 'sari_corpus'):
        assert cut[k] == by_hand[k]
    assert cut['per_pair']['length'] == [1, 1, 1, 12]  # counted whole, and printed whole
    assert cut['per_pair']['chosen'] == candidates


HEAVY = ('torch', 'transformers', 'torchmetrics', 'bert_score', 'sklearn', 'matplotlib', 'nltk', 'pandas')


def test_import_loads_nothing_heavy():
    look = f'print([m for m in {HEAVY} if m in sys.modules])'
    out = run_python(f'import sys, diffuseq.metrics; {look}')
    assert out.stdout.strip() == '[]', out.stdout + out.stderr
    # nor do all scores without BERTScore
    call = "diffuseq.metrics.evaluate(['a b'], ['a b'], ['a b'], bertscore_model=None)"
    out = run_python(f'import sys, diffuseq.metrics; {call}; {look}')
    assert out.stdout.strip() == '[]', out.stdout + out.stderr


BLOCKED = """
import socket
def no(*a, **k): raise RuntimeError('network was asked')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no
"""


def test_default_needs_no_network(tmp_path):
    code = """
from diffuseq import evaluate
e = evaluate(['a dog'], ['the dog'], ['the dog'])
print(round(e['bertscore'], 3), e['signatures']['bertscore'])
"""
    out = run_python(BLOCKED + code, HF_HOME=str(tmp_path))
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.startswith('1.0 '), out.stdout
    assert 'all-MiniLM-L6-v2' in out.stdout, out.stdout


def test_named_encoder_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    for name in ('nobody/has-this', str(tmp_path)):
        with pytest.raises(OSError, match=f"no encoder at '{name}'.*bertscore_model='auto'"):
            bertscore(['a'], [['a']], model=name)


def test_papers_encoder_is_taken_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    snapshot = tmp_path / 'models--microsoft--deberta-xlarge-mnli' / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / 'refs'
    refs.mkdir()
    (refs / 'main').write_text('0' * 40)
    (snapshot / 'config.json').write_text('{}')
    assert find_encoder()[1:] == (6, SMALL_ENCODER)  # the weights are missing
    (snapshot / 'pytorch_model.bin').write_text('')
    place, layers, name = find_encoder()
    assert (Path(place).resolve(), layers, name) == (snapshot.resolve(), 40, 'microsoft/deberta-xlarge-mnli')


def test_tokenizer_without_a_limit(tmp_path):
    source = Path(find_encoder(SMALL_ENCODER)[0])
    for f in source.iterdir():
        if f.is_file() and f.name != 'tokenizer_config.json':
            (tmp_path / f.name).symlink_to(f)
    settings = json.loads((source / 'tokenizer_config.json').read_text())
    settings.pop('model_max_length')
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    long = 'word ' * 3000
    texts = [long, 'a dog'], [[long], ['the dog']]
    without_limit = bertscore(*texts, model=str(tmp_path))
    assert without_limit == pytest.approx(bertscore(*texts, model=SMALL_ENCODER), abs=1e-6)


def test_official_files_with_bom_and_crlf(tmp_path):
    row = dict(recover='[CLS] é b [SEP]', reference='[CLS] é [SEP]', source='[CLS] s [SEP]')
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf' + f'{line}\r\n{line}\r\n'.encode())
    texts = read_official_outputs(tmp_path)
    assert [c[0].split() for c in texts[2]] == [['é', 'b']] * 2
    assert evaluate(*texts, bertscore_model=None)['n'] == 2


LINE = '{"recover": "[CLS] a [SEP]", "reference": "[CLS] b [SEP]", "source": "[CLS] c [SEP]"}\n'


@pytest.mark.parametrize(
    'second, message',
    [
        (LINE + LINE[:20], 'b.json, line 2: not a line of JSON'),
        (LINE + '{"recover": "a"}\n', 'line 2: expected an object'),
        (LINE + '[1]\n', 'line 2: expected an object'),
        (LINE, '1 lines'),
        (LINE + LINE.replace('[CLS] c', '[CLS] x'), 'line 2: another source'),
        (LINE + LINE.replace('[CLS] b', '[CLS] x'), 'line 2: another source or reference'),
        ('\udcff\udcfe\n', 'line 1: not a line of JSON'),
    ],
)
def test_official_files_that_are_wrong_are_named_with_their_line(tmp_path, second, message):
    a, b = tmp_path / 'a.json', tmp_path / 'b.json'
    a.write_text(LINE * 2)
    assert read_official_outputs(a) == ([' c '] * 2, [' b '] * 2, [[' a ']] * 2)
    b.write_bytes(second.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ValueError) as error:
        read_official_outputs([a, b])
    assert message in str(error.value)


def test_official_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no [*].json'):
        read_official_outputs(tmp_path)
    (tmp_path / 'a.json').write_text('')
    with pytest.raises(ValueError, match='empty'):
        read_official_outputs(tmp_path)
