"""Which chat template is meant: the model's own, one with a name, or a file."""

from collections.abc import Mapping
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


def is_file_name(given: str) -> bool:
    """Whether a template is a file, which may lie anywhere."""
    return given != AUTO and given not in NAMED


def find_template(given: str, tokenizer: Tokenizer) -> Template:
    """The template of ``--data.chat-template``: ``auto``, a name in ``NAMED``, or a file. Raises
    ``ConfigError``.
    """
    folder = tokenizer.folder
    said = _read_settings(folder)
    names = _find_names(said, folder, tokenizer)
    flag = f"--data.chat-template {given}"
    if given in NAMED:
        return Template(NAMED[given], names, flag)
    if given != AUTO:
        path = Path(expand_home("--data.chat-template", given))
        if not path.is_file():
            raise ConfigError(
                f"{flag}: there is no such file. Write a path, auto (the model's own, beside"
                f" --data.tokenizer), or one of {', '.join(NAMED)}."
            )
        return Template(_read(path), names, str(path))
    if folder is not None and (file := folder / "chat_template.jinja").is_file():
        return Template(_read(file), names, str(file))
    own = said.get("chat_template")
    if isinstance(own, list):  # several, of which transformers takes the one of this name
        own = {one.get("name"): one.get("template") for one in own if isinstance(one, dict)}
        own = own.get("default")
    if not isinstance(own, str) or folder is None:
        where = f"in {folder}" if folder else "of a tokenizer.json in a folder of its model"
        raise ConfigError(
            f"{flag}: there is no chat_template.jinja {where}, nor a chat_template in"
            f" tokenizer_config.json. Give a file, or one of {', '.join(NAMED)}."
        )
    return Template(own, names, f"the chat_template of {folder / 'tokenizer_config.json'}")


def _read(path: Path) -> str:
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the chat template {path} cannot be read: {error}.") from error


def _read_settings(folder: Path | None) -> dict[str, Any]:
    file = None if folder is None else folder / "tokenizer_config.json"
    if file is None or not file.is_file():
        return {}
    try:
        said = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    return said if isinstance(said, dict) else {}


def _find_names(
    said: Mapping[str, Any], folder: Path | None, tokenizer: Tokenizer
) -> dict[str, str]:
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
