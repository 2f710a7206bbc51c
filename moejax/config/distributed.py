"""Settings of several processes."""

from dataclasses import dataclass
from typing import Literal

from moejax.config.checks import check, check_positive, check_types


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """The processes that train together; nothing to set for one, on a TPU pod or under srun."""

    coordinator_address: str | None = None
    """Host and port of process 0, the same in all processes, such as `10.0.0.1:1234`; any free port
    will do."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    initialize: Literal["auto", "always", "never"] = "auto"
    """`auto`: meet other processes if the three settings above are given, or if the environment
    shows several (srun, mpirun, TPU_WORKER_HOSTNAMES, MEGASCALE_COORDINATOR_ADDRESS,
    JAX_COORDINATOR_ADDRESS). `always`: let JAX find them in any case, as in an indexed job of
    Kubernetes. `never`: train in this process alone."""

    def __post_init__(self) -> None:
        at = "distributed"
        check_types(at, self)
        address, count, index = self.coordinator_address, self.num_processes, self.process_id
        given = {
            "--distributed.coordinator-address": address,
            "--distributed.num-processes": count,
            "--distributed.process-id": index,
        }
        missing = [name for name, value in given.items() if value is None]
        check(
            len(missing) in (0, 3),
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: give all of"
            f" {', '.join(given)}, or none of them.",
        )
        if address is None or count is None or index is None:
            return
        host, _, port = address.rpartition(":")
        check(
            bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536,
            f"--distributed.coordinator-address must be HOST:PORT, such as 10.0.0.1:1234, not"
            f" {address!r}.",
        )
        check_positive(at, self, "num_processes")
        check(
            0 <= index < count,
            f"--distributed.process-id must lie in [0, {count}), below --distributed.num-processes,"
            f" not {index}.",
        )
        check(
            self.initialize != "never",
            "--distributed.initialize never contradicts --distributed.coordinator-address: leave"
            " one of them out.",
        )
