"""Hugging Face's checkpoints in and out, every tensor accounted for.

``load(directory)`` gives a ``Pretrained`` with ``config``, ``params`` and a pure
``apply(params, tokens_BN) -> logits_BNV``; ``save`` writes such a directory.
"""

from moejax.hf.reading import Pretrained, load
from moejax.hf.writing import save

__all__ = ["Pretrained", "load", "save"]
