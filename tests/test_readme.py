"""What the README and the guides promise: the router is complete, the table knows every router."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import load_config_file
from moejax.lab.study.definition import load_study_file
from moejax.moe.layer import MoELayer
from moejax.routing.routers import ROUTERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_STEPS = (ROOT / "docs/guides/first_steps.md").read_text(encoding="utf-8")
ROUTERS_GUIDE = (ROOT / "docs/guides/routers.md").read_text(encoding="utf-8")


@pytest.fixture
def own_router(tmp_path):
    """The config file of the section on adding a router, as it stands."""
    text = re.search(r"```python\n(.*?)```", README.split("## To add a router")[1], re.S)[1]
    file = tmp_path / "top_p.py"
    file.write_text(text)
    yield load_config_file(file)
    del ROUTERS["top_p"]


def test_the_router_of_the_readme_gathers_probability_until_it_has_enough(own_router):
    moe = dataclasses.replace(own_router.model.moe, group_size=32, capacity_factor=8.0)
    layer = MoELayer(moe, "swiglu")
    x = 3 * jax.random.normal(jax.random.key(0), (2, 64, 16))
    real = jnp.ones((2, 64), bool)
    params = jax.jit(lambda: layer.init(jax.random.key(1), x, real, training=True))()
    y, stats, chosen_BNE = jax.jit(lambda p: layer.apply(p, x, real, training=True))(params)
    probability = np.asarray(jax.nn.softmax(x @ params["params"]["w_router_DE"]), np.float64)
    for token, chosen in zip(probability.reshape(-1, 16), chosen_BNE.reshape(-1, 16), strict=True):
        best = np.sort(token)[::-1]
        enough = min(4, 1 + int((np.cumsum(best) < 0.5).sum()))
        assert chosen.sum() == enough
        assert token[np.asarray(chosen)].sum() >= best[:enough].sum() - 1e-6
    counts = np.asarray(chosen_BNE.sum(-1))
    assert counts.min() == 1 and counts.max() > 2  # easy tokens and hard ones
    assert stats.seated_BE.sum() == stats.asked_BE.sum() == counts.sum()
    assert np.abs(y).max() > 0


def test_the_gradient_reaches_the_router_of_the_readme(own_router):
    layer = MoELayer(dataclasses.replace(own_router.model.moe, group_size=16), "swiglu")
    x = jax.random.normal(jax.random.key(0), (1, 16, 8))
    real = jnp.ones((1, 16), bool)
    params = jax.jit(lambda: layer.init(jax.random.key(1), x, real, training=True))()
    grads = jax.jit(
        jax.grad(lambda p: jnp.square(layer.apply(p, x, real, training=True)[0]).sum())
    )(params)
    assert np.abs(grads["params"]["w_router_DE"]).max() > 1e-3


def test_the_study_of_the_first_steps_is_complete(own_router, tmp_path, monkeypatch):
    """It finds the router, and its runs are of equal active size."""
    for name in ("digits", "quickstart"):
        shutil.copy(ROOT / f"configs/{name}.py", tmp_path)
    (tmp_path / "studies").mkdir()
    text = re.search(r"```python\n(.*?)```", FIRST_STEPS, re.S)[1]
    file = tmp_path / "studies" / "mine.py"
    file.write_text(text.replace('"configs/', f'"{tmp_path}/'))
    monkeypatch.chdir(ROOT)
    assert set(load_study_file(file).runs) == {"top_k", "top_p"}


def test_the_table_of_routers_is_whole():
    table = ROUTERS_GUIDE.split("## Routers")[1].split("You can change parts")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(ROUTERS)
    for row in rows:
        causal = row.split("|")[-2].strip()
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert (causal in ("no", "in evaluation")) == (not ROUTERS[name].causal), name
