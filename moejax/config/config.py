"""The whole tree of settings: one training run."""

from dataclasses import dataclass, field

from moejax.config.attention import check_length
from moejax.config.checks import check, check_types
from moejax.config.data import DataConfig
from moejax.config.distributed import DistributedConfig
from moejax.config.mesh import MeshConfig
from moejax.config.mesh_fit import check_mesh, check_pieces
from moejax.config.model import ModelConfig
from moejax.config.optim import OptimConfig
from moejax.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_types("", self)
        self._check_kind()
        length = self.positions
        # A dense model has no groups.
        group = self.model.moe.group_size if self.model.moe.every else 1
        whole = self.model.material.whole_row
        check(
            length % group == 0 or group % length == 0,
            f"--model.moe.group-size {group} must divide {whole} {length}, or be a multiple of it.",
        )
        check(
            length > self.model.next_tokens or not self.model.material.language,
            f"--model.next-tokens {self.model.next_tokens} looks beyond the end of"
            f" --data.sequence-length {length}: make it less, or the sequences longer.",
        )
        accumulate, batch = self.optim.accumulate, self.data.batch_size
        check(
            batch % accumulate == 0,
            f"--data.batch-size {batch} is not divisible by --optim.accumulate {accumulate}.",
        )
        for name, rows in (
            ("--data.batch-size / --optim.accumulate", batch // accumulate),
            ("--data.eval-batch-size", self.data.eval_batch_size),
        ):
            check(
                rows * length % group == 0,
                f"--model.moe.group-size {group} does not divide the {rows * length} tokens of a"
                f" batch of {name} = {rows} {self.row_name}s of {length}.",
            )
        moe = self.model.moe
        check(
            not moe.has_constant_weights or self.run.init_from is not None,
            f"--model.moe.router {moe.router} with --model.moe.top-k 1 gives every chosen expert"
            f" the same weight, from which the router learns nothing: choose --model.moe.router"
            f" switch, or --model.moe.renormalise False.",
        )
        check_length(self.model.attention, length, f"{whole} {length}")
        check_mesh(self.model, self.mesh)
        check_pieces(self.model, self.mesh.context, length)

    def _check_kind(self) -> None:
        """Language models need text, classifiers images."""
        material, kind, source = self.model.material, self.model.kind, self.data.source
        check(
            material.language or not self.data.names_text,
            f"--model.kind {kind} sees images, but"
            f" --data.{'train' if self.data.train else 'mixture'} names texts: leave it out.",
        )
        if self.data.names_text:
            source = "files"  # of some format; what else `source` says is not looked at
        refused = material.other_source.format(kind=kind, source=source)
        check(source in material.sources, refused)
        check(
            material.language or self.run.init_from is None,
            f"--run.init-from begins from language models, and --model.kind {kind} is none.",
        )
        check(
            material.language
            or not self.model.moe.built_router.needs_tokens
            or not self.model.moe.every,
            f"--model.moe.router {self.model.moe.router} looks at the ids of tokens, which images"
            f" have not: choose another for --model.kind {kind}, such as top_k.",
        )

    @property
    def positions(self) -> int:
        """Tokens in a row of a batch (N): of a sequence, or of an image."""
        return self.model.material.count_positions(self)

    @property
    def row_name(self) -> str:
        """What a row of a batch is."""
        return self.model.material.row

    @property
    def sequences_per_group(self) -> int:
        """Whole sequences that must stay together: a routing group's, or 1 where it is a part of
        one; a dense model has no groups.
        """
        if not self.model.moe.every:
            return 1
        return max(1, self.model.moe.group_size // self.positions)
