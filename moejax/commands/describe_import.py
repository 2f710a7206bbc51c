"""What `moejax import` and `moejax upcycle` say of the model that they have written."""

import shlex
from pathlib import Path

from moejax.config.describe_balance import describe_balance
from moejax.config.errors import UserError
from moejax.config.model import ModelConfig
from moejax.data.tokenizer import load_tokenizer
from moejax.models.counts import cost
from moejax.runtime.number_words import short


def describe_import(kind: str, config: ModelConfig, target: Path) -> str:
    """Its size, where it is, and what is wrong with its tokenizer, and what to do next."""
    assert config.vocab_size is not None  # as in every checkpoint
    price = cost(config, config.vocab_size, sequence_length=1)
    fault = find_fault(target, config.vocab_size)
    here, settings = (shlex.quote(str(path)) for path in (target, target / "config.json"))
    commands = [
        f"moejax generate {here} --prompt '...'",
        f"python train.py --config {settings} --run.directory runs/tuned --data.train '...'",
    ]
    if fault:
        commands[1] += f" --data.tokenizer {target / 'tokenizer.json'}"
        commands = [f"put the model's own tokenizer.json into {target}; then", *commands]
    return "\n".join(
        (
            f"model    {kind}: {short(price.parameters_total, 'kMBT')} parameters,"
            f" {short(price.parameters_active, 'kMBT')} active a token, all tensors accounted for",
            *(
                [f"balance  in training: {balance}"]
                if (balance := describe_balance(config))
                else []
            ),
            *([_describe_modules(config.next_tokens)] if config.next_tokens else []),
            f"written  {target}",
            *([f"note     {fault}"] if fault else []),
            *(f"{'next' if not n else '':<9}{command}" for n, command in enumerate(commands)),
        )
    )


def _describe_modules(modules: int) -> str:
    what = "a module predicts" if modules == 1 else f"{modules} modules predict"
    return f"ahead    {what} further tokens: `moejax eval` says how often they are right"


def find_fault(target: Path, vocab_size: int) -> str:
    """Why a model that was written cannot read text, in words; empty if it can."""
    file = target / "tokenizer.json"
    if not file.is_file():
        return (
            "it came without a tokenizer.json: `moejax generate` and `moejax eval` need one, and"
            " training takes bytes for its tokens."
        )
    try:
        tokenizer = load_tokenizer(str(file))
    except UserError as error:
        return f"its tokenizer.json cannot be used: {error}"
    if tokenizer.vocab_size > vocab_size:
        return (
            f"its tokenizer.json has {tokenizer.vocab_size} tokens, but its embedding has"
            f" {vocab_size} rows: a text with a token beyond them is refused."
        )
    return ""
