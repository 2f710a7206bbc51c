"""Which settings of data, training and devices need others to have an effect: a table."""

from moejax.config.config import Config
from moejax.config.data import DOCSTRINGS, names_tfds
from moejax.config.need import Need, is_routed, join_paths


def _names_tfds(c: Config) -> bool:
    """Whether anything that is read is a data set of TFDS."""
    given = (c.data.train, c.data.validation, *(source.path for source in c.data.sources))
    return any(one is not None and names_tfds(one) for one in given)


DATA, BALANCE = "data", "model.moe.balance"

OF_TRAINING: tuple[Need, ...] = (
    # Data.
    Need(
        ("data.validation",),
        lambda c: c.data.mixture is None,
        "--data.mixture, whose sources have their own",
        "write eval = ... below a source",
    ),
    Need(
        join_paths(DATA, "validation field skip_bad"),
        lambda c: c.data.names_text,
        "--data.source, and nothing in --data.train",
        "give --data.train 'corpus/*.jsonl', say, too",
    ),
    Need(
        ("data.too_long",),
        lambda c: c.data.learns_parts,
        "texts, which are cut into pieces",
        "give --data.chat-template auto, too",
    ),
    Need(
        ("data.token_cache",),
        lambda c: c.data.chat_template is None or c.data.mixture is not None,
        "--data.chat-template, as the tokens of conversations are always kept",
        "",
    ),
    Need(
        ("data.token_cache",),
        lambda c: c.data.tokenizer != "bytes",
        "--data.tokenizer bytes, whose tokens are the text",
        "give --data.tokenizer tokenizer.json, say, too",
    ),
    Need(
        join_paths(DATA, "source files validation_files tfds_name tfds_text_field"),
        lambda c: c.data.train is None,
        "--data.train, which is what is read",
        "leave --data.train out",
    ),
    Need(
        join_paths(DATA, "source files validation_files tfds_name tfds_text_field"),
        lambda c: c.data.mixture is None,
        "--data.mixture, which is what is read",
        "leave --data.mixture out",
    ),
    Need(
        join_paths(DATA, "tfds_train_split"),
        lambda c: not c.data.names_text or _names_tfds(c),
        "--data.train, which names no data set of TFDS",
        "write --data.train tfds:lm1b, say",
    ),
    Need(
        join_paths(DATA, "tfds_validation_split"),
        lambda c: not c.data.names_text or _names_tfds(c),
        "--data.train and --data.validation, which name no data set of TFDS",
        "write --data.train tfds:lm1b, say",
    ),
    Need(
        join_paths(DATA, "tfds_name tfds_text_field tfds_train_split tfds_validation_split")
        + join_paths("data.images", "image_field label_field"),
        lambda c: c.data.source == "tfds" or c.data.names_text,
        "--data.source {c.data.source}",
        "give --data.source tfds, too",
    ),
    Need(
        ("data.directory",),
        lambda c: (
            c.data.source in ("tfds", "stdlib")
            or c.data.names_text
            or c.data.token_cache == "always"
        ),
        "--data.source {c.data.source}, which prepares nothing",
        "give --data.source tfds, too",
    ),
    Need(
        join_paths(DATA, "files validation_files validation_percent"),
        lambda c: c.data.source == "files" or c.data.names_text,
        "--data.source {c.data.source}",
        "give --data.source files, too",
    ),
    Need(
        ("data.validation_percent",),
        lambda c: c.data.validation_files is None,
        "--data.validation-files, which are what is held out",
        "leave --data.validation-files out",
    ),
    Need(
        ("data.validation_percent",),
        lambda c: c.data.validation is None,
        "--data.validation, which is what is held out",
        "leave --data.validation out",
    ),
    Need(
        ("data.validation_percent",),
        lambda c: c.data.train != DOCSTRINGS or c.data.validation is not None,
        f"--data.train {DOCSTRINGS}, of which a part is held out always",
        "",
    ),
    # Training.
    Need(
        join_paths("optim", "muon_learning_rate muon_iterations"),
        lambda c: c.optim.optimizer == "muon",
        "--optim.optimizer {c.optim.optimizer}",
        "give --optim.optimizer muon, too",
    ),
    Need(
        join_paths("optim", "next_token_weight next_token_late_weight"),
        lambda c: c.model.next_tokens > 0,
        "--model.next-tokens 0, which predicts the next token alone",
        "give --model.next-tokens 1, too",
    ),
    Need(
        join_paths("run.lora", "alpha on base routers"),
        lambda c: c.run.lora.rank is not None,
        "all parameters being trained",
        "give --run.lora.rank 16, say, too",
    ),
    Need(
        ("run.lora.routers",),
        is_routed,
        "--model.moe.every 0, which makes every layer dense",
        "take --model.moe.every 1",
    ),
    Need(
        ("optim.router_learning_rate", *join_paths(BALANCE, "bias_rate bias_centred")),
        lambda c: c.run.lora.trains_routers,
        "--run.lora.routers False, with which they stay as they are",
        "give --run.lora.routers True, too",
    ),
    Need(
        ("optim.decay_fraction",),
        lambda c: c.optim.schedule == "wsd",
        "--optim.schedule {c.optim.schedule}",
        "give --optim.schedule wsd, too",
    ),
    Need(
        join_paths("run", "sample_prompt sample_temperature"),
        lambda c: c.run.sample_tokens > 0,
        "--run.sample-tokens 0",
        "give --run.sample-tokens 400, say, too",
    ),
    # Devices.
    Need(
        join_paths("mesh", "chunks receive_factor"),
        lambda c: c.mesh.expert > 1,
        "--mesh.expert 1, as all experts are on every device",
        "give --mesh.expert 2 or more, too",
    ),
    Need(
        ("mesh.fsdp", "mesh.zero1"),
        lambda c: c.mesh.data != 1 or c.mesh.expert > 1 or c.mesh.context > 1,
        "--mesh.data 1, which leaves nothing to spread over",
        "give --mesh.data 2 or more, or leave it to the number of devices",
    ),
)
"""Data, training and devices."""
