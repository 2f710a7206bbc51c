"""Settings that are taken and do nothing: every setting takes a stand, and the table is true."""

import json
import warnings
from functools import cache, partial
from pathlib import Path

import jax
import pytest

from moejax.commands.command_line import read_config
from moejax.commands.main import run
from moejax.config import Config, ConfigError, changed, differences, flatten, to_dict
from moejax.config.data import DOCSTRINGS
from moejax.config.errors import UserError
from moejax.config.idle import differences_that_matter, find_idle, warn_of_runs
from moejax.config.needs import NEEDS
from moejax.lab.study.definition import load_study_file
from moejax.models.adapters import adapt, find_weights
from moejax.models.batch_shapes import batch_shapes
from moejax.models.by_kind import build
from moejax.models.initial_params import init_params
from moejax.moe.quantise_params import quantise_shapes
from moejax.runtime import device_mesh
from moejax.train.eval_step import eval_step
from moejax.train.optimizer import make_optimizer
from moejax.train.prepare import make_step
from moejax.train.state import init_state

ROOT = Path(__file__).parents[1]
TEXT = changed(
    Config(),
    {
        "model": {"num_layers": 2, "width": 8, "num_heads": 2, "vocab_size": 11},
        "model.moe": {"num_experts": 4, "hidden_size": 8, "group_size": 4},
        "data": {"sequence_length": 8, "batch_size": 2, "eval_batch_size": 2, "source": "tfds"},
        "data.tfds_name": "lm1b",
        "optim.optimizer": "muon",
        "run.steps": 20,
    },
)
VIT = {
    "model.kind": "vit",
    "model.image": {"size": 4, "patch_size": 2},
    "data.tfds_name": "mnist",
}
MLP = VIT | {"model.kind": "mlp", "model.moe.group_size": 1}
DENSE = {"model.moe.every": 0}
STDLIB = {"data.source": "stdlib"}
FILES = {"data.source": "files", "data.files": "x/*.txt"}
GIVEN = {"data.train": "x/*.jsonl"}
MIXED = {"data.mixture": ({"name": "a", "path": "x/*.jsonl", "weight": 1.0},)}
CHATS = GIVEN | {"data.chat_template": "plain"}
LATENT = {"model.attention.kv_rank": 4, "model.qk_norm": False}
EVERY_SECOND = {"model.attention": {"window": 4, "kinds": ("window", "full")}}
MEMORY = {"model.attention.kinds": ("delta", "full")}
NO_POSITIONS = {"model.attention.rotary_in": "none"}
YARN = {"model.head_size": 16, "model.rope": {"scaling": "yarn", "factor": 4.0}}
LLAMA3 = {"model.head_size": 16, "model.rope": {"scaling": "llama3", "factor": 4.0}}
ALL_FIT = {"model.moe": {"capacity_factor": None, "eval_capacity_factor": None}}
HASH, CHOICE = {"model.moe.router": "hash"}, {"model.moe.router": "expert_choice"}
GROUPS = {"model.moe.expert_groups": 2}
SIGN, PID = ({"model.moe.balance.bias_update": update} for update in ("sign", "pid"))
TABLE = {"model.moe.router": "hash_balanced"}
RELUS = {"model.moe.router": "remoe", "model.moe.balance.sparsity_loss_weight": 0.1}
MOVED = RELUS | {"model.moe.balance.sparsity_factor": 1.2}
NO_LOSS = {"model.moe.balance.loss_weight": 0.0}
SHARED = {"model.moe.shared_experts": 1}
LORA = {"run.init_from": "x", "run.lora.rank": 2}
LAYER = {"model.remat": "layer"}

# Where a setting changes the program of a run: its path, another value, and what else is set.
MATTERS: list[tuple[str, object, dict]] = [
    ("model.kind", "vit", VIT | {"model.kind": "decoder"}),
    ("model.image.size", 6, VIT | {"model.moe.group_size": 1}),
    ("model.image.channels", 3, VIT),
    ("model.image.patch_size", 4, VIT | {"model.moe.group_size": 1}),
    ("model.num_layers", 3, {}),
    ("model.width", 16, {}),
    ("model.num_heads", 4, {}),
    ("model.num_heads", 4, VIT),
    ("model.num_kv_heads", 1, {}),
    ("model.head_size", 8, {}),
    ("model.qk_norm", False, {}),
    ("model.rope_theta", 100.0, {}),
    ("model.rope.scaling", "linear", {"model.rope.factor": 2.0}),
    ("model.rope.scaling", "yarn", {"model.rope.amplitude": 2.0}),
    ("model.rope.factor", 3.0, YARN),
    ("model.rope.original_length", 100, YARN),
    ("model.rope.beta_fast", 8.0, YARN),
    ("model.rope.beta_slow", 0.1, YARN),
    ("model.rope.truncate", False, YARN),
    ("model.rope.amplitude", 2.0, YARN),
    ("model.rope.low_frequency_factor", 2.0, LLAMA3),
    ("model.rope.high_frequency_factor", 8.0, LLAMA3),
    ("model.attention.kv_rank", 4, {"model.qk_norm": False}),
    ("model.attention.query_rank", 4, LATENT),
    ("model.attention.rope_head_size", 4, LATENT),
    ("model.attention.value_head_size", 8, LATENT),
    ("model.attention.bias", "qkv", {}),
    ("model.attention.qk_norm_over", "width", {}),
    ("model.attention.sinks", True, {}),
    ("model.attention.rotary_size", 2, {}),
    ("model.attention.qk_norm_place", "after_rotation", {}),
    ("model.attention.output_gate", True, {}),
    ("model.attention.output_gate", True, LATENT),
    ("model.attention.window", 4, {}),
    ("model.attention.full_every", 2, {"model.attention.window": 4}),
    ("model.attention.kinds", ("window", "full"), {"model.attention.window": 4}),
    ("model.attention.kinds", ("full",), {"model.attention.window": 4}),
    ("model.attention.kinds", ("delta", "full"), {}),
    ("model.delta.key_heads", 4, MEMORY | {"model.delta.value_heads": 8}),
    ("model.delta.value_heads", 8, MEMORY),
    ("model.delta.key_size", 8, MEMORY),
    ("model.delta.value_size", 8, MEMORY),
    ("model.delta.convolution", 2, MEMORY),
    ("model.attention.rotary_in", "window", EVERY_SECOND),
    ("model.attention.rotary_in", "window", {}),
    ("model.attention.rotary_in", "none", {}),
    ("model.attention.window_rope_theta", 100.0, EVERY_SECOND),
    ("model.rope_theta", 100.0, EVERY_SECOND | {"model.attention.window_rope_theta": 9.0}),
    ("model.attention.scale", 0.1, {}),
    ("model.attention.form", "blockwise", {}),
    ("model.activation", "gelu", {}),
    ("model.dense_hidden_size", 32, DENSE),
    ("model.vocab_size", 12, {}),
    ("model.tie_embeddings", True, {}),
    ("model.embedding_scale", 2.0, {}),
    ("model.residual_scale", 2.0, {}),
    ("model.logit_scale", 2.0, {}),
    ("model.norm_place", "post", {}),
    ("model.norm_place", "sandwich", MLP),
    ("model.norm_place", "pre_and_experts", {"model.moe.first_dense": 1}),
    ("model.norm_epsilon", 1e-3, {}),
    ("model.zero_centred_norm", True, {}),
    ("model.dtype", "bfloat16", {}),
    ("model.remat", "layer", {}),
    ("model.remat", "attention", {}),
    ("model.remat", "experts", {}),
    ("model.remat", "offload", {}),
    ("model.remat_keep", ("hidden",), {"model.remat": "layer"}),
    ("model.remat_keep", ("router_logits",), {"model.remat": "layer"}),
    ("model.unroll", False, {}),
    ("model.next_tokens", 1, {}),
    ("model.moe.num_experts", 8, {}),
    ("model.moe.top_k", 3, {}),
    ("model.moe.top_k", 3, DENSE),
    ("model.moe.hidden_size", 16, {}),
    ("model.moe.hidden_size", 16, DENSE),
    ("model.moe.shared_experts", 1, DENSE),
    ("model.moe.expert_bias", True, {}),
    ("model.moe.router", "olmoe", {}),
    ("model.moe.renormalise", False, {}),
    ("model.moe.weight_scale", 2.0, {}),
    ("model.moe.expert_groups", 4, {**GROUPS, "model.moe.kept_expert_groups": 2}),
    ("model.moe.expert_groups", 4, {**GROUPS, "model.moe.balance.device_loss_weight": 0.1}),
    ("model.moe.kept_expert_groups", 1, GROUPS),
    ("model.moe.max_experts_per_token", 3, CHOICE),
    ("model.moe.identity_experts", 1, {}),
    ("model.moe.null_experts", 1, {}),
    ("model.moe.router_jitter", 0.1, {}),
    ("model.moe.router_dropout", 0.1, {}),
    ("model.moe.expert_dropout", 0.1, {}),
    ("model.moe.every", 2, {}),
    ("model.moe.first_dense", 1, {}),
    ("model.moe.shared_experts", 1, {}),
    ("model.moe.shared_gate", True, SHARED),
    ("model.moe.shared_hidden_size", 12, SHARED),
    ("model.moe.shared_hidden_size", 12, SHARED | DENSE),
    ("model.moe.group_size", 8, {}),
    ("model.moe.capacity_factor", 2.0, {}),
    ("model.moe.eval_capacity_factor", 1.0, {}),
    ("model.moe.seating", "priority", {}),
    ("model.moe.eval_candidates", 2, {"model.moe.eval_capacity_factor": 0.5}),
    ("model.moe.dispatch", "einsum", {}),
    ("model.moe.balance.loss_weight", 0.1, {}),
    ("model.moe.balance.scope", "sequence", {}),
    ("model.moe.balance.convention", "hf", {}),
    ("model.moe.balance.z_loss_weight", 0.1, {}),
    ("model.moe.balance.importance_loss_weight", 0.1, {}),
    ("model.moe.balance.load_loss_weight", 0.1, {"model.moe.router": "noisy_top_k"}),
    ("model.moe.balance.device_loss_weight", 0.1, GROUPS),
    ("model.moe.balance.communication_loss_weight", 0.1, GROUPS),
    ("model.moe.balance.orthogonality_loss_weight", 0.1, {}),
    ("model.moe.balance.coupling_loss_weight", 0.1, {}),
    ("model.moe.balance.coupling_alpha", 0.5, {"model.moe.balance.coupling_loss_weight": 0.1}),
    ("model.moe.balance.variance_loss_weight", 0.1, {}),
    ("model.moe.balance.entropy_loss_weight", 0.1, {}),
    ("model.moe.top_p", 0.5, {}),
    ("model.moe.balance.sparsity_loss_weight", 0.1, {"model.moe.router": "remoe"}),
    ("model.moe.balance.bias_update", "sign", {}),
    ("model.moe.balance.bias_rate", 0.1, SIGN),
    ("model.moe.balance.bias_centred", True, SIGN),
    ("model.moe.balance.experts_per_token", 1.5, SIGN | {"model.moe.null_experts": 2}),
    ("model.moe.balance.experts_per_token", 1.5, MOVED),
    ("model.moe.balance.sparsity_factor", 1.2, RELUS),
    ("model.moe.balance.pid_proportional", 2.0, PID),
    ("model.moe.balance.pid_difference", 2.0, PID),
    ("model.moe.balance.pid_limit", 0.5, PID),
    ("model.moe.token_counts", (1, 2, 3), TABLE),
    ("model.moe.hash_layers", 1, TABLE),
    ("model.moe.bias_on", "logits", SIGN),
    ("data.sequence_length", 16, {}),
    ("data.batch_size", 4, {}),
    ("data.eval_batch_size", 4, {}),
    ("optim.optimizer", "adamw", {}),
    ("optim.learning_rate", 0.1, {}),
    ("optim.muon_learning_rate", 0.1, {}),
    ("optim.muon_iterations", 2, {}),
    ("optim.router_learning_rate", 0.1, {}),
    ("optim.warmup_fraction", 0.5, {}),
    ("optim.schedule", "wsd", {}),
    ("optim.decay_fraction", 0.5, {"optim.schedule": "wsd"}),
    ("optim.final_fraction", 0.1, {}),
    ("optim.weight_decay", 0.1, {}),
    ("optim.beta1", 0.5, {}),
    ("optim.beta2", 0.5, {}),
    ("optim.moments", "bfloat16", {}),
    ("optim.offload", True, {}),
    ("optim.label_smoothing", 0.1, {}),
    ("optim.head_z_loss_weight", 0.1, {}),
    ("optim.head_z_loss_weight", 0.1, VIT),
    ("optim.next_token_weight", 0.7, {"model.next_tokens": 1}),
    ("optim.next_token_late_weight", 0.1, {"model.next_tokens": 1}),
    ("optim.clip_norm", None, {}),
    ("optim.accumulate", 2, {}),
    ("run.steps", 40, {}),
    ("run.seed", 1, {}),
    ("run.lora.rank", 2, {"run.init_from": "x"}),
    ("run.lora.alpha", 3.0, LORA),
    ("run.lora.on", "experts", LORA),
    ("run.lora.routers", True, LORA),
    ("run.lora.base", "int4", LORA),
]

# Settings whose effect is not in the program, but in the batches, the files, the times of things,
# or the processes and devices that are there.
OUTSIDE = {
    "data": """source tfds_name tfds_text_field tfds_train_split tfds_validation_split directory
        train mixture validation field skip_bad token_cache chat_template too_long
        files validation_files validation_percent tokenizer seed shuffle_window shards prefetch""",
    "data.images": "image_field label_field shift flip",
    "mesh": "data context expert model fsdp zero1 expert_parallel chunks receive_factor",
    "distributed": "coordinator_address num_processes process_id initialize",
    "model.attention": "longest",
    "run": """directory init_from log_every eval_every part_every part_batches eval_batches
        checkpoint_every keep_checkpoints peak_flops profile tensorboard wandb force
        max_skipped_in_a_row
        sample_prompt sample_tokens sample_temperature""",
}

# Where a setting has no effect: its path, another value, what else is set, and what is said.
IDLE: list[tuple[str, object, dict, str]] = [
    ("model.remat", "attention", MLP, "no attention: take --model.remat layer"),
    ("model.remat_keep", ("hidden",), {}, "take --model.remat layer"),
    ("model.remat_keep", ("hidden",), {"model.remat": "experts"}, "take --model.remat layer"),
    ("model.remat_keep", ("expert_inputs",), DENSE | LAYER, "name something else, such as hidden"),
    (
        "model.remat_keep",
        ("attention_heads",),
        LAYER | {"model.attention.kinds": ("delta",)},
        "name something else, such as attention_output",
    ),
    ("model.image.size", 6, {}, "take --model.kind vit or mlp"),
    ("data.images.shift", 3, {}, "--data.images.shift 3 has no effect with --model.kind decoder"),
    ("model.rope_theta", 100.0, VIT, "take --model.kind decoder"),
    ("model.rope.factor", 4.0, VIT, "take --model.kind decoder"),
    ("model.tie_embeddings", True, VIT, "take --model.kind decoder"),
    ("model.embedding_scale", 2.0, VIT, "take --model.kind decoder"),
    ("model.logit_scale", 2.0, VIT, "take --model.kind decoder"),
    ("data.sequence_length", 16, VIT, "take --model.kind decoder"),
    ("data.tokenizer", "x/tokenizer.json", VIT, "take --model.kind decoder"),
    ("run.sample_tokens", 3, VIT, "take --model.kind decoder"),
    ("model.num_heads", 4, MLP, "no attention: take --model.kind vit"),
    ("model.qk_norm", False, MLP, "no attention: take --model.kind vit"),
    (
        "model.attention.form",
        "dense",
        {"model.attention.kinds": ("delta",)},
        "kinds delta delta delta full",
    ),
    ("model.image.patch_size", 4, MLP, "one token: take --model.kind vit"),
    ("model.rope.factor", 4.0, {}, "give --model.rope.scaling linear, yarn or llama3, too"),
    ("model.rope.original_length", 9, {}, "give --model.rope.scaling linear, yarn or llama3, too"),
    (
        "model.rope.original_length",
        9,
        {"model.rope": {"scaling": "linear", "factor": 2.0}},
        "take --model.rope.scaling yarn or llama3",
    ),
    ("model.rope.beta_fast", 9.0, LLAMA3, "take --model.rope.scaling yarn"),
    ("model.rope.amplitude", 9.0, {}, "take --model.rope.scaling yarn"),
    ("model.rope.low_frequency_factor", 2.0, YARN, "take --model.rope.scaling llama3"),
    ("model.rope.scaling", "yarn", {}, "give a --model.rope.factor above 1"),
    ("model.rope.scaling", "llama3", {}, "give a --model.rope.factor above 1"),
    ("model.rope.scaling", "linear", {}, "give a --model.rope.factor above 1"),
    ("model.rope.factor", 0.5, YARN, "stretches nothing with --model.rope.scaling yarn"),
    (
        "model.rope.original_length",
        9,
        {"model.rope.scaling": "yarn"},
        "give a --model.rope.factor above 1",
    ),
    ("model.attention.rope_head_size", 4, {}, "give --model.attention.kv-rank, too"),
    ("model.attention.qk_norm_over", "width", {"model.qk_norm": False}, "--model.qk-norm True"),
    ("model.attention.qk_norm_place", "after_rotation", NO_POSITIONS, "rotary-in out"),
    ("model.attention.rotary_size", 4, {}, "heads of 4, which are rotated whole without it"),
    ("model.attention.rotary_size", 2, NO_POSITIONS, "leave --model.attention.rotary-in out"),
    ("model.attention.full_every", 2, {}, "give --model.attention.window, too"),
    ("model.attention.full_every", 3, {"model.attention.window": 4}, "make it 2 at most"),
    ("model.attention.window", 4, {"model.attention.full_every": 1}, "full-every out"),
    ("model.attention.window", 4, {"model.attention.kinds": ("full",)}, "kinds window full, say"),
    ("model.attention.kinds", ("full",), {}, "all layers being so without it: leave"),
    ("model.attention.kinds", ("window",), {"model.attention.window": 4}, "being so without it"),
    ("model.delta.convolution", 2, {}, "give --model.attention.kinds delta delta delta full"),
    ("model.num_kv_heads", 1, {"model.attention.kinds": ("delta",)}, "kinds delta delta delta"),
    ("model.attention.rotary_in", "window", {"model.attention.window": 4}, "kinds window full"),
    ("model.attention.window_rope_theta", 9.0, {}, "give --model.attention.window and"),
    (
        "model.attention.window_rope_theta",
        9.0,
        EVERY_SECOND | {"model.attention.rotary_in": "none"},
        "leave --model.attention.rotary-in out",
    ),
    ("model.rope.factor", 3.0, YARN | NO_POSITIONS, "leave --model.attention.rotary-in out"),
    ("model.rope_theta", 9.0, NO_POSITIONS, "leave --model.attention.rotary-in out"),
    (
        "model.rope_theta",
        9.0,
        {"model.attention": {"window": 4, "window_rope_theta": 7.0}},
        "leave --model.attention.window-rope-theta out",
    ),
    ("model.dense_hidden_size", 32, {}, "keep a layer dense"),
    ("model.norm_place", "pre_and_experts", DENSE, "take --model.moe.every 1"),
    ("model.moe.num_experts", 8, DENSE, "take --model.moe.every 1"),
    ("model.moe.router", "olmoe", DENSE, "take --model.moe.every 1"),
    ("model.moe.first_dense", 1, DENSE, "take --model.moe.every 1"),
    ("model.moe.balance.z_loss_weight", 1.0, DENSE, "take --model.moe.every 1"),
    ("optim.router_learning_rate", 0.1, DENSE, "take --model.moe.every 1"),
    ("model.moe.top_k", 3, DENSE | {"model.dense_hidden_size": 8}, "take --model.moe.every 1"),
    ("model.moe.shared_gate", True, {}, "give --model.moe.shared-experts 1, say, too"),
    ("model.moe.shared_hidden_size", 9, {}, "give --model.moe.shared-experts 1, say, too"),
    ("model.moe.expert_groups", 2, {}, "give --model.moe.kept-expert-groups"),
    ("model.moe.router_jitter", 0.1, HASH, "take another router"),
    ("model.moe.router_dropout", 0.1, HASH, "take another router"),
    ("model.moe.balance.z_loss_weight", 0.1, HASH, "take another router"),
    ("optim.router_learning_rate", 0.1, HASH, "take another router"),
    ("model.moe.eval_capacity_factor", 3.0, CHOICE, "set --model.moe.capacity-factor"),
    ("model.moe.group_size", 8, ALL_FIT, "give --model.moe.capacity-factor 1.25, say, too"),
    ("model.moe.eval_candidates", 2, ALL_FIT, "give --model.moe.eval-capacity-factor 1, say, too"),
    ("model.moe.seating", "priority", ALL_FIT, "give --model.moe.capacity-factor 1.25, say, too"),
    ("model.moe.balance.scope", "sequence", NO_LOSS, "--model.moe.balance.loss-weight 0.01"),
    ("model.moe.balance.convention", "hf", NO_LOSS, "--model.moe.balance.loss-weight 0.01"),
    ("model.moe.balance.bias_rate", 0.1, {}, "take --model.moe.balance.bias-update sign"),
    ("model.moe.balance.bias_centred", True, {}, "take --model.moe.balance.bias-update sign"),
    ("model.moe.balance.coupling_alpha", 0.5, {}, "give --model.moe.balance.coupling-loss-weight"),
    ("model.moe.balance.experts_per_token", 1.5, SIGN, "give --model.moe.identity-experts"),
    (
        "model.moe.balance.experts_per_token",
        1.5,
        {"model.moe.null_experts": 2},
        "take --model.moe.balance.bias-update sign",
    ),
    ("model.moe.balance.pid_limit", 0.5, SIGN, "take --model.moe.balance.bias-update pid"),
    ("model.moe.balance.sparsity_factor", 1.2, {}, "give --model.moe.balance.sparsity-loss-weight"),
    ("model.moe.bias_on", "logits", {}, "take --model.moe.balance.bias-update sign"),
    (
        "model.moe.balance.bias_centred",
        True,
        {"model.moe.balance.bias_update": "quantile"},
        "take --model.moe.balance.bias-update sign",
    ),
    ("data.tfds_name", "lm1b", STDLIB | {"data.tfds_name": None}, "give --data.source tfds, too"),
    ("data.tfds_validation_split", "test", STDLIB, "give --data.source tfds, too"),
    ("data.images.label_field", "x", VIT | {"data.source": "digits"}, "--data.source tfds, too"),
    ("data.directory", "x", FILES, "which prepares nothing"),
    ("data.files", "x/*.txt", {}, "give --data.source files, too"),
    ("data.validation_percent", 1.0, STDLIB, "give --data.source files, too"),
    (
        "data.validation_percent",
        1.0,
        FILES | {"data.validation_files": "x"},
        "leave --data.validation-files out",
    ),
    ("data.validation_percent", 1.0, GIVEN | {"data.validation": "x"}, "--data.validation out"),
    ("data.validation_percent", 1.0, {"data.train": DOCSTRINGS}, "of which a part is held out"),
    ("data.validation", "x", {}, "give --data.train 'corpus/*.jsonl', say, too"),
    ("data.field", "body", FILES, "give --data.train 'corpus/*.jsonl', say, too"),
    ("data.skip_bad", True, {}, "give --data.train 'corpus/*.jsonl', say, too"),
    ("data.token_cache", "never", GIVEN, "give --data.tokenizer tokenizer.json, say, too"),
    ("data.token_cache", "never", CHATS, "always kept: leave --data.token-cache out"),
    ("data.too_long", "drop", GIVEN, "give --data.chat-template auto, too"),
    ("data.source", "files", GIVEN, "leave --data.train out"),
    ("data.files", "x/*.txt", GIVEN, "leave --data.train out"),
    ("data.validation", "x", MIXED, "write eval = ... below a source"),
    ("data.source", "files", MIXED, "leave --data.mixture out"),
    ("data.files", "x/*.txt", MIXED, "leave --data.mixture out"),
    ("data.tfds_train_split", "train[:9%]", GIVEN, "write --data.train tfds:lm1b, say"),
    ("data.tfds_validation_split", "test", GIVEN, "write --data.train tfds:lm1b, say"),
    ("optim.muon_iterations", 2, {"optim.optimizer": "adamw"}, "--optim.optimizer muon"),
    ("optim.muon_learning_rate", 0.1, {"optim.optimizer": "adamw"}, "--optim.optimizer muon"),
    ("optim.decay_fraction", 0.5, {}, "give --optim.schedule wsd, too"),
    ("optim.next_token_weight", 0.5, {}, "give --model.next-tokens 1, too"),
    ("run.sample_prompt", "x", {"run.sample_tokens": 0}, "give --run.sample-tokens 400"),
    ("run.lora.alpha", 3.0, {}, "give --run.lora.rank 16, say, too"),
    ("run.lora.routers", True, LORA | {"model.moe.every": 0}, "take --model.moe.every 1"),
    ("optim.router_learning_rate", 0.1, LORA, "give --run.lora.routers True, too"),
    ("model.moe.balance.bias_rate", 0.1, LORA | SIGN, "--run.lora.routers False"),
    ("mesh.chunks", 2, {"mesh.expert_parallel": "all_to_all"}, "give --mesh.expert 2 or more"),
    ("mesh.receive_factor", 2.0, {"mesh.expert_parallel": "ragged"}, "give --mesh.expert 2"),
    ("mesh.fsdp", True, {"mesh.data": 1}, "give --mesh.data 2 or more"),
    ("mesh.zero1", True, {"mesh.data": 1}, "give --mesh.data 2 or more"),
]


# Rows of IDLE in which the program is written otherwise, and gives the same: a mask that hides
# nothing, counts and losses times 0, groups that nothing depends on. The last squeezes.
WRITTEN_OTHERWISE = {
    ("model.attention.window", 4),
    ("model.moe.expert_groups", 2),
    ("model.moe.group_size", 8),
    ("model.moe.balance.scope", "sequence"),
    ("model.moe.balance.convention", "hf"),
    ("model.rope.factor", 0.5),
    # Heads are split and joined once more.
    ("model.attention.qk_norm_place", "after_rotation"),
}


def name_row(value: object) -> str | None:
    return value if isinstance(value, str) and "." in value else None


def test_every_setting_takes_a_stand():
    """A new setting needs a row in MATTERS, or a place in OUTSIDE if no program shows it."""
    paths = set(flatten(to_dict(Config())))
    outside = {f"{section}.{name}" for section, names in OUTSIDE.items() for name in names.split()}
    shown = {path for path, _, _ in MATTERS}
    assert not shown & outside
    assert paths == shown | outside


def test_every_need_has_a_row():
    for need in NEEDS:
        assert any(
            need.covers(path) and not need.met(changed(changed(TEXT, more), {path: value}))
            for path, value, more, _ in IDLE
        ), need.settings
    for path in (path for need in NEEDS for path in need.settings):
        assert any(
            known == path or known.startswith(f"{path}.") for known in flatten(to_dict(TEXT))
        )


@pytest.mark.parametrize(("path", "value", "more", "words"), IDLE, ids=name_row)
def test_a_setting_without_effect_is_named(path, value, more, words):
    before = changed(TEXT, more)
    (idle,) = find_idle(changed(before, {path: value}), before)
    shown = " ".join(value) if isinstance(value, tuple) else value
    typed = f"--{path.replace('_', '-')} {shown} "
    assert idle.path == path and idle.message.startswith(typed) and words in idle.message


@pytest.mark.parametrize(("path", "value", "more"), MATTERS, ids=name_row)
def test_a_setting_with_effect_is_not(path, value, more):
    before = changed(TEXT, more)
    after = changed(before, {path: value} if path != "model.kind" else VIT)
    assert path in differences(before, after)
    assert [idle.path for idle in find_idle(after, before) if idle.path == path] == []


PROGRAMS = ("evaluation", "begin", "step")
"""The programs of a run, those that are written quickly first."""


@cache
def write_program(name: str, config: Config) -> str:
    """The text of a program of a run, before any compiling."""
    model = build(config.model, config.model.vocab_size or 11)
    optimizer, lora = make_optimizer(config.optim), config.run.lora
    begin = partial(init_state, model, optimizer, config)
    base = None
    with jax.set_mesh(device_mesh.make_mesh(config.mesh, jax.devices()[:1])):
        if name == "begin":
            return jax.jit(begin).lower().as_text()
        state = jax.eval_shape(begin)
        if lora.rank is not None:
            weights = find_weights(lora)
            base = jax.eval_shape(partial(init_params, model, config))
            base = quantise_shapes(base, weights)
        if name == "evaluation":
            held_out = batch_shapes(config, config.data.eval_batch_size)

            def evaluate(base, *args):
                return eval_step(*args, model=adapt(model, base, lora))

            args = (base, state.params, state.bias_LE, held_out)
            return jax.jit(evaluate).lower(*args).as_text()
        step = jax.jit(make_step(config, model, optimizer))
        batch = batch_shapes(config, config.data.batch_size)
        return step.lower(base, state, batch).as_text()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "value", "more"), MATTERS, ids=name_row)
def test_what_has_an_effect_changes_a_program(path, value, more):
    before = changed(TEXT, more)
    after = changed(before, {path: value} if path != "model.kind" else VIT)
    late = path.startswith(("optim.", "model.moe.balance."))  # what the others do not look at
    programs = PROGRAMS[::-1] if late else PROGRAMS
    assert any(write_program(name, after) != write_program(name, before) for name in programs)


def group_idle() -> list[tuple[dict, dict]]:
    """What has no effect, by what else is set: settings of one group are changed at once."""
    groups: list[tuple[dict, dict]] = []
    for path, value, more, _ in IDLE:
        if (path, value) in WRITTEN_OTHERWISE:
            continue
        for known, values in groups:
            if known == more and path not in values and fits_with(values, path, value, more):
                values[path] = value
                break
        else:
            groups.append((more, {path: value}))
    return groups


def fits_with(values: dict, path: str, value: object, more: dict) -> bool:
    """Whether these settings may be changed together, and still none of them does anything."""
    before = changed(TEXT, more)
    try:
        after = changed(before, values | {path: value})
    except ConfigError:
        return False
    return {*values, path} <= {idle.path for idle in find_idle(after, before)}


@pytest.mark.slow
@pytest.mark.parametrize(("more", "values"), group_idle(), ids=lambda x: "-".join(x)[:99])
def test_what_has_no_effect_changes_no_program(more, values):
    before = changed(TEXT, more)
    after = changed(before, values)
    for name in PROGRAMS:
        assert write_program(name, after) == write_program(name, before)


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.name)
def test_configs_that_come_along_have_no_idle_settings(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_config(file, [], "train.py")


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("configs/studies/*.py")), ids=lambda path: path.name
)
def test_studies_that_come_along_have_no_idle_settings(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_runs(load_study_file(file).runs)


def test_a_study_is_warned_of_a_setting_that_tells_runs_apart_in_vain():
    dense = changed(TEXT, DENSE)
    more = changed(dense, {"model.moe.num_experts": 16})
    with pytest.warns(UserWarning, match="^b: --model.moe.num-experts 16 has no effect") as found:
        warn_of_runs({"a": dense, "b": more, "routed": TEXT})
    assert len(found) == 1
    warn_of_runs({"dense": dense, "routed": TEXT})


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ("--model.rope.factor 4", True),
        ("--model.rope.factor 1", None),
        ("--model.rope.scaling none --model.rope.factor 4", True),
        ("--moe.every 0", None),
        ("--moe.every 0 --moe.num-experts 32", False),
        ("--run.sample-tokens 0 --run.sample-prompt x", False),
        ("--optim.optimizer adamw --optim.muon-iterations 5", False),
        ("--optim.optimizer adamw", None),
        ("--data.images.shift 3", True),
    ],
)
def test_a_flag_without_effect_is_refused_unless_another_flag_takes_it_away(flags, refused):
    """Twins are compared by one flag at the end of a command, which then goes on working."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if refused:
            with pytest.raises(ConfigError, match="has no effect with"):
                read_config(ROOT / "configs/quickstart.py", flags.split(), "train.py")
        else:
            read_config(ROOT / "configs/quickstart.py", flags.split(), "train.py")
    assert len(said) == (refused is False)


def test_a_config_file_with_idle_settings_is_read_with_a_warning(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from moejax.config import Config, changed\n"
        "def get_config():\n    return changed(Config(), {'model.rope.factor': 4.0})\n"
    )
    with pytest.warns(UserWarning, match=r"mine.py: --model.rope.factor 4.0 has no effect"):
        config, _ = read_config(file, [], "train.py")
    assert config.model.rope.factor == 4
    written = tmp_path / "config.json"
    written.write_text(json.dumps(to_dict(config)))
    assert read_config(written, [], "train.py")[0] == config  # without a word


def test_a_run_goes_on_without_the_flag_that_did_nothing():
    old = changed(TEXT, {"model.rope.factor": 4.0, "run.seed": 3})
    assert differences_that_matter(old, TEXT) == {"run.seed": (3, 0)}
    yarn = changed(old, {"model.rope.scaling": "yarn"})
    assert set(differences_that_matter(yarn, changed(yarn, {"model.rope.factor": 2.0}))) == {
        "model.rope.factor"
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "eval RUN --data stdlib --split test",
            "--split test has no effect without --data tfds:NAME: give that, too, or leave --split"
            " out.",
        ),
        ("eval RUN --split test", "--split test has no effect without --data tfds:NAME"),
        ("eval RUN --data x/*.txt --text-field x", "--text-field x has no effect without --data"),
        ("specialisation RUN --data-directory x", "--data-directory x has no effect without"),
        ("specialisation RUN --data stdlib --split test", "--split test has no effect without"),
        ("eval RUN --seating priority", "give --capacity-factor, too"),
        ("eval RUN --candidates 4", "give --capacity-factor, too"),
        ("bench gpu --tiny --tokens 512", "--tokens 512 has no effect with --tiny"),
        ("export RUN A --adapters True --quantise fp8", "--quantise fp8 has no effect with --adap"),
        ("export RUN A --adapters True --dtype float32", "export the whole model, without --adap"),
    ],
)
def test_a_flag_of_a_subcommand_without_effect_is_refused(words, said):
    with pytest.raises(ConfigError) as error:
        run(words.split())
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate RUN --prompt x --temperature 0 --top-k 3", "--top-k 3 has no effect with"),
        ("generate RUN --prompt x --temperature 0 --seed 3", "--seed 3 has no effect with"),
        (
            "generate RUN --prompt x --mesh.expert-parallel ragged --mesh.receive-factor 2",
            "--mesh.receive-factor 2.0 has no effect with a model that is not trained: leave"
            " --mesh.receive-factor out.",
        ),
        ("import A B --mesh.expert-parallel ragged", "--mesh.expert-parallel ragged has no effect"),
        ("export A B --mesh.expert-parallel ragged", "--mesh.expert-parallel ragged has no effect"),
        ("plan --config C --json --explain", "--explain True has no effect with --json"),
        ("plan placement --load x --devices 2 --replicas 8 --groups 4", "--groups 4 has no effect"),
    ],
)
def test_a_flag_of_a_subcommand_that_scripts_keep_is_warned_of(words, said):
    with pytest.warns(UserWarning) as found, pytest.raises(UserError, match="RUN|A|C|x"):
        run(words.split())
    assert said in str(found[0].message)
