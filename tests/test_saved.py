"A model in a folder: what was saved is loaded, also of before; what is damaged is refused by name."

import json, shutil, struct
import numpy as np, pytest, torch
from safetensors.torch import load_file, save, save_file
import tiny
from tiny import SOURCES
from diffuseq import DiffuSeq
from diffuseq.base import TextModel
from diffuseq.config import load_settings, make_config, make_decoding
from diffuseq.core import digest_of
from diffuseq.hub import load_model, model_folder
from diffuseq.text import load_tokenizer, make_tokenizer, save_tokenizer, train_tokenizer

quiet = dict(progress=False)
flat = tiny.root / 'tests' / 'fixtures' / 'flat'  # config.json of an earlier version, one flat table


@pytest.fixture(params=['fast', 'paper'])
def saved(request, models, tmp_path):
    "A model, and the folder it was saved to."
    m = tiny.model(models[request.param].config)
    m.save_pretrained(tmp_path / 'm')
    return m, tmp_path / 'm'


def weights_of(m):
    "Names and tensors."
    return dict(m.named_parameters())


def test_saved_and_loaded(saved):
    m, folder = saved
    again = DiffuSeq.from_pretrained(folder)
    assert not tiny.different(weights_of(m), weights_of(again))
    assert (again.config, again.decoding, again.training) == (m.config, m.decoding, False)
    assert again.double().generate(SOURCES, **quiet) == m.double().generate(SOURCES, **quiet)
    again.save_pretrained(folder)
    assert not tiny.different(weights_of(m), weights_of(DiffuSeq.from_pretrained(str(folder)).double()))


def test_settings_of_decoding_are_saved_with_the_model(tmp_path):
    c = tiny.config()
    m = tiny.model(c, decoding=make_decoding(c, order='confidence', steps=3))
    m.save_pretrained(tmp_path)
    assert load_model(tmp_path).generate(SOURCES, **quiet) == m.generate(SOURCES, order='confidence', steps=3, **quiet)


def test_a_setting_of_decoding_that_is_gone_is_passed_over(tmp_path):
    tiny.model(tiny.config()).save_pretrained(tmp_path)
    now = load_model(tmp_path).decoding
    settings = tmp_path / 'decoding.json'
    settings.write_text(json.dumps(json.loads(settings.read_text()) | dict(entropy_bound=1.0)))
    assert load_model(tmp_path).decoding == now


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_saved_in_half_the_room(dtype, tmp_path):
    m = tiny.model()
    m.save_pretrained(tmp_path / 'half', dtype=dtype)
    m.save_pretrained(tmp_path / 'whole')
    sizes = [(tmp_path / name / 'model.safetensors').stat().st_size for name in ('half', 'whole')]
    assert sizes[0] < 0.6 * sizes[1]
    rounded = {name: p.detach().to(dtype).float() for name, p in m.named_parameters()}
    assert not tiny.different(rounded, weights_of(load_model(tmp_path / 'half')))


def test_another_class_is_named(tmp_path):
    tiny.model(tiny.config('autoregressive')).save_pretrained(tmp_path)
    assert type(TextModel.from_pretrained(tmp_path)).__name__ == 'Autoregressive'
    with pytest.raises(ValueError, match='holds a Autoregressive .*, not a DiffuSeq; use Autoregressive'):
        DiffuSeq.from_pretrained(tmp_path)


def test_nonsense_is_not_a_model(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'empty').mkdir()
    for name in (tmp_path / 'empty', tmp_path / 'file', ''):
        with pytest.raises(FileNotFoundError, match='no config.json in it; expected a run folder'):
            DiffuSeq.from_pretrained(name)
    for name in (tmp_path / 'nowhere', 'no/such-model', 'not a name at all !', '../..//y'):
        with pytest.raises(FileNotFoundError, match='neither a folder nor a model that comes with the package'):
            DiffuSeq.from_pretrained(name)


# ---- damaged


def damaged(folder, name, data):
    "A copy of a model's folder, with other bytes in a file, or without it."
    to = folder.with_name('damaged')
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    if data is None:
        (to / name).unlink()
    else:
        (to / name).write_bytes(data)
    return to


def test_a_missing_file_is_named(saved):
    _, folder = saved
    with pytest.raises(FileNotFoundError, match='model.safetensors: no such file'):
        load_model(damaged(folder, 'model.safetensors', None))
    with pytest.raises(ValueError, match='tokenizer.json: no tokenizer here'):
        load_model(damaged(folder, 'tokenizer.json', None))


def test_a_damaged_file_is_named(saved):
    _, folder = saved
    weights = (folder / 'model.safetensors').read_bytes()
    config = (folder / 'config.json').read_bytes()
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n'
    cut = [weights[:k] for k in (0, 7, 50, len(weights) // 2, len(weights) - 1)]
    for name, data, says in [
        ('tokenizer.json', b'{"a": 1}', 'tokenizer.json: not a tokenizer'),
        ('tokenizer.json', b'', 'tokenizer.json: not a tokenizer'),
        ('config.json', config[:-20], 'config.json: not valid JSON'),
        ('config.json', b'[' * 100_000, 'config.json: nested too deeply'),
        ('config.json', b'\xff' + config, 'config.json: not UTF-8'),
        ('config.json', b'[]', 'config.json: list instead of'),
        ('config.json', config.replace(b'"T": 50', b'"T": -50'), 'config.json: config: T=-50'),
        ('config.json', config.replace(b'"width": 32', b'"width": "32"'), 'config.json: config: width'),
        ('config.json', config.replace(b'"width": 32', b'"width": 40'), 'another model'),
        ('config.json', config.replace(b'"width"', b'"breadth"'), 'unknown: breadth; missing: width'),
        ('decoding.json', b'{"stops": 3}', 'decoding.json: not a configuration of this version; unknown: stops'),
        ('decoding.json', b'', 'decoding.json: not valid JSON'),
        *(('model.safetensors', data, 'model.safetensors: not a readable safetensors file') for data in cut),
        ('model.safetensors', b'PK\x03\x04' + bytes(500), 'model.safetensors: not a readable safetensors file'),
        ('model.safetensors', pointer, 'model.safetensors: not a readable safetensors file'),
    ]:
        with pytest.raises(ValueError) as e:
            load_model(damaged(folder, name, data))
        assert says in str(e.value) and '\n' not in str(e.value)
        assert str(e.value).startswith(str(folder.with_name('damaged')))


def test_a_tokenizer_whose_words_share_a_number_is_named(tmp_path):
    path = tmp_path / 'tokenizer.json'
    save_tokenizer(train_tokenizer(['some words and other words of the world'] * 9, 60), tmp_path)
    read = json.loads(path.read_text())
    vocab = read['model']['vocab']
    vocab['##r'] = vocab['##s']  # the library notices when it copies what it has read
    path.write_text(json.dumps(read))
    with pytest.raises(ValueError) as e:
        load_tokenizer(path)
    assert str(e.value).startswith(f'{path}: not a tokenizer (') and '\n' not in str(e.value)


def refused(folder, data):
    "What loading says of a file of weights with these bytes."
    with pytest.raises(ValueError, match=r'model\.safetensors: ') as e:
        load_model(damaged(folder, 'model.safetensors', data))
    return str(e.value)


def test_a_number_that_is_none_is_noticed(saved):
    "With a digest, which no longer fits, and without one."
    _, folder = saved
    tensors = load_file(folder / 'model.safetensors')
    name = sorted(tensors)[-1]
    digest = digest_of(tensors)
    tensors[name].view(-1)[0] = float('nan')
    assert 'its tensors are not those that were written' in refused(folder, save(tensors, dict(digest=digest)))
    assert f'{name} holds numbers that are not finite' in refused(folder, save(tensors))
    assert f'{name} holds numbers that are not finite' in refused(
        folder, save(tensors, dict(digest=digest_of(tensors)))
    )


def test_one_flipped_bit_is_noticed(saved):
    "Any bit where a digest stands beside the weights; without one, the bit that makes a number infinite or none."
    _, folder = saved
    tensors = load_file(folder / 'model.safetensors')
    name = 'net.word_embedding.weight'
    bits = tensors[name].numpy().view(np.uint32).reshape(-1)
    at = int(np.flatnonzero((bits >> 23 & 0xFF) == 127)[0])  # of a number in 1..2
    digest = digest_of(tensors)
    for bit in (0, 22, 23, 30, 31):
        bits[at] ^= np.uint32(1 << bit)
        assert 'its tensors are not those that were written' in refused(folder, save(tensors, dict(digest=digest)))
        if bit == 30:
            assert f'{name} holds numbers that are not finite' in refused(folder, save(tensors))
        bits[at] ^= np.uint32(1 << bit)
    assert digest_of(tensors) == digest


def test_a_flipped_byte_of_the_header_is_noticed(saved):
    "It is refused by name, unless it changed no tensor at all."
    m, folder = saved
    data = bytearray((folder / 'model.safetensors').read_bytes())
    header = 8 + struct.unpack('<Q', data[:8])[0]
    silent = 0
    for at in [*range(8), *np.linspace(8, header - 1, 40, dtype=int)]:
        data[at] ^= 4
        try:
            again = load_model(damaged(folder, 'model.safetensors', data))
        except ValueError as e:
            assert 'damaged/model.safetensors: ' in str(e) and '\n' not in str(e), str(e)
        else:
            assert not tiny.different(weights_of(m), weights_of(again)), at
            silent += 1
        data[at] ^= 4
    assert silent < 10


def test_foreign_weights(saved):
    m, folder = saved
    mine = load_file(folder / 'model.safetensors')
    without = {name: x for name, x in mine.items() if 'word_embedding' not in name}
    for tensors, says in [
        ({'bert.encoder.layer.0.weight': torch.ones(2)}, 'missing: '),
        ({}, 'missing: '),
        (mine | {'more': torch.ones(1)}, 'unknown: more'),
        (without, 'missing: net.word_embedding.weight'),
    ]:
        save_file(tensors, folder / 'model.safetensors')
        with pytest.raises(ValueError, match='model.safetensors: these weights belong to another model') as e:
            load_model(folder)
        assert says in str(e.value)


def test_a_vocabulary_that_does_not_match(saved):
    m, folder = saved
    other = make_tokenizer(tiny.pairs(), tiny.config(vocab_size=350))
    (folder / 'tokenizer.json').write_text(other.backend_tokenizer.to_str())
    with pytest.raises(ValueError, match=f'the weights know {len(m.tokenizer)} words and tokenizer.json {len(other)}'):
        load_model(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('device', ['cuda', 'cuda:1', 'gpu'])
def test_a_device_that_is_not_there(device):
    for load in (load_model, DiffuSeq.from_pretrained):
        with pytest.raises(ValueError) as e:
            load('basic-english', device)
        assert f'device={device!r} cannot be used here' in str(e.value) and '\n' not in str(e.value)


# ---- of before

TODAY = {
    'basic-english': dict(init_from='all-MiniLM-L6-v2'),
    'paper': dict(recipe='paper', profile='full'),
    'official': dict(recipe='official', profile='full'),
    'official-v2': dict(recipe='official', profile='full', absorbing=True, absorb_rate=0.5, absorb_penalty=0.01),
    'twin': dict(recipe='autoregressive'),
}


def test_every_flat_table_is_tried():
    assert {p.stem for p in flat.iterdir()} == TODAY.keys()


@pytest.mark.parametrize('name', TODAY)
def test_a_flat_table_means_what_it_meant(name, tmp_path):
    shutil.copy(flat / f'{name}.json', tmp_path / 'config.json')
    config, decoding = load_settings(tmp_path)
    assert config == make_config(**TODAY[name])
    assert decoding == make_decoding(config, **order_of_before(config))


def order_of_before(config):
    "The default order of the default model was left to right."
    return dict(order='left-to-right') if config.model == 'block' else {}


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(self_cond=True), 'self_cond=True does not exist any more'),
        (dict(width='192'), "width='192' is str"),
        (dict(lr=float('inf')), 'lr=inf must be finite'),
        (dict(order='right'), "order='right'; choose one of"),
    ],
    ids=str,
)
def test_a_flat_table_that_cannot_be_is_refused(change, says, tmp_path):
    old = json.loads((flat / 'basic-english.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(old | change))
    with pytest.raises(ValueError) as e:
        load_settings(tmp_path)
    assert str(e.value).startswith(f'{tmp_path}/config.json: ') and says in str(e.value)


def as_before(folder, to, table):
    "A model's folder as an earlier version wrote it: a flat table, one name of a parameter, no digest."
    shutil.copytree(folder, to)
    (to / 'decoding.json').unlink(missing_ok=True)
    (to / 'config.json').write_text(json.dumps(table))
    tensors = load_file(folder / 'model.safetensors')
    save_file({name.replace('net.segment', 'net.side'): x for name, x in tensors.items()}, to / 'model.safetensors')


def test_the_shipped_weights_beside_their_earlier_table(tmp_path):
    table = json.loads((flat / 'basic-english.json').read_text())
    as_before(model_folder('basic-english'), tmp_path / 'm', table)
    now = load_model('basic-english')
    before = load_model(tmp_path / 'm')
    assert (before.config, before.decoding) == (now.config, now.decoding.updated(order='left-to-right'))
    assert not tiny.different(weights_of(now), weights_of(before))
    assert before.generate(SOURCES, **quiet) == now.generate(SOURCES, order='left-to-right', **quiet)


@pytest.mark.parametrize('recipe, name', [('fast', 'basic-english'), ('paper', 'paper'), ('autoregressive', 'twin')])
def test_a_saved_model_of_before(recipe, name, tmp_path):
    "Every kind, with the settings of a small profile put into the flat table."
    c = tiny.config(recipe)
    m = tiny.model(c, decoding=make_decoding(c, **order_of_before(c)))
    m.save_pretrained(tmp_path / 'now')
    table = json.loads((flat / f'{name}.json').read_text())
    small = {k: v for k, v in vars(m.config).items() if k in table and table[k] != v and k != 'recipe'}
    as_before(tmp_path / 'now', tmp_path / 'before', table | small | dict(steps=getattr(m.decoding, 'steps', 20)))
    if recipe != 'paper':
        assert 'net.side' in load_file(tmp_path / 'before' / 'model.safetensors')
    again = load_model(tmp_path / 'before')
    assert (again.config, again.decoding) == (m.config, m.decoding)
    assert again.generate(SOURCES, **quiet) == m.generate(SOURCES, **quiet)
