"""The settings of conversations, and what to say of long ones."""

from moejax.config.data import DataConfig
from moejax.data.chat.conversations import ChatFormat
from moejax.data.chat.find_template import find_template
from moejax.data.find_files import count_words
from moejax.data.tokenizer import Tokenizer


def choose_format(config: DataConfig, tokenizer: Tokenizer) -> ChatFormat:
    """How the conversations of ``--data.train`` become tokens."""
    assert config.chat_template is not None
    return ChatFormat(
        template=find_template(config.chat_template, tokenizer),
        tokenizer=tokenizer,
        field=None if config.field == DataConfig.field else config.field,
        length=config.sequence_length,
        too_long=config.too_long,
    )


def tell_long(config: DataConfig, counts: dict[str, int]) -> str:
    """``; 3 conversations longer than --data.sequence-length 128 (2 cut, 1 left out)``."""
    long, lost = counts.get("long_conversations", 0), counts.get("lost_conversations", 0)
    if not long:
        return ""
    words = f"; {count_words(long, 'conversation')} longer than --data.sequence-length"
    return f"{words} {config.sequence_length} ({long - lost} cut, {lost} left out)"
