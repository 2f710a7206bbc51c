"""Compare the choices of a model's tokens with their classes: from a sample to the findings."""

from jax.sharding import Mesh

from moejax.config.checks import check
from moejax.config.model import ModelConfig
from moejax.inference.open_model import OpenModel
from moejax.lab.specialisation.association import Association, associate, draw_shifts
from moejax.lab.specialisation.collect_choices import collect_choices, name_experts
from moejax.lab.specialisation.findings import Findings
from moejax.lab.specialisation.sample import Labels, Sample
from moejax.lab.specialisation.snippets import draw_portraits

MOST_PORTRAITS = 256
"""Experts that are shown with text, over all layers."""


def compare_with_classes(
    model: OpenModel,
    config: ModelConfig,
    mesh: Mesh,
    sample: Sample,
    *,
    name: str,
    data: str,
    rows: int,
    shifts: int,
) -> Findings:
    """Route the sample as it is and shuffled, and compare the choices with its classes.

    ``name``: the model's; ``data``: one line about the text; ``rows``: sequences that are run at a
    time; ``shifts``: how often the classes are shifted, to learn what chance gives. Raises
    ``ConfigError`` for a text that is too short.
    """
    tokens = sample.token_T.size
    check(
        tokens >= 10 * shifts,
        f"the text gives {tokens:,} tokens, too few to tell anything from chance: give more text,"
        f" or fewer --shifts.",
    )
    shuffled_BN, order_T = sample.shuffle()
    choices, shuffled = (
        collect_choices(model, config, mesh, sample, inputs_BN, rows)
        for inputs_BN in (sample.inputs_BN, shuffled_BN)
    )
    drawn = draw_shifts(tokens, sample.inputs_BN.shape[1], shifts)

    def associate_with(labels: Labels) -> Association:
        return associate(choices, shuffled, labels.label_T, order_T, labels.names, drawn)

    classes = associate_with(sample.classes)
    domains = None if sample.domains is None else associate_with(sample.domains)
    layers = tuple(i for i, routed in enumerate(config.routed_layers) if routed)
    each = max(2, MOST_PORTRAITS // len(layers))
    return Findings(
        name=name,
        model=model.description,
        data=data,
        layers=layers,
        experts=name_experts(config.moe),
        tokens=tokens,
        documents=sample.documents,
        not_python=sample.not_python,
        shifts=shifts,
        classes=classes,
        domains=domains,
        portraits=tuple(draw_portraits(sample, choices, classes, each)),
    )
