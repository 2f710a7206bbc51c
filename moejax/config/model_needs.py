"""Which settings of a model's layers need others to have an effect: a table."""

from moejax.config.need import Need, is_routed, join_paths

MODEL, ROPE, DATA = "model", "model.rope", "data"
OF_SOFTMAX = {"queries_keys_values", "attention_heads"}
OF_ROUTED = {"router_logits", "expert_inputs", "expert_outputs"}
"""What of ``config.model.Keepable`` some layers alone have."""

OF_MODEL: tuple[Need, ...] = (
    # What a model reads.
    Need(
        ("model.image", "data.images"),
        lambda c: not c.model.material.language,
        "--model.kind {c.model.kind}, which reads text",
        "take --model.kind vit or mlp, with images as --data.source",
    ),
    Need(
        ("model.rope", *join_paths(MODEL, "rope_theta tie_embeddings embedding_scale logit_scale")),
        lambda c: c.model.material.language,
        "--model.kind {c.model.kind}, which sees images",
        "take --model.kind decoder, with text as --data.source",
    ),
    Need(
        (
            *join_paths(
                DATA, "token_cache tokenizer sequence_length shuffle_window tfds_text_field"
            ),
            *join_paths("run", "sample_prompt sample_tokens sample_temperature"),
        ),
        lambda c: c.model.material.language,
        "--model.kind {c.model.kind}, which sees images",
        "take --model.kind decoder, with text as --data.source",
    ),
    Need(
        join_paths(MODEL, "num_heads num_kv_heads head_size qk_norm"),
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
            *join_paths(MODEL, "num_kv_heads qk_norm rope rope_theta"),
            *join_paths(
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
        join_paths(ROPE, "factor original_length"),
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
        join_paths(ROPE, "beta_fast beta_slow truncate amplitude"),
        lambda c: c.model.rope.scaling == "yarn",
        "--model.rope.scaling {c.model.rope.scaling}",
        "take --model.rope.scaling yarn",
    ),
    Need(
        join_paths(ROPE, "low_frequency_factor high_frequency_factor"),
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
        join_paths(ROPE, "original_length beta_fast beta_slow truncate")
        + join_paths(ROPE, "low_frequency_factor high_frequency_factor"),
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
        join_paths("model.attention", "qk_norm_over qk_norm_place"),
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
            *join_paths("model.attention", "window_rope_theta rotary_size qk_norm_place"),
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
        lambda c: is_routed(c) or not set(c.model.remat_keep) <= OF_ROUTED,
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
)
"""What is read, positions and attention, and what is computed again."""
