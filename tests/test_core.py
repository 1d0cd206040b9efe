"What the shared helpers refuse: texts, JSON, weights and devices that are not what they should be."

import re
import pytest, torch
from diffuseq.core import (
    check_device,
    check_text,
    load_weights,
    parse_json,
    read_json,
    read_tensors,
    tensor_bytes,
    write_atomic,
)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    write_atomic(tmp_path / 'file', 'one')
    with pytest.raises(OSError, match='cannot write'):
        write_atomic(tmp_path / 'file' / 'x', 'two')
    assert (tmp_path / 'file').read_text() == 'one'


@pytest.mark.parametrize(
    'text, says',
    [
        (None, 'line 3 is NoneType; expected a string'),
        (b'a', 'line 3 is bytes'),
        ('a\ud800', 'line 3 holds the character U+D800 at place 2'),
        ('\x00', 'U+0000 at place 1'),
    ],
    ids=ascii,
)
def test_what_is_no_text_is_refused(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        check_text(text, 'line 3')


@pytest.mark.parametrize(
    'data, says',
    [
        (b'{"a": 1', 'not valid JSON'),
        (b'[1]', 'list instead of an object'),
        (b'[' * 60_000, 'nested too deeply'),
        (b'\xff', 'not UTF-8'),
    ],
    ids=['cut', 'list', 'deep', 'bytes'],
)
def test_a_file_without_a_json_object_is_named(data, says, tmp_path):
    (tmp_path / 'x.json').write_bytes(data)
    with pytest.raises(ValueError, match=f'x.json: .*{says}'):
        read_json(tmp_path / 'x.json')


def test_a_missing_json_file_and_another_type_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='x.json: no such file'):
        read_json(tmp_path / 'x.json')
    with pytest.raises(ValueError, match='line 2: dict instead of a list'):
        parse_json('{}', 'line 2', 'a list', list)


def test_weights_of_another_model_or_not_finite_are_refused(tmp_path):
    path = tmp_path / 'w.safetensors'
    net = torch.nn.Linear(3, 2)
    write_atomic(path, tensor_bytes(dict(net.named_parameters())))
    tensors, _ = read_tensors(path)
    with pytest.raises(ValueError, match='another model.*shapes: weight'):
        load_weights(torch.nn.Linear(4, 2), tensors, path)
    with pytest.raises(ValueError, match='missing: bias'):
        load_weights(net, {'weight': tensors['weight']}, path)
    write_atomic(path, tensor_bytes({'weight': torch.tensor([1.0, float('nan')])}))
    with pytest.raises(ValueError, match='weight holds numbers that are not finite'):
        read_tensors(path)


@pytest.mark.parametrize('device', ['cup', 'cuda:77', 3.5])
def test_a_device_that_cannot_be_used_is_refused(device):
    with pytest.raises(ValueError, match='cannot be used here'):
        check_device(device)
