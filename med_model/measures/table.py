"""Print answers side by side, and tables of figures, to the terminal. No line is wider than COLUMNS."""

import shutil
from collections.abc import Sequence

from med_model.language import tr
from med_model.measures.interval import Figure, Measure, figure, outside_noise
from med_model.measures.scales import BASELINE, MODELS, SUMMARY, position, scale
from med_model.screen import COLUMNS, padded, say, width, wrapped

COLUMN_GAP = 2  # spaces between two columns
MIN_COLUMN = 24  # answers are printed side by side only if each can have at least this width in terminal columns
TITLE_COLUMNS = 60  # largest width of the title of a measure, in terminal columns: a wider title is cut

Figures = dict[str, dict[str, Figure]]  # {model: {measure: figure}}
Changes = dict[tuple[str, str], dict[str, Figure]]  # {(model before, model after): {measure: difference}}


def shortened(text: str, columns: int) -> str:
    """Return the text if it is one line that fits into `columns` terminal columns.

    If it is not, return the start of its first line and `…`.
    """
    return text if width(text) <= columns and "\n" not in text else wrapped(text, columns - 1)[0] + "…"


def print_rows(rows: Sequence[Sequence[str]], titles: dict[int, str] | None = None) -> None:
    """Print rows of cells. A column is as wide as its widest cell.

    titles: {index of a row: line to print before this row}.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for index, row in enumerate(rows):
        if titles and index in titles:
            say(titles[index])
        cells = [padded(cell, columns) for cell, columns in zip(row, widths, strict=True)]
        say((" " * COLUMN_GAP).join(cells).rstrip())


def print_answers(questions: Sequence[str], answers: dict[str, list[str]]) -> None:
    """Print each question and then the answers of the models, side by side if the terminal is wide enough.

    answers: {model: [answer to the first question, ...]}.
    """
    screen = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
    columns = screen // len(answers) - COLUMN_GAP
    for number, question in enumerate(questions):
        say()
        for part in wrapped(f"━━ {question}", screen):
            say(part)
        if columns < MIN_COLUMN:
            for model, texts in answers.items():
                for part in wrapped(f"[{title_of(model)}] {texts[number]}", screen):
                    say(part)
            continue
        blocks = [wrapped(f"[{title_of(model)}]\n{texts[number]}", columns) for model, texts in answers.items()]
        for i in range(max(map(len, blocks))):
            cells = [padded(block[i] if i < len(block) else "", columns) for block in blocks]
            say((" " * COLUMN_GAP).join(cells).rstrip())


def with_interval(key: str, shown: Figure, sign: str = "") -> str:
    """Return a figure with its 95% interval, as in `61.3% [58.9, 63.5]`.

    If `sign` is `+`, every number that is not negative begins with `+`.
    """
    form = sign + scale(key).format
    low, high = (format(end, form).removesuffix("%") for end in (shown.low, shown.high))
    return f"{shown.value:{form}} [{low}, {high}]"


def change_word(key: str, change: Figure) -> str:
    """Return a word for a difference: "same" if the 95% interval contains 0, else "better" or "worse".

    If neither higher nor lower values of the measure are better, return "changed" instead of "better" or "worse".
    """
    better = scale(key).better
    if not outside_noise(change):
        return tr("same")
    if not better:
        return tr("changed")
    return tr("better") if better * change.value > 0 else tr("worse")


def print_figures(measures: dict[str, Measure]) -> dict[str, Figure]:
    """Print each measure of one model with its 95% interval and number of items. Return {measure: figure}."""
    figures = {key: figure(measured) for key, measured in measures.items()}
    print_rows(
        [
            [with_interval(key, shown), f"n = {shown.n:,}", shortened(scale(key).title, TITLE_COLUMNS)]
            for key, shown in figures.items()
        ]
    )
    return figures


def title_of(model: str) -> str:
    """Return the title of a model in MODELS. Return any other name, for example a directory, unchanged."""
    return MODELS.get(model, model)


def measured_keys(figures: Figures) -> list[str]:
    """Return the keys of the measures that at least one model has, in the order in which tables show them."""
    return sorted({key for model_figures in figures.values() for key in model_figures}, key=position)


def _items(figures: Figures, key: str) -> str:
    return f"{max(model_figures[key].n for model_figures in figures.values() if key in model_figures):,}"


def print_summary(figures: Figures, changes: Changes) -> None:
    """Print one row per measure: the value of each model, and a word such as "better" for each change.

    The word after a value is for the change from the model before. The first model has no such word, even if the
    baseline is before it. If there is a baseline, the last column has a word for the change from the baseline to the
    last model.
    Show the measures of SUMMARY that at least one model has. If there are none, show all measures of the models.
    """
    keys = measured_keys(figures)
    last = list(figures)[-1]
    against = changes.get((BASELINE, last), {}) if last != BASELINE else {}
    before = {after: change for (start, after), change in changes.items() if start != BASELINE}
    heading = [tr("measure"), "n", *(title_of(model) for model in figures)]
    rows = [heading + [tr("vs baseline")] * bool(against)]
    for key in [key for key in keys if key in SUMMARY] or keys:
        row = [shortened(scale(key).title, TITLE_COLUMNS), _items(figures, key)]
        for model, shown in figures.items():
            value = format(shown[key].value, scale(key).format) if key in shown else "-"
            change = before.get(model, {}).get(key)
            row.append(f"{value} {change_word(key, change)}" if change else value)
        if against:
            row.append(change_word(key, against[key]) if key in against else "-")
        rows.append(row)
    print_rows(rows)


def print_stages(figures: Figures, changes: Changes) -> None:
    """Print in words what each stage changed: up to three lines per stage.

    The lines name the measures of SUMMARY that became better, that became worse and that stayed the same within the
    noise. After a measure stand the values of the models before and after the stage. A blank line comes before the
    first line.
    """
    lines = []
    for (before, after), change in changes.items():
        if before == BASELINE:
            continue
        named = {tr("better"): [], tr("worse"): [], tr("same"): []}
        for key in [key for key in SUMMARY if key in change]:
            values = [format(figures[model][key].value, scale(key).format) for model in (before, after)]
            named[change_word(key, change[key])].append(f"{scale(key).name} {' → '.join(values)}")
        if any(named.values()):
            lines.append(f"{title_of(before)} → {title_of(after)}")
        for word, measures in named.items():
            if measures:
                lines.append("  " + tr("{word}: {measures}", word=word, measures=tr(", ").join(measures)))
    if lines:
        say("\n".join(["", *lines]))


def print_all(figures: Figures, changes: Changes) -> None:
    """Print one block per measure, with one row per model.

    A row has the value of the model and the change from the model in the row above, both with 95% intervals, and a
    word such as "better" for the change. The first model has no change, even if the row above is the baseline.
    If there is a baseline, the last column has a word for the change from the baseline.
    """
    previous = {after: change for (before, after), change in changes.items() if before != BASELINE}
    against = {after: change for (before, after), change in changes.items() if before == BASELINE}
    heading = ["", tr("value [95% CI]"), tr("change"), tr("from the row above [95% CI]")]
    rows, titles = [heading + [tr("vs baseline")] * bool(against)], {}  # titles: {index of a block's first row: title}
    for key in measured_keys(figures):
        titles[len(rows)] = f"{shortened(scale(key).title, TITLE_COLUMNS)} (n = {_items(figures, key)})"
        for model, shown in figures.items():
            value = with_interval(key, shown[key]) if key in shown else "-"
            change = previous.get(model, {}).get(key)
            row = [f"  {title_of(model)}", value]
            row += [change_word(key, change), with_interval(key, change, "+")] if change else ["", ""]
            if against:
                row.append(change_word(key, against[model][key]) if key in against.get(model, {}) else "")
            rows.append(row)
    print_rows(rows, titles)
