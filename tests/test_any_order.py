"The likelihood of an order: its blocks must hold every position once."

import pytest, torch
from diffuseq.any_order import order_log_prob


@pytest.mark.parametrize('blocks', [[[0], [2]], [[0, 1], [1, 2]], [[0], [1], [2], [3]]], ids=str)
def test_blocks_that_are_not_a_partition(blocks):
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match='positions 0..2 once'):
        order_log_prob(lambda ids, masked: torch.zeros(1, 3, 4), ids, blocks)
