"""What the directory of a run has beside its checkpoints, and what may change in it."""

FOLDERS = LOAD, CHOICES, PART_CHOICES, CLASSES = ("load", "choices", "part_choices", "classes")
"""Folders with a file of arrays for each step."""

PROFILE, OPERATIONS = "profile", "operations.json"
"""The folder of traces, and the table in it."""

WITHOUT_EFFECT = frozenset(
    {
        "run.directory",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.peak_flops",
        "run.profile",
        "run.tensorboard",
        "run.wandb",
        "run.max_skipped_in_a_row",
        "run.force",
        "run.sample_prompt",
        "run.sample_tokens",
        "run.sample_temperature",
        "data.directory",
        "data.prefetch",
        "data.token_cache",
        "distributed.coordinator_address",
        "distributed.initialize",
        "distributed.num_processes",
        "distributed.process_id",
    }
)
"""Settings that change no figure of a training that comes to its end."""
MAY_CHANGE = WITHOUT_EFFECT | {
    "run.steps",
    "run.log_every",
    "run.eval_every",
    "run.part_every",
    "data.eval_batch_size",
    "mesh.data",
    "mesh.context",
    "mesh.expert",
    "mesh.model",
    "mesh.fsdp",
    "mesh.zero1",
    "mesh.expert_parallel",
    "mesh.chunks",
    "model.remat",
    "model.remat_keep",
    "optim.offload",
    "model.unroll",
}
"""Settings that a run may change when it goes on; all others would make it another run."""

OF_MODELS = ("*.safetensors", "adapter_config.json", "model/")
"""What no run has: files of released models and of adapters, and the arrays of imported models."""
