"""Settings: what is refused, with which words, and what comes back from a file."""

import pytest

from moejax.config import (
    Config,
    ConfigError,
    DataConfig,
    DistributedConfig,
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


def meeting(**changes) -> DistributedConfig:
    """The first of two processes."""
    settings = {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 0}
    return DistributedConfig(**settings | changes)


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
        (
            lambda: Config(model=ModelConfig(moe=MoEConfig(router="top_k", top_k=1))),
            "choose --model.moe.router switch",
        ),
        (lambda: ModelConfig(width=100, num_heads=3), "--model.width 100 is not divisible"),
        (lambda: ModelConfig(num_heads=4, num_kv_heads=3), "not divisible by --model.num-kv-heads"),
        (lambda: ModelConfig(head_size=5), "even head size, not 5"),
        (lambda: ModelConfig(moe=MoEConfig(first_dense=3)), "no layer is routed"),
        (lambda: OptimConfig(schedule="wsd", decay_fraction=0.99), "sum to at most 1"),
        (lambda: OptimConfig(beta1=1.0), "--optim.beta1 must lie in"),
        (lambda: DataConfig(source="tfds"), "needs --data.tfds-name"),
        (lambda: DataConfig(source="files"), "needs --data.files"),
        (lambda: DataConfig(batch_size=16, shards=3), "not divisible by --data.shards 3"),
        (
            lambda: DistributedConfig(num_processes=2, process_id=0),
            "--distributed.coordinator-address is missing: give all of",
        ),
        (
            lambda: DistributedConfig(process_id=0),
            "--distributed.coordinator-address and --distributed.num-processes are missing",
        ),
        (lambda: meeting(process_id=2), "--distributed.process-id must lie in [0, 2)"),
        (lambda: meeting(process_id=-1), "not -1"),
        (lambda: meeting(num_processes=0, process_id=0), "must be greater than 0, not 0"),
        (lambda: meeting(coordinator_address="here"), "must be HOST:PORT"),
        (lambda: meeting(coordinator_address="here:0"), "not 'here:0'"),
        (lambda: meeting(initialize="never"), "--distributed.initialize never contradicts"),
        (lambda: DistributedConfig(initialize="now"), "must be one of auto, always, never"),
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
