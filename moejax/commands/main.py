"""The `moejax` command: a table of its subcommands, each a function in a file of this folder.

A subcommand's file is imported when it is run, so that `moejax --help` is quick.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import get_type_hints

from moejax import __version__
from moejax.runtime.start_jax import start_jax
from moejax.runtime.stop import end_at_signals


@dataclass(frozen=True)
class Command:
    """A subcommand."""

    summary: str
    function: str
    """Its file in this folder and its function there. The function's one argument has the name
    ``settings``, whose type says how they are parsed, and with it ``flags`` if it takes those of a
    config; or it has the name ``words``, and the function parses them itself."""


@dataclass(frozen=True)
class Group:
    """Subcommands under one name."""

    summary: str
    commands: dict[str, Command]
    default: str | None = None
    """The one that is meant where none is named."""


COMMANDS: dict[str, Command | Group] = {
    "train": Command("train one config (--config FILE [flags of the config])", "train:train"),
    "study": Command(
        "train a set of configs under equal conditions and compare them", "study:study"
    ),
    "report": Command(
        "the page of a run, or of several runs side by side (RUN [RUN ...]); what training has done"
        " to the routing of a model (BEFORE AFTER)",
        "report:report",
    ),
    "generate": Command("text from a trained model (RUN --prompt 'def ')", "generate:generate"),
    "serve": Command(
        "a trained model for many clients at once, by OpenAI's HTTP interface (RUN --port 8000)",
        "serve:serve",
    ),
    "eval": Command(
        "perplexity and bits per byte of a trained model on any text (RUN --data stdlib)",
        "eval:evaluate",
    ),
    "specialisation": Command(
        "what each expert of a trained model takes, as a page (RUN --data stdlib)",
        "specialisation:specialisation",
    ),
    "check": Command(
        "is every byte of a run's checkpoints, or of an imported model, as it was written? What is"
        " a checkpoint of Hugging Face, and what can be done with it? (DIR)",
        "check:check_directory",
    ),
    "import": Command(
        "a checkpoint of Hugging Face, to train on from (DIR NEW)", "import_:import_model"
    ),
    "export": Command(
        "a trained model as a checkpoint of Hugging Face (RUN NEW)", "export:export_model"
    ),
    "quantise": Command(
        "a model with weights of 8 or 4 bits, to be run (MODEL OUT --weights int4)",
        "quantise:quantise_model",
    ),
    "prune": Command(
        "a routed model with fewer experts, and what it lost (MODEL OUT --keep 0.5 --by reap)",
        "prune:prune_model",
    ),
    "merge": Command(
        "adapters and the model that they were trained beside, as one plain model (RUN NEW)",
        "merge:merge_adapters",
    ),
    "upcycle": Command(
        "a routed model of a dense one that computes the same (DIR NEW)", "upcycle:upcycle_model"
    ),
    "plan": Group(
        "what a config will cost, before anything runs: --config FILE [flags of the config], or"
        " --hf config.json",
        {
            "cost": Command(
                "parameters, FLOPs, memory, what is sent, drops, and advice, by arithmetic on the"
                " settings; this is what `moejax plan` does where no command is named",
                "plan_cost:plan_cost",
            ),
            "placement": Command(
                "which device holds which experts, and which of them twice, from measured load",
                "plan_placement:plan_placement",
            ),
            "compile": Command(
                "does a config fit on TPUs, what does a step compute and move, by their compiler:"
                " no TPU is needed (--config FILE --target v5p:4x4x4)",
                "plan_compile:plan_compile",
            ),
        },
        default="cost",
    ),
    "data": Group(
        "what a config trains on",
        {
            "show": Command(
                "the first rows of a config's data as the model sees them, and which tokens are"
                " learned (--config FILE [flags of the config])",
                "data_show:show_data",
            ),
        },
    ),
    "bench": Group(
        "what a routed layer costs, and how fast a model generates and is served",
        {
            "layer": Command(
                "time a routed layer against the dense layer of equal active size",
                "bench:bench_layer",
            ),
            "compiled": Command(
                "arithmetic and memory of a routed layer on TPUs, without one, by their compiler",
                "bench:bench_compiled",
            ),
            "peers": Command(
                "time a routed layer beside the same layer of Hugging Face, PyTorch and plain JAX",
                "bench:bench_peers",
            ),
            "scaling": Command(
                "how the time of a routed layer grows with tokens and with experts",
                "bench:bench_scaling",
            ),
            "steps": Command(
                "what a training step of each shape of a study takes, all in turn (FILE)",
                "bench:bench_steps",
            ),
            "generate": Command(
                "tokens and bytes a second of generation with random weights, beside the machine's"
                " own copying; or what a decode step takes, by the compiler (--config FILE, or --hf"
                " config.json)",
                "bench_generate:bench_generate",
            ),
            "serve": Command(
                "latency and throughput of a model that answers many requests, in this process"
                " (DIRECTORY) or by a server that runs (--url), beside the decode step alone",
                "bench_serve:bench_serve",
            ),
            "gpu": Command(
                "check and time a routed layer on an NVIDIA GPU, in the shapes of known models",
                "bench:bench_gpu",
            ),
        },
    ),
}


def main() -> None:
    """Run the subcommand that the command line names; exit codes are those of ``train.py``."""
    words = sys.argv[1:]
    try:
        if words[:1] == ["--version"]:
            print(f"moejax {__version__}", flush=True)
            return
        found = find_command(words)
    except OSError:  # of the standard output
        with messages():
            raise
    with messages():
        run_command(*found)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Start JAX, and let what is wrong, or a signal, end the process with a message, not with a
    traceback.
    """
    with end_at_signals():
        start_jax()
        from moejax.commands.command_line import errors_as_messages  # late: it imports JAX

        with errors_as_messages():
            yield


def run(words: list[str]) -> None:
    """Run a subcommand by its words; errors are raised."""
    run_command(*find_command(words))


def find_command(words: list[str]) -> tuple[Command, str, list[str]]:
    """The command, its name, and the words that are left. Help ends the process with exit code 0,
    a name that does not exist with 2.
    """
    name = "moejax"
    there: Mapping[str, Command | Group] = COMMANDS
    words = insert_default(words)
    while True:
        word, *rest = words or [""]
        if word in ("-h", "--help"):
            print(write_help(name, there), flush=True)
            raise SystemExit(0)
        if word not in there:
            _refuse(name, word, there)
        name, command, words = f"{name} {word}", there[word], rest
        if isinstance(command, Command):
            return command, name, words
        there = command.commands


def insert_default(words: list[str]) -> list[str]:
    """The command line, with the name of its group's default command where none is named."""
    group = COMMANDS.get(words[0]) if words else None
    if not isinstance(group, Group) or group.default is None:
        return words
    named = words[1:2] and (words[1] in group.commands or words[1] in ("-h", "--help"))
    return words if named else [words[0], group.default, *words[1:]]


def _refuse(name: str, word: str, there: Mapping[str, Command | Group]) -> None:
    """End the process: the word is no subcommand."""
    import difflib  # late: only for this message

    near = difflib.get_close_matches(word, there, n=1)
    wrong = f"there is no `{name} {word}`" if word else f"`{name}` needs a command"
    hint = f". Did you mean `{name} {near[0]}`?" if near else f": {', '.join(there)}."
    print(f"error: {wrong}{hint} `{name} --help` explains them.", file=sys.stderr)
    raise SystemExit(2)


def write_help(name: str, there: Mapping[str, Command | Group]) -> str:
    """The help of `moejax`, or of a group of its commands."""
    about = "A Mixture-of-Experts laboratory and trainer for JAX."
    if name != "moejax":
        about = COMMANDS[name.split()[-1]].summary
    lines = [f"usage: {name} COMMAND ...", "", about, ""]
    rows = list(list_commands(there))
    width = max(len(command) for command, _ in rows)
    for command, summary in rows:
        lines += wrap(f"  {command:{width}}  ", summary)
    lines += ["", f"`{name} COMMAND --help` lists the flags of a command."]
    if name == "moejax":
        lines.append("`moejax --version` says which version this is.")
    return "\n".join(lines)


def list_commands(there: Mapping[str, Command | Group]) -> Iterator[tuple[str, str]]:
    """All commands with their summaries, those of a group below it."""
    for name, command in there.items():
        yield name, command.summary
        if isinstance(command, Group):
            for inner, one in command.commands.items():
                yield f"{name} {inner}", one.summary


def wrap(start: str, text: str, width: int = 100) -> list[str]:
    """Lines of text after ``start``, the others indented as far."""
    lines = [start]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append(" " * len(start))
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]


def run_command(command: Command, name: str, words: list[str]) -> None:
    """Parse the words as the function of a subcommand wants them, and call it."""
    file, function = command.function.split(":")
    run_it = getattr(import_module(f"moejax.commands.{file}"), function)
    takes = get_type_hints(run_it)
    from moejax.commands.command_line import parse_known, parse_settings

    if "words" in takes:
        run_it(words)
    elif "flags" in takes:
        run_it(*parse_known(takes["settings"], words, name, command.summary))
    else:
        run_it(parse_settings(takes["settings"], words, name, command.summary))
