"""Which slide a scanned field is of, where a groups.csv lies beside it."""

import pytest

from replication.fields import scan_directory


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_the_slide_of_a_field_is_read_as_a_spreadsheet_wrote_it(tmp_path, encoding, separator):
    text = f"file{separator}group\nfields/a.jpg{separator}x\na.jpg{separator}Präparat 1\n"
    (tmp_path / "groups.csv").write_bytes(text.encode(encoding))
    named = {
        name: scan_directory._slide(str(tmp_path / name), scan_directory._groups)
        for name in ("a.jpg", "b.jpg")
    }
    assert named == {"a.jpg": "Präparat 1", "b.jpg": ""}
