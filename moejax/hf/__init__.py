"""Hugging Face's checkpoints in and out, every tensor accounted for.

``load(directory)`` gives a ``Pretrained`` with ``config``, ``params`` and a pure
``apply(params, tokens_BN) -> logits_BNV``; ``save`` writes such a directory.
"""

from moejax.hf.load import Pretrained, load
from moejax.hf.save import save

__all__ = ["Pretrained", "load", "save"]
