"""Which chat template is meant: the model's own, one with a name, or a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moejax.config.errors import ConfigError
from moejax.config.json_files import MEBIBYTE, read_bounded, read_json
from moejax.config.paths import expand_home
from moejax.data.chat.template import Template
from moejax.data.tokenizer import Tokenizer

MOST_BYTES = MEBIBYTE
"""Of a template; the longest released ones have some 30 kB."""
_NAMES_OF_TOKENS = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message['content'] + '<|im_end|>' }}
{%- endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
{%- else %}{{ message['content'] | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
_PLAIN = """\
{% for message in messages %}
{{- message['role'] | capitalize + ': ' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- else %}{{ message['content'] }}
{%- endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"""
NAMED = {"chatml": _CHATML, "llama3": _LLAMA3, "plain": _PLAIN}
"""Templates with a name. ``plain`` needs no control token but the end, and so suits bytes."""
AUTO = "auto"
"""The model's own."""
FILE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
"""In which models have theirs."""


def is_file_name(given: str) -> bool:
    """Whether a template is a file, which may lie anywhere."""
    return given != AUTO and given not in NAMED


def find_template(
    given: str,
    tokenizer: Tokenizer,
    models: Sequence[Path] = (),
    flag: str = "--data.chat-template",
) -> Template:
    """The template that ``flag`` names: ``auto``, a name in ``NAMED``, or a file. ``auto`` is that
    which lies beside the tokenizer, or else in one of the directories ``models``. Raises
    ``ConfigError``.
    """
    places = [*([] if tokenizer.folder is None else [tokenizer.folder]), *models]
    said = next((found for found in map(_read_settings, places) if found), {})
    names = _find_names(said, tokenizer)
    if given in NAMED:
        return Template(NAMED[given], names, f"{flag} {given}")
    if given != AUTO:
        path = Path(expand_home(flag, given))
        if not path.is_file():
            raise ConfigError(
                f"{flag} {given}: there is no such file. Write a path, auto (the model's own,"
                f" beside its tokenizer), or one of {', '.join(NAMED)}."
            )
        return Template(_read(path), names, str(path))
    for place in places:
        if (file := place / FILE).is_file():
            return Template(_read(file), names, str(file))
        own = _read_settings(place).get("chat_template")
        if isinstance(own, list):  # several, of which transformers takes the one of this name
            own = {one.get("name"): one.get("template") for one in own if isinstance(one, dict)}
            own = own.get("default")
        if isinstance(own, str):
            return Template(own, names, f"the chat_template of {place / SETTINGS}")
    where = f" in {' or '.join(map(str, places))}" if places else ""
    raise ConfigError(
        f"{flag} {given}: this model has no chat template of its own: there is neither a {FILE}"
        f" nor a chat_template in {SETTINGS}{where}. Give {flag} a file, or one of"
        f" {', '.join(NAMED)}."
    )


def _read(path: Path) -> str:
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the chat template {path} cannot be read: {error}.") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        said = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    return said if isinstance(said, dict) else {}


def _find_names(said: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """The names of special tokens, as transformers gives them to templates: those of
    ``tokenizer_config.json``. Without that file, the names of the tokens that the edges have.
    """
    if not said:
        first, end = list(tokenizer.edges.before_text[:1]), tokenizer.edges.end
        return {"bos_token": tokenizer.show(first), "eos_token": tokenizer.show([end])}
    found = {}
    for name in _NAMES_OF_TOKENS:
        value = said.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found
