"Orders of generation: one that does not exist is refused."

import pytest, torch
from diffuseq.decoding import unmask


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="'left-to-right' or 'confidence'"):
        unmask(None, torch.ones(1, 3, dtype=torch.bool), 'parallel')
