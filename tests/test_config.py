"""Settings: what is refused, with which words, and what comes back from a file."""

import pytest

from moejax.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    RunConfig,
    differences,
    from_dict,
    read_config_json,
    to_dict,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OptimConfig(schedule="linear"), "--optim.schedule must be one of cosine, wsd"),
        (lambda: MoEConfig(router="swich"), "Did you mean switch?"),
        (lambda: MoEConfig(top_k=2.0), "--model.moe.top-k must be int, not 2.0"),
        (lambda: MoEConfig(top_k=True), "--model.moe.top-k must be int, not True"),
        (lambda: RunConfig(steps=None), "--run.steps must be int, not None"),
        (lambda: RunConfig(seed=2**63), "--run.seed must lie in"),
        (lambda: Config(model=3), "--model must be ModelConfig, not 3"),
        (lambda: MoEConfig(router="top_k", top_k=1), "choose --model.moe.router switch"),
        (lambda: ModelConfig(width=100, num_heads=3), "--model.width 100 is not divisible"),
        (lambda: ModelConfig(num_heads=4, num_kv_heads=3), "not divisible by --model.num-kv-heads"),
        (lambda: ModelConfig(head_size=5), "even head size, not 5"),
        (lambda: ModelConfig(moe=MoEConfig(first_dense=3)), "no layer is routed"),
        (lambda: OptimConfig(schedule="wsd", decay_fraction=0.99), "sum to at most 1"),
        (lambda: OptimConfig(beta1=1.0), "--optim.beta1 must lie in"),
        (lambda: DataConfig(source="tfds"), "needs --data.tfds-name"),
        (lambda: DataConfig(source="files"), "needs --data.files"),
        (lambda: Config(data=DataConfig(sequence_length=100)), "--model.moe.group-size 128 must"),
        (lambda: Config(optim=OptimConfig(accumulate=3)), "not divisible by --optim.accumulate 3"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert words in str(error.value)


def test_checks_do_not_fire_where_they_do_not_apply():
    dense = ModelConfig(moe=MoEConfig(every=0))
    Config(model=dense, data=DataConfig(sequence_length=100), mesh=MeshConfig(expert=3))
    OptimConfig(schedule="cosine", warmup_fraction=0.9)
    OptimConfig(learning_rate=1)  # an int will do for a float


def test_a_config_survives_its_json_and_differences_are_named():
    config = Config(data=DataConfig(source="files", files="x/*.txt"))
    assert from_dict(Config, to_dict(config)) == config
    other = Config(model=ModelConfig(moe=MoEConfig(num_experts=16)), data=config.data)
    assert differences(config, other) == {"model.moe.num_experts": (8, 16)}


@pytest.mark.parametrize("text", ["[]", '""', '{"model": []}', '{"wings": 2}', "{", "\udcff"])
def test_a_damaged_config_json_is_named(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        read_config_json(file)
