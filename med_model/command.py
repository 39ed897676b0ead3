"""How a command of the project reads its options and how it fails."""

import dataclasses
import sys
from collections.abc import Callable

from trl import TrlParser

from med_model.allocator import keep_freed_memory
from med_model.errors import UserError
from med_model.files import read_yaml


def _inherit_help(dataclass_type: type) -> None:
    """A field that only gives an inherited option another default keeps the text that --help shows for it."""
    for field in dataclasses.fields(dataclass_type):
        inherited = (base.__dataclass_fields__.get(field.name) for base in dataclass_type.__mro__[1:-1])
        helped = next((f for f in inherited if f is not None and "help" in f.metadata), None)
        if "help" not in field.metadata and helped is not None:
            field.metadata = helped.metadata


def parse(*dataclass_types: type, description: str) -> list:
    """Reads the command line, and the YAML file of `--config` beneath it, into one instance of each dataclass.

    Raises UserError for an unknown option, a bad value or an unreadable configuration file.
    """
    for dataclass_type in dataclass_types:
        _inherit_help(dataclass_type)
    parser = TrlParser(dataclass_types, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a YAML file; the command line wins")
    try:
        known, _ = parser.parse_known_args()
        if known.config is not None:
            lists = {action.dest for action in parser._actions if action.nargs == "+"}
            config = {
                name: [value] if name in lists and isinstance(value, str) else value
                for name, value in read_yaml(known.config, "--config").items()
            }
            unknown = parser.set_defaults_with_config(**config)
            if unknown:
                raise UserError(
                    f"配置里有未知选项/unknown option in {known.config}: {unknown[0]} (--help lists the options)"
                )
        return list(parser.parse_args_into_dataclasses()[: len(dataclass_types)])
    except ValueError as error:
        raise UserError(f"参数有误/bad option: {error} (--help lists the options)") from error


def run(main: Callable[[], None]) -> None:
    """Runs `main`; a UserError ends the program with one message and exit code 2, Ctrl-C with 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # Windows consoles and C locales default to something narrower
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        print(f"错误/error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\n已中断/interrupted", file=sys.stderr)
        sys.exit(130)
