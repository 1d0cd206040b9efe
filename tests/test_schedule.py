"A schedule that cannot be is refused."

import pytest
from diffuseq.schedule import make_alpha_bar


@pytest.mark.parametrize(
    'name, T, says',
    [
        ('sqroot', 10, 'sqrt, linear, cosine'),
        ('sqrt', 0, 'at least 1'),
        ('sqrt', 10.0, 'whole number'),
    ],
)
def test_schedules_that_cannot_be(name, T, says):
    with pytest.raises(ValueError, match=says):
        make_alpha_bar(name, T)
