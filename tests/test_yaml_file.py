import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lrsearch.errors import StudyFileError
from lrsearch.yaml_file import MAX_BYTES, YamlFile, read_yaml

Read = Callable[[str | bytes], YamlFile]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)

    def written_and_read(content: str | bytes) -> YamlFile:
        path = Path("a.yaml")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_yaml(path)

    return written_and_read


def test_numbers_are_read_as_yaml_1_2_says(read: Read) -> None:
    numbers = read("[5e-4, 1e3, .5, 10.0, 0o17, 010, -1, 1E-5, 0x1F]").values
    assert numbers == [0.0005, 1000.0, 0.5, 10.0, 15, 10, -1, 1e-5, 31]
    assert [type(number) for number in numbers] == [float] * 4 + [int] * 3 + [float, int]


def test_what_looks_like_a_boolean_or_a_time_in_yaml_1_1_is_text(read: Read) -> None:
    assert read("[yes, no, on, off, 1:30, 2026-11-23, '5']").values == [
        *("yes", "no", "on", "off", "1:30", "2026-11-23", "5")
    ]
    assert read("[true, false, ~, null]").values == [True, False, None, None]


def test_positions_count_from_one_and_fall_back_to_the_parent(read: Read) -> None:
    file = read("# first line\nrates:\n  low: 1\nseeds: [3, 4]\n")
    assert file.value_position(("rates", "low")) == (3, 8)
    assert file.key_position(("rates", "low")) == (3, 3)
    assert file.value_position(("seeds", 1)) == (4, 12)
    assert file.key_position(("seeds", 1)) == (4, 12)
    assert file.key_position(("rates",)) == (2, 1)
    assert file.value_position(("rates", "high", "x")) == file.value_position(("rates",)) == (3, 3)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(read: Read) -> None:
    file = read(b"\xef\xbb\xbfa: 1\r\nb: [2,\r\n    3]\r\n")
    assert file.values == {"a": 1, "b": [2, 3]}
    assert file.value_position(("b", 1)) == (3, 5)


def test_an_alias_stands_for_its_anchor(read: Read) -> None:
    assert read("a: &x {name: constant}\nb: *x\n").values == {"a": {"name": "constant"}, "b": {"name": "constant"}}


def test_a_merge_key_is_refused_where_it_stands(read: Read) -> None:
    file = read("a: &x {name: constant}\nb: {<<: *x, c: 1}\n'<<': 2\n")
    assert file.problems == [((2, 5), "b: merge keys (<<) are not of YAML 1.2; write out what they would bring in")]
    assert file.values == {"a": {"name": "constant"}, "b": {"c": 1}, "<<": 2}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.yaml:1:1: the file is empty; a study file begins with 'version: 1'."),
        ("# nothing\n", "a.yaml:1:1: the file is empty; a study file begins with 'version: 1'."),
        ("a: 1\n\tb: 2\n", "a.yaml:2:1: not YAML: a tab cannot indent or begin a value; use spaces."),
        ("a:\n  b: 1\n c: 2\n", "a.yaml:3:2: not YAML: the line does not fit the indentation above it."),
        ("a: b: c\n", "a.yaml:1:5: not YAML: mapping values are not allowed here; check the indentation."),
        (
            "a: [1, 2\nb: 3\n",
            "a.yaml:2:2: not YAML: while parsing a flow sequence begun in line 1, expected ',' or ']', but got ':'.",
        ),
        (
            "a: 'x\n",
            "a.yaml:2:1: not YAML: while scanning a quoted scalar begun in line 1, found unexpected end of stream.",
        ),
        ("a: *b\n", "a.yaml:1:4: not YAML: found undefined alias 'b'."),
        (
            "a: 1\n---\nb: 2\n",
            "a.yaml:2:1: not YAML: expected a single document in the stream begun in line 1, "
            "but found another document.",
        ),
        (b"a: 1\nname: caf\xe9\n", "a.yaml:2:10: byte 0xe9 is not UTF-8; save the file as UTF-8."),
        ("a: 1".encode("utf-16"), "a.yaml:1:1: byte 0xff is not UTF-8; save the file as UTF-8."),
        (b"a: 1\nb: x\x00y\n", "a.yaml:2:5: a control character is not allowed; remove it."),
        (b"a: x\n" * 2_000_000, "a.yaml: a study file has at most 1 MB, this one has more; give it only settings."),
        (b"#" * (MAX_BYTES + 1), "a.yaml: a study file has at most 1 MB, this one has more; give it only settings."),
        ("a: " + "[" * 9000, "a.yaml:1:23: nested deeper than 20 levels."),
        ("a: &a [*a]\n", "a.yaml:1:4: nested deeper than 20 levels."),
        (BOMB, "a.yaml:1:4: more than 20000 values, aliases written out; use fewer."),
        ("[" + "1," * 400_000 + "]", "a.yaml:1:79998: more than 20000 values; use fewer."),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_place(read: Read, content: str | bytes, message: str) -> None:
    began = time.process_time()
    with pytest.raises(StudyFileError) as error:
        read(content)
    assert str(error.value) == message
    assert time.process_time() - began < 5  # a bomb is refused, not sat out


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: 1\nb: 2\na: 3\n", "(3, 1) a: is written twice, first in line 1; remove one"),
        (
            "a: !!python/object:os.system x\n",
            "(1, 4) a: the tag !!python/object:os.system is not known here; remove it",
        ),
        ("a: !mine {b: 1}\n", "(1, 4) a: the tag !mine is not known here; remove it"),
        ("a: !!int x\n", "(1, 4) a: cannot be read as int, got 'x'"),
        ("a: .nan\n", "(1, 4) a: must be a finite number, got .nan"),
        ("a: 1e999\n", "(1, 4) a: must be a finite number, got 1e999"),
        ("a: 9223372036854775808\n", "(1, 4) a: must fit into 64 bits, got 9223372036854775808"),
        ('a: "\\ud800"\n', "(1, 4) a: half a surrogate pair is not a character; remove the escape"),
        ('a: "\\0"\n', "(1, 4) a: the character \\0 has no place here; remove the escape"),
        ("[b]: 1\n", "(1, 1) a key must be a word, got a list or a mapping"),
    ],
)
def test_a_value_that_says_nothing_is_a_problem_of_its_own(read: Read, content: str, text: str) -> None:
    [problem] = read(content).problems
    assert f"{tuple(problem.position)} {problem.text}" == text


def test_all_problems_are_told_in_file_order(read: Read) -> None:
    file = read("b: .inf\na: !x 1\nb: 2\n")
    assert str(file.error(file.problems)).splitlines() == [
        "a.yaml:1:4: b: must be a finite number, got .inf.",
        "a.yaml:2:4: a: the tag !x is not known here; remove it.",
        "a.yaml:3:1: b: is written twice, first in line 1; remove one.",
    ]


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"nix\.yaml: there is no such file\."):
        read_yaml(tmp_path / "nix.yaml")
    with pytest.raises(StudyFileError, match=r"cannot be read: Is a directory\."):
        read_yaml(tmp_path)
