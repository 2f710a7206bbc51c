"""What a field of config.json means, and one that is not there, is what transformers means by it.

``tests/goldens`` has what transformers says: see ``hf_models.fields``.
"""

import hf_models
import pytest

from moejax.config.errors import ConfigError
from moejax.hf.configs import collect_computation, read_config, with_defaults, write_config
from moejax.hf.families import FAMILIES


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_a_field_that_is_not_there_is_what_the_family_means_by_it(kind):
    """A config.json with sizes alone is the one with all defaults of the configuration class."""
    said, sizes = hf_models.fields(kind)["defaults"], hf_models.sizes_of(kind)
    if "kv_lora_rank" in said:
        del said["num_key_value_heads"]  # without meaning: each head has its own
    least = {"model_type": kind} | sizes
    assert read_config(least) == read_config(said | {"model_type": kind})


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_each_default_in_the_table_is_that_of_the_configuration_class(kind):
    family, said = FAMILIES[kind], hf_models.fields(kind)["defaults"]
    ours = dict(family.defaults)
    positions = ours.pop("rope_parameters", {"rope_type": "default"})
    parts = [name for name in ("rope_theta", "partial_rotary_factor") if name in ours]
    positions = positions | {name: ours.pop(name) for name in parts}
    # Sizes of its own are said again there by one of the classes.
    again = {"type", "max_position_embeddings", "partial_rotary_factor"} - set(positions)
    assert {n: x for n, x in said["rope_parameters"].items() if n not in again} == positions
    assert ours == {field: said[field] for field in ours}
    assert family.fixed == {field: said.get(field, x) for field, x in family.fixed.items()}
    # All others are needed: the sizes that every file has.
    needed = {"num_attention_heads", *family.fields} - set(family.defaults)
    assert needed <= {*hf_models.sizes_of(kind), "num_experts", "num_local_experts"}


CHANGES = [
    (hf["model_type"], field, value)
    for hf in hf_models.FIRST
    for field, value in hf_models.fields(hf["model_type"])["matter"].items()
    if field not in hf_models.OF_WHAT_IS_LEFT_OUT
]


@pytest.mark.parametrize(("kind", "field", "value"), CHANGES)
def test_a_field_that_changes_the_outputs_is_read_or_refused(kind, field, value):
    """With each of these values transformers computes something else from the same tensors."""
    hf = next(hf for hf in hf_models.FIRST if hf["model_type"] == kind)
    try:
        changed = read_config(hf | {field: value})
    except ConfigError:
        return
    assert collect_computation(changed) != collect_computation(read_config(hf))


def test_windows_and_positions_that_are_not_there():
    mistral, gpt_oss = ({"model_type": kind} | hf_models.sizes_of(kind) for kind in NAMES)
    assert read_config(mistral).windows == (4096,) * 4
    assert read_config(mistral | {"sliding_window": None}).windows == (None,) * 4
    read = read_config(gpt_oss | {"rope_parameters": None})
    assert read.windows == (128, None, 128, None)
    assert (read.rope.scaling, read.rope.factor, read.rope.original_length) == ("yarn", 32, 4096)
    plain = read_config(gpt_oss | {"rope_parameters": {"rope_type": "default"}})
    assert (plain.rope.scaling, plain.rope_theta) == ("none", 150_000)
    # What is written says so in so many words, for tools that have other defaults.
    written = write_config(read_config(mistral | {"sliding_window": None}), None, "mistral")
    assert written["sliding_window"] is None
    assert with_defaults(mistral)["max_position_embeddings"] == 131_072


def test_windows_may_be_in_any_layers():
    gpt_oss, size = {"model_type": "gpt_oss"} | hf_models.sizes_of("gpt_oss"), 128
    for kinds in ("wfwf", "fwww", "ffwf", "wwww", "ffff", "wwff"):
        types = [{"w": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds]
        read = read_config(gpt_oss | {"layer_types": types})
        assert read.windows == tuple({"w": size, "f": None}[kind] for kind in kinds)
        written = write_config(read, None, "gpt_oss")
        assert written["layer_types"] == types
        assert read_config(written).windows == read.windows
    # The shortest pattern, also where its last repeat is cut.
    types = ["sliding_attention", "full_attention"] * 3
    read = read_config(gpt_oss | {"num_hidden_layers": 5, "layer_types": types[:5]})
    assert read.attention.kinds == ("window", "full")


NAMES = ("mistral", "gpt_oss")


@pytest.mark.parametrize(
    ("case", "changes", "parts"),
    [
        ("llama", {"is_causal": False}, ("is_causal is False", "only True")),
        ("mistral", {"layer_types": ["full_attention"] * 2}, ("layer_types", "sliding_window 5")),
        ("qwen3_moe", {"num_local_experts": 65}, ("num_experts is 6", "num_local_experts is 65")),
        ("deepseek_v3", {"head_dim": 4}, ("head_dim is 4", "only None or 8")),
    ],
)
def test_what_says_two_things_is_refused_by_name(case, changes, parts):
    with pytest.raises(ConfigError) as caught:
        read_config(hf_models.CASES[case] | changes)
    for part in parts:
        assert part in str(caught.value)


def test_of_two_names_of_the_positions_the_older_one_counts():
    hf = hf_models.CASES["llama"] | {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}
    assert read_config(hf).rope.scaling == "llama3"
    assert read_config(hf | {"rope_scaling": None}).rope.factor == 3
    hf |= {"original_max_position_embeddings": 8}
    assert read_config(hf).rope.original_length == 8
