"""Which settings need others to have an effect: a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moejax.config.config import Config
from moejax.config.data import DOCSTRINGS, names_tfds


@dataclass(frozen=True)
class Need:
    """What some settings need to have an effect."""

    settings: tuple[str, ...]
    """Their paths; that of a section stands for all settings in it."""
    met: Callable[[Any], bool]
    """Whether a config has it."""
    without: str
    """The state of the config that has it not, after "has no effect with"; ``{c}`` is the config.
    """
    instead: str
    """What to write instead, besides leaving the setting out."""
    twin: bool = False
    """Whether such settings are kept on purpose: by a dense twin those of its experts. Then config
    files are not told of them, and subcommands warn.
    """
    says: str = "has no effect with"
    """What the setting does then."""

    def covers(self, path: str) -> bool:
        """Whether it is a need of the setting at ``path``."""
        return any(path == name or path.startswith(f"{name}.") for name in self.settings)


def _paths(section: str, names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names.split())


def _is_routed(c: Config) -> bool:
    return any(c.model.routed_layers)


def _drops(c: Config) -> bool:
    moe = c.model.moe
    return moe.capacity_factor is not None or moe.eval_capacity_factor is not None


def _looks_around(c: Config) -> bool:
    """Whether the router looks at several tokens of a group in training."""
    return not c.model.moe.built_router.causal


def _names_tfds(c: Config) -> bool:
    """Whether anything that is read is a data set of TFDS."""
    given = (c.data.train, c.data.validation, *(source.path for source in c.data.sources))
    return any(one is not None and names_tfds(one) for one in given)


MODEL, ROPE, MOE = "model", "model.rope", "model.moe"
BALANCE, DATA = "model.moe.balance", "data"
STEPS = ("sign", "proportional", "pid")
"""Updates of the selection bias by the lack of load."""
OF_SOFTMAX = {"queries_keys_values", "attention_heads"}
OF_ROUTED = {"router_logits", "expert_inputs", "expert_outputs"}
"""What of ``config.model.Keepable`` some layers alone have."""

NEEDS: tuple[Need, ...] = (
    # What a model reads.
    Need(
        ("model.image", "data.images"),
        lambda c: not c.model.material.language,
        "--model.kind {c.model.kind}, which reads text",
        "take --model.kind vit or mlp, with images as --data.source",
    ),
    Need(
        ("model.rope", *_paths(MODEL, "rope_theta tie_embeddings embedding_scale logit_scale")),
        lambda c: c.model.material.language,
        "--model.kind {c.model.kind}, which sees images",
        "take --model.kind decoder, with text as --data.source",
    ),
    Need(
        (
            *_paths(DATA, "token_cache tokenizer sequence_length shuffle_window tfds_text_field"),
            *_paths("run", "sample_prompt sample_tokens sample_temperature"),
        ),
        lambda c: c.model.material.language,
        "--model.kind {c.model.kind}, which sees images",
        "take --model.kind decoder, with text as --data.source",
    ),
    Need(
        _paths(MODEL, "num_heads num_kv_heads head_size qk_norm"),
        lambda c: c.model.kind != "mlp",
        "--model.kind mlp, which has no attention",
        "take --model.kind vit",
    ),
    Need(
        ("model.image.patch_size",),
        lambda c: c.model.kind != "mlp",
        "--model.kind mlp, in which an image is one token",
        "take --model.kind vit",
    ),
    # Positions and attention.
    Need(
        ("model.delta",),
        lambda c: "delta" in c.model.attention_kinds,
        "no layer having a memory",
        "give --model.attention.kinds delta delta delta full, say, too",
    ),
    Need(
        (
            *_paths(MODEL, "num_kv_heads qk_norm rope rope_theta"),
            *_paths(
                "model.attention",
                "kv_rank query_rank rope_head_size value_head_size bias qk_norm_over sinks scale"
                " rotary_size qk_norm_place output_gate form"
                " rotary_in window_rope_theta",
            ),
        ),
        lambda c: set(c.model.attention_kinds) != {"delta"},
        "--model.attention.kinds delta, which leaves no layer with attention",
        "give --model.attention.kinds delta delta delta full, say",
    ),
    Need(
        _paths(ROPE, "factor original_length"),
        lambda c: c.model.rope.scaling != "none",
        "--model.rope.scaling none",
        "give --model.rope.scaling linear, yarn or llama3, too",
    ),
    Need(
        ("model.rope.original_length",),
        lambda c: c.model.rope.scaling != "linear",
        "--model.rope.scaling linear",
        "take --model.rope.scaling yarn or llama3",
    ),
    Need(
        _paths(ROPE, "beta_fast beta_slow truncate amplitude"),
        lambda c: c.model.rope.scaling == "yarn",
        "--model.rope.scaling {c.model.rope.scaling}",
        "take --model.rope.scaling yarn",
    ),
    Need(
        _paths(ROPE, "low_frequency_factor high_frequency_factor"),
        lambda c: c.model.rope.scaling == "llama3",
        "--model.rope.scaling {c.model.rope.scaling}",
        "take --model.rope.scaling llama3",
    ),
    Need(
        ("model.rope.scaling",),
        lambda c: (
            c.model.rope.scaling == "none"
            or c.model.rope.factor != 1
            or (c.model.rope.scaling == "yarn" and c.model.rope.amplitude is not None)
        ),
        "--model.rope.factor {c.model.rope.factor:g}",
        "give a --model.rope.factor above 1, 4 say",
    ),
    Need(
        ("model.rope.factor",),
        lambda c: c.model.rope.factor >= 1 or c.model.rope.scaling in ("none", "linear"),
        "--model.rope.scaling {c.model.rope.scaling}",
        "make it more than 1, 4 say",
        says="stretches nothing with",
    ),
    Need(
        _paths(ROPE, "original_length beta_fast beta_slow truncate")
        + _paths(ROPE, "low_frequency_factor high_frequency_factor"),
        lambda c: c.model.rope.scaling == "none" or c.model.rope.factor != 1,
        "--model.rope.factor {c.model.rope.factor:g}",
        "give a --model.rope.factor above 1, 4 say",
    ),
    Need(
        ("model.attention.rope_head_size",),
        lambda c: c.model.is_latent,
        "grouped-query attention, whose heads are rotated by --model.attention.rotary-size",
        "give --model.attention.kv-rank, too (latent attention)",
    ),
    Need(
        ("model.attention.rotary_size",),
        lambda c: c.model.is_latent or c.model.rotary_size < c.model.plain_head_size,
        "heads of {c.model.plain_head_size}, which are rotated whole without it",
        "make it less",
    ),
    Need(
        _paths("model.attention", "qk_norm_over qk_norm_place"),
        lambda c: c.model.qk_norm,
        "--model.qk-norm False",
        "give --model.qk-norm True, too",
    ),
    Need(
        ("model.attention.full_every",),
        lambda c: c.model.attention.window is not None,
        "all layers seeing all positions",
        "give --model.attention.window, too",
    ),
    Need(
        ("model.attention.full_every",),
        lambda c: c.model.attention.full_every <= c.model.num_layers,
        "--model.num-layers {c.model.num_layers}, of which it is none",
        "make it {c.model.num_layers} at most",
    ),
    Need(
        ("model.attention.window",),
        lambda c: c.model.attention.full_every != 1,
        "--model.attention.full-every 1, with which no layer has it",
        "leave --model.attention.full-every out",
    ),
    Need(
        ("model.attention.window",),
        lambda c: c.model.attention.window is None or "window" in c.model.attention_kinds,
        "--model.attention.kinds full, with which no layer has it",
        "give --model.attention.kinds window full, say",
    ),
    Need(
        ("model.attention.kinds",),
        lambda c: (
            not c.model.attention.kinds
            or "delta" in c.model.attention_kinds
            or (c.model.attention.window is not None and "full" in c.model.attention_kinds)
        ),
        "all layers being so without it",
        "",
    ),
    Need(
        ("model.attention.rotary_in",),
        lambda c: c.model.attention.rotary_in != "window" or "full" in c.model.attention_kinds,
        "all layers having a window",
        "give --model.attention.kinds window full, say",
    ),
    Need(
        ("model.attention.window_rope_theta",),
        lambda c: "window" in c.model.attention_kinds,
        "no layer having a window",
        "give --model.attention.window and --model.attention.kinds window full, say, too",
    ),
    Need(
        (
            *_paths("model.attention", "window_rope_theta rotary_size qk_norm_place"),
            *("model.rope_theta", "model.rope"),
        ),
        lambda c: c.model.attention.rotary_in != "none",
        "--model.attention.rotary-in none",
        "leave --model.attention.rotary-in out",
    ),
    Need(
        ("model.rope_theta", "model.rope"),
        lambda c: (c.model.rope_theta, c.model.rope) in c.model.rotations,
        "--model.attention.window-rope-theta {c.model.attention.window_rope_theta:g}, which is that"
        " of all layers with rotary positions",
        "leave --model.attention.window-rope-theta out",
    ),
    # What is computed again.
    Need(
        ("model.remat_keep",),
        lambda c: c.model.remat in ("layer", "offload"),
        "--model.remat {c.model.remat}, which names nothing to keep",
        "take --model.remat layer",
    ),
    Need(
        ("model.remat",),
        lambda c: c.model.remat != "attention" or c.model.kind != "mlp",
        "--model.kind mlp, which has no attention",
        "take --model.remat layer",
    ),
    Need(
        ("model.remat_keep",),
        lambda c: _is_routed(c) or not set(c.model.remat_keep) <= OF_ROUTED,
        "--model.moe.every 0, which makes every layer dense",
        "name something else, such as hidden",
    ),
    Need(
        ("model.remat_keep",),
        lambda c: (
            set(c.model.attention_kinds) != {"delta"} or not set(c.model.remat_keep) <= OF_SOFTMAX
        ),
        "--model.attention.kinds delta, which leaves no layer with attention",
        "name something else, such as attention_output",
    ),
    # Layers, dense and routed.
    Need(
        ("model.dense_hidden_size",),
        lambda c: not all(c.model.routed_layers),
        "every layer being routed",
        "keep a layer dense, by --model.moe.first-dense or --model.moe.every",
    ),
    Need(
        (
            *_paths(MOE, "num_experts expert_bias router renormalise weight_scale top_p"),
            *_paths(MOE, "expert_groups kept_expert_groups max_experts_per_token identity_experts"),
            *_paths(MOE, "null_experts router_jitter router_dropout expert_dropout first_dense"),
            *_paths(MOE, "shared_gate group_size capacity_factor eval_capacity_factor seating"),
            *_paths(MOE, "bias_on dispatch eval_candidates token_counts hash_layers"),
            *("model.moe.balance", "optim.router_learning_rate"),
            *_paths("mesh", "expert_parallel chunks receive_factor"),
        ),
        _is_routed,
        "--model.moe.every 0, which makes every layer dense",
        "take --model.moe.every 1",
        twin=True,
    ),
    Need(
        _paths(MOE, "top_k hidden_size shared_experts shared_hidden_size"),
        lambda c: _is_routed(c) or c.model.dense_hidden_size is None,
        "--model.moe.every 0, which makes every layer dense, and --model.dense-hidden-size",
        "take --model.moe.every 1",
        twin=True,
    ),
    Need(
        ("model.norm_place",),
        lambda c: c.model.norm_place != "pre_and_experts" or _is_routed(c),
        "--model.moe.every 0, which makes every layer dense",
        "take --model.moe.every 1",
    ),
    Need(
        _paths(MOE, "shared_gate shared_hidden_size"),
        lambda c: c.model.moe.shared_experts > 0,
        "--model.moe.shared-experts 0",
        "give --model.moe.shared-experts 1, say, too",
    ),
    Need(
        ("model.moe.expert_groups",),
        lambda c: (
            c.model.moe.kept_expert_groups is not None
            or c.model.moe.balance.device_loss_weight > 0
            or c.model.moe.balance.communication_loss_weight > 0
        ),
        "every group being kept, and no loss over groups",
        "give --model.moe.kept-expert-groups, or --model.moe.balance.device-loss-weight, too",
    ),
    Need(
        (
            *_paths(MOE, "router_jitter router_dropout"),
            *_paths(BALANCE, "z_loss_weight importance_loss_weight variance_loss_weight"),
            *_paths(BALANCE, "entropy_loss_weight"),
        ),
        lambda c: c.model.moe.built_router.learned,
        "--model.moe.router {c.model.moe.router}, which learns nothing",
        "take another router, such as top_k",
    ),
    Need(
        ("optim.router_learning_rate",),
        lambda c: c.model.moe.built_router.learned or c.model.moe.shared_gate,
        "--model.moe.router {c.model.moe.router}, which learns nothing",
        "take another router, such as top_k",
    ),
    Need(
        ("model.moe.eval_capacity_factor",),
        # The same number says the same.
        lambda c: (
            not c.model.moe.built_router.experts_choose
            or c.model.moe.eval_capacity_factor == c.model.moe.capacity_factor
        ),
        "--model.moe.router {c.model.moe.router}, whose slots are a part of the model",
        "set --model.moe.capacity-factor, which holds in evaluations, too",
    ),
    Need(
        ("model.moe.group_size",),
        lambda c: _drops(c) or not c.model.moe.built_router.by_token or _looks_around(c),
        "nothing being dropped (--model.moe.capacity-factor None, --model.moe.eval-capacity-factor"
        " None)",
        "give --model.moe.capacity-factor 1.25, say, too",
        twin=True,
    ),
    Need(
        ("model.moe.seating",),
        _drops,
        "nothing being dropped (--model.moe.capacity-factor None, --model.moe.eval-capacity-factor"
        " None)",
        "give --model.moe.capacity-factor 1.25, say, too",
    ),
    Need(
        ("model.moe.eval_candidates",),
        lambda c: c.model.moe.eval_capacity_factor is not None,
        "--model.moe.eval-capacity-factor None, with which every choice has a slot",
        "give --model.moe.eval-capacity-factor 1, say, too",
    ),
    # Balance.
    Need(
        _paths(BALANCE, "scope convention"),
        lambda c: c.model.moe.balance.loss_weight > 0,
        "--model.moe.balance.loss-weight 0",
        "give --model.moe.balance.loss-weight 0.01, say, too",
        twin=True,
    ),
    Need(
        ("model.moe.bias_on",),
        lambda c: c.model.moe.has_selection_bias,
        "no selection bias (--model.moe.balance.bias-update none)",
        "take --model.moe.balance.bias-update sign",
    ),
    Need(
        _paths(BALANCE, "coupling_alpha"),
        lambda c: c.model.moe.balance.coupling_loss_weight > 0,
        "--model.moe.balance.coupling-loss-weight 0",
        "give --model.moe.balance.coupling-loss-weight 1, say, too",
    ),
    Need(
        _paths(BALANCE, "sparsity_factor"),
        lambda c: c.model.moe.balance.sparsity_loss_weight > 0,
        "--model.moe.balance.sparsity-loss-weight 0",
        "give --model.moe.balance.sparsity-loss-weight 1e-8, say, too",
    ),
    Need(
        _paths(BALANCE, "experts_per_token"),
        lambda c: (
            c.model.moe.num_choices > c.model.moe.num_experts
            or c.model.moe.balance.bias_update == "threshold"
            or c.model.moe.balance.moves_sparsity
        ),
        "every expert having parameters",
        "give --model.moe.identity-experts 8, say, too",
    ),
    Need(
        _paths(BALANCE, "bias_rate"),
        lambda c: c.model.moe.balance.bias_update in (*STEPS, "threshold"),
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update sign or proportional",
    ),
    Need(
        _paths(BALANCE, "experts_per_token"),
        lambda c: (
            c.model.moe.balance.bias_update in (*STEPS, "threshold")
            or c.model.moe.balance.moves_sparsity
        ),
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update sign or proportional",
    ),
    Need(
        _paths(BALANCE, "bias_centred"),
        lambda c: c.model.moe.balance.bias_update in STEPS,
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update sign or proportional",
    ),
    Need(
        _paths(BALANCE, "pid_proportional pid_difference pid_limit"),
        lambda c: c.model.moe.balance.bias_update == "pid",
        "--model.moe.balance.bias-update {c.model.moe.balance.bias_update}",
        "take --model.moe.balance.bias-update pid",
    ),
    # Data.
    Need(
        ("data.validation",),
        lambda c: c.data.mixture is None,
        "--data.mixture, whose sources have their own",
        "write eval = ... below a source",
    ),
    Need(
        _paths(DATA, "validation field skip_bad"),
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
        _paths(DATA, "source files validation_files tfds_name tfds_text_field"),
        lambda c: c.data.train is None,
        "--data.train, which is what is read",
        "leave --data.train out",
    ),
    Need(
        _paths(DATA, "source files validation_files tfds_name tfds_text_field"),
        lambda c: c.data.mixture is None,
        "--data.mixture, which is what is read",
        "leave --data.mixture out",
    ),
    Need(
        _paths(DATA, "tfds_train_split"),
        lambda c: not c.data.names_text or _names_tfds(c),
        "--data.train, which names no data set of TFDS",
        "write --data.train tfds:lm1b, say",
    ),
    Need(
        _paths(DATA, "tfds_validation_split"),
        lambda c: not c.data.names_text or _names_tfds(c),
        "--data.train and --data.validation, which name no data set of TFDS",
        "write --data.train tfds:lm1b, say",
    ),
    Need(
        _paths(DATA, "tfds_name tfds_text_field tfds_train_split tfds_validation_split")
        + _paths("data.images", "image_field label_field"),
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
        _paths(DATA, "files validation_files validation_percent"),
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
        _paths("optim", "muon_learning_rate muon_iterations"),
        lambda c: c.optim.optimizer == "muon",
        "--optim.optimizer {c.optim.optimizer}",
        "give --optim.optimizer muon, too",
    ),
    Need(
        _paths("optim", "next_token_weight next_token_late_weight"),
        lambda c: c.model.next_tokens > 0,
        "--model.next-tokens 0, which predicts the next token alone",
        "give --model.next-tokens 1, too",
    ),
    Need(
        _paths("run.lora", "alpha on base routers"),
        lambda c: c.run.lora.rank is not None,
        "all parameters being trained",
        "give --run.lora.rank 16, say, too",
    ),
    Need(
        ("run.lora.routers",),
        _is_routed,
        "--model.moe.every 0, which makes every layer dense",
        "take --model.moe.every 1",
    ),
    Need(
        ("optim.router_learning_rate", *_paths(BALANCE, "bias_rate bias_centred")),
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
        _paths("run", "sample_prompt sample_temperature"),
        lambda c: c.run.sample_tokens > 0,
        "--run.sample-tokens 0",
        "give --run.sample-tokens 400, say, too",
    ),
    # Devices.
    Need(
        _paths("mesh", "chunks receive_factor"),
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
"""The needs of settings; one that is not here has an effect in every config."""
