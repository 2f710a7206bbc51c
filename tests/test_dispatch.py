"""The form of dispatch that `auto` takes. What the forms give is in test_router_oracle.py."""

import jax
import jax.numpy as jnp
import pytest

from moejax.config import MeshConfig, MoEConfig
from moejax.moe.choose_travel import choose_dispatch
from moejax.routing.seating import capacity
from moejax.runtime import device_mesh

FINE = {"tokens": 16384, "width": 2048, "hidden_size": 1408, "num_experts": 64, "top_k": 8}
SMALL = {"tokens": 2048, "width": 128, "hidden_size": 128}


def form(monkeypatch, platform, tokens=4096, width=512, dtype=jnp.bfloat16, **settings):
    """The form for such a layer, its arrays only described."""
    monkeypatch.setattr(device_mesh, "platform", lambda: platform)
    moe = MoEConfig(**{"hidden_size": 512, "group_size": 256} | settings)
    E, F, S = moe.num_experts, moe.hidden_size, moe.group_size
    shapes = {"w_gate_EDF": (E, width, F), "w_up_EDF": (E, width, F), "w_down_EFD": (E, F, width)}
    params = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    x_GSD = jax.ShapeDtypeStruct((tokens // S, S, width), dtype)
    return choose_dispatch(moe, params, x_GSD, capacity(S, moe.top_k, E, moe.capacity_factor))


@pytest.mark.parametrize(
    ("platform", "settings", "wanted"),
    [
        ("cpu", {"dtype": jnp.float32}, "grouped"),
        ("cpu", SMALL, "gather"),
        ("cpu", SMALL | {"capacity_factor": 2.0}, "grouped"),
        ("cpu", SMALL | {"capacity_factor": None}, "grouped"),
        ("tpu", FINE, "grouped"),
        # 1 + 128 * 63 / 16384 = 1.49 times the arithmetic, against 1.25 * (1 + 512 / 4224) = 1.40.
        ("tpu", FINE | {"tokens": 2048}, "einsum"),
        ("tpu", FINE | {"tokens": 2048, "group_size": 1024}, "grouped"),
        ("tpu", {"dtype": jnp.float16}, "einsum"),  # the kernels have no such type
        ("tpu", {"dtype": jnp.float16, "group_size": 1024}, "gather"),
        ("cuda", FINE, "grouped"),
        ("cuda", FINE | {"dtype": jnp.float32}, "gather"),
        ("rocm", FINE, "gather"),
        ("rocm", FINE | {"capacity_factor": None}, "grouped"),
    ]
    + [
        (platform, settings, wanted)
        for platform in ("cpu", "tpu")
        for settings, wanted in [
            ({"router": "soft"}, "einsum"),
            ({"router": "expert_choice", "group_size": 512}, "gather"),
            ({"expert_dropout": 0.1, "group_size": 512}, "gather"),
        ]
    ],
)
def test_auto(monkeypatch, platform, settings, wanted):
    assert form(monkeypatch, platform, **settings) == wanted


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_slots_travel_to_experts_on_other_devices(monkeypatch):
    grid = device_mesh.make_mesh(MeshConfig(data=1, expert=4), jax.devices()[:4])
    with jax.set_mesh(grid):
        assert device_mesh.platform() == "cpu" and device_mesh.expert_devices() == 4
        assert form(monkeypatch, "cpu") == "gather"
        assert form(monkeypatch, "cpu", capacity_factor=None) == "grouped"
