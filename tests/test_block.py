"The default model: what it was not trained for is refused."

import pytest, tiny
from tiny import SOURCES

quiet = dict(progress=False)


@pytest.mark.parametrize(
    'levels, how, says',
    [
        ('shared', dict(order='confidence'), 'was not taught so'),
        ('token', dict(order='left-to-right', end='eos'), 'always told its length'),
        ('blocks', dict(order='confidence', steps=10**6), 'larger than T'),
    ],
)
def test_orders_and_ends_that_were_not_trained(levels, how, says):
    with pytest.raises(ValueError, match=says):
        tiny.model(tiny.config(levels=levels)).generate(SOURCES, **how, **quiet)


def test_an_exact_likelihood_needs_blocks():
    with pytest.raises(ValueError, match="needs levels 'blocks'"):
        tiny.model(tiny.config(levels='token')).log_prob(['a'], ['b'])
