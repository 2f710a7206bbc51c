"""Layers of PyTorch and of Hugging Face transformers with our weights, ready to be timed.

PyTorch stores a matrix as [out, in]: ours, transposed. Parameters here have the type of the
activations, as these libraries keep them; ours are float32 and are cast in every step.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from moejax.lab.bench.programs import Problem


class Dense(nn.Module):
    """SwiGLU as everyone writes it: ``x_BND -> y_BND``."""

    def __init__(self, D: int, F: int) -> None:
        super().__init__()
        self.gate = nn.Linear(D, F, bias=False)
        self.up = nn.Linear(D, F, bias=False)
        self.down = nn.Linear(F, D, bias=False)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x_BND)) * self.up(x_BND))


def build_dense(problem: Problem) -> nn.Module:
    """The dense layer, with the parameters of ours."""
    shape, p = problem.shape, to_tensors(problem.dense, problem.shape.dtype)
    with torch.device("meta"):
        layer = Dense(shape.width, shape.top_k * shape.hidden)
    weights = {
        "gate.weight": p["w_gate_DF"].T.contiguous(),
        "up.weight": p["w_up_DF"].T.contiguous(),
        "down.weight": p["w_down_FD"].T.contiguous(),
    }
    layer.load_state_dict(weights, assign=True)
    return layer


def build_mixtral(problem: Problem, implementations: tuple[str, ...]) -> dict[str, nn.Module]:
    """Mixtral's block of transformers, router included, with the parameters of our routed layer:
    one for each of these implementations of its experts. They share their weights.
    """
    shape, p = problem.shape, to_tensors(problem.routed, problem.shape.dtype)
    gate_up_EDF = torch.cat([p["w_gate_EDF"], p["w_up_EDF"]], dim=-1)
    weights = {
        "gate.weight": p["w_router_DE"].T.contiguous(),
        "experts.gate_up_proj": gate_up_EDF.transpose(1, 2).contiguous(),
        "experts.down_proj": p["w_down_EFD"].transpose(1, 2).contiguous(),
    }
    blocks = {}
    for name in implementations:
        config = MixtralConfig(
            hidden_size=shape.width,
            intermediate_size=shape.hidden,
            num_local_experts=shape.experts,
            num_experts_per_tok=shape.top_k,
            experts_implementation=name,
        )
        with torch.device("meta"):
            block = MixtralSparseMoeBlock(config)
        block.load_state_dict(weights, assign=True)
        blocks[f"transformers {name}"] = block
    return blocks


def make_programs(name: str, layer: nn.Module, problem: Problem) -> dict[str, Callable]:
    """Forward, without keeping anything for a gradient, and forward+backward, with the gradients of
    all parameters and of the input, as from ``programs.compile_both``. Each returns when its
    results are there.
    """
    x = to_tensor(problem.x_1TD, problem.shape.dtype).requires_grad_()
    dy = to_tensor(problem.dy_1TD, problem.shape.dtype)
    params = list(layer.parameters())

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return wait_for(layer(x))

    def gradient() -> tuple[torch.Tensor, tuple]:
        y = layer(x)
        *dparams, dx = torch.autograd.grad(y, [*params, x], dy)
        return wait_for((y.detach(), (dparams, dx)))

    return {f"{name} forward": forward, f"{name} forward+backward": gradient}


def to_tensors(params: Any, dtype: str) -> dict[str, torch.Tensor]:
    """The parameters of a Linen module by name."""
    return {name: to_tensor(value, dtype) for name, value in params["params"].items()}


def to_tensor(value: jax.Array, dtype: str) -> torch.Tensor:
    """An array as a tensor of this type, on the device that is timed."""
    copied = torch.from_numpy(np.array(value, np.float32))
    return copied.to(torch_device(), getattr(torch, dtype))


def torch_device() -> str:
    """Where PyTorch computes: beside JAX, on a GPU or on the CPU."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def has_device() -> bool:
    """Whether this PyTorch can compute where JAX does."""
    if jax.default_backend() == "gpu":
        return torch.cuda.is_available()
    return jax.default_backend() == "cpu"


def wait_for(results: Any) -> Any:
    """The results, once they are there."""
    if torch_device() == "cuda":
        torch.cuda.synchronize()
    return results


def use_all_cores() -> int:
    """As many threads as JAX uses: one for each core that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count())
    return torch.get_num_threads()
