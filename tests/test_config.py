"What a configuration, settings of decoding and a saved config.json refuse, each by name."

import json, re
import pytest
from diffuseq.config import (
    AutoregressiveConfig,
    AutoregressiveDecoding,
    BlockConfig,
    BlockDecoding,
    GRUConfig,
    PaperConfig,
    PaperDecoding,
    load_settings,
    make_config,
    make_decoding,
    save_config,
)


def refused(says):
    return pytest.raises(ValueError, match=re.escape(says))


@pytest.mark.parametrize(
    'kind, bad, says',
    [
        (BlockConfig, dict(T=0), 'T=0'),
        (BlockConfig, dict(T=2000.0), 'expected int'),
        (BlockConfig, dict(lr=float('nan')), 'lr'),
        (BlockConfig, dict(schedule='sigmoid'), 'sqrt, linear, cosine'),
        (BlockConfig, dict(width=250), 'n_heads'),
        (BlockConfig, dict(lr_decay='linear'), 'lr_updates'),
        (BlockConfig, dict(copy_head=1), 'expected bool'),
        (BlockConfig, dict(eos_share=2.0), 'at most 1'),
        (BlockConfig, dict(level_distribution='loss_aware'), 'uniform, log_sigma'),
        (BlockConfig, dict(sigma_min=12.0), 'sigma_min'),
        (PaperConfig, dict(time_width=7), 'even'),
        (PaperConfig, dict(positions=32), 'smaller than window'),
        (PaperConfig, dict(absorb_penalty=0.01), 'absorbing True'),
        (PaperConfig, dict(absorbing=True, absorb_rate=1.5), 'at most 1'),
        (PaperConfig, dict(optimizer='muon'), 'adamw'),
        (AutoregressiveConfig, dict(word_dropout=1.0), 'below 1'),
        (GRUConfig, dict(width=255), 'width is odd'),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_refused(kind, bad, says):
    with refused(says):
        kind(**bad)


def test_a_setting_of_another_model_does_not_exist():
    with pytest.raises(TypeError, match='unexpected keyword'):
        AutoregressiveConfig(T=10)


@pytest.mark.parametrize(
    'kind, bad, says',
    [
        (BlockDecoding, dict(order='left-to-right', steps=5), "steps has no effect with order='left-to-right'"),
        (BlockDecoding, dict(beam=3), "beam has no effect with order='semi-autoregressive'"),
        (BlockDecoding, dict(top_p=0.5), 'top_p is of words that are drawn'),
        (BlockDecoding, dict(order='confidence', sampler='ddim'), "used with order 'parallel'"),
        (BlockDecoding, dict(order='parallel', eta=0.5), "eta has no effect with sampler='renoise'"),
        (BlockDecoding, dict(order='confidence', beam=3), 'beam has no effect'),
        (BlockDecoding, dict(order='left-to-right', beam=3, temperature=1.0), 'draws nothing'),
        (BlockDecoding, dict(order='left-to-right', beam=3, groups=2), 'groups=2 does not divide beam=3'),
        (BlockDecoding, dict(order='left-to-right', beam=3, diversity=1.0), 'used with groups 2 to 1000'),
        (AutoregressiveDecoding, dict(top_p=0.9), 'give a temperature'),
        (BlockDecoding, dict(order='surest'), "is now called 'confidence'"),
        (BlockDecoding, dict(likeliest=True), 'is now called rerank'),
        (BlockDecoding, dict(replace=True), 'no setting replace'),
        (BlockDecoding, dict(odrer='parallel'), 'did you mean order?'),
        (PaperDecoding, dict(temperature=1.0), 'no setting temperature'),
        (PaperDecoding, dict(eta=0.5), "used with sampler 'ddim'"),
        (PaperDecoding, dict(steps=2.5), 'expected int'),
        (AutoregressiveDecoding, dict(order='confidence'), 'no setting order'),
    ],
    ids=str,
)
def test_a_change_of_decoding_that_cannot_be_is_refused(kind, bad, says):
    with refused(says):
        kind().updated(**bad)


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(recipe='papre'), 'fast, paper, official, v2, autoregressive, gru'),
        (dict(recipe='papre'), 'did you mean paper?'),
        (dict(recipe='twin'), "now called 'autoregressive'"),
        (dict(depth=3), 'depth'),
        (dict(steps=3), 'arguments of generate'),
        (dict(leraning_rate=1.0, dropuot=0.1), 'did you mean dropout?'),
    ],
    ids=str,
)
def test_an_unknown_recipe_or_setting_is_named(bad, says):
    with refused(says):
        make_config(**bad)


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(odrer='parallel'), 'no setting odrer; it has order, '),
        (dict(odrer='parallel'), 'did you mean order?'),
        (dict(order='paralel'), 'did you mean parallel?'),
    ],
    ids=str,
)
def test_an_unknown_setting_of_a_new_model_is_named(bad, says):
    with refused(says):
        make_decoding(make_config(), **bad)


def test_a_broken_config_file_is_named(tmp_path):
    path = tmp_path / 'config.json'
    save_config(make_config(recipe='paper', seed=7), path)
    kept = json.loads(path.read_text())
    for broken, says in [
        ('{"T": 3', 'not valid JSON'),
        ('{"T": 3}', 'model=None is none of'),
        (json.dumps(kept | dict(noise={})), 'missing: T, '),
        (json.dumps(kept | dict(noise=3)), 'noise is no group'),
        (json.dumps(kept | dict(noise=kept['noise'] | dict(T='3'))), "T='3' is str"),
    ]:
        path.write_text(broken)
        with refused(says) as e:
            load_settings(tmp_path)
        assert 'config.json: ' in str(e.value)
    with pytest.raises(FileNotFoundError, match='no configuration'):
        load_settings(tmp_path / 'nowhere')


def test_a_condition_on_a_setting_without_effect_is_none():
    drawn = dict(temperature=1.0, top_p=0.9)
    made = BlockDecoding(order='left-to-right', end='predicted').updated(order='semi-autoregressive', **drawn)
    assert made.uses('top_p') and not made.uses('end')
    with pytest.raises(ValueError, match="top_p has no effect with end='predicted'"):
        BlockDecoding(order='left-to-right').updated(end='predicted', **drawn)
