"""`moejax generate` and `moejax eval`: a trained model at work."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from moejax.config.checks import check, check_positive
from moejax.config.data import DataConfig
from moejax.config.errors import ConfigError
from moejax.config.files import load_config_file
from moejax.config.mesh import MeshConfig
from moejax.config.model import ModelConfig
from moejax.data.image_batches import image_validation_batches
from moejax.data.images import open_images
from moejax.data.pipeline import Batch, validation_batches
from moejax.data.sources import Documents, open_documents, open_text
from moejax.inference.generation import Generated, Generator, for_inference, undivided
from moejax.inference.opening import OpenModel, open_model
from moejax.inference.sampling import Sampling
from moejax.models.by_kind import build
from moejax.runs.metric_lines import finite
from moejax.runtime import batch_rows, device_mesh, partition
from moejax.runtime.number_words import duration
from moejax.train import metrics
from moejax.train.eval_step import eval_step
from moejax.train.totals import Totals, add_totals, sum_batch

LONGEST = 2048
"""Positions of a piece of text, where nobody says."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Which model, and how it is run."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """The directory of a run, of an imported model, or of a checkpoint of Hugging Face."""
    config: Path | None = None
    """A Python file that is run first: the config of the run, if it has a router of its own."""
    step: int | None = None
    """The checkpoint; by default the last."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of activations and matrix products; by default that of training."""
    json: bool = False
    """Print one JSON object."""
    mesh: tyro.conf.FlagConversionOff[MeshConfig] = field(default_factory=MeshConfig)


@dataclass(frozen=True, kw_only=True)
class Generate(Inference):
    """The settings of `moejax generate`."""

    prompt: tuple[str, ...] = ()
    """The beginning of a text; may be given several times."""
    prompt_file: str | None = None
    """A file with a prompt on each line, or - for the standard input."""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    window: int | None = None
    """Positions that a position sees, itself included, and the longest prompt in tokens; by default
    as many as the model was trained on."""
    batch_size: int = 32
    """Prompts that are continued together."""

    def __post_init__(self) -> None:
        check_positive("", self, "window", "batch_size")
        check(
            bool(self.prompt) or self.prompt_file is not None,
            "there is no prompt: give --prompt TEXT, or --prompt-file FILE.",
        )


@dataclass(frozen=True, kw_only=True)
class OnText(Inference):
    """Which model is run on which text, and how the text is cut."""

    data: str | None = None
    """The text: `stdlib`, the held-out part of the standard library; a quoted glob of files; or
    `tfds:NAME`. By default what was held out when the model was trained."""
    split: str = "validation"
    """The split of `tfds:NAME`, in TFDS's notation (`test[:1%]`)."""
    text_field: str = "text"
    """The feature of `tfds:NAME` that holds the text."""
    data_directory: str | None = None
    """Where prepared data sets are kept; by default TFDS's own place, `~/tensorflow_datasets`."""
    sequence_length: int | None = None
    """Positions of the pieces that the text is cut into, each read by itself; by default as many as
    the model was trained on, and at most 2,048."""
    batch_size: int | None = None
    """Sequences in a batch, over all devices; by default 64. Of images, as many as in training."""

    def __post_init__(self) -> None:
        check_positive("", self, "sequence_length", "batch_size")

    def length(self, model: OpenModel) -> int:
        """Positions of a piece of text."""
        return self.sequence_length or min(model.context, LONGEST)


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnText):
    """The settings of `moejax eval`."""

    batches: int | None = None
    """Evaluate so many batches only."""
    capacity_factor: float | None = None
    """Slots of an expert in a group, over its fair share; by default nothing is dropped."""
    seating: Literal["position", "priority"] | None = None
    """With --capacity-factor: who gets a slot; by default as in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("", self, "batches", "capacity_factor")
        check(
            self.seating is None or self.capacity_factor is not None,
            "--seating says who gets a slot where there are too few: give --capacity-factor, too.",
        )

    def under(self, config: ModelConfig) -> ModelConfig:
        """The model as it is to be evaluated."""
        if self.capacity_factor is None:
            return for_inference(config)
        router, moe = config.moe.built_router, config.moe
        check(
            not router.experts_choose and not router.slots,
            f"--capacity-factor limits the tokens' choices, but with --model.moe.router"
            f" {moe.router} tokens do not choose: leave it out.",
        )
        config = for_inference(config)
        changes = {"eval_capacity_factor": self.capacity_factor, "group_size": moe.group_size}
        changes["seating"] = self.seating or moe.seating
        return replace(config, moe=replace(config.moe, **changes))


def opened(settings: Inference) -> tuple[OpenModel, Mesh]:
    """A language model, and the mesh that it lies on."""
    model, mesh = opened_any(settings)
    check(
        not model.config.sees_images,
        f"{settings.path} is a classifier of images: `moejax eval` evaluates it; what is about text"
        f" needs a language model.",
    )
    return model, mesh


def opened_any(settings: Inference) -> tuple[OpenModel, Mesh]:
    """The model, and the mesh that it lies on."""
    if settings.config is not None:
        load_config_file(settings.config)
    mesh = device_mesh.make_mesh(settings.mesh)
    layout, path = settings.mesh, settings.path.expanduser()
    model = open_model(path, mesh=mesh, layout=layout, dtype=settings.dtype, step=settings.step)
    check(
        model.tokenizer is not None or model.config.sees_images,
        f"there is no tokenizer.json in {path}: put that of the model there.",
    )
    return model, mesh


def generate(settings: Generate) -> None:
    """Continue the prompts and print the texts: one as it grows, several at the end."""
    prompts = all_prompts(settings)
    model, mesh = opened(settings)
    generator = Generator(
        model.config,
        model.layout,
        model.params,
        model.bias_LE,
        mesh=mesh,
        tokenizer=model.tokenizer,
        ends=model.ends,
        window=settings.window or model.context,
    )
    ids = [model.begin(prompt) for prompt in prompts]
    generator.check_prompts(ids)
    streams = len(prompts) == 1 and not settings.json

    def show(_: int, text: str) -> None:
        if streams:
            print(text, end="", flush=True)

    show(0, prompts[0])
    done = generator.generate(ids, settings.sampling, batch_size=settings.batch_size, on_text=show)
    if settings.json:
        print(json.dumps(texts_json(model, prompts, done), indent=2), flush=True)
    else:
        print("" if streams else "\n".join(with_headers(prompts, done)), flush=True)
    print(speed(done), file=sys.stderr, flush=True)


def all_prompts(settings: Generate) -> list[str]:
    """The prompts of the flags, then those of the file; what is not UTF-8 becomes U+FFFD."""
    given, file = list(settings.prompt), settings.prompt_file
    if file is not None:
        try:
            text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"--prompt-file {file} cannot be read: {error.strerror}.") from error
        lines = text.decode("utf-8", "replace").splitlines()
        check(bool(lines or given), f"--prompt-file {file} is empty: write a prompt on each line.")
        given += lines
    return [
        prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for prompt in given
    ]


def with_headers(prompts: list[str], done: Generated) -> list[str]:
    """Each text under a line that tells its number and why it ended."""
    why = {"end": "the text ended", "stop": "--stop", "length": "--tokens"}
    lines = []
    for number, (prompt, one) in enumerate(zip(prompts, done.continuations, strict=True), 1):
        lines += [f"--- {number} ({len(one.ids):,} tokens; {why[one.ended]})", prompt + one.text]
    return lines


def speed(done: Generated) -> str:
    """How many tokens there are, and how long they took."""
    count = sum(len(one.ids) for one in done.continuations)
    rate = done.tokens_per_second
    fast = "" if rate is None else f"{rate:,.0f} tokens/s after "
    return f"{count:,} tokens, {fast}{duration(done.first_seconds)} to compile and read"


def texts_json(model: OpenModel, prompts: list[str], done: Generated) -> dict[str, Any]:
    """What `--json` prints."""
    pairs = zip(prompts, done.continuations, strict=True)
    return {
        "model": model.description,
        "texts": [{"prompt": prompt, **asdict(one)} for prompt, one in pairs],
        "first_seconds": done.first_seconds,
        "tokens_per_second": done.tokens_per_second,
    }


def evaluate(settings: Evaluate) -> None:
    """Evaluate and print the figures."""
    model, mesh = opened_any(settings)
    of_images = model.config.sees_images
    length = model.context if of_images else settings.length(model)
    config, rows = settings.under(model.config), settings.batch_size or model.rows
    check_batch(config, length, rows, mesh)
    started = time.monotonic()
    batches, about = (images if of_images else texts)(settings, model, length, rows)
    totals = totals_of(model, config, mesh, batches)
    figures = {
        "model": model.description,
        "data": about,
        **({} if of_images else {"sequence_length": length, "tokens": totals["targets"]}),
        "batches": len(batches),
        **metrics.count_evaluated(totals),
        **metrics.loss_metrics(totals),
        **metrics.router_metrics(totals, config.moe.num_experts),
        "seconds": time.monotonic() - started,
    }
    text = json.dumps(finite(figures), indent=2) if settings.json else report(figures, config)
    print(text, flush=True)


def texts(settings: Evaluate, model: OpenModel, length: int, rows: int) -> tuple[list[Batch], str]:
    """The batches of text to evaluate on, and one line about them."""
    documents, about = text_of(settings, model)
    batches = validation_batches(
        documents,
        model.tokenizer,
        DataConfig(sequence_length=length),
        batch_size=rows,
        limit=settings.batches,
    )
    return batches, about


def images(settings: Evaluate, model: OpenModel, length: int, rows: int) -> tuple[list[Batch], str]:
    """The batches of images to evaluate on, and one line about them."""
    check(
        settings.data is None and settings.sequence_length is None,
        f"{settings.path} sees images, and is evaluated on those that were held out: leave out"
        f" --data and --sequence-length.",
    )
    found = open_images(model.data)
    source, limit = found.validation, settings.batches
    return image_validation_batches(source, batch_size=rows, limit=limit), found.description


def text_of(settings: OnText, model: OpenModel) -> tuple[Documents, str]:
    """The documents to run the model on, and one line about them."""
    if settings.data is not None:
        return open_text(
            settings.data,
            split=settings.split,
            field=settings.text_field,
            directory=settings.data_directory,
        )
    check(model.data is not None, "--data is missing: the text to evaluate on, such as stdlib.")
    corpus = open_documents(model.data)
    return corpus.validation, corpus.description


def check_batch(config: ModelConfig, length: int, rows: int, mesh: Mesh) -> None:
    """Batches must be spread evenly, in whole groups where groups mean something."""
    group = config.moe.group_size if any(config.routed_layers) else 1
    check(
        length % group == 0 or group % length == 0,
        f"--sequence-length {length} must divide the {group} tokens of a routing group, or be a"
        f" multiple of them: with --model.moe.router {config.moe.router} they belong together.",
    )
    devices = mesh.shape["data"] * mesh.shape["expert"]
    unit = devices * max(1, group // length)
    check(
        rows % unit == 0,
        f"--batch-size {rows} cannot be spread over data x expert = {devices} devices: make it a"
        f" multiple of {unit}.",
    )


def totals_of(model: OpenModel, config: ModelConfig, mesh: Mesh, batches: list[Batch]) -> Totals:
    """The sums over all batches, with a bar that shows how far it is."""
    built = build(config, model.vocab_size, undivided(model.layout))
    everywhere = partition.activation_sharding(mesh, "everywhere")
    step = jax.jit(
        lambda *arguments: eval_step(*arguments, model=built)[0], out_shardings=everywhere
    )
    totals = None
    with jax.set_mesh(mesh):
        for batch in tqdm(batches, disable=None, unit="batch", leave=False):
            sums = step(model.params, model.bias_LE, batch_rows.place_batch(mesh, batch))
            totals = add_totals(totals, sum_batch(sums))
    check(totals is not None, "the text gives no tokens: nothing can be evaluated on it.")
    return totals


def report(figures: dict[str, Any], config: ModelConfig) -> str:
    """The figures in words."""
    of_images = "accuracy" in figures
    rows = "images"
    if not of_images:
        rows = f"sequences of {figures['sequence_length']:,} positions"
    lines = [
        f"model      {figures['model']}",
        f"{'images' if of_images else 'text':<11}{figures['data']}",
        f"           {figures['batches']:,} batches of {rows}, in {duration(figures['seconds'])}",
    ]
    if "max_violation" in figures:
        experts = sum(config.routed_layers) * config.moe.num_choices
        lines.append(
            f"router     max violation {figures['max_violation_global']:.2f}"
            f" ({figures['max_violation']:.2f} in a batch), dead experts"
            f" {figures['dead_experts']} of {experts}, dropped {figures['dropped_fraction']:.1%}"
        )
    if of_images:
        lines.append(f"accuracy   {metrics.describe_accuracy(figures)}, loss {figures['loss']:.4f}")
        return "\n".join(lines)
    lines += [
        f"perplexity {figures['perplexity']:.3f} a token ({figures['tokens']:,} tokens)",
        f"bits/byte  {figures['bits_per_byte']:.4f} ({figures['text_bytes']:,} bytes)",
    ]
    return "\n".join(lines)


COMMANDS: dict[str, tuple[type[Inference], Callable[[Any], None]]] = {
    "generate": (Generate, generate),
    "eval": (Evaluate, evaluate),
}
"""The settings of each command, and what it does with them."""
