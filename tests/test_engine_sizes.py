"""In which shapes a model is called, and how many pages there is memory for."""

import jax
import pytest

from moejax.config import MeshConfig, ModelConfig
from moejax.config.errors import ConfigError
from moejax.inference.engine import sizes as chosen
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.sizes import (
    SHORTEST,
    STEP,
    bytes_on_device,
    choose_sizes,
    describe_cache,
    free_bytes,
)
from moejax.runtime import device_mesh

LARGE = ModelConfig(num_layers=16, width=2048, num_heads=16, dtype="bfloat16", vocab_size=50_304)
"""A position takes 131,072 bytes."""
GIGABYTE = 10**9


@pytest.fixture
def mesh():
    return device_mesh.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture
def choose(mesh, monkeypatch):
    """Sizes where so many bytes are free, and the bytes of their cache."""

    def make(free, context, mesh=mesh, **given):
        monkeypatch.setattr(chosen, "read_free_memory", lambda: free)
        settings = EngineSettings(**given)
        sizes = choose_sizes(LARGE, context, mesh, settings)
        shape = (sizes.lanes, sizes.seats, sizes.pages, sizes.page)
        return sizes, bytes_on_device([LARGE], mesh, *shape, settings)

    return make


@pytest.mark.parametrize(
    "window", [1, 2, 128, 256, 511, 512, 1024, 4096, 32_768, 131_072, 1_000_003]
)
def test_a_step_reads_little_more_than_its_longest_text_has(window, choose):
    """And there are few programs."""
    sizes, _ = choose(None, window)
    for tables, more in ((sizes.tables, 0), (sizes.prompt_tables, sizes.chunk)):
        assert tables[-1] * sizes.page >= window - 1 + max(more, 1)
        for length in {1, *(max(1, window // part) for part in (9, 5, 3, 1))}:
            pages = -(-(length - 1 + max(more, 1)) // sizes.page)
            table = next(q for q in tables if q >= pages)
            assert table * sizes.page <= STEP * max(length, SHORTEST) + 2 * sizes.page + STEP * more
    steps = {128: 1, 256: 1, 512: 2, 4096: 3, 32_768: 5, 131_072: 6}
    assert len(sizes.tables) == steps.get(window, len(sizes.tables))
    assert len(sizes.shapes()) <= max(8, 6 * len(sizes.tables))


@pytest.mark.parametrize(
    ("window", "given", "rows", "prompt_rows", "short"),
    [
        (128, {}, (1, 8, 16, 32), (1, 2, 4), 32),
        (128, {"seats": 16, "prompt_rows": 1}, (1, 4, 16), (1,), 32),
        (128, {"seats": 100, "prompt_rows": 8}, (1, 25, 50, 100), (1, 4, 8), 32),
        (128, {"chunk": 32}, (1, 8, 16, 32), (1, 2, 4), 0),
        (128, {"chunk": 8, "prompt_rows": 2}, (1, 8, 16, 32), (1, 2), 0),
        (128, {"chunk": 100, "page": 8}, (1, 8, 16, 32), (1, 2, 4), 56),
        # As each would be three programs.
        (4096, {}, (1, 8, 32), (1, 4), 64),
        (4096, {"chunk": 64}, (1, 8, 32), (1, 4), 0),
    ],
)
def test_a_cpu_has_calls_of_half_the_size_where_they_save_enough(
    window, given, rows, prompt_rows, short, choose
):
    sizes, _ = choose(None, window, **given)
    assert (sizes.rows, sizes.prompt_rows, sizes.short) == (rows, prompt_rows, short)


@pytest.mark.parametrize(("window", "chunk"), [(1, 64), (128, 64), (511, 64), (512, 256)])
def test_long_texts_are_read_in_larger_parts(window, chunk, choose):
    assert choose(None, window)[0].chunk == chunk


def test_an_accelerator_has_no_calls_of_half_the_size(choose, monkeypatch):
    monkeypatch.setattr(chosen, "_on_host", lambda mesh: False)
    sizes, _ = choose(None, 128)
    assert (sizes.rows, sizes.prompt_rows, sizes.short) == ((1, 8, 32), (1, 4), 0)


@pytest.mark.parametrize(
    ("free", "window", "given", "least", "most"),
    [
        (None, 4096, {}, 17, 18),  # all that 32 texts can have: 32 * 4096 * 131,072 bytes
        (60, 4096, {}, 17, 18),
        (20, 4096, {}, 9.99, 10),  # half of what is free
        (20, 131_072, {"cache": "int8"}, 9.99, 10),
        (20, 4096, {"memory_share": 0.3}, 5.99, 6),
        (20, 4096, {"memory_share": 1.0}, 17, 18),
        (20, 4096, {"seats": 1}, 0.5, 0.6),
        (1.2, 4096, {"pages": 500}, 1, 1.1),  # whoever says how many has them
    ],
)
def test_the_pool_takes_what_is_free(free, window, given, least, most, choose):
    sizes, size = choose(free and free * GIGABYTE, window, **given)
    assert least * GIGABYTE < size <= most * GIGABYTE
    line = describe_cache(sizes, size)
    assert f"{sizes.pages:,} pages of 16 positions, {16 * sizes.pages:,} positions in all" in line


def test_devices_of_a_cpu_share_its_memory(choose):
    mesh = device_mesh.make_mesh(MeshConfig(data=4), jax.devices()[:4])
    sizes, size = choose(8 * GIGABYTE, 4096, mesh)
    assert sizes.lanes == 4 and 0.99 * GIGABYTE < size <= GIGABYTE
    assert "on each of 4 devices" in describe_cache(sizes, size)


@pytest.mark.parametrize(
    ("free", "window", "given"),
    [
        (GIGABYTE, 4096, {}),
        (GIGABYTE // 80, 16, {}),
        (20 * GIGABYTE, 131_072, {}),
        (20 * GIGABYTE, 4096, {"window": 131_072}),
        (9 * GIGABYTE, 4096, {"memory_share": 0.05}),
    ],
)
def test_one_text_that_does_not_fit_is_refused_with_what_to_do(free, window, given, choose):
    length = given.get("window", window)
    with pytest.raises(ConfigError, match=rf"one text of {length:,} positions.*--window.*--cache"):
        choose(free, window, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pages": 2_000_000_000}, "--pages 2000000000: the cache takes 4.19PB, but 20GB are free"),
        ({"pages": 12_000}, "--pages 12000: the cache takes 25.2GB"),
        ({"pages": 200}, "--pages 200 of 16 positions do not hold one text"),
        ({"seats": 1_000_000}, "--seats 1,000,000: the logits of a call take 201GB"),
        ({"seats": 2**31 - 1}, "--seats 2,147,483,647: the logits of a call take 432TB"),
        ({"chunk": 2**31 - 1}, "a call of 8,589,934,592 tokens takes 70.4TB"),
        ({"prompt_rows": 2**31 - 1, "seats": 2**17}, "--seats 131,072: the logits"),
        ({"prompt_rows": 2**31 - 1, "chunk": 2**17}, "a call of 4,194,304 tokens takes 34.4GB"),
        ({"page": 2**31 - 1}, "--prompt-rows, --chunk and --page: a call of 8,589,934,588 tokens"),
    ],
)
def test_numbers_beyond_all_memory_are_named(given, words, choose):
    with pytest.raises(ConfigError) as caught:
        choose(20 * GIGABYTE, 4096, **given)
    assert words in str(caught.value)


def test_what_a_device_tells_of_its_memory_counts(mesh):
    class Device:
        platform = "gpu"

        def __init__(self, *numbers):
            self.stats = dict(zip(("bytes_limit", "bytes_in_use"), numbers, strict=False))

        def memory_stats(self):
            return self.stats

    class Devices:
        local_devices = (Device(100, 30), Device(100, 50), Device())

    assert free_bytes(Devices()) == 50
    Devices.local_devices = (Device(),)
    assert free_bytes(Devices()) is None
    assert free_bytes(mesh) > 1e6
