"""Tables that people make in a spreadsheet are read as they were meant."""

import unicodedata

import pytest

from tfds_pap import tables
from tfds_pap.errors import PapError

TEXT = "file,group\ntrain/1/Zellen größer.png,Präparat 7\ntrain/2/b.png,8\n"
READ = [
    {"file": "train/1/Zellen größer.png", "group": "Präparat 7"},
    {"file": "train/2/b.png", "group": "8"},
]


def values(path, columns=("file", "group"), **options):
    return [dict(row.values) for row in tables.read(path, columns, **options)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_what_a_spreadsheet_writes_is_read(tmp_path, encoding, separator, ending):
    path = tmp_path / "groups.csv"
    path.write_bytes(TEXT.replace(",", separator).replace("\n", ending).encode(encoding))
    assert values(path) == READ


def test_accents_composed_and_decomposed_are_the_same_name(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text(unicodedata.normalize("NFD", TEXT), encoding="utf-8")
    assert values(path) == READ
    on_disk = unicodedata.normalize("NFD", "train/1/Zellen größer.png")
    assert tables.Names([on_disk]).find("train/1/Zellen größer.png") == [on_disk]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nGroup;File\r\nPräparat 7;train/1/Zellen größer.png\r\n8;train/2/b.png\r\n",
        'group,"file",note\nPräparat 7,"train/1/Zellen größer.png",x\n8,train/2/b.png,\n\n,,\n',
        "file,group,,\ntrain/1/Zellen größer.png,Präparat 7,,\ntrain/2/b.png, 8 ,,\n",
    ],
)
def test_order_case_empty_cells_and_further_columns_do_not_matter(tmp_path, text):
    path = tmp_path / "groups.csv"
    path.write_text(text, encoding="utf-8")
    assert values(path) == READ


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"name,group\na,b\n", "line 1: expected the columns file, group; got name, group"),
        (b"", "line 1: expected the columns file, group; got none"),
        (b"file,group\na,b\nc\n", "line 3: expected 2 values between commas, got 1"),
        (b"file;group\na;b;c\n", "line 2: expected 2 values between semicolons, got 3"),
        (b"file,group,group\na,b,c\n", "line 1: the column group stands there twice"),
        (b'file,group\na,"b\n', "expected CSV"),
        (b"file,group\na,\x81\xff\n", "got byte 0x81"),
        (b"sep=;\nfile;group\na\n", "line 3: expected 2 values between semicolons, got 1"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, data, said):
    path = tmp_path / "groups.csv"
    path.write_bytes(data)
    with pytest.raises(PapError) as error:
        tables.read(path, ("file", "group"))
    assert said in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PapError, match="No such file"):
        tables.read(tmp_path / "none.csv", ("file",))


@pytest.mark.parametrize(("text", "value"), [("12.5", 12.5), ("12,5", 12.5), ("7", 7.0)])
def test_a_decimal_comma_is_one(tmp_path, text, value):
    row = tables.Row(2, {"x": text})
    assert tables.number(tmp_path / "nuclei.csv", row, "x") == value


@pytest.mark.parametrize("text", ["", "nan", "inf", "1,234,5", "a"])
def test_what_is_no_number_is_named(tmp_path, text):
    with pytest.raises(PapError, match=r"nuclei.csv, line 4: x: expected a number"):
        tables.number(tmp_path / "nuclei.csv", tables.Row(4, {"x": text}), "x")


def test_optional_columns_are_empty_where_they_are_not_there(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("name,order\nNILM,1\n", encoding="utf-8")
    (row,) = tables.read(path, ("name",), optional=("shown name", "order"))
    assert row == (2, {"name": "NILM", "shown name": "", "order": "1"})


def test_letters_beyond_latin_in_utf_16_without_a_mark_and_lines_of_old_macs(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_bytes("file;group\rżółw.png;a\r".encode("utf-16-le"))
    assert values(path) == [{"file": "żółw.png", "group": "a"}]


def test_a_separator_that_is_none_of_these_is_not_taken_for_one(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("sep=|\nfile|group\n")
    with pytest.raises(PapError, match="line 1: expected the columns file, group"):
        tables.read(path, ("file", "group"))
