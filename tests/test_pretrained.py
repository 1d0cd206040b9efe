"Pre-trained weights that cannot be used: refused in one line."

import json
import pytest
import tiny
from safetensors.torch import save_file
from diffuseq.baselines.gpt2 import GPT2
from diffuseq.baselines.pretrained import build_network, load_network
from diffuseq.config import make_config
from diffuseq.text import load_tokenizer, save_tokenizer

CAUSAL = 'AutoModelForCausalLM'
GPT = dict(model_type='gpt2', vocab_size=120, n_embd=16, n_layer=2, n_head=2, n_positions=64)
T5 = dict(model_type='t5', vocab_size=120, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)


def test_no_network(tmp_path):
    with pytest.raises(ValueError, match="'gpt2-that-is-nowhere': no pre-trained causal language model"):
        load_network('gpt2-that-is-nowhere', CAUSAL)
    build_network(json.dumps(T5), 'AutoModelForSeq2SeqLM').save_pretrained(tmp_path / 't5')
    with pytest.raises(ValueError, match='no pre-trained causal language model'):
        load_network(tmp_path / 't5', CAUSAL)


def test_missing_weights(tmp_path):
    net = build_network(json.dumps(GPT), CAUSAL)
    net.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='a folder that holds config.json, model.safetensors'):
        load_network(tmp_path, CAUSAL)
    left_out = ('transformer.h.1.ln_1.weight', 'lm_head.weight')  # the second is tied
    weights = {n: x.contiguous() for n, x in net.state_dict().items() if n not in left_out}
    save_file(weights, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='1 weights are missing, transformer.h.1.ln_1.weight'):
        load_network(tmp_path, CAUSAL)


@pytest.mark.parametrize(
    'record, says',
    [
        ('{"model_type": "none"}', 'none of AutoModel'),
        ('{"model_type": "t5"}', 'none of AutoModelForCausalLM'),
        ('[]', 'list instead of'),
        ('{', 'not valid JSON'),
    ],
)
def test_damaged_records(record, says):
    with pytest.raises(ValueError, match=says):
        build_network(record, CAUSAL)


def test_another_tokenizer(tmp_path):
    m = tiny.model(tiny.config('gpt2'))
    m.net.save_pretrained(tmp_path)
    save_tokenizer(m.tokenizer, tmp_path)
    c = make_config(recipe='gpt2', profile='smoke', init_from=str(tmp_path))
    with pytest.raises(ValueError, match="tokenizer='bpe' would number words otherwise"):
        GPT2.begin(c)
    begun = GPT2.begin(make_config(recipe='gpt2', profile='smoke', encoder=tmp_path))
    with pytest.raises(ValueError, match='30522 words and the network of config.json'):
        GPT2(begun.config, load_tokenizer('bert-base-uncased'))


def test_no_separator_and_no_room():
    m = tiny.model(tiny.config('gpt2'))
    with pytest.raises(ValueError, match="separator='tl;dr' is not one word"):
        GPT2(make_config(recipe='gpt2', profile='smoke', separator='tl;dr'), m.tokenizer)
    short = json.dumps(GPT | dict(vocab_size=len(m.tokenizer), n_positions=32))
    with pytest.raises(ValueError, match='this network has 32 positions'):
        GPT2(make_config(recipe='gpt2', profile='smoke', max_target=400, architecture=short), m.tokenizer)
