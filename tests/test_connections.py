"Tables of joint distributions: equations that do not exist are refused."

import pytest
from diffuseq.connections import diffuseq_factors, diffuseq_joint, random_chain


def test_other_equations_are_refused():
    chain = random_chain(V=2, n=2, G=3, T=3)
    with pytest.raises(ValueError, match='choose 8 or 9'):
        diffuseq_factors(chain, 7)
    with pytest.raises(ValueError, match='choose 8, 9, 25 or 26'):
        diffuseq_joint(chain, 22)
