"""The sizes of a training step on one device, and how its tokens travel to experts."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.extend
import jax.numpy as jnp

from moejax.config.attention import AttentionForm
from moejax.config.config import Config
from moejax.models.attend.of_model import choose_training_form, has_attention
from moejax.moe.choose_travel import choose_forms
from moejax.moe.experts import bank_shapes
from moejax.moe.travel import Dispatch, Exchange
from moejax.routing.seating import capacity
from moejax.runtime import device_mesh, partition

FLOAT = 4
"""Bytes of a float32: parameters, gradients and what the optimizer keeps."""


def choose_dispatch(config: Config) -> tuple[Dispatch, Exchange]:
    """The forms of dispatch and of expert parallelism on the mesh in use (see ``choose_forms``)."""
    model, moe = config.model, config.model.moe
    dtype = jnp.dtype(model.dtype)
    shapes = bank_shapes(model.activation, moe.num_experts, model.width, moe.hidden_size)
    bank: dict[str, Any]
    bank = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    tokens = config.data.batch_size // config.optim.accumulate * config.data.sequence_length
    groups = tokens // moe.group_size
    x_GSD: Any = jax.ShapeDtypeStruct((groups, moe.group_size, model.width), dtype)
    return choose_forms(moe, config.mesh, bank, x_GSD, count_slots(config))


def choose_attention(config: Config) -> tuple[AttentionForm | Literal["none"], str]:
    """The form of attention on the mesh in use (see ``choose_form``), and why."""
    if not has_attention(config.model):
        return "none", "no layer has attention"
    return choose_training_form(config.model, config.positions, config.mesh.context)


def count_slots(config: Config) -> int:
    """How many slots one expert has in one group (C), in training."""
    moe = config.model.moe
    return capacity(moe.group_size, moe.top_k, moe.num_choices, moe.capacity_factor)


@dataclass(frozen=True)
class StepSizes:
    """The sizes of a training step on one device."""

    T: int
    """Tokens of a micro-batch."""
    N: int
    D: int
    V: int
    itemsize: int
    """Bytes of an activation."""
    heads: float
    kv_heads: float
    slots: float
    """Slots of all groups on this device, or rows of the grouped form."""
    hidden: float
    """Hidden width of an expert, the part of it on this device."""
    split: int
    """Number of devices on the model axis."""
    pieces: int
    """Number of devices on the context axis: those that share each sequence."""
    vocabulary: int
    """The part of the vocabulary on this device."""
    dispatch: Dispatch | Literal["none"]
    form: str
    attention: AttentionForm | Literal["none"]


def size_step(config: Config, vocab_size: int) -> StepSizes:
    """The sizes of a training step on one device of the mesh in use."""
    model, moe, data = config.model, config.model.moe, config.data
    tokens = data.batch_size * data.sequence_length // config.optim.accumulate
    T = tokens // device_mesh.token_devices()
    split = device_mesh.devices() // device_mesh.token_devices()
    dispatch: Dispatch | Literal["none"] = "none"
    form: Exchange = "auto"
    if moe.every:
        dispatch, form = choose_dispatch(config)
    rows = T * moe.top_k
    if dispatch in ("einsum", "gather"):
        rows = T // moe.group_size * moe.num_experts * count_slots(config)
    elif device_mesh.expert_devices() > 1:
        rows = received_rows(config, T)
    return StepSizes(
        T=T,
        N=data.sequence_length,
        D=model.width,
        V=vocab_size,
        itemsize=jnp.dtype(model.dtype).itemsize,
        heads=model.num_heads / split,
        kv_heads=model.key_value_heads / split,
        slots=rows / config.mesh.chunks,
        hidden=moe.hidden_size / split,
        split=split,
        pieces=config.mesh.context,
        vocabulary=vocab_size // (split if partition.find_vocabulary_axis(vocab_size) else 1),
        dispatch=dispatch,
        form=form,
        attention=choose_attention(config)[0],
    )


def received_rows(config: Config, T: int) -> int:
    """How many rows a device makes room for under ``ragged`` and ``all_gather``: those of the worst
    case, or ``receive_factor`` times a fair share.
    """
    moe, n = config.model.moe, device_mesh.expert_devices()
    here = moe.num_experts // n
    groups = n * T // moe.group_size
    worst = groups * min(moe.group_size * min(moe.top_k, here), here * count_slots(config))
    if config.mesh.receive_factor is None:
        return worst
    return min(worst, math.ceil(config.mesh.receive_factor * T * moe.top_k))
