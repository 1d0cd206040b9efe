"What every model shares: its checks of arguments, and batches that do not fit into memory."

import pytest
from tqdm.auto import tqdm
from diffuseq.base import check_number, in_batches


@pytest.mark.parametrize('n', [0, -3, 2.5, '4', True, None])
def test_a_number_that_is_not_whole_or_too_small(n):
    with pytest.raises(ValueError, match='n=.*at least 1'):
        check_number(n, 'n', 1)


def test_a_smallest_part_that_does_not_fit_is_an_error():
    sizes = []

    def job(part):
        sizes.append(len(part))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    with pytest.raises(RuntimeError, match='allocate memory'):
        list(in_batches(job, list(range(6)), 6, 3, tqdm(disable=True)))
    assert sizes == [6, 3]
