"""The table of model families that Hugging Face's checkpoints come in. A family is data: the fields
of its ``config.json``, what is always so, and the names and layouts of its tensors.

Each file beside this one has the families of one kin, and ``family.py`` what they share.
"""

from moejax.hf.families import (
    afmoe,
    deepseek,
    dense,
    dots,
    ernie,
    exaone,
    flint,
    glm,
    gpt_oss,
    granite,
    hunyuan,
    hunyuan_v1,
    mellum,
    minimax,
    mistral,
    mixtral,
    olmoe,
    qwen,
    qwen_next,
    solar,
)
from moejax.hf.families.family import Family

FAMILIES: dict[str, Family] = {
    **mixtral.FAMILIES,
    **qwen.FAMILIES,
    **qwen_next.FAMILIES,
    **olmoe.FAMILIES,
    **deepseek.FAMILIES,
    **glm.FAMILIES,
    **dots.FAMILIES,
    **hunyuan.FAMILIES,
    **solar.FAMILIES,
    **ernie.FAMILIES,
    **minimax.FAMILIES,
    **exaone.FAMILIES,
    **mellum.FAMILIES,
    **flint.FAMILIES,
    **afmoe.FAMILIES,
    **hunyuan_v1.FAMILIES,
    **mistral.FAMILIES,
    **gpt_oss.FAMILIES,
    **granite.FAMILIES,
    **dense.FAMILIES,
}
"""By ``model_type``. An export is of the first that can hold the model."""
