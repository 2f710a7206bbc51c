"""The device mesh, and every PartitionSpec by name.

Axes: ``data``, ``expert`` and ``model``. Tokens are spread over the first two together, expert
weights over ``expert``, heads and hidden widths over ``model``. With FSDP, parameters lie spread
over the devices that would else hold copies, and are gathered for use.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.config import Config, ConfigError, MeshConfig, ModelConfig

AXES = ("data", "expert", "model")
TOKENS = ("data", "expert")

# Activations, by the name of what they hold.
SPECS = {
    "everywhere": P(),
    "batch_BN": P(TOKENS),
    "tokens_GSD": P(TOKENS),
    "tokens_BND": P(TOKENS),
    "heads_BNHA": P(TOKENS, None, "model"),
    "slots_EGCD": P("expert", "data"),
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
    "b_query_X": ("model",),
    "b_key_X": ("model",),
    "b_value_X": ("model",),
    "sink_H": ("model",),
    "w_query_down_DR": (FSDP, None),
    "w_query_up_RX": (None, ("model", FSDP)),
    "w_latent_DX": (FSDP, None),
    "w_latent_up_RX": (None, ("model", FSDP)),
    "b_gate_EF": ("expert", None),
    "b_up_EF": ("expert", None),
    "b_down_ED": ("expert", None),
    "w_router_DE": (FSDP, None),
    "w_head_DV": (FSDP, None),
    "embedding_VD": (None, FSDP),
}

# What a decoder keeps of a text (``models.kv_cache``), likewise.
CACHE = {
    "k_LBMJA": (TOKENS, None, "model", None),
    "v_LBMJA": (TOKENS, None, "model", None),
    "c_LBMR": (TOKENS, None, None),
    "key_LBM1A": (TOKENS, None, None, None),
    "segments_BM": (TOKENS, None),
    "positions_BM": (TOKENS, None),
}


def parameter_spec(name: str, fsdp: bool) -> P:
    """How the parameter (or the part of a cache) of this name lies on the mesh, leading dimensions
    left out.
    """
    axes = (PARAMETERS | CACHE).get(name, ())
    spread = (TOKENS if "expert" not in axes else ("data",)) if fsdp else ()

    def laid(axis: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if axis is None or isinstance(axis, str) and axis != FSDP:
            return axis
        several = (axis,) if isinstance(axis, str) else axis
        found = sum((spread if one == FSDP else (one,) for one in several), ())
        return found[0] if len(found) == 1 else found or None

    return P(*map(laid, axes))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Lay devices (by default all) out as data x expert x model.

    TPU slices are laid along the data axis, so that only gradients (and, with FSDP, parameters)
    pass between them. Raises ``ConfigError`` when the devices do not fit.
    """
    devices = devices or jax.devices()
    count, inner = len(devices), config.expert * config.model
    data = config.data or max(1, count // inner)
    if data * inner != count:
        named = f"--mesh.data {data} x --mesh.expert {config.expert} x --mesh.model {config.model}"
        fits = [
            (count // (e * config.model), e)
            for e in range(1, count + 1)
            if count % (e * config.model) == 0
        ]
        what_fits = ", ".join(f"{d}x{e}" for d, e in fits)
        what_fits = what_fits or f"nothing, as {config.model} does not divide {count}"
        raise ConfigError(
            f"a mesh of {named} needs {data * inner} devices, but there are {count}. What fits"
            f" (data x expert) beside --mesh.model {config.model}: {what_fits}. To try several on a"
            f" CPU, set JAX_NUM_CPU_DEVICES."
        )
    shape = (data, config.expert, config.model)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # An axis of the mesh may be a part of an axis of the chips' torus.
    if slices > 1 and devices[0].platform == "tpu":
        if data % slices:
            raise ConfigError(
                f"--mesh.data {data} is not divisible by the {slices} slices: experts and hidden"
                f" widths are spread inside a slice, so make --mesh.data a multiple of {slices}."
            )
        inside, across = (data // slices, *shape[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, across, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_fits(config: Config, mesh: Mesh) -> None:
    """Every device must get whole sequences and whole routing groups of each (micro-)batch, in as
    many parts as they are sent in; and its share of the width, with FSDP.
    """
    devices = mesh.shape["data"] * mesh.shape["expert"]
    sequences = config.sequences_per_group
    unit = devices * sequences
    micro = config.data.batch_size // config.optim.accumulate
    for name, rows in (
        ("--data.batch-size / --optim.accumulate", micro),
        ("--data.eval-batch-size", config.data.eval_batch_size),
    ):
        if rows % unit:
            group = f"{sequences} {config.row_name}{'s' * (sequences > 1)}"
            raise ConfigError(
                f"{name} = {rows} {config.row_name}s cannot be spread over {devices} devices in"
                f" routing groups of {group}: make it a multiple of {unit}."
            )
        groups = rows // devices * config.positions // config.model.moe.group_size
        if config.model.moe.every and groups % config.mesh.chunks:
            raise ConfigError(
                f"--mesh.chunks {config.mesh.chunks} does not divide the {groups} routing"
                f" group{'s' * (groups > 1)} of a device ({name} = {rows} {config.row_name}s over"
                f" {devices} devices): make it a divisor of {groups}, or the batch larger."
            )
    check_fsdp(config.model, config.mesh, mesh)


def check_fsdp(model: ModelConfig, layout: MeshConfig, mesh: Mesh) -> None:
    """With FSDP, every device must get its share of what is spread."""
    if not layout.fsdp:
        return
    devices = mesh.shape["data"] * mesh.shape["expert"]
    widths = {"--model.width": (model.width, devices)}
    if model.is_latent:
        heads, both = model.num_heads, model.plain_head_size + model.value_head_size
        widths["the width of all keys and values,"] = (heads * both, mesh.size)
        widths["the width of all queries,"] = (heads * model.query_head_size, mesh.size)
    for name, (width, number) in widths.items():
        if width % number:
            raise ConfigError(
                f"--mesh.fsdp spreads {name} {width} over {number} devices, which do not divide"
                f" it: make it a multiple of {number}, or leave --mesh.fsdp out."
            )


def pin(x: jax.Array, name: str) -> jax.Array:
    """Fix how ``x`` lies on the mesh in use, by the name of its spec; without a mesh, return it."""
    return _laid(x, SPECS[name])


def _laid(x: jax.Array, spec: P) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def gathered(w: jax.Array, name: str, fsdp: bool) -> jax.Array:
    """A parameter as products want it: whole, but for the axes that the product is spread over.

    Its gradient goes back to where the parameter lies, so that XLA can add up and scatter in one
    (for CPUs it does not).
    """
    return _gathered(w, name) if fsdp else w


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(w: jax.Array, name: str) -> jax.Array:
    return _laid(w, parameter_spec(name, False))


_gathered.defvjp(
    lambda w, name: (_gathered(w, name), None),
    lambda name, _, dw: (_laid(dw, parameter_spec(name, True)),),
)


def on_each_device(
    function: Callable, params: dict[str, jax.Array], *arrays: object, layout: MeshConfig
) -> tuple:
    """``function(params, *arrays) -> (y, more)`` on each device's own groups of tokens.

    ``arrays`` and results have a leading G; ``params`` is a device's part of a bank of experts,
    and ``y`` what this part of the hidden width adds to the sum: those of the ``model`` axis are
    added up here. Tokens come in ``layout.chunks`` parts, one after another in the program, though
    not in time: none waits for another. Without a mesh, or on one device, the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(params, *arrays)
    specs = {name: parameter_spec(name, layout.fsdp) for name in params}

    def whole(w: jax.Array, spec: P) -> jax.Array:
        for dimension, axis in enumerate(spec):
            if axis == "data":
                w = jax.lax.all_gather(w, axis, axis=dimension, tiled=True)
        return w

    def run(params: dict[str, jax.Array], *arrays: object) -> tuple:
        params = {name: whole(w, specs[name]) for name, w in params.items()}
        parts = [
            function(params, *(jax.tree.map(lambda x, i=i: _part(x, i, layout.chunks), arrays)))
            for i in range(layout.chunks)
        ]
        y, more = jax.tree.map(lambda *p: jax.numpy.concatenate(p), *parts)
        return y[None], more

    tokens = P(TOKENS)
    # Kernels say nothing of which axes their results vary over, hence no check.
    spread = jax.shard_map(
        run,
        in_specs=(specs, *[tokens] * len(arrays)),
        out_specs=(P("model", TOKENS), tokens),
        check_vma=False,
    )
    y, more = spread(params, *arrays)
    return y.sum(0), more


def _part(x: jax.Array, i: int, parts: int) -> jax.Array:
    size = x.shape[0] // parts
    return x[i * size : (i + 1) * size]


def devices() -> int:
    """Devices of the mesh in use; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def token_devices() -> int:
    """Devices of the mesh in use over which tokens are spread; 1 without a mesh."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return shape.get("data", 1) * shape.get("expert", 1)


def expert_devices() -> int:
    """Devices on the expert axis of the mesh in use; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("expert", 1)


def platform() -> str:
    """What the devices of the mesh in use are (``cpu``, ``tpu``, ``cuda``); they need not be here.
    Without a mesh, the default devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "cuda" if name == "gpu" else name


def compiler_options(config: MeshConfig, platform: str) -> dict[str, str]:
    """What XLA must be told so that the parts of ``config.chunks`` overlap: on TPUs it exchanges
    slots and rows while nothing else runs, unless it is asked to go on.
    """
    if platform != "tpu" or config.chunks == 1:
        return {}
    return {f"xla_tpu_enable_async_{name}": "true" for name in ("all_to_all", "ragged_all_to_all")}


def tree_shardings(mesh: Mesh, tree: object, fsdp: bool = False) -> object:
    """The shardings of parameters, of a cache, or of any state that repeats their names (optimizer
    moments).
    """

    def sharding(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        name = next((n for n in reversed(names) if n in PARAMETERS or n in CACHE), "")
        spec = parameter_spec(name, fsdp)
        if leaf.ndim < len(spec):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - len(spec)), *spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _own_positions(mesh: Mesh, process: int) -> tuple[list[int], int]:
    """Which parts of a batch the devices of a process hold, and of how many, in order of rows."""
    (axes,) = SPECS["batch_BN"]
    first = [mesh.axis_names.index(axis) for axis in axes]
    devices = np.moveaxis(mesh.devices, first, range(len(axes)))
    positions = devices.reshape(math.prod(devices.shape[: len(axes)]), -1)
    own = [any(device.process_index == process for device in copies) for copies in positions]
    return np.flatnonzero(own).tolist(), len(positions)


def process_rows(mesh: Mesh, rows: int, process: int | None = None) -> np.ndarray:
    """Which of the ``rows`` of a batch the devices of a process (by default this one) hold: their
    indices, ascending. Processes whose devices hold copies have the same ones; where hosts lie
    side by side in both directions of a torus, a process has several runs of rows.
    """
    own, of = _own_positions(mesh, jax.process_index() if process is None else process)
    each = rows // of
    return np.concatenate([np.arange(i * each, (i + 1) * each) for i in own])


def place(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the mesh, from the rows (``process_rows``) that this process has of each array
    [B, N].
    """
    sharding = named(mesh, "batch_BN")
    own, of = _own_positions(mesh, jax.process_index())

    def put(x_BN: np.ndarray) -> jax.Array:
        shape = (len(x_BN) // len(own) * of, *x_BN.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x_BN, shape)

    return {name: put(x_BN) for name, x_BN in batch.items()}


def named(mesh: Mesh, name: str) -> NamedSharding:
    """The sharding of an activation or batch by the name of its spec."""
    return NamedSharding(mesh, SPECS[name])
