"""The memory of a machine, and of a container in it, by made-up files of Linux."""

import pytest

from moejax.runtime import host_memory
from moejax.runtime.host_memory import read_free_memory, read_host_memory

MEMINFO = "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\nSwapTotal: 50 kB\n"
TWO, ONE = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
K = 1024
GROUPS = [
    ("", {}, 1050, 600),
    ("0::/\n", {"": (TWO, 800 * K, 500 * K, 100 * K)}, 850, 400),  # old files can be dropped
    ("0::/\n", {"": (TWO, 800 * K, 900 * K, 0)}, 850, 0),
    ("0::/\n", {"": (TWO, "max", 500 * K, 0)}, 1050, 600),
    ("0::/\n", {"": (TWO, 800 * K, 10 * K, 0)}, 850, 600),  # others have taken the rest
    (
        "0::/a/b.scope\n",
        {"a": (TWO, 300 * K, 100 * K, 0), "a/b.scope": (TWO, "max", 0, 0)},
        350,
        200,
    ),
    ("0::/a/b.scope\n", {"a/b.scope": (TWO, 300 * K, 100 * K, 0)}, 350, 200),
    ("0::/of/outside\n", {"": (TWO, 300 * K, 100 * K, 0)}, 350, 200),
    ("0::/../beside\n", {"": (TWO, 300 * K, 100 * K, 0)}, 350, 200),
    ("4:memory:/\n0::/\n", {"memory": (ONE, 700 * K, 200 * K, 50 * K)}, 750, 550),
    ("4:cpu,memory:/x\n", {"memory/x": (ONE, 700 * K, 200 * K, 0)}, 750, 500),
    ("4:memory:/x\n", {"memory/x": (ONE, 2**63 - 4096, 200 * K, 0)}, 1050, 600),
    ("4:memory:/x\n", {"memory/x": (ONE, "nonsense", 200 * K, 0)}, 1050, 600),
]


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """Writes files, and has them read."""

    def write(own, groups, meminfo=MEMINFO):
        for name, text in (("meminfo", meminfo), ("own", own)):
            (tmp_path / name).write_text(text)
        for folder, ((limit, used), most, now, dropped) in groups.items():
            place = tmp_path / "groups" / folder
            place.mkdir(parents=True, exist_ok=True)
            (place / limit).write_text(f"{most}\n")
            (place / used).write_text(f"{now}\n")
            stat = f"anon 5\ninactive_file {dropped}\ntotal_inactive_file {dropped}\n"
            (place / "memory.stat").write_text(stat)

    monkeypatch.setattr(host_memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "groups")
    return write


@pytest.mark.parametrize(("own", "groups", "most", "free"), GROUPS)
def test_the_limit_of_any_group_counts(own, groups, most, free, linux):
    linux(own, groups)
    assert (read_host_memory(), read_free_memory()) == (most * K, free * K)


@pytest.mark.parametrize("meminfo", ["", "no numbers at all\n"])
def test_elsewhere_than_on_linux_it_is_not_known(meminfo, linux):
    linux("", {}, meminfo)
    assert read_host_memory() is None and read_free_memory() is None


def test_of_this_machine_it_is_known():
    assert 1e7 < read_free_memory() < read_host_memory() < 1e14
