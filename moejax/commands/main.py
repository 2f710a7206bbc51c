"""The `moejax` command: a table of subcommands, each a function of its parsed arguments."""

import contextlib
import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from moejax.runtime.allocator import keep_freed_memory, take_gpu_memory_as_needed


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does, its arguments, and how to run it."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
    own_flags: bool = False
    """Whether ``run`` parses its own flags, which it finds in ``arguments.rest``."""


@dataclass(frozen=True)
class Group:
    """Subcommands under one name."""

    summary: str
    commands: dict[str, Command]
    default: str | None = None
    """The one that is meant where none is named."""


def main() -> None:
    """Parse the command line and run the subcommand; exit codes are those of ``train.py``."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(with_default(sys.argv[1:]))
    if rest and not arguments.command.own_flags:
        parser.error(f"unrecognized arguments: {shlex.join(rest)}")
    arguments.rest = rest
    from moejax.commands.command_line import run_main

    run_main(lambda: arguments.command.run(arguments))


def with_default(argv: list[str]) -> list[str]:
    """The command line, with the name of its group's default command where none is named."""
    group = COMMANDS.get(argv[0]) if argv else None
    if not isinstance(group, Group) or group.default is None:
        return argv
    named = argv[1:2] and (argv[1] in group.commands or argv[1] in ("-h", "--help"))
    return argv if named else [argv[0], group.default, *argv[1:]]


def make_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = ArgumentParser(
        prog="moejax",
        description="A Mixture-of-Experts laboratory and trainer for JAX; to train one config:"
        " python train.py --config FILE.",
        allow_abbrev=False,
    )
    add_commands(parser, COMMANDS)
    return parser


def add_commands(parser: ArgumentParser, commands: dict[str, Command | Group]) -> None:
    """Give ``parser`` a subparser for each; a chosen one ends up in ``arguments.command``."""
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.items():
        add = partial(parsers.add_parser, name, help=command.summary, allow_abbrev=False)
        if isinstance(command, Group):
            add_commands(add(description=command.summary), command.commands)
            continue
        own_flags = command.own_flags
        subparser = add(description=command.summary, add_help=not own_flags)
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)


def study_arguments(parser: ArgumentParser) -> None:
    """The arguments of `moejax study`."""
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="Python file with get_study() -> Study",
    )
    parser.add_argument(
        "--directory", type=Path, help="where it is written; by default studies/ and FILE's name"
    )
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="NAME", help="train these runs; compare all"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON, and progress to stderr"
    )


def study(arguments: Namespace) -> None:
    """Train the runs of a study and print the table that compares them."""
    keep_freed_memory()
    from moejax.lab.study.results import to_json
    from moejax.lab.study.study import load_study_file, run_study
    from moejax.lab.study.tables import markdown, table

    directory = arguments.directory or Path("studies", arguments.file.stem)
    command = shlex.join(["moejax", *sys.argv[1:]])
    progress = sys.stderr if arguments.json else sys.stdout
    with contextlib.redirect_stdout(progress):
        loaded = load_study_file(arguments.file)
        comparison = run_study(loaded, directory, command=command, only=arguments.only)
    if arguments.json:
        print(json.dumps(to_json(comparison), indent=2))
        return
    print(f"\n{markdown(table(comparison))}")
    print(f"page     {directory / 'study.html'}\ntable    {directory / 'table.md'}")
    print(f"results  {directory / 'results.json'}", flush=True)


def report_arguments(parser: ArgumentParser) -> None:
    """The arguments of `moejax report`."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="directory of a run, finished or not"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the page is written; by default report.html in RUN, or comparison.html here for"
        " several",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the figures as JSON; write only to --output"
    )


def report(arguments: Namespace) -> None:
    """Write the page of a run, or of several side by side."""
    from moejax.config.checks import check
    from moejax.lab.study.comparison import study_html
    from moejax.lab.study.results import to_json
    from moejax.lab.study.side_by_side import read_trained, side_by_side
    from moejax.lab.study.tables import markdown, table
    from moejax.runs.pages.report import report_html
    from moejax.runtime.atomic_files import write_text

    runs, output = arguments.runs, arguments.output
    check(output is None or not output.is_dir(), f"--output {output} is a directory: name a file.")
    command = shlex.join(["moejax", *sys.argv[1:]])
    comparison = side_by_side(runs, command)
    if output is None and not arguments.json:
        output = runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html")
    if output is not None:
        there = output.parent.is_dir()
        check(there, f"--output {output}: there is no directory {output.parent}.")
        one = len(runs) == 1
        write_text(output, report_html(read_trained(runs[0])) if one else study_html(comparison))
    if arguments.json:
        print(json.dumps(to_json(comparison), indent=2), flush=True)
        return
    print(f"{markdown(table(comparison))}\npage     {output}", flush=True)


def compile_on_the_cpu() -> None:
    """Let JAX look for no TPU: libtpu is here to compile."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def bench(
    name: str,
    summary: str,
    prepare: Callable[[], None] | None = None,
    file: str | None = None,
) -> Command:
    """`moejax bench NAME`: the settings, ``measure`` and ``report`` of a file in ``lab.bench``, by
    default of this name. Exits with 1 if the figures say that a result is wrong.
    """

    def run(arguments: Namespace) -> None:
        if prepare is not None:
            prepare()
        import tyro

        module = import_module(f"moejax.lab.bench.{file or name}")
        settings = getattr(module, f"{name.title()}Bench")

        def parsed(bench: tyro.conf.OmitArgPrefixes[settings], json: bool = False) -> tuple:
            """The two.

            Args:
                json: Print the figures as JSON.
            """
            return bench, json

        chosen, as_json = tyro.cli(
            parsed,
            args=arguments.rest,
            prog=f"moejax bench {name}",
            description=summary,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        result = module.measure(chosen)
        print(json.dumps(result, indent=2) if as_json else module.report(result), flush=True)
        if not result.get("right", True):
            raise SystemExit(1)

    return Command(summary, no_arguments, run, own_flags=True)


def of_model(module: str, name: str, summary: str) -> Command:
    """`moejax NAME`: the settings and the function of this name in a module's ``COMMANDS``."""

    def run(arguments: Namespace) -> None:
        keep_freed_memory()
        import tyro

        settings, function = import_module(f"moejax.commands.{module}").COMMANDS[name]
        chosen = tyro.cli(
            settings,
            args=arguments.rest,
            prog=f"moejax {name}",
            description=summary,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction),
        )
        try:
            function(chosen)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return Command(summary, no_arguments, run, own_flags=True)


def plan_arguments(parser: ArgumentParser) -> None:
    """The arguments of `moejax plan` beside those of a config."""
    from moejax.lab.plan import command

    parser.epilog = (
        "Every setting of a config can follow as a flag, --mesh.expert 8 say:"
        " python train.py --config FILE --help lists them."
    )
    parser.add_argument("-h", "--help", action="help")
    parser.add_argument("--config", metavar="FILE", help="a config of moejax")
    command.add_flags(parser)


def plan(arguments: Namespace) -> None:
    """Print what a config will cost, from its settings alone."""
    compile_on_the_cpu()
    from moejax.lab.plan import command

    if arguments.config is not None:
        arguments.rest = ["--config", arguments.config, *arguments.rest]
    command.run(arguments)


def placement_arguments(parser: ArgumentParser) -> None:
    """The arguments of `moejax plan placement`."""
    parser.add_argument(
        "--load",
        type=Path,
        required=True,
        metavar="FILE",
        help="load of each expert, [layers, experts] or [experts], in any unit: .npy, or a load"
        " file of a run (runs/NAME/load/STEP.npz)",
    )
    parser.add_argument("--devices", type=int, required=True, help="devices that hold experts")
    parser.add_argument(
        "--replicas", type=int, required=True, help="experts on all devices together, with replicas"
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes that the devices are on")
    parser.add_argument(
        "--groups", type=int, default=1, help="groups of experts, each to stay on one node"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def placement(arguments: Namespace) -> None:
    """Plan which device holds which experts, and which of them twice."""
    from moejax.lab.plan.placement_report import describe_placement, placement_json
    from moejax.lab.plan.read_load import read_load
    from moejax.moe.parallel.placement import place

    load_LE = read_load(arguments.load)
    plan = place(
        load_LE,
        devices=arguments.devices,
        places=arguments.replicas,
        nodes=arguments.nodes,
        groups=arguments.groups,
    )
    if arguments.json:
        print(json.dumps(placement_json(plan), indent=2))
        return
    print(describe_placement(plan, load_LE))


def plan_compile_arguments(parser: ArgumentParser) -> None:
    """The arguments of `moejax plan compile` beside those of a config."""
    parser.add_argument("--target", metavar="TPU:LAYOUT")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--json", action="store_true")


def plan_compile(arguments: Namespace) -> None:
    """Compile a config's training step for TPUs and print what it takes."""
    compile_on_the_cpu()
    from moejax.commands.command_line import parse
    from moejax.config.checks import check
    from moejax.data.tokenizer import load_tokenizer
    from moejax.lab.plan.compile_step import describe_step, measure_step

    flags = f"--target {arguments.target or 'v5p:4x4x8'} [--slices N] [--json]"
    config, _ = parse(arguments.rest, f"moejax plan compile {flags}")
    check(arguments.target is not None, "--target is missing: a TPU and its layout, v5p:4x4x8 say.")
    check(arguments.slices > 0, f"--slices must be greater than 0, not {arguments.slices}.")
    check(
        not config.model.sees_images or config.model.vocab_size is not None,
        "--model.vocab-size is missing: the number of classes of the images.",
    )
    size = config.model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
    result = measure_step(config, arguments.target, arguments.slices, size)
    print(json.dumps(result, indent=2) if arguments.json else describe_step(result), flush=True)
    if not result["fits"]:
        raise SystemExit(1)


def no_arguments(parser: ArgumentParser) -> None:
    """For commands with flags of their own."""


COMMANDS: dict[str, Command | Group] = {
    "study": Command(
        "train a set of configs under equal conditions and compare them", study_arguments, study
    ),
    "report": Command(
        "the page of a run, or of several runs side by side (RUN [RUN ...])",
        report_arguments,
        report,
    ),
    "generate": of_model(
        "inference", "generate", "text from a trained model (RUN --prompt 'def ')"
    ),
    "eval": of_model(
        "inference",
        "eval",
        "perplexity and bits per byte of a trained model on any text (RUN --data stdlib)",
    ),
    "specialisation": of_model(
        "specialisation",
        "specialisation",
        "what each expert of a trained model takes, as a page (RUN --data stdlib)",
    ),
    "import": of_model(
        "conversion", "import", "a checkpoint of Hugging Face, to train on from (DIR NEW)"
    ),
    "export": of_model(
        "conversion", "export", "a trained model as a checkpoint of Hugging Face (RUN NEW)"
    ),
    "upcycle": of_model(
        "conversion", "upcycle", "a routed model of a dense one that computes the same (DIR NEW)"
    ),
    "plan": Group(
        "what a config will cost, before anything runs: --config FILE [flags of the config], or"
        " --hf config.json",
        {
            "cost": Command(
                "parameters, FLOPs, memory, what is sent, drops, and advice, by arithmetic on the"
                " settings; this is what `moejax plan` does where no command is named",
                plan_arguments,
                plan,
                own_flags=True,
            ),
            "placement": Command(
                "which device holds which experts, and which of them twice, from measured load",
                placement_arguments,
                placement,
            ),
            "compile": Command(
                "does a config fit on TPUs, what does a step compute and move, by their compiler:"
                " no TPU is needed (--config FILE --target v5p:4x4x4)",
                plan_compile_arguments,
                plan_compile,
                own_flags=True,
            ),
        },
        default="cost",
    ),
    "bench": Group(
        "what a routed layer costs",
        {
            "layer": bench(
                "layer", "time a routed layer against the dense layer of equal active size"
            ),
            "compiled": bench(
                "compiled",
                "arithmetic and memory of a routed layer on TPUs, without one, by their compiler",
                compile_on_the_cpu,
                file="compile_layer",
            ),
            "peers": bench(
                "peers",
                "time a routed layer beside the same layer of Hugging Face, PyTorch and plain JAX",
                take_gpu_memory_as_needed,
            ),
            "scaling": bench(
                "scaling", "how the time of a routed layer grows with tokens and with experts"
            ),
            "gpu": bench(
                "gpu",
                "check and time a routed layer on an NVIDIA GPU, in the shapes of known models",
                take_gpu_memory_as_needed,
            ),
        },
    ),
}
