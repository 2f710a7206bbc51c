"""A tokenizer in whose texts control tokens cannot be spelled out: "</s>" in a text is text.

The library leaves control tokens alone (``encode_special_tokens``), but a vocabulary may hold their
names among the pieces of words, as those of Unigram and WordLevel do: there they are hidden.
"""

import json
from collections.abc import Iterable
from typing import Any

HIDDEN = "\ue000\ue001"
"""Before the name of a hidden piece: characters for private use, in no text."""


def hide_control_tokens(backend: Any, names: Iterable[str]) -> Any:
    """A ``tokenizers.Tokenizer`` that never makes the tokens ``names`` of text, with the ids of
    ``backend``: itself, if it does not, either.
    """
    backend.encode_special_tokens = True
    known = backend.get_vocab(with_added_tokens=True)
    reached = {name for name in names if name in known and _reaches(backend, name, known[name])}
    if not reached:
        return backend
    data = json.loads(backend.to_str())
    model = data["model"]
    reached -= {model.get("unk_token")}
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of a piece and its score
        unknown = model.get("unk_id")
        reached -= {vocab[unknown][0]} if isinstance(unknown, int) else set()
        model["vocab"] = [[_hide(name, reached), score] for name, score in vocab]
    else:
        model["vocab"] = {_hide(name, reached): token for name, token in vocab.items()}
    if "merges" in model:
        pairs = (m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"])
        model["merges"] = [
            [one, other] for one, other in pairs if not {one, other, one + other} & reached
        ]
    if not reached:
        return backend
    data["added_tokens"] = [one for one in data["added_tokens"] if one["content"] not in reached]
    plain = type(backend).from_str(json.dumps(data))
    plain.encode_special_tokens = True
    return plain


def _reaches(backend: Any, name: str, token: int) -> bool:
    """Whether text with a name in it gives the token."""
    tried = backend.encode_batch([name, f" {name} ", f"a{name}b"], add_special_tokens=False)
    return any(token in one.ids for one in tried)


def _hide(name: str, reached: set[str]) -> str:
    return HIDDEN + name if name in reached else name
