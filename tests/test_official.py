"A checkpoint of the authors that is wrong, and a BERT that does not fit: each is refused in one line."

import io, json, pickle
import pytest, torch
from transformers import BertConfig, BertModel
from diffuseq.config import make_config
from diffuseq.hub import new_model
from diffuseq.official import (
    as_ours,
    dictionary_tokenizer,
    find_checkpoint,
    load_official,
    official_config,
    read_args,
    read_checkpoint,
    save_official,
    start_from_bert,
)
from diffuseq.text import save_tokenizer, train_tokenizer
from test_parity import fixture, laid_out, note


def saved(content):
    "The bytes that torch.save writes."
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@pytest.mark.parametrize(
    'content, words',
    [
        (saved(dict(a=torch.ones(3)))[:100], 'cut short'),
        (b'', 'cut short'),
        (b'hello world', 'damaged'),
        (pickle.dumps([1, 2], 2), 'damaged'),
        (saved(torch.nn.Linear(2, 2)), 'Linear'),
        (saved([1, 2]), 'a list'),
        (saved(dict(a=1)), 'not tensors by name'),
        (saved({}), 'not tensors by name'),
        (saved(dict(a=torch.tensor(torch.nan))), 'not finite'),
    ],
    ids=['cut', 'empty', 'text', 'a pickle', 'a module', 'a list', 'a number', 'nothing', 'nan'],
)
def test_a_file_that_holds_no_weights(tmp_path, content, words):
    (tmp_path / 'x.pt').write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / 'x.pt')


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'):
        find_checkpoint(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='holds nothing'):
        find_checkpoint(tmp_path)
    laid_out('checkpoint_main', tmp_path)
    find_checkpoint(tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match='no ema_.*it holds tokenizer.json'):
        load_official(tmp_path, num_heads=2)


@pytest.mark.parametrize(
    'text, words',
    [
        (None, 'missing'),
        ('{"T": ', 'not valid JSON'),
        ('[]', 'list instead of the settings'),
        ('{}', 'diffusion_steps'),
        (dict(learn_sigma=True), 'learn_sigma=True'),
        (dict(diffusion_steps='many'), "diffusion_steps='many' is no int"),
        (dict(microbatch=None), 'microbatch=None is no int'),
    ],
)
def test_settings_that_cannot_be_followed(tmp_path, text, words):
    path = tmp_path / 'training_args.json'
    if text is not None:
        known = note('checkpoint_v2')['training_args']
        path.write_text(json.dumps(known | text) if isinstance(text, dict) else text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_args(path)


@pytest.mark.parametrize(
    'settings, change, heads, words',
    [
        ({}, {}, 5, 'num_heads=5'),
        ({}, {'time_embed.0.weight': None}, 2, 'missing: time_embed.0.weight'),
        ({}, {'time_embed.0.weight': torch.ones(8)}, 2, r'time_embed.0.weight of shape \(8,\)'),
        (dict(hidden_dim=128), {}, 2, 'hidden_dim is 128 there and 8'),
        (dict(noise_schedule='pw_lin'), {}, 2, 'sqrt, linear, cosine'),
        (dict(ema_rate='a'), {}, 2, 'training_args.json: '),
    ],
)
def test_settings_and_weights_that_do_not_belong_together(settings, change, heads, words):
    weights = as_ours(fixture('checkpoint_v2'))[0] | change
    weights = {k: v for k, v in weights.items() if v is not None}
    with pytest.raises(ValueError, match=words):
        official_config(note('checkpoint_v2')['training_args'] | settings, weights, heads, 'x.pt')


def without(tensors, part):
    return {k: v for k, v in tensors.items() if part not in k}


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda d: without(d, 'layer.1.output'), 'missing: input_transformers.layer.1.output'),
        (lambda d: d | dict(pooler=torch.ones(1)), 'unknown: pooler'),
        (lambda d: d | {'lm_head.bias': torch.ones(7)}, 'shapes: lm_head.bias'),
        (lambda d: dict(conv=torch.ones(3)), 'not the weights of a DiffuSeq'),
        (lambda d: {f'module.{k}': v for k, v in d.items()}, None),
        (lambda d: without(d, 'position_ids'), None),
    ],
    ids=['a layer less', 'an unknown one', 'another shape', 'of another program', 'wrapped', 'no position_ids'],
)
def test_tensors_of_a_file(tmp_path, change, words):
    file = find_checkpoint(laid_out('checkpoint_main', tmp_path))
    torch.save(change(torch.load(file, weights_only=True)), file)
    if words is None:
        load_official(tmp_path, num_heads=2)
        return
    with pytest.raises(ValueError, match=words):
        load_official(tmp_path, num_heads=2)


def test_a_tokenizer_of_another_model(tmp_path):
    laid_out('checkpoint_main', tmp_path)
    (tmp_path / 'tokenizer.json').unlink()
    named = note('checkpoint_main')['training_args'] | dict(config_name='bert-base-uncased')
    (tmp_path / 'training_args.json').write_text(json.dumps(named))
    with pytest.raises(ValueError, match='a tokenizer of 30522'):
        load_official(tmp_path, num_heads=2)


@pytest.mark.parametrize('change', [dict(known=6), dict(known=9), dict(known='7'), dict(known=None)], ids=str)
def test_a_damaged_dictionary_of_words(change):
    known = ['[START]', '[END]', '[UNK]', '[PAD]', 'the', 'cat', 'un@@', 'known']
    with pytest.raises(ValueError, match='not 0 to 7, once each'):
        dictionary_tokenizer({w: i for i, w in enumerate(known)} | change)


def test_a_missing_dictionary_of_words(tmp_path):
    laid_out('checkpoint_main', tmp_path)
    named = note('checkpoint_main')['training_args'] | dict(vocab='data/words.txt')
    (tmp_path / 'training_args.json').write_text(json.dumps(named))
    with pytest.raises(ValueError, match='vocab.json'):
        load_official(tmp_path, num_heads=2)


def test_models_that_cannot_be_written(tmp_path):
    folder = tmp_path / 'theirs'
    folder.mkdir()
    m = load_official(laid_out('checkpoint_main', folder), num_heads=2)
    fast = new_model(make_config(profile='smoke'), m.tokenizer)
    with pytest.raises(ValueError, match='paper, official and v2'):
        save_official(fast, tmp_path / 'no')
    m.official_extra = m.official_extra[:50]
    with pytest.raises(ValueError, match='official_extra.safetensors: damaged'):
        save_official(m, tmp_path / 'no')
    assert not (tmp_path / 'no').exists()


@pytest.fixture(scope='module')
def words():
    return train_tokenizer(['a small bert of random weights'], 60, 'wordpiece')


def bert_of(words, folder, **changes):
    "A folder that holds a small BERT of random weights."
    sizes = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    BertModel(BertConfig(vocab_size=len(words), **(sizes | changes))).save_pretrained(folder)
    save_tokenizer(words, folder)
    return folder


@pytest.mark.parametrize(
    'ours, theirs, said',
    [
        (dict(n_layers=4), {}, 'n_layers=4, there at most 3'),
        (dict(n_heads=4), {}, 'n_heads=4, there 2'),
        (dict(d_embed=18), {}, 'd_embed=18 is more'),
        (dict(positions=600), {}, 'positions=600'),
        ({}, dict(hidden_act='relu'), 'hidden_act=gelu, there relu'),
    ],
)
def test_a_bert_that_does_not_fit(tmp_path, words, ours, theirs, said):
    sizes = dict(d_embed=16, width=16, n_heads=2, n_layers=3) | ours
    model = new_model(make_config(recipe='paper', profile='smoke', **sizes), words)
    with pytest.raises(ValueError, match=said):
        start_from_bert(model, bert_of(words, tmp_path, **theirs))


def test_words_of_a_bert_get_unit_power(tmp_path, words):
    sizes = dict(d_embed=16, width=16, n_heads=2, n_layers=3)
    model = new_model(make_config(recipe='paper', profile='smoke', **sizes), words)
    start_from_bert(model, bert_of(words, tmp_path))
    assert abs(model.net.table().square().mean().item() - 1) < 1e-5
