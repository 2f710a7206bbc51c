"""Two models on the same text: are they alike, and what do its tokens choose in each?

Letters: Y: classes of tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.data.check_tokens import check_known
from moejax.data.tokenizer import Tokenizer
from moejax.hf.configs import collect_computation, list_differences
from moejax.inference.inference_config import inference_config
from moejax.inference.open_model import OpenModel
from moejax.lab.routing_change.change import Change, count_kept, look_at_side
from moejax.lab.specialisation.association import Choices, draw_shifts, entropy
from moejax.lab.specialisation.collect_choices import check_routed, collect_choices, name_experts
from moejax.lab.specialisation.sample import Sample

SHIFTS = 20
"""How often classes are shifted against the routing, to learn what chance gives."""
LEAST_TOKENS = 200

MOST_PROBED = 4096
"""Tokens of a vocabulary that are probed."""

Named = tuple[str, ModelConfig]
"""The directory of a model, and its settings."""


def check_alike(before: Named, after: Named) -> None:
    """Raise ``ConfigError`` unless both models compute alike, so that their experts are the same
    places.
    """
    (one, before_config), (other, after_config) = before, after
    for path, config in (before, after):
        check(
            config.material.language,
            f"{path} is a classifier of images: routing is compared on text.",
        )
        check_routed(config, Path(path))
    has, had = (collect_computation(config) for config in (after_config, before_config))
    if None in (before_config.vocab_size, after_config.vocab_size):  # that of a tokenizer
        has, had = ({n: x for n, x in s.items() if "vocab" not in n} for s in (has, had))
    differences = list_differences(has, had)
    check(
        not differences,
        f"{other} is another model than {one}, so that their experts do not compare. {other} has"
        f" {', '.join(differences)}; {one} has {', '.join(list_differences(had, has))}.",
    )


def check_same_tokens(before: tuple[str, Tokenizer], after: tuple[str, Tokenizer]) -> None:
    """Raise ``ConfigError`` unless both tokenizers read the same text as the same tokens."""
    (one, before_tokenizer), (other, after_tokenizer) = before, after
    if before_tokenizer.fingerprint == after_tokenizer.fingerprint:
        return
    size = min(before_tokenizer.vocab_size, after_tokenizer.vocab_size)
    some = np.unique(np.linspace(0, size - 1, min(size, MOST_PROBED)).astype(int)).tolist()
    probe = before_tokenizer.decode(some).encode("utf-8", "replace")
    tokens, were = (t.encode(probe)[0] for t in (after_tokenizer, before_tokenizer))
    check(
        np.array_equal(tokens, were),
        f"{other} has another tokenizer than {one}: the same text is other tokens, whose experts do"
        f" not compare.",
    )


def check_long_enough(sample: Sample) -> None:
    """Raise ``ConfigError`` for a text that is too short."""
    tokens = sample.token_T.size
    check(
        tokens >= LEAST_TOKENS,
        f"the text gives {tokens:,} tokens, too few to tell anything from chance: give at least"
        f" {LEAST_TOKENS}, and better thousands.",
    )


def collect(model: OpenModel, mesh: Mesh, sample: Sample, rows: int) -> Choices:
    """What the tokens of the sample choose in a model; ``rows`` sequences are run at a time."""
    assert model.tokenizer is not None  # as in every language model that is opened here
    check_known(sample.inputs_BN, model.vocab_size, model.tokenizer)
    config = inference_config(model.config)
    return collect_choices(model, config, mesh, sample, sample.inputs_BN, rows)


def find_change(
    sample: Sample,
    choices: Sequence[Choices],
    config: ModelConfig,
    descriptions: Sequence[str],
    data: str,
) -> Change:
    """The change from what the sample's tokens chose before to what they choose after."""
    tokens = sample.token_T.size
    drawn = draw_shifts(tokens, sample.inputs_BN.shape[1], SHIFTS)
    before, after = (
        look_at_side(words, side, sample.classes, drawn)
        for words, side in zip(descriptions, choices, strict=True)
    )
    return Change(
        before=before,
        after=after,
        data=data,
        tokens=tokens,
        documents=sample.documents,
        layers=tuple(i for i, routed in enumerate(config.routed_layers) if routed),
        experts=name_experts(config.moe),
        classes=sample.classes.names,
        python=sample.not_python is not None,
        entropy=entropy(np.bincount(sample.classes.label_T)),
        kept_LEY=count_kept(choices[0], choices[1], sample.classes),
    )
