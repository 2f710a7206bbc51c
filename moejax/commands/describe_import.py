"""What `moejax import` and `moejax upcycle` say of the model that they have written."""

from pathlib import Path

from moejax.config.model import ModelConfig
from moejax.models.counts import cost
from moejax.runtime.number_words import short


def describe_import(kind: str, config: ModelConfig, target: Path) -> str:
    """Its size, where it is, and what to do next."""
    assert config.vocab_size is not None  # as in every checkpoint
    price = cost(config, config.vocab_size, sequence_length=1)
    return "\n".join(
        (
            f"model    {kind}: {short(price.parameters_total, 'kMBT')} parameters,"
            f" {short(price.parameters_active, 'kMBT')} active a token, all tensors accounted for",
            f"written  {target}",
            f"next     moejax generate {target} --prompt '...'",
            f"         python train.py --config {target / 'config.json'} --run.directory runs/tuned"
            f" --data.source files --data.files '...'",
        )
    )
