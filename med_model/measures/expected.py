"""Read the expected values of a comparison from a file, and find the figures that differ too much from them."""

from typing import NamedTuple

from med_model.errors import UserError
from med_model.files import read_yaml
from med_model.language import tr
from med_model.measures.scales import MEASURES, MODELS, scale
from med_model.measures.table import Figures
from med_model.screen import say

Expected = dict[str, dict[str, list[float]]]  # {model: {measure: [value, tolerance]}}


class Outside(NamedTuple):
    """A figure that differs from its expected value by more than the tolerance, or that was not measured.

    `value` is None if the figure was not measured.
    """

    model: str
    measure: str
    value: float | None
    expected: float
    tolerance: float


def read_expected(file: str) -> Expected:
    """Return {model: {measure: [value, tolerance]}} from an --expected file.

    Raise UserError if the file is unreadable, if it has another structure, or if it names an unknown model or measure.
    """
    expected = read_yaml(file, "--expected")
    for model, pairs in expected.items():
        if model not in MODELS:
            known = ", ".join(MODELS)
            raise UserError(
                tr("--expected {file}: {model} is no model. Use one of {known}.", file=file, model=model, known=known)
            )
        if not isinstance(pairs, dict):
            raise UserError(
                tr("--expected {file}: {name} is {found}. Map measures to values.", file=file, name=model, found=pairs)
            )
        for key, pair in pairs.items():
            _check_pair(file, model, key, pair)
    return expected


def _check_pair(file: str, model: str, key: str, pair: object) -> None:
    name = f"{model} {key}"
    if key.partition("/")[0] not in MEASURES:
        known = ", ".join(MEASURES)
        raise UserError(
            tr("--expected {file}: {name} is no measure. Use one of {known}.", file=file, name=name, known=known)
        )
    if not isinstance(pair, list) or [type(number) in (int, float) for number in pair] != [True, True]:
        raise UserError(
            tr("--expected {file}: {name} is {found}. Write [value, tolerance].", file=file, name=name, found=pair)
        )


def outside_expected(figures: Figures, expected: Expected) -> list[Outside]:
    """Return the figures that differ from `expected` by more than the tolerance, or that were not measured."""
    outside = []
    for model, pairs in expected.items():
        for key, (value, tolerance) in pairs.items():
            found = figures[model][key].value if key in figures.get(model, {}) else None
            if found is None or not abs(found - value) <= tolerance:  # `not <=` is True for nan, so nan is reported
                outside.append(Outside(model, key, found, value, tolerance))
    return outside


def print_verdict(outside: list[Outside], file: str) -> None:
    """Print that all figures are as expected, or one line per figure in `outside`."""
    if not outside:
        say(tr("Everything is within the expected values of {file}.", file=file))
        return
    say(tr("Outside the expected values of {file}:", file=file))
    for model, key, value, expected, tolerance in outside:
        title, form = scale(key).title, scale(key).format
        found = tr("not measured") if value is None else format(value, form)
        wanted = f"{expected:{form}} ± {tolerance:{form}}"
        name = MODELS[model]
        line = tr("{model}, {title}: {found}, expected {wanted}", model=name, title=title, found=found, wanted=wanted)
        say(f"  {line}")
