"""`moejax plan placement`: which device holds which experts, and which of them twice."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moejax.config.need import Need
from moejax.lab.plan.placement_report import describe_placement
from moejax.lab.plan.read_load import read_load
from moejax.moe.parallel.placement import place
from moejax.moe.parallel.placement_file import placement_json


@dataclass(frozen=True, kw_only=True)
class PlacementSettings:
    """The load of the experts, and the devices that hold them."""

    load: Path
    """Load of each expert, [layers, experts] or [experts], in any unit: .npy, or a load file of a
    run (runs/NAME/load/STEP.npz)."""
    devices: int
    """Devices that hold experts."""
    replicas: int
    """Experts on all devices together, with replicas."""
    nodes: int = 1
    """Nodes that the devices are on."""
    groups: int = 1
    """Groups of experts, each to stay on one node."""
    json: bool = False
    """Print the plan as JSON."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("groups",),
            lambda s: s.nodes > 1,
            "--nodes 1, on which all of them are",
            "give --nodes 2, say, too",
            twin=True,  # the settings of the model
        ),
    )


def plan_placement(settings: PlacementSettings) -> None:
    """Print where the experts go."""
    load_LE = read_load(settings.load)
    plan = place(
        load_LE,
        devices=settings.devices,
        places=settings.replicas,
        nodes=settings.nodes,
        groups=settings.groups,
    )
    if settings.json:
        print(json.dumps(placement_json(plan), indent=2))
        return
    print(describe_placement(plan, load_LE))
