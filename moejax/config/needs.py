"""Which settings need others to have an effect: the tables, put together."""

from moejax.config.model_needs import OF_MODEL
from moejax.config.moe_needs import OF_MOE
from moejax.config.need import Need
from moejax.config.training_needs import OF_TRAINING

NEEDS: tuple[Need, ...] = (*OF_MODEL, *OF_MOE, *OF_TRAINING)
"""The needs of settings; one that is not here has an effect in every config."""
