"""How arrays lie on the mesh: every PartitionSpec by name.

With FSDP, parameters lie spread over the devices that would else hold copies, and are gathered for
use.

Letters: A: width of a head; J: key/value heads; M: positions that are looked at; R: width of a
latent vector; U: width of a value; W: positions that a short convolution looks at; X: all heads
side by side, or an embedding and a hidden state.
"""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS = ("data", "expert")
"""The axes over which sequences are spread."""
TOKENS = ("context", *ROWS)
"""The axes over which tokens are spread: sequences, and pieces of them (``runtime.pieces``)."""
# Activations, by the name of what they hold.
SPECS = {
    "everywhere": P(),
    "batch_BN": P(TOKENS),
    "tokens_GSD": P(TOKENS),
    "tokens_BND": P(TOKENS),
    "heads_BNHA": P(TOKENS, None, "model"),
    "slots_EGCD": P("expert", ("context", "data")),
}
FSDP = "fsdp"
"""Stands for the axes over which copies of a parameter are spread, if they are."""
# Parameters that are not replicated, by their own name: an axis (or several) for each of their last
# dimensions.
PARAMETERS = {
    "w_gate_EDF": ("expert", FSDP, "model"),
    "w_up_EDF": ("expert", FSDP, "model"),
    "w_down_EFD": ("expert", "model", FSDP),
    "w_gate_DF": (FSDP, "model"),
    "w_up_DF": (FSDP, "model"),
    "w_down_FD": ("model", FSDP),
    "w_query_DX": (FSDP, "model"),
    "w_key_DX": (FSDP, "model"),
    "w_value_DX": (FSDP, "model"),
    "w_out_XD": ("model", FSDP),
    "w_output_gate_DX": (FSDP, "model"),
    "b_query_X": ("model",),
    "b_key_X": ("model",),
    "b_value_X": ("model",),
    "sink_H": ("model",),
    "w_gate_DX": (FSDP, "model"),
    "w_beta_DH": (FSDP, "model"),
    "w_step_DH": (FSDP, "model"),
    "mix_query_WX": (None, "model"),
    "mix_key_WX": (None, "model"),
    "mix_value_WX": (None, "model"),
    "log_rate_H": ("model",),
    "step_bias_H": ("model",),
    "w_query_down_DR": (FSDP, None),
    "w_query_up_RX": (None, ("model", FSDP)),
    "w_latent_DX": (FSDP, None),
    "w_latent_up_RX": (None, ("model", FSDP)),
    "b_gate_EF": ("expert", None),
    "b_up_EF": ("expert", None),
    "b_down_ED": ("expert", None),
    "w_router_DE": (FSDP, None),
    "w_head_DV": (FSDP, "model"),
    "w_merge_XD": (FSDP, None),
    "embedding_VD": ("model", FSDP),
}
# What a decoder keeps of a text (``models.kv_cache``), likewise.
CACHE = {
    "k_LBMJA": (TOKENS, None, "model", None),
    "v_LBMJA": (TOKENS, None, "model", None),
    "c_LBMR": (TOKENS, None, None),
    "key_LBM1A": (TOKENS, None, None, None),
    "scale_k_LBMJ1": (TOKENS, None, "model", None),
    "scale_v_LBMJ1": (TOKENS, None, "model", None),
    "scale_c_LBM1": (TOKENS, None, None),
    "scale_key_LBM11": (TOKENS, None, None, None),
    "state_LBHAU": (TOKENS, "model", None, None),
    "last_query_LBWX": (TOKENS, None, "model"),
    "last_key_LBWX": (TOKENS, None, "model"),
    "last_value_LBWX": (TOKENS, None, "model"),
    "segments_BM": (TOKENS, None),
    "positions_BM": (TOKENS, None),
}
# What every device has all of: the other parameters, and what a state or a cache has beside them.
REPLICATED = (
    "scale_D",
    "position_ND",
    "w_patch_XD",
    "b_out_D",
    "b_router_E",
    "w_noise_DE",
    "w_router_DEC",
    "router_scale",
    "w_shared_gate_D1",
    "bias_LE",
    "sum_LE",
    "last_LE",
    "sparsity_weight",
    "step",
    "skipped",
    "skipped_in_a_row",
    "count",
    "ns_coeffs",
    "start",
)
ADAPTER = ("lora_a", "lora_b")
"""What stands behind the name of a matrix in the path of a part of its adapter."""
KNOWN = PARAMETERS | CACHE | dict.fromkeys(REPLICATED, ())


def parameter_spec(name: str, fsdp: bool) -> P:
    """How the parameter (or the part of a cache or state) of this name lies on the mesh, leading
    dimensions left out; of the name of a matrix, a slash, and ``lora_a`` or ``lora_b``, that part
    of its adapter. Raises ``ValueError`` for a name that is in no table.
    """
    name, _, part = name.partition("/")
    if name not in KNOWN:
        raise ValueError(
            f"nothing says how {name!r} lies on the mesh: add it to PARAMETERS in"
            f" moejax/runtime/partition.py, with an axis for each of its last dimensions, or to"
            f" REPLICATED there, if every device is to have all of it."
        )
    axes: tuple = KNOWN[name]
    if part:  # [..., D, rank] and [..., rank, F]
        axes = (*axes[:-1], None) if part == "lora_a" else (*axes[:-2], None, *axes[-1:])
    spread = (TOKENS if "expert" not in axes else ("context", "data")) if fsdp else ()

    def resolve(axis: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if axis is None or isinstance(axis, str) and axis != FSDP:
            return axis
        several = (axis,) if isinstance(axis, str) else axis
        found = sum((spread if one == FSDP else (one,) for one in several), ())
        return found[0] if len(found) == 1 else found or None

    return P(*map(resolve, axes))


def fit_spec(spec: P, shape: tuple[int, ...], devices: int) -> P:
    """``spec`` of the last dimensions of ``shape``, without a model axis of so many devices where
    it does not divide the dimension. That is a vocabulary; all else was checked before.
    """
    sizes = shape[len(shape) - len(spec) :]
    whole = [axis == "model" and n % devices for n, axis in zip(sizes, spec, strict=True)]
    return P(*[None if alone else axis for alone, axis in zip(whole, spec, strict=True)])


def find_vocabulary_axis(vocab_size: int) -> str | None:
    """The axis of the mesh in use that a vocabulary is split over: the model axis, if it divides;
    else None.
    """
    devices = dict(jax.sharding.get_abstract_mesh().shape).get("model", 1)
    return "model" if devices > 1 and vocab_size % devices == 0 else None


def pin(x: jax.Array, name: str) -> jax.Array:
    """Fix how ``x`` lies on the mesh in use, by the name of its spec; without a mesh, return it."""
    return constrain(x, SPECS[name])


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Fix how ``x`` lies on the mesh in use; without a mesh, return it."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def gather_weight(w: jax.Array, name: str, fsdp: bool) -> jax.Array:
    """A parameter as products want it: whole, but for the axes that the product is spread over.

    Its gradient goes back to where the parameter lies, so that XLA can add up and scatter in one
    (for CPUs it does not).
    """
    return _gather(w, name) if fsdp else w


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(w: jax.Array, name: str) -> jax.Array:
    return constrain(w, _fitting(name, False, w))


def _fitting(name: str, fsdp: bool, w: jax.Array) -> P:
    return fit_spec(parameter_spec(name, fsdp), w.shape, _model_devices())


def _model_devices() -> int:
    return dict(jax.sharding.get_abstract_mesh().shape).get("model", 1)


_gather.defvjp(
    lambda w, name: (_gather(w, name), None),
    lambda name, _, dw: (constrain(dw, _fitting(name, True, dw)),),
)


def set_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes with shardings, from two trees alike."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def tree_shardings(mesh: Mesh, tree: Any, fsdp: bool = False) -> Any:
    """The shardings of parameters, of a cache, or of any state that repeats their names (optimizer
    moments). Raises ``ValueError`` for a leaf none of whose names is known.
    """

    def sharding(path: tuple, leaf: jax.Array) -> NamedSharding:
        return NamedSharding(mesh, leaf_spec(path, leaf, fsdp, mesh.shape["model"]))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def leaf_spec(path: tuple, leaf: Any, fsdp: bool, model: int | None = None) -> P:
    """How a leaf of such a tree lies, by its path in the tree, on a mesh with so many devices on
    the model axis, by default the mesh in use.
    """
    found = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    names = [name for name in found if name is not None]
    known = [name for name in names if name in KNOWN]
    name = (known or names or ["an array without a name"])[-1]
    part = f"/{names[-1]}" if names and names[-1] in ADAPTER else ""
    spec = parameter_spec(name + part, fsdp)
    if leaf.ndim < len(spec):
        return P()
    spec = fit_spec(spec, leaf.shape, _model_devices() if model is None else model)
    spec = P(*[None] * (leaf.ndim - len(spec)), *spec)
    # One entry is on every device: a scale of all that is summed, where weights are quantised.
    axes = [None if n == 1 else axis for n, axis in zip(leaf.shape, spec, strict=True)]
    return P(*axes)


def activation_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """The sharding of an activation or batch by the name of its spec."""
    return NamedSharding(mesh, SPECS[name])
