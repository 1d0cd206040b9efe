"Grids of a generation: numbers of steps that a chain does not have are refused."

import pytest
from diffuseq.config import BlockConfig, PaperConfig
from diffuseq.levels import time_grid
from diffuseq.sampling import even_grid, official_pairs
from diffuseq.schedule import make_alpha_bar


@pytest.mark.parametrize('steps', [0, 2001])
@pytest.mark.parametrize('config', [BlockConfig(), PaperConfig()], ids=['block', 'paper'])
def test_a_grid_of_no_steps_or_of_too_many(config, steps):
    with pytest.raises(ValueError, match=rf'steps={steps}: must lie in 1..T=2000'):
        time_grid(steps, make_alpha_bar('sqrt', 2000), config)


@pytest.mark.parametrize('grid', [even_grid, official_pairs])
@pytest.mark.parametrize('steps', [0, 2001])
def test_even_and_official_grids_too(grid, steps):
    with pytest.raises(ValueError, match=rf'steps={steps}: must lie in 1..T=2000'):
        grid(steps, 2000)
