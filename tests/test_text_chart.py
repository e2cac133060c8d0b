import pytest

from lrsearch.text_chart import text_chart


def heights(lines: list[str], height: int) -> list[float]:
    """Return the filled height of each column, in rows."""
    rows = [line[10:].ljust(40) for line in lines[:height]]
    return [sum(" ▁▂▃▄▅▆▇█".index(row[column]) for row in rows) / 8 for column in range(40)]


def test_columns_are_as_high_as_the_values_and_marks_stand_below_their_rates() -> None:
    rates = [10 ** (-3 + 3 * i / 39) for i in range(40)]
    values = [0.1 + 0.8 * i / 39 for i in range(40)]
    lines = text_chart(rates, values, {"base_lr": rates[10], "max_lr": rates[30]}, width=40, height=8)
    expected = [(value - 0.1) / 0.8 * 8 for value in values]
    assert heights(lines, 8) == pytest.approx(expected, abs=0.2)
    assert lines[0].startswith("     0.9 │")
    assert lines[7].startswith("     0.1 │█") or lines[7].startswith("     0.1 │▁")
    assert [i for i, sign in enumerate(lines[8][10:]) if sign == "┴"] == [10, 30]
    assert lines[9].split() == ["0.001", "1"]
    assert [line.index("↑") - 10 for line in lines[10:]] == [10, 30]
    assert max(map(len, lines[:10])) == 50


def test_a_flat_curve_and_a_single_point_are_drawn() -> None:
    assert len(text_chart([0.1, 1.0], [0.5, 0.5], {}, width=10)) == 14
    assert len(text_chart([0.1], [0.5], {"max_lr": 0.1}, width=10)) == 15
