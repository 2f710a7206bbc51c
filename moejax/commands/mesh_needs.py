"""Settings of the mesh that do nothing in commands that train nothing. They come with the flags of
a training, so that they are warned of, not refused.
"""

from moejax.config.need import Need

NOT_TRAINED = Need(
    ("mesh.chunks", "mesh.receive_factor"),
    lambda s: False,
    "a model that is not trained",
    "",
    twin=True,
)
ONLY_WRITTEN = Need(
    ("mesh.context", "mesh.expert_parallel", "mesh.chunks", "mesh.receive_factor"),
    lambda s: False,
    "a model that is only written, not run",
    "",
    twin=True,
)
