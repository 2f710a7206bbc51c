"""The `moejax` command: a table of subcommands, each a function of its parsed arguments."""

import contextlib
import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moejax.allocator import keep_freed_memory


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does, its arguments, and how to run it."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]


def main() -> None:
    """Parse the command line and run the subcommand; exit codes are those of ``train.py``."""
    arguments = make_parser().parse_args()
    keep_freed_memory()
    from moejax.command_line import run_main  # late: --help should not wait for what it imports

    run_main(lambda: COMMANDS[arguments.command].run(arguments))


def make_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = ArgumentParser(
        prog="moejax",
        description="A Mixture-of-Experts laboratory and trainer for JAX; to train one config:"
        " python train.py --config FILE.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name, help=command.summary, description=command.summary, allow_abbrev=False
            )
        )
    return parser


def study_arguments(parser: ArgumentParser) -> None:
    """The arguments of `moejax study`."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="Python file with get_study() -> moejax.study.Study"
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
    from moejax.observe.results import markdown, table, to_json
    from moejax.study import load_study_file, run_study

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


COMMANDS = {
    "study": Command(
        "train a set of configs under equal conditions and compare them", study_arguments, study
    ),
}
