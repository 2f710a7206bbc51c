"""The tokens with which texts begin and end, from what the files of a released model say of them.

Of an id, the model's ``config.json`` decides, then ``generation_config.json``, then the name in
``tokenizer_config.json``, then a list of usual names. Ids that the tokenizer does not know say
nothing. Whether a beginning is put before a text, the template of the tokenizer's post-processor
decides alone, as in transformers, which reads no ``add_bos_token`` where there is a
``tokenizer.json``. What stands after the text in a template is left out: texts are to be continued.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moejax.config.errors import ConfigError
from moejax.config.json_files import read_json

# Tokens that separate documents in released tokenizers; the first that exists is the end.
END_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "[BOS]",
    "[SEP]",
)
_CONFIGS = ("huggingface.json", "config.json")
"""The ``config.json`` that a model came with: under the first name in what `moejax import` writes,
whose own ``config.json`` has no ``model_type``."""
_GENERATION = "generation_config.json"
_NAMES = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class TextEdges:
    """The tokens with which texts begin and end."""

    before_text: tuple[int, ...]
    """Before every text, also a prompt, as the released tokenizer puts them; often none."""
    before_document: tuple[int, ...]
    """Before a whole document, at least one: its first token is to be predicted, too. Without a
    ``before_text`` it is the model's beginning, or else its end."""
    end: int
    """After a document."""
    ends: frozenset[int]
    """Each of them ends a text that is generated; ``end`` is one."""
    beginning_from: str
    """What says how a document begins, in words."""
    end_from: str
    """What says how it ends."""

    @property
    def highest(self) -> int:
        """The largest of all these ids."""
        return max(*self.before_text, *self.before_document, *self.ends, self.end)

    def to_json(self) -> dict[str, Any]:
        """As JSON; ``read_edges`` is the inverse."""
        return asdict(self) | {"ends": sorted(self.ends)}


def read_edges(file: Path) -> TextEdges:
    """The tokens that ``TextEdges.to_json`` gave to ``file``. Raises ``ConfigError``."""
    try:
        said = read_json(file)
        for name, kind in (("before_text", tuple), ("before_document", tuple), ("ends", frozenset)):
            said[name] = kind(map(int, said[name]))
        said["end"] = int(said["end"])
        return TextEdges(**said)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} is damaged: {error!r}.") from error


def make_edges(token: int, source: str) -> TextEdges:
    """Texts that begin and end with the same token."""
    return TextEdges(
        before_text=(token,),
        before_document=(token,),
        end=token,
        ends=frozenset([token]),
        beginning_from=source,
        end_from=source,
    )


def find_edges(
    known: Mapping[str, int],
    special: Mapping[str, int],
    template: tuple[int, ...],
    folder: Path | None,
) -> TextEdges:
    """How texts begin and end with a tokenizer that has the tokens ``known``, of them the control
    tokens ``special``, and whose post-processor puts ``template`` before a text. ``folder`` has the
    model's other files. Raises ``ConfigError`` for a damaged one.
    """
    said = _read_files(folder)
    ends = _look_up(said, "eos_token", known) or [_find_by_name(known, special)]
    beginnings = _look_up(said, "bos_token", known)
    end, end_from = ends[0]
    document, beginning_from = template, "the tokenizer's template"
    if not document:
        token, beginning_from = (*beginnings, ends[0])[0]
        document = (token,)
    # What ends a text that is generated, generation_config.json says first.
    stops = _look_up(said, "eos_token", known, (_GENERATION, *_CONFIGS)) or ends
    files = {source for _, source in stops[:1]}
    return TextEdges(
        before_text=template,
        before_document=document,
        end=end,
        ends=frozenset([end, *(token for token, source in stops if source in files)]),
        beginning_from=beginning_from,
        end_from=end_from,
    )


def _read_files(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The files that say something of texts, by name. Raises ``ConfigError`` for a damaged one."""
    found: dict[str, dict[str, Any]] = {}
    if folder is None:
        return found
    for name in (*_CONFIGS, _GENERATION, *_NAMES):
        file = folder / name
        if not file.is_file():
            continue
        try:
            said = read_json(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}.") from error
        ours = name == "config.json" and isinstance(said, dict) and "model_type" not in said
        if isinstance(said, dict) and not ours:
            found[name] = said
    return found


def _look_up(
    said: Mapping[str, Mapping[str, Any]],
    field: str,
    known: Mapping[str, int],
    files: tuple[str, ...] = (*_CONFIGS, _GENERATION, *_NAMES),
) -> list[tuple[int, str]]:
    """The tokens that the files give to ``field`` and the tokenizer knows, the first file's first,
    each with what says so.
    """
    ids, found = set(known.values()), []
    for name in (name for name in files if name in said):
        if name in _NAMES:
            value = said[name].get(field)
            value = value.get("content") if isinstance(value, dict) else value
            values = [known.get(value)] if isinstance(value, str) else []
            source = f"{field} of {name}"
        else:
            value = said[name].get(f"{field}_id")
            values = value if isinstance(value, list) else [value]
            source = f"{field}_id of {name}"
        found += [(one, source) for one in values if type(one) is int and one in ids]
    return found


def _find_by_name(known: Mapping[str, int], special: Mapping[str, int]) -> tuple[int, str]:
    """The token with the first of the usual names, among control tokens if any of them has one; or
    else one past the end.
    """
    folded = {name.casefold(): token for name, token in reversed([*special.items()])}
    folded |= special
    for tokens in (folded, known):
        for name in END_NAMES:
            if name in tokens:
                return tokens[name], f"the name {name}"
    return max(known.values()) + 1, "no token of the tokenizer"


def find_template(post_processor: Any) -> tuple[int, ...]:
    """The tokens that a post-processor of Hugging Face's tokenizers puts before a text."""
    return (
        () if post_processor is None else _read_template(json.loads(post_processor.__getstate__()))
    )


def _read_template(rule: Mapping[str, Any]) -> tuple[int, ...]:
    kind = rule.get("type")
    if kind == "Sequence":  # the last one is put outside
        return tuple(
            token for inner in reversed(rule["processors"]) for token in _read_template(inner)
        )
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (int(rule["cls"][1]),)
    before: list[int] = []
    for piece in rule.get("single", ()) if kind == "TemplateProcessing" else ():
        if "Sequence" in piece:
            break
        before += rule["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(before)
