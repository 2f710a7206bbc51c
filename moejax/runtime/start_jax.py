"""How JAX starts: what the environment says of it is checked, and no TPU is looked for in vain.

This file is read before JAX is imported, so it imports nothing of it, nor what does.
"""

import glob
import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

MOST_CPU_DEVICES = 4096
"""So many devices of one CPU start in seconds; the time grows with the square of their number."""
TPU_FILES = ("/dev/accel*", "/dev/vfio/*")
TPU_VARIABLES = ("TPU_", "CLOUD_TPU_", "COLAB_TPU", "MEGASCALE_", "PJRT_DEVICE", "JAX_FORCE_TPU")
GOOGLE = "0x1ae0"
"""The maker of TPUs, in PCI's list."""


def start_jax() -> None:
    """Import JAX. Ends the process with a message and exit code 2 where a variable of the
    environment is wrong.
    """
    look_for_no_tpu()
    try:
        import jax
    except ValueError as error:
        reason = str(error)
    else:
        count: int = getattr(jax.config, "jax_num_cpu_devices")  # noqa: B009
        if 0 != count <= MOST_CPU_DEVICES:
            return
        reason = f"it must be a number from 1 to {MOST_CPU_DEVICES:,}, not {count:,}."
        reason = f"JAX_NUM_CPU_DEVICES: {reason}"
    print(f"error: {describe_variables(reason)}", file=sys.stderr)
    raise SystemExit(2)


def describe_variables(reason: str) -> str:
    """What is wrong with the variables of the environment that JAX reads, which are named."""
    named = [name for name in os.environ if name.startswith("JAX_") and name in reason.upper()]
    given = ", ".join(f"{name}={os.environ[name]}" for name in sorted(named))
    where = f" ({given})" if given else ""
    return f"JAX does not start with the environment as it is{where}: {reason.rstrip('.')}."


def explain_no_devices() -> str | None:
    """Why JAX has no devices to compute on, once it has been imported; None if it has some."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no platform is left
        lines = str(error).strip().splitlines()
    else:
        return None
    reason = lines[0] if lines else "there are none of the kind that is asked for"
    reason = re.sub(r" \((set JAX|you may).*", "", reason).rstrip(".")
    message, asked = f"JAX has no devices: {reason}.", os.environ.get("JAX_PLATFORMS")
    if asked:
        message += (
            f" JAX_PLATFORMS={asked} asks for them: write what this machine has, such as cpu, or"
            f" leave JAX_PLATFORMS out."
        )
    return message


def look_for_no_tpu() -> None:
    """Tell JAX to take the CPU, if nobody says what to take, libtpu is installed, and no sign of a
    TPU or of another accelerator's plugin is seen: libtpu would else look for a TPU for seconds,
    and print what it missed.
    """
    if "JAX_PLATFORMS" in os.environ or not _is_installed("libtpu"):
        return
    told = any(name.startswith(TPU_VARIABLES) for name in os.environ)
    if not (told or has_tpu_files() or _is_installed("jax_plugins") or has_plugins()):
        os.environ["JAX_PLATFORMS"] = "cpu"


def has_tpu_files() -> bool:
    """Whether the system has a device that may be a TPU."""
    if any(glob.glob(pattern) for pattern in TPU_FILES):
        return True
    try:
        vendors = [Path(file).read_text() for file in glob.glob("/sys/bus/pci/devices/*/vendor")]
    except OSError:
        return True  # who knows
    return any(vendor.strip() == GOOGLE for vendor in vendors)


def has_plugins() -> bool:
    """Whether a package makes other devices known to JAX."""
    return bool(importlib.metadata.entry_points(group="jax_plugins"))


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
