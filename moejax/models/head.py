"""The output head: the matrix that logits are read from hidden states with."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moejax.moe.adapted import as_array
from moejax.moe.lying import Lying, multiply, multiply_transposed
from moejax.moe.parameters import Matrix
from moejax.runtime import device_mesh, partition


@dataclass(frozen=True, eq=False)
class Head:
    """``x_BND -> logits_BNV``. Not a pytree: it does not pass from one trace into another."""

    w: Matrix
    """``w_DV`` as products take it; or with ``tied`` the embedding, ``embedding_VD``."""
    tied: bool = False
    scale: float = 1.0
    """What logits are multiplied with."""
    fsdp: bool = False
    """Whether an embedding lies spread, and is gathered for use."""
    unroll: bool = False
    """Whether loops over chunks of tokens are unrolled."""

    @property
    def vocab_size(self) -> int:
        return self.w.shape[0 if self.tied else 1]

    @property
    def reads_in_place(self) -> bool:
        """Whether the matrix lies somewhere on the one device, from where products read it."""
        return isinstance(self.w, Lying) and not self.fsdp and device_mesh.devices() == 1

    def read(self, x_BND: jax.Array) -> jax.Array:
        """Logits (float32) of states, [..., D] -> [..., V]."""
        if not self.tied:
            logits_BNV = multiply(x_BND, self.w)
        elif isinstance(self.w, Lying) and not self.fsdp:
            logits_BNV = multiply_transposed(x_BND, self.w)
        else:
            logits_BNV = x_BND @ self.as_array(x_BND.dtype)
        logits_BNV = logits_BNV.astype(jnp.float32)
        return logits_BNV if self.scale == 1 else logits_BNV * self.scale

    def as_array(self, dtype: jnp.dtype) -> jax.Array:
        """``w_DV`` as one array in this type, without the scale."""
        w = as_array(self.w, dtype)
        return partition.gather_weight(w.T, "w_head_DV", self.fsdp) if self.tied else w
