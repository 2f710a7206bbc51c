"""What is printed before the first step, and ``summary.json``."""

import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import moejax
from moejax.config.config import Config
from moejax.config.describe_balance import compare_balance
from moejax.config.model import ModelConfig
from moejax.data.lost_text import describe_share
from moejax.models.counts import active_parameters, cost, forward_flops, parameters
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.machine import describe_machine, find_commit
from moejax.runtime.number_words import short
from moejax.runtime.processes import say
from moejax.train.tasks import Task


def warn_of_decoding(config: Config) -> None:
    """Warn once of a router that looks at later tokens: a language model must not."""
    moe = config.model.moe
    if not any(config.model.routed_layers) or not config.model.material.language:
        return
    router, name, generation = moe.built_router, f"--model.moe.router {moe.router}", ""
    if not router.causal:
        how = "When text is generated" if router.by_token else "No text is generated with it"
        generation = f"{how}{',' if router.by_token else ':'} {router.decoding}."
    elif moe.seating == "priority":
        name = "--model.moe.seating priority"
        generation = "When text is generated, nothing is dropped, so that there it means nothing."
    if generation:
        warnings.warn(
            f"{name} looks at later tokens of a group to decide: in a causal language model the"
            f" training loss has seen the future. {generation} Compare it by other measures, or"
            f" choose a token-choice router such as top_k.",
            stacklevel=2,
        )


def warn_of_constant_weights(config: Config) -> None:
    """Warn of a released model whose router gets no gradient from the text."""
    moe = config.model.moe
    if moe.has_constant_weights:
        warnings.warn(
            f"--model.moe.router {moe.router} with --model.moe.top-k 1 gives every chosen expert"
            f" the same weight: the router learns from the losses of the balance alone, not from"
            f" the text.",
            stacklevel=2,
        )


def announce(
    config: Config,
    task: Task,
    mesh: Mesh,
    run: RunDirectory,
    step: int,
    *,
    name: str,
    command: str,
    before: ModelConfig | None,
) -> None:
    """Print the model, its cost, its balance (and that of the model ``before``, which it begins
    from), the data, the devices and the step to begin with; write ``summary.json``.
    """
    price = cost(config.model, task.vocab_size, config.positions)
    kind = jax.devices()[0].device_kind
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    devices = f"{mesh.size} x {kind} ({axes}), {jax.default_backend()}"
    rows = config.data.batch_size
    images = config.model.material.batch.format(rows)
    say(
        f"model    {short(price.parameters_total, 'kMBT')} parameters,"
        f" {short(price.parameters_active, 'kMBT')} active a token; {_describe_experts(config)}"
    )
    say(
        f"cost     {short(price.flops_per_token)} FLOPs a token in training,"
        f" {rows * config.positions:,} tokens{images} a step, {config.run.steps:,} steps"
    )
    if balance := compare_balance(config, before):
        say(f"balance  {balance}")
    say(f"data     {task.description}")
    facts = task.facts
    for source, about in facts.get("mixture", {}).items():
        say(f"         {about['share']:.1%} of the sequences from {source}: {about['data']}")
    if bad := facts.get("first_bad_document"):
        say(f"         the first document that is left out: {bad}")
    if lost := facts.get("lost_fraction"):
        say(
            f"         the tokenizer loses {describe_share(lost)} of the held-out text: do not"
            f" compare its bits per byte with those of other tokenizers"
        )
    say(f"devices  {devices}")
    say(f"run      {run.path}" + (f", from step {step}" * bool(step)))
    summary = {
        "name": name,
        "parameters_total": price.parameters_total,
        "parameters_active": price.parameters_active,
        "flops_per_token": price.flops_per_token,
        "parts": count_parts(config, task.vocab_size),
        "devices": devices,
        "data": task.description,
        **facts,
        "versions": _list_versions(),
        "machine": describe_machine(),
        "command": command,
        "folder": os.getcwd(),
    }
    run.write_summary(summary)


def _list_versions() -> dict[str, str]:
    """Of what a training computes with; of moejax also the commit, in a checkout."""
    commit = find_commit(Path(moejax.__file__).parents[1])
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "moejax": moejax.__version__ + (f" at {commit}" if commit else ""),
    }


def _describe_experts(config: Config) -> str:
    routed, moe = sum(config.model.routed_layers), config.model.moe
    experts = f"{routed} of {config.model.num_layers} layers routed"
    if routed:
        shared = f" and {moe.shared_experts} shared" * bool(moe.shared_experts)
        experts += f", {moe.num_experts} experts, {moe.top_k} a token{shared} ({moe.router})"
    if ahead := config.model.next_tokens:
        experts += f"; {ahead} further token{'s' * (ahead > 1)} predicted"
    return experts


def count_parts(config: Config, vocab_size: int) -> dict[str, dict[str, Any]]:
    """Parameters of each part of the model, those that a token meets, and its FLOPs in training."""
    model = config.model
    active = active_parameters(model, vocab_size)
    flops = forward_flops(model, vocab_size, config.positions)
    total = parameters(model, vocab_size)
    return {
        part: {
            "parameters_total": total.get(part, 0),
            "parameters_active": active.get(part, 0),
            "flops_per_token": 3 * flops.get(part, 0),
        }
        for part in total | flops
    }
