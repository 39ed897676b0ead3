from dataclasses import dataclass, field

import pytest
from torch import distributed

from med_model.command import examples, parse, run
from med_model.errors import UserError


@dataclass
class Base:
    steps: int = field(default=1, metadata={"help": "Steps to train."})


@dataclass
class Options(Base):
    steps: int = 5
    data: list[str] | None = field(default=None, metadata={"help": "Data files."})
    name: str = "model"


@dataclass
class Sampling:
    temperature: float = 0.7


@pytest.fixture
def parse_line(monkeypatch):
    """Return a function that parses the words of a command line. It returns an `Options` and a `Sampling`."""

    def parse_words(*words: object) -> list:
        monkeypatch.setattr("sys.argv", ["script.py", *map(str, words)])
        return parse(
            Options,
            Sampling,
            description="Does nothing.",
            docstring="Do nothing.\n\nReads  a\n       b\n\n    python script.py\n",
        )

    return parse_words


def test_parse_returns_the_defaults_without_options(parse_line):
    assert parse_line() == [Options(5, None, "model"), Sampling(0.7)]


def test_parse_takes_the_command_line_over_the_file_and_the_file_over_the_defaults(parse_line, tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("steps: 7\nname: 模型\ndata: one.txt\n", encoding="utf-8")
    options, sampling = parse_line("--config", config, "--steps", 9)
    assert options == Options(9, ["one.txt"], "模型") and sampling == Sampling(0.7)


@pytest.mark.parametrize("words", [("--stepz", "1"), ("--step", "1"), ("stray",)])
def test_parse_refuses_an_unknown_option(parse_line, words):
    with pytest.raises(UserError, match=f"Unknown option {words[0]}\\."):
        parse_line(*words)


def test_parse_refuses_an_unknown_option_in_the_file(parse_line, tmp_path):
    (tmp_path / "a.yaml").write_text("stepz: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="Unknown option --stepz in .*a.yaml"):
        parse_line("--config", tmp_path / "a.yaml")


def test_help_shows_the_description_and_the_inherited_help(parse_line, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_line("--help")
    printed = capsys.readouterr().out
    assert exit_.value.code == 0
    for text in ("Does nothing.", "Steps to train.", "Data files.", "--config FILE.yaml"):
        assert text in printed


def test_examples_takes_the_commands_and_no_continuation_line():
    docstring = "Train.\n\nReads  one file and\n       another\n\n    python a.py\n    python a.py --resume\n"
    assert examples(docstring) == "Examples:\n    python a.py\n    python a.py --resume"


def fail() -> None:
    raise UserError("no data here")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Return a function that calls `run(main)` and returns the exit code and the text on stderr."""

    def call(main) -> tuple[int, str]:
        monkeypatch.setattr("med_model.command.keep_freed_memory", lambda: True)
        for name in ("stdout", "stderr"):  # `run` must not change the encoding of pytest's streams
            monkeypatch.setattr(f"sys.{name}.reconfigure", lambda encoding: None, raising=False)
        with pytest.raises(SystemExit) as exit_:
            run(main)
        return exit_.value.code, capsys.readouterr().err

    return call


def test_run_ends_with_code_2_and_one_line_after_a_users_mistake(run_main):
    assert run_main(fail) == (2, "Error: no data here\n")


def test_run_ends_with_code_130_after_ctrl_c(run_main):
    assert run_main(interrupt) == (130, "\nInterrupted.\n")


def test_run_refuses_an_unknown_language_before_it_runs_main(run_main, monkeypatch):
    monkeypatch.setenv("MED_MODEL_LANG", "fr")
    assert run_main(interrupt) == (2, "Error: MED_MODEL_LANG is fr. Set it to zh or en.\n")


def test_run_closes_the_group_of_processes_after_a_mistake_too(run_main):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    run_main(fail)
    assert not distributed.is_initialized()
