"""The tokenizer of a run in the files that Hugging Face's tools read. They say with which tokens
texts begin and end as the run has learned it, and all of them say the same.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from moejax.config.json_files import MOST_TABLE_BYTES
from moejax.data.byte_tokenizer import make_byte_tokenizer_files
from moejax.data.text_edges import TextEdges
from moejax.data.tokenizer import load_tokenizer
from moejax.hf.files import read_json
from moejax.hf.writing import OTHER_FILES, copy_other_files
from moejax.runtime.atomic_files import write_json, write_text

TOKENIZER, SETTINGS, GENERATION = OTHER_FILES[0], OTHER_FILES[1], "generation_config.json"
PAST_THE_END = "<|end_of_document|>"
"""The name of an end that the tokenizer has no token for."""
SAYS_OTHERWISE = ("special_tokens_map.json", "added_tokens.json")
"""Files that older tools have read, which would say another end or beginning."""
LEFT_OUT = ("add_bos_token", "add_eos_token", "auto_map")
"""Fields of ``tokenizer_config.json`` that say anew how texts begin and end."""


def name_edges(edges: TextEdges) -> dict[str, Any]:
    """The fields of ``config.json`` that say how texts begin and end."""
    others = sorted(edges.ends - {edges.end})
    ends: Any = [edges.end, *others] if others else edges.end
    return {"bos_token_id": edges.before_document[0], "eos_token_id": ends}


def write_tokenizer(target: Path, given: str, edges: TextEdges, *, released: bool) -> None:
    """Write the tokenizer ``given`` (``bytes``, a file of any name, or a folder with it) beside the
    ``config.json`` of a model in ``target``, which learned texts with these ``edges``.

    Of a model that was ``released``, files that say this are left as they are. All others are
    changed: the template puts ``edges.before_document`` before a text, and every file names the
    same beginning and end, ``config.json`` too.
    """
    if given == "bytes":
        write_json(target / TOKENIZER, make_byte_tokenizer_files()[TOKENIZER])
    else:
        file = Path(given) / TOKENIZER if Path(given).is_dir() else Path(given)
        # A file of another name may stand beside those of another tokenizer.
        if file.name == TOKENIZER:
            copy_other_files(file.parent, target)
        shutil.copyfile(file, target / TOKENIZER)
        if released and _say(target, edges):
            return
    for name in SAYS_OTHERWISE:
        (target / name).unlink(missing_ok=True)
    _write_edges(target, edges)
    write_json(target / GENERATION, name_edges(edges))
    write_json(target / "config.json", read_json(target / "config.json") | name_edges(edges))


def _say(target: Path, edges: TextEdges) -> bool:
    """Whether the files in ``target`` say that texts begin and end so."""
    said = load_tokenizer(str(target)).edges
    return (said.before_document, said.end, said.ends) == (
        edges.before_document,
        edges.end,
        edges.ends,
    )


def _write_edges(target: Path, edges: TextEdges) -> None:
    """Let ``tokenizer.json`` and ``tokenizer_config.json`` begin and end texts so."""
    from tokenizers import Tokenizer

    rule = read_json(target / TOKENIZER, MOST_TABLE_BYTES)
    backend = Tokenizer.from_str(json.dumps(rule))
    used = {*edges.before_document, edges.end}
    names = {token: backend.id_to_token(token) or PAST_THE_END for token in used}
    for token in (token for token in used if backend.id_to_token(token) is None):
        marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = {"id": token, "content": PAST_THE_END} | marks | {"special": True}
        rule["added_tokens"] = [*(rule.get("added_tokens") or []), added]
    rule["post_processor"] = _make_template(rule.get("post_processor"), edges, names)
    write_text(target / TOKENIZER, json.dumps(rule, ensure_ascii=False))
    settings = target / SETTINGS
    said = read_json(settings) if settings.is_file() else {}
    kept = {field: value for field, value in said.items() if field not in LEFT_OUT}
    # Of this class tokenizer.json says all; others put more before a text.
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    first, last = names[edges.before_document[0]], names[edges.end]
    write_json(settings, kept | {"bos_token": first, "eos_token": last})


def _make_template(before: Any, edges: TextEdges, names: dict[int, str]) -> dict[str, Any]:
    """A post-processor that puts the beginning before a text and nothing after it, and keeps what
    ``before`` does to places in the text.
    """
    first = [{"SpecialToken": {"id": names[i], "type_id": 0}} for i in edges.before_document]
    one, other = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    used = {names[i]: i for i in edges.before_document}
    template = {
        "type": "TemplateProcessing",
        "single": [*first, one],
        "pair": [*first, one, *first, other],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in used.items()},
    }
    inner = (before or {}).get("processors", [before or {}])
    places = [rule for rule in inner if rule.get("type") == "ByteLevel"]
    return {"type": "Sequence", "processors": [*places, template]} if places else template
