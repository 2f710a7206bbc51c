"""How much of what its devices can do a training does: MFU, HFU and memory bandwidth."""

from typing import Any

from jax.sharding import Mesh

from moejax.config.config import Config
from moejax.models.counts import cost
from moejax.runtime.device_peaks import FoundPeak, find_peak
from moejax.runtime.number_words import short
from moejax.runtime.program_flops import Work, read_work


class Utilisation:
    """What a training step computes, against the peak of the devices."""

    def __init__(
        self, flops: float, devices: int, kind: str, peak: FoundPeak | None, wanted: bool = True
    ) -> None:
        """``flops`` are the model's of a step, on all ``devices`` together, which are of this
        ``kind``. Where nothing is ``wanted``, nothing is told.
        """
        self._flops, self._devices, self._kind = flops, devices, kind
        self._peak, self._wanted = peak, wanted
        self._work: Work | None = None

    def read(self, compiled: Any) -> None:
        """Count the work of the compiled step."""
        if self._wanted:
            self._work = read_work(compiled.as_text())

    def mfu(self, steps: int, seconds: float) -> float | None:
        """Model FLOPs utilisation of so many steps that took so long; None if no peak is known.

        Chowdhery et al. 2022 (PaLM), appendix B: the FLOPs that the model needs, without those of
        recomputation, over the time and the peak of all devices. What a model needs is three times
        ``counts.forward_flops``, in which attention's scores count in full, whatever a mask hides.
        """
        if self._peak is None:
            return None
        return steps * self._flops / seconds / self._devices / self._peak.flops

    def measure(self, steps: int, seconds: float) -> dict[str, float]:
        """For a line of metrics: ``mfu``; ``hfu``, the same of the FLOPs of the compiled step's
        products, which also are those of recomputation, empty slots and the optimizer; and
        ``bandwidth``, the bytes a second that a device moves to and from its memory.
        """
        found = {}
        mfu = self.mfu(steps, seconds)
        if mfu is not None and self._peak is not None:
            found["mfu"] = mfu
            if self._work is not None:
                found["hfu"] = steps * self._work.flops / seconds / self._peak.flops
        if self._work is not None and self._work.bytes:
            found["bandwidth"] = steps * self._work.bytes / seconds
        return found

    def describe(self) -> str:
        """What a step costs on a device, and what its peak is, for people."""
        plain = self._flops / self._devices
        said = f"a step   {short(plain)} FLOPs of the model on a device"
        if self._work is not None:
            said += f", {short(self._work.flops)} as compiled"
            said += f", {short(self._work.bytes)}B moved" if self._work.bytes else ""
        if self._peak is not None:
            return f"{said}; its peak is {short(self._peak.flops)} FLOP/s ({self._peak.words})"
        return f"{said}; the peak of a {self._kind} is not known: --run.peak-flops gives it"


def make_utilisation(config: Config, vocab_size: int, mesh: Mesh, wanted: bool) -> Utilisation:
    """That of a run, to be told where ``wanted``. Weights that stay as they are have no gradient:
    there the model needs two times the forward pass.
    """
    tokens = config.data.batch_size * config.positions
    price = cost(config.model, vocab_size, config.positions).flops_per_token
    times = 1.0 if config.run.lora.rank is None else 2 / 3
    device = mesh.devices.flat[0]
    peak = find_peak(device, config.model.dtype, config.run.peak_flops) if wanted else None
    return Utilisation(times * tokens * price, mesh.size, device.device_kind, peak, wanted)
