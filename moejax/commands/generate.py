"""`moejax generate`: text from a trained model."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tyro
from jax.sharding import Mesh

from moejax.commands.chat import (
    Talking,
    ask,
    converse,
    has_conversations,
    read_conversations,
    stream,
)
from moejax.commands.generated_words import describe_speed, write_headers
from moejax.commands.model_settings import ModelSettings, open_language_model
from moejax.commands.speculation_needs import SPECULATION
from moejax.config.checks import check, check_positive
from moejax.config.errors import ConfigError
from moejax.config.json_files import read_bounded
from moejax.config.need import Need
from moejax.config.paths import expand_home
from moejax.data.route_files import Recording, write_recording
from moejax.inference.chat_prompts import find_turn_ends
from moejax.inference.engine.open_speculation import open_speculation
from moejax.inference.engine.speculation import SpeculationSettings
from moejax.inference.generation import Generated, Generator
from moejax.inference.inference_config import check_can_generate
from moejax.inference.open_model import OpenModel
from moejax.inference.replicate import check_devices, replicate
from moejax.inference.sampling import Sampling
from moejax.moe.parallel.placement_file import read_placement
from moejax.runtime.writing import writing_to

MOST_PROMPT_BYTES = 2**28
"""Of a file of prompts."""


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(ModelSettings):
    """The settings of `moejax generate`."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The beginning of a text; may be given several times."""
    prompt_file: str | None = None
    """A file with a prompt on each line, or - for the standard input. With --chat it may be one of
    conversations: JSON lines, JSON, Parquet or Arrow."""
    chat: bool = False
    """A prompt is what a user says: the model's chat template makes it a prompt, the answer alone
    is printed, and ends with its turn. Without a prompt, a conversation on the terminal begins."""
    system: str | None = None
    """With --chat: the system's message before that of the user."""
    chat_template: str | None = None
    """With --chat: `chatml`, `llama3`, `plain`, or a file; by default the model's own."""
    special_tokens: bool = False
    """Names of control tokens in a prompt, such as </s>, are these tokens; by default text. A
    beginning that a prompt has already is not put before it again."""
    sampling: tyro.conf.OmitArgPrefixes[tyro.conf.UseAppendAction[Sampling]] = field(
        default_factory=Sampling
    )
    window: int | None = None
    """Positions that a position sees, itself included, and the longest prompt in tokens; by default
    as many as the model was trained on."""
    cache: Literal["float32", "bfloat16", "int8"] | None = None
    """Type of the cache of keys and values; by default that of the activations."""
    batch_size: int = 32
    """Prompts that are continued together."""
    placement: Path | None = None
    """A file with what `moejax plan placement --json` printed: experts of high load get replicas,
    and all lie where the plan says. The texts stay the same. --mesh.expert must be the number of
    devices of the plan."""

    speculation: tyro.conf.OmitArgPrefixes[SpeculationSettings] = field(
        default_factory=SpeculationSettings
    )
    record_routes: Path | None = None
    """A file (safetensors) for the experts that each token chose in each layer, those of prompts
    included, so that training can replay them: see the guide on routes."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        *ModelSettings.NEEDS,
        Need(
            ("sampling.top_k", "sampling.top_p", "sampling.seed"),
            lambda s: s.sampling.temperature > 0,
            "--temperature 0, which takes the most probable token each time",
            "give a --temperature above 0",
            twin=True,
        ),
        Need(
            ("system", "chat_template"),
            lambda s: s.chat,
            "--chat",
            "give that, too",
            says="has no effect without",
        ),
        Need(
            ("special_tokens",),
            lambda s: not s.chat,
            "--chat, where the template alone names control tokens",
            "leave one of them out",
        ),
        Need(
            ("json", "record_routes", "batch_size"),
            lambda s: not s.converses,
            "--chat on a terminal, without a prompt",
            "give --prompt, too",
        ),
        *SPECULATION,
    )

    @property
    def converses(self) -> bool:
        """Whether messages are read from the terminal, one after the other."""
        nothing = not self.prompt and self.prompt_file is None
        return self.chat and nothing and sys.stdin is not None and sys.stdin.isatty()

    @property
    def reads_conversations(self) -> bool:
        """Whether the file of prompts has conversations."""
        return self.chat and self.prompt_file is not None and has_conversations(self.prompt_file)

    def __post_init__(self) -> None:
        check_positive("", self, "window", "batch_size")
        check(
            bool(self.prompt) or self.prompt_file is not None or self.converses,
            "there is no prompt: give --prompt TEXT, or --prompt-file FILE"
            + ("; or begin on a terminal." if self.chat else "."),
        )
        if self.record_routes is not None:
            folder = self.record_routes.parent
            check(folder.is_dir(), f"--record-routes {self.record_routes}: there is no {folder}.")
            check(
                not self.record_routes.is_dir(),
                f"--record-routes {self.record_routes} is a folder: name a file.",
            )


def generate(settings: GenerateSettings) -> None:
    """Continue the prompts and print the texts: one as it grows, several at the end. Of answers to
    messages nothing else is printed.
    """
    asked: Sequence[str | Talking] = (
        collect_talks(settings) if settings.chat else collect_prompts(settings)
    )
    model, mesh = open_language_model(settings)
    if settings.chat_template is not None:
        model = replace(model, chat_template=settings.chat_template)
    ids = [
        one.ids(model) if isinstance(one, Talking) else model.begin(one, settings.special_tokens)
        for one in asked
    ]
    generator = make_generator(settings, model, mesh)
    if settings.converses:
        window = settings.window or model.context
        converse(model, window, settings.system, partial(stream, generator, settings.sampling))
        return
    befores = ["" if isinstance(one, Talking) else one for one in asked]
    generator.check_prompts(ids)
    streams = len(asked) == 1 and not settings.json

    def show(_: int, text: str) -> None:
        if streams:
            print(text, end="", flush=True)

    show(0, befores[0])
    done = generator.generate(ids, settings.sampling, batch_size=settings.batch_size, on_text=show)
    write_routes(settings.record_routes, model, ids, done)
    if settings.json:
        print(json.dumps(texts_json(model, asked, done), indent=2), flush=True)
    else:
        print("" if streams else "\n".join(write_headers(befores, done)), flush=True)
    print(describe_speed(done), file=sys.stderr, flush=True)


def make_generator(settings: GenerateSettings, model: OpenModel, mesh: Mesh) -> Generator:
    """What continues prompts. Raises ``ConfigError`` for settings that do not fit the model."""
    params: dict = model.params
    place_LER: Any = None
    assert model.tokenizer is not None  # as in every language model that is opened here
    if settings.placement is not None:
        params, place_LER = place_experts(settings.placement, model, mesh)
    return Generator(
        model.config,
        model.layout,
        params,
        model.bias_LE,
        mesh=mesh,
        place_LER=place_LER,
        tokenizer=model.tokenizer,
        ends=find_turn_ends(model) if settings.chat else model.ends,
        window=settings.window or model.context,
        cache=settings.cache,
        record_routes=settings.record_routes is not None,
        speculation=open_speculation(model, mesh, settings.speculation),
    )


def write_routes(
    file: Path | None, model: OpenModel, ids: list[np.ndarray], done: Generated
) -> None:
    """Write the routes of the texts after prompts ``ids`` to ``file``, if they were recorded."""
    if file is None or done.routes is None:
        return
    texts = [one.ids for one in done.continuations]
    moe = model.config.moe
    layers = [i for i, routed in enumerate(model.config.routed_layers) if routed]
    known = {"router": moe.router, "experts": moe.num_choices, "layers": layers}
    recording = Recording(
        tokens=[np.concatenate(both).astype(np.int32) for both in zip(ids, texts, strict=True)],
        routes=done.routes,
        prompt_lengths=[len(prompt) for prompt in ids],
        settings={"model": model.description, **{name: str(x) for name, x in known.items()}},
    )
    with writing_to("--record-routes FILE"):
        write_recording(file, recording)


def place_experts(file: Path, model: OpenModel, mesh: Mesh) -> tuple[dict, np.ndarray]:
    """The parameters of a model with its experts where the plan in ``file`` has them, and
    ``place_LER``. Raises ``ConfigError`` for a plan of another model or mesh.
    """
    check_can_generate(model.config)
    plan = read_placement(file)
    try:
        check_devices(plan, mesh)
        return replicate(model.config, model.params, plan, mesh, model.layout.fsdp)
    except ConfigError as error:
        raise ConfigError(f"--placement {file}: {error}") from error


def collect_prompts(settings: GenerateSettings) -> list[str]:
    """The prompts of the flags, then those of the file; what is not UTF-8 becomes U+FFFD."""
    given, file = list(settings.prompt), settings.prompt_file
    if file is not None and not settings.reads_conversations:
        try:
            text = (
                sys.stdin.buffer.read()
                if file == "-"
                else read_bounded(expand_home("--prompt-file", file), MOST_PROMPT_BYTES)
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"--prompt-file {file} cannot be read: {reason}.") from error
        lines = split_lines(text.decode("utf-8", "replace"))
        check(bool(lines or given), f"--prompt-file {file} is empty: write a prompt on each line.")
        given += lines
    return [
        prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for prompt in given
    ]


def collect_talks(settings: GenerateSettings) -> list[Talking]:
    """The messages of flags and lines, each of them a conversation, then those of the file."""
    system, file = settings.system, settings.prompt_file
    texts = collect_prompts(settings)
    talks = [ask(text, system, f"prompt {number}") for number, text in enumerate(texts, 1)]
    if file is not None and settings.reads_conversations:
        talks += read_conversations(file, system)
    return talks


def split_lines(text: str) -> list[str]:
    """The lines of a file, without a byte-order mark. Only what ends a line in a file does so here:
    not a form feed or U+2028, which may be a part of a prompt.
    """
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
    return lines if lines[-1] else lines[:-1]


def texts_json(model: OpenModel, asked: Sequence[str | Talking], done: Generated) -> dict[str, Any]:
    """What `--json` prints."""
    pairs = zip(asked, done.continuations, strict=True)
    return {
        "model": model.description,
        "texts": [
            ({"prompt": one} if isinstance(one, str) else {"messages": one.messages}) | asdict(text)
            for one, text in pairs
        ],
        "first_seconds": done.first_seconds,
        "tokens_per_second": done.tokens_per_second,
        "drafts": None if done.drafts is None else asdict(done.drafts),
    }
