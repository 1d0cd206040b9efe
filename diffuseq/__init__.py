"""Sequence to sequence text generation with diffusion models: `from diffuseq import DiffuSeq`.

Written by hand; everything else here is exported from nbs/.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ['DiffuSeq', 'load_model', 'load_pairs', 'evaluate', 'mbr_select', 'make_config']

if TYPE_CHECKING:  # what editors and type checkers see
    from .base import DiffuSeq
    from .config import make_config
    from .data import load_pairs
    from .hub import load_model
    from .mbr import mbr_select
    from .metrics import evaluate

_home = dict(DiffuSeq='base', load_model='hub', load_pairs='data', evaluate='metrics', mbr_select='mbr')
_home |= dict(make_config='config')


def __getattr__(name):
    "Import a name when it is first asked for, so that `import diffuseq` costs nothing."
    if name not in _home:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    return getattr(import_module(f'.{_home[name]}', __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
