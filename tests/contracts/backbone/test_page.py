"""docs/backbones.md says what the code does."""

import open_clip

from tests.support.backbones_table import END, PAGE, START, kind_of

AGAIN = "run: python -m tests.support.backbones_table"


def test_the_table_names_each_configuration_once_and_says_what_the_code_says() -> None:
    """Of each row one is asked: to ask all takes a minute."""
    table = PAGE.read_text().partition(START)[2].partition(END)[0]
    rows = [
        line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ") and "`" in line
    ]
    named = [[name.strip("`") for name in row[-1].split(", ")] for row in rows]
    shipped = [name for name in open_clip.list_models() if not name.startswith("tiny-")]
    assert sorted(name for names in named for name in names) == sorted(shipped), AGAIN
    for row, names in zip(rows, named, strict=True):
        assert int(row[0]) == len(names)
        assert [cell.strip() for cell in row[1:-1]] == list(kind_of(names[0]).cells), AGAIN
