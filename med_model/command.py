"""Read the options of a command, run the command, and report a mistake of the user in a plain message."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable

from torch import distributed
from trl import TrlParser

from med_model.allocator import keep_freed_memory
from med_model.errors import UserError
from med_model.files import read_yaml
from med_model.language import check_language, tr

# argparse translates these words. They stand in tr(...) here, so that `make messages` adds them to the translations.
ARGPARSE_WORDS = (
    tr("usage: "),
    tr("options"),
    tr("positional arguments"),
    tr("show this help message and exit"),
    tr("argument %(argument_name)s: %(message)s"),
    tr("expected one argument"),
    tr("expected at least one argument"),
    tr("invalid choice: %(value)r (choose from %(choices)s)"),
    tr("invalid %(type)s value: %(value)r"),
    tr("the following arguments are required: %s"),
    tr("unrecognized arguments: %s"),
    tr("%(prog)s: error: %(message)s\n"),
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the default of each option in --help, and keep the line breaks of the examples."""


def examples(docstring: str) -> str:
    """Return the examples for --help: a heading and the commands in a script's docstring.

    A command is a line indented by exactly four spaces. All other lines are left out.
    """
    commands = [line for line in docstring.splitlines() if re.match(r" {4}\S", line)]
    return "\n".join([tr("Examples:"), *commands])


def parse(*dataclass_types: type, description: str, docstring: str) -> list:
    """Read the command line. Return one instance per dataclass, in the order of `dataclass_types`.

    The YAML file of `--config` overrides the defaults. The command line overrides both.
    --help shows `description`, and the commands of `docstring` as examples.
    Raise UserError for an unknown option, for a value that a dataclass refuses, and for an unreadable YAML file.
    For a value of the wrong type or a missing required option, argparse itself prints the error and ends the program
    with exit code 2.
    """
    for dataclass_type in dataclass_types:
        _inherit_help(dataclass_type)
    parser = TrlParser(
        dataclass_types,
        description=description,
        epilog=examples(docstring),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help=tr("Options from a YAML file. The command line wins over the file.")
    )
    try:
        known, _ = parser.parse_known_args()
        if known.config is not None:
            _use_as_defaults(parser, known.config)
        *instances, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    except ValueError as error:
        raise UserError(tr("Bad option: {problem} (--help lists the options)", problem=error)) from error
    if unknown:
        raise UserError(tr("Unknown option {option}. --help lists the options.", option=unknown[0]))
    return instances[: len(dataclass_types)]  # the last item is not a dataclass: it holds --config


def _inherit_help(dataclass_type: type) -> None:
    """Give each field without a help text the help text of the same field in a base class.

    Such a field only changes the default of the inherited option.
    """
    for field in dataclasses.fields(dataclass_type):
        inherited = (base.__dataclass_fields__.get(field.name) for base in dataclass_type.__mro__[1:-1])
        documented = next((f for f in inherited if f is not None and "help" in f.metadata), None)
        if "help" not in field.metadata and documented is not None:
            field.metadata = documented.metadata


def _use_as_defaults(parser: TrlParser, file: str) -> None:
    """Replace the defaults of the parser by the values in the YAML file.

    TrlParser could read the file itself, but would use the encoding of the locale instead of UTF-8.
    Raise UserError if the file is unreadable or names an unknown option.
    """
    lists = {action.dest for action in parser._actions if action.nargs == "+"}  # argparse has no public option list
    config = {
        name: [value] if name in lists and isinstance(value, str) else value
        for name, value in read_yaml(file, "--config").items()
    }
    if unknown := parser.set_defaults_with_config(**config):
        raise UserError(
            tr("Unknown option {option} in {file}. --help lists the options.", option=unknown[0], file=file)
        )


def run(main: Callable[[], None]) -> None:
    """Run `main`. After a UserError, print its message and exit with code 2. After Ctrl-C, exit with code 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # the default encoding may lack Chinese, for example in a pipe on Windows
    keep_freed_memory()
    try:
        check_language()
        main()
    except UserError as error:
        print(tr("Error: {problem}", problem=error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\n" + tr("Interrupted."), file=sys.stderr)
        sys.exit(130)
    finally:
        # With torchrun, threads of an open process group can abort a process that ends before the others. torchrun
        # would then stop the first process, which still measures and publishes the model.
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
