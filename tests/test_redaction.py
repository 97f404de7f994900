"""What is secret in a URL, and what of it stays."""

import pytest

from tfds_pap import redaction, urls
from tfds_pap.errors import PapError

OPAQUE = "c2VjcmV0LW9mLXRoaXMtdGVzdA"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("s3://bucket/a b.svs", None),
        ("/data/a.png?token=1", None),
        ("abfs://box@account.dfs.core.windows.net/a.svs", None),
        ("https://host/a.svs?page=2#part", None),
        ("s3://bucket/what?.png", None),
        ("https://me:pass@host/a", "https://***@host/a"),
        ("https://ghp_1@host/a", "https://***@host/a"),
        ("HTTPS://ghp_1@host/a", "HTTPS://***@host/a"),
        ("--folders=ftp://me:p@ss@host/a", "--folders=ftp://***@host/a"),
        (
            "https://h/a?x-amz-date=1&X-Amz-Credential=A/2&X-Amz-Signature=b",
            "https://h/a?x-amz-date=***&X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://h/a?X-Goog-Signature=1", "https://h/a?X-Goog-Signature=***"),
        ("https://h/a?sv=1&se=2&sig=3", "https://h/a?sv=***&se=***&sig=***"),
        ("https://h/a?sv=1&se=2", None),
        (f"https://h/a?{OPAQUE}", "https://h/a?***"),
        (f"https://h/a?x={OPAQUE}&y=1", "https://h/a?x=***"),
        ("https://h/a#access_token=1", "https://h/a#access_token=***"),
        ("no answer of 'https://h/a?api_key=1', sorry", "no answer of 'https://h/a?api_key=***"),
        (
            "two: s3://a/b, https://h/a?Signature=1: no",
            "two: s3://a/b, https://h/a?Signature=***: no",
        ),
    ],
)
def test_secrets_are_left_out_and_nothing_else(written, shown):
    result = redaction.redacted(written)
    if shown is None:
        assert result == written and not redaction.is_redacted(result)
        return
    assert result.startswith(shown) and redaction.is_redacted(result)
    assert redaction.redacted(result) == result
    assert OPAQUE not in result


def test_files_that_a_secret_tells_apart_stay_apart():
    one, other = (redaction.redacted(f"https://h/get?token={each}") for each in ("a", "b"))
    assert one != other
    one, other = (redaction.redacted(f"https://h/a?Expires={each}") for each in ("1", "2"))
    assert one == other


@pytest.mark.parametrize("url", ["https://token@host/a.png", "sftp://me:secret@host/a.png"])
def test_a_url_with_a_password_is_asked_nothing(url):
    with pytest.raises(PapError, match="a password in a URL is not taken") as raised:
        urls.state(url)
    assert "***@host" in str(raised.value) and "secret" not in str(raised.value)
