"What every test and every process that it starts finds: a quiet environment, one thread; the modules of docs/."

import os, sys
from pathlib import Path
import pytest

quiet = dict(
    OMP_NUM_THREADS='1',
    TQDM_DISABLE='1',
    HF_DATASETS_DISABLE_PROGRESS_BARS='1',
    HF_HUB_OFFLINE='1',
    TOKENIZERS_PARALLELISM='false',
    MPLBACKEND='agg',
)
os.environ.update(quiet)  # before anything imports PyTorch: it counts its threads once
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'docs'))


@pytest.fixture(scope='session')
def models():
    """Both diffusion models with random weights in double precision, at four steps.

    Their texts hang on every digit, and no two places tie, as they do where weights start at zero.
    """
    import tiny, torch
    from diffuseq.config import make_decoding

    out = {}
    for recipe in ('fast', 'paper'):
        c = tiny.config(recipe, T=50)
        out[recipe] = tiny.model(c, decoding=make_decoding(c, steps=4)).double().eval()
    generator = torch.Generator().manual_seed(0)
    for p in out['fast'].parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return out
