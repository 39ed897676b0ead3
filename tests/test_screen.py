"""Check med_model/screen.py: no printed line is wider than COLUMNS, and only the first process of a run prints."""

import pytest

from med_model.screen import COLUMNS, padded, say, width, wrapped


def test_width_counts_a_chinese_character_as_two_columns():
    assert (width("abc"), width("高血压"), width("BP高，")) == (3, 6, 6)
    assert (width("血压 120"), width("，"), width("")) == (8, 2, 0)


def test_padded_fills_up_to_the_columns():
    assert padded("高", 4) == "高  " and padded("高血压", 4) == "高血压"
    assert padded("血压", 6) == "血压  " and padded("血压", 3) == "血压"


def test_wrapped_breaks_english_between_words_and_chinese_anywhere():
    assert wrapped("the model is published", 11) == ["the model", "is", "published"]
    assert wrapped("高血压要注意", 6) == ["高血压", "要注意"]


def test_wrapped_breaks_lines_within_the_columns_and_drops_blank_ones():
    assert wrapped("一二三四", 5) == ["一二", "三四"]
    assert wrapped("ab\n\n \ncd", 5) == ["ab", "cd"]
    assert wrapped("", 5) == [""]


def test_wrapped_cuts_a_word_that_is_longer_than_a_line():
    assert wrapped("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]


def test_wrapped_starts_no_line_with_closing_punctuation():
    assert wrapped("请立即拨打。去急诊", 10) == ["请立即拨", "打。去急诊"]


@pytest.mark.parametrize("columns", range(4, 40))
def test_wrapped_keeps_every_character_within_the_columns(columns):
    text = "患者服用aspirin片，高血压控制良好。Take care（注意）！\n第二行"
    lines = wrapped(text, columns)
    assert max(map(width, lines)) <= columns
    assert "".join(lines).replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_say_continues_a_long_line_below_with_more_indent(capsys):
    say("  " + "word " * 40)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and all(width(line) <= COLUMNS for line in lines)
    assert lines[0].startswith("  word") and all(line.startswith("    word") for line in lines[1:])


def test_say_keeps_the_indent_of_each_line_of_a_text(capsys):
    say("\n" + "a" * 60 + "\n  " + "b" * 60)
    assert capsys.readouterr().out == "\n" + "a" * 60 + "\n  " + "b" * 60 + "\n"


def test_say_prints_on_the_first_process_only(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    say("once")
    monkeypatch.setenv("RANK", "0")
    say("first")
    assert capsys.readouterr().out == "first\n"
