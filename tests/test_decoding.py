"Orders of generation: one that does not exist is refused; drafts write what word by word writes."

import pytest, torch
from diffuseq.decoding import DRAFTED, unmask, write, write_drafts


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="'left-to-right' or 'confidence'"):
        unmask(None, torch.ones(1, 3, dtype=torch.bool), 'parallel')


# ---- drafts


class Language:
    "Words 3 to 7, the end 2; the next word depends on all before it. A cache is the list of the words of each text."

    class tokenizer:
        pad_token_id, cls_token_id, sep_token_id = 0, 1, 2

    device = 'cpu'

    def law(self, words):
        "p of the next word."
        g = torch.Generator().manual_seed(hash(tuple(words)) % 2**31)
        p = (1.5 * torch.randn(8, generator=g, dtype=torch.float64)).softmax(-1)
        p[:2] = 0
        return p

    def encode(self, rows):
        return [(9 + row,) for row in range(len(rows))]

    def reorder(self, cache, rows):
        return [text for text, goes in zip(cache, rows.tolist()) if goes]

    def next_word(self, words, cache, k):
        cache = [(*text, w) for text, w in zip(cache, words.tolist())] if k else cache
        return torch.stack([self.law(text) for text in cache]), cache


class Drafts(Language):
    "The same language for `write_drafts`; what follows the next word is known or guessed wrongly, by turns."

    def __init__(self, cache):
        self.texts = list(cache)
        self.calls = 0

    def __call__(self, words, start):
        self.calls += 1
        self.texts = [text[: 1 + n] + tuple(w) for text, n, w in zip(self.texts, start.tolist(), words.tolist())]
        self.begun = [1 + n + min(1, words.shape[1]) for n in start.tolist()]
        ends = [range(b, b + max(1, words.shape[1])) for b in self.begun]
        return torch.stack([torch.stack([self.law(t[:end]) for end in some]) for t, some in zip(self.texts, ends)])

    def after(self, i):
        known = [text[: b + n] for text, b, n in zip(self.texts, self.begun, i.tolist())]
        return torch.stack([torch.stack([self.guess(text, j) for j in range(DRAFTED)]) for text in known])

    def guess(self, text, j):
        "p of the j-th word after a text and the next word."
        for _ in range(j):
            text = (*text, int(self.law(text).argmax()) if len(text) % 2 else 0)
        return self.law(text)

    def reorder(self, rows):
        self.texts = super().reorder(self.texts, rows)


B, LONGEST = 40, 14
U = torch.rand(B, LONGEST, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drafted(calls=0, expected=6, **how):
    "The texts of `write_drafts`, and how many calls they took."
    predict = Drafts(Language().encode(range(B)))
    ids = write_drafts(predict, torch.full((B,), expected), LONGEST, Language.tokenizer, calls, **how)
    return ids, predict.calls


@pytest.mark.parametrize('how', [{}, dict(temperature=1.0, u=U), dict(temperature=0.7, u=U, top_p=0.8)], ids=str)
def test_drafts_write_what_word_by_word_writes(how):
    "Texts of all lengths: an end inside a draft, at the limit, and none."
    word_by_word = write(Language(), Language().encode(range(B)), B, LONGEST, **how)
    lengths = {int((row > 0).sum()) for row in word_by_word}
    assert {1, 2, LONGEST} <= lengths or len(lengths) > 6
    ids, calls = drafted(**how)
    assert torch.equal(ids, word_by_word) and calls <= LONGEST
    assert torch.equal(drafted(LONGEST, **how)[0], word_by_word)  # a limit that is no limit


@pytest.mark.parametrize('expected', [1, 6, 100])
@pytest.mark.parametrize('calls', [1, 2, 3, 5])
def test_a_limit_holds_whatever_length_is_expected(calls, expected):
    ids, taken = drafted(calls, expected)
    assert taken <= calls and ids.shape == (B, LONGEST)
    size = (ids > 0).sum(1)
    assert (size <= DRAFTED * calls).all() and (size >= 1).all()
    ended = (ids == 2).any(1)
    assert (ended | (size >= min(LONGEST, calls))).all()  # each call writes a word
    assert ((ids == 2).int().argmax(1)[ended] == size[ended] - 1).all()  # nothing behind the end
    if expected == 100:
        assert (ended | (size == min(LONGEST, DRAFTED * calls))).all()  # all that is drafted is due


def test_what_a_callback_was_told_stays():
    told = []
    look = lambda ids, masked, words, said: told.append((ids, ids.clone(), masked, said))
    ids, calls = drafted(callback=look)
    assert len(told) == calls and all(torch.equal(then, now) for then, now, *_ in told)
    assert torch.equal(told[-1][0], ids) and not told[-1][2].any()
    for words, _, masked, said in told:
        assert (said['p'].argmax(-1) == words[said['asked']]).all()  # greedy: each word is the best of its own p
        assert not (masked & ~said['asked']).any()


def test_words_of_a_rank():
    first = Language().law((9,))
    ranked = [w for w in first.argsort(descending=True).tolist() if first[w] > 0 and w != 2]
    for rank in range(1, 8):
        begins = drafted(rank=torch.tensor([rank] * B))[0][0, 0].item()
        assert begins == ranked[rank % len(ranked)]
