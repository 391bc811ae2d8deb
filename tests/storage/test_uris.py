"""URIs: each names exactly one directory and holds no secret; others are refused in one line."""

import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from conftest import Command, Pipeline
from object_store import at
from smtkit.errors import UsageError
from smtkit.storage.location import local_path, locate
from smtkit.storage.remote import Remote

SECRET = "wJalr"
OFFLINE = "endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"  # no network is used


def refused(uri: str, message: str) -> UsageError:
    """The error for a URI; it matches `message` and has one line."""
    with pytest.raises(UsageError, match=message) as caught:
        locate(uri)
    assert str(caught.value).isprintable()
    return caught.value


# --- file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///tmp/a?b", r"file:///tmp/a: \? in a URI"),
        ("file:///tmp/a#2", "# in a URI"),
        ("file://", "expected file:///path"),
        ("file://localhost", "expected file:///path"),
        ("file:///tmp/a%00b", r"control character '\\x00'"),
        ("file:///tmp/a\nb", r"file:///tmp/a%0Ab: .* control character '\\n'"),
        ("file://a\nb/tmp", "control character"),
        ("file://host/x", "host is host, allowed: file:///path"),
    ],
)
def test_an_ambiguous_file_uri_is_refused(uri: str, message: str) -> None:
    refused(uri, message)


def test_a_file_uri_can_name_any_path(tmp_path: Path) -> None:
    """pathlib writes the URI of names with arbitrary bytes."""
    for name in (b"a b", b"100%", b"a?b#c", b"na\xc3\xafve", b"a\xffb", b"user@host", b"a:b"):
        path = tmp_path / os.fsdecode(name)
        assert locate(path.as_uri()) == path
    assert locate(f"file://localhost{tmp_path}/na\u00efve") == tmp_path / "na\u00efve"


@pytest.mark.parametrize("scheme", ["s3", "gs", "file", "S3"])
@pytest.mark.parametrize("rest", ["/bucket/x", "bucket/x", ""])
def test_a_scheme_without_slashes_is_refused(scheme: str, rest: str) -> None:
    refused(f"{scheme}:{rest}", f"^{scheme}:{rest}: expected {scheme.lower()}://")


def test_other_colons_belong_to_paths() -> None:
    for path in ("c:/x", "a/s3:/x", "/s3:/x", "s3", "files:x", "2026-01-01T10:00"):
        assert locate(path) == Path(path)


# --- buckets and keys ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a/../b", r"\.\. between slashes"),
        ("..", r"\.\. between slashes"),
        ("a/.", r"\. between slashes"),
        ("./a", r"\. between slashes"),
        ("%2e%2E/b", r"\.\. between slashes"),
        ("a%2F..%2Fb", r"\.\. between slashes"),
        ("a//b", "nothing between slashes"),
        ("/b", "nothing between slashes"),
        ("a//", "nothing between slashes"),
        ("a%2F", "nothing between slashes"),
        ("a%00b", r"control character '\\x00'"),
        ("a%0Ab", r"control character '\\n'"),
        ("a%C2%85b", r"control character '\\x85'"),
        ("a%FFb", "not UTF-8"),
        ("a\nb", r"s3://bucket/a%0Ab: '\\n' in a URI"),
    ],
)
def test_a_key_that_leads_elsewhere_or_holds_control_characters_is_refused(
    key: str, message: str
) -> None:
    refused(f"s3://bucket/{key}", message)


@pytest.mark.parametrize("bucket", ["..", ".", "-a", "%62", "b%2Fc", "b!", "*"])
def test_an_invalid_bucket_is_refused(bucket: str) -> None:
    refused(f"s3://{bucket}/x", re.escape(f"bucket is {bucket}, allowed"))


@pytest.mark.parametrize("uri", ["s3://localhost:9000/x", "s3://bucket:9000/x", "gs://b:/x"])
def test_a_port_is_refused(uri: str) -> None:
    assert "endpoint_override=host:port" in str(refused(uri, "a port").hint)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://bucket/a b", "' '"),
        ("s3://bucket/na\u00efve", r"'\xef'"),
        ("s3://bucket/100%", "'%'"),
        ("s3://bucket/%zz", "'%'"),
        ("s3://bucket/a\\b", r"'\\'"),
        ("s3://[x/y", "'['"),
        ("s3://[::1]:9000/y", "'['"),
        ("s3://bu\u2100cket/x", r"'\u2100'"),
        ("s3://bucket/x#1", "'#'"),
        ("gs://bucket/x?location=a b", "' '"),
    ],
)
def test_characters_that_must_be_encoded_are_refused(uri: str, found: str) -> None:
    error = refused(uri, re.escape(f": {found} in a URI"))
    assert "percent-encode" in str(error.hint)


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("/.%\\ ?#@"), min_size=1))
def test_pyarrow_opens_the_directory_that_the_uri_names(key: str) -> None:
    uri, key = f"s3://bucket/{quote(key)}?{OFFLINE}", key.removesuffix("/")
    names = key.split("/")
    control = any(unicodedata.category(character) == "Cc" for character in key)
    if control or {"", ".", ".."} & set(names):
        refused(uri, "^s3://bucket/")
    else:
        assert fs.FileSystem.from_uri(str(locate(uri)))[1] == f"bucket/{key}"


# --- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"s3://key:sec/{SECRET}@bucket/x",
        f"s3://key:sec/{SECRET}?@bucket/x",
        f"s3://key:a@{SECRET}@bucket/x",
        f"s3://key:{SECRET}%40bucket/x",
        f"s3://key:{SECRET}",
        f"s3a://AKID:{SECRET}@bucket/x",
        f"ftp://user:{SECRET}@host/x",
        f"gs://anonymous:{SECRET}@bucket/x",
        f"gs://anonymous@{SECRET}@bucket/x",
        f"file://user:{SECRET}@host/x",
        f"s3:key:{SECRET}@bucket/x",
        f"s3:/key:{SECRET}@bucket/x",
        f"s3://bucket/x?endpoint_override=user:{SECRET}@127.0.0.1:9&scheme=http",
        f"s3://bucket/x?secret_key=a@{SECRET}",
        "s3://anonymous@bucket/x",
    ],
)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    error = refused(uri, "credentials")
    assert SECRET not in f"{error} {error.hint}"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (f"secret_key={SECRET}", "option is secret_key, allowed: .*region"),
        (f"access_key=AKID&secret_key={SECRET}", "option is access_key, allowed"),
        (f"region=a&session_token={SECRET}", "option is session_token, allowed"),
        (f"project_id={SECRET}", "option is project_id, allowed"),  # an option of gs
        (f"regi%6Fn={SECRET}", "option is regi%6Fn, allowed"),
        (f"endpoint_override=user:{SECRET}%40host", "endpoint_override with an @"),
        (f"{SECRET}", "an option without a value"),
        (f"secret_key={SECRET} ", "' ' in a URI"),
        ("scheme", "an option without a value"),
        ("region=", "an option without a value"),
        ("region=a&&scheme=http", "an option without a value"),
    ],
)
def test_other_options_are_refused_and_not_repeated(query: str, message: str) -> None:
    error = refused(f"s3://bucket/x?{query}", f"^s3://bucket/x: {message}")
    assert SECRET not in f"{error} {error.hint}"


def test_a_secret_of_another_scheme_is_not_repeated() -> None:
    refused(f"https://host/x?token={SECRET}", "^https://host/x: scheme is https, allowed")


@pytest.mark.parametrize(
    ("scheme", "base"),
    [("s3", f"s3://bucket/x?{OFFLINE}"), ("gs", "gs://anonymous@bucket/x?scheme=http")],
)
def test_pyarrow_reads_the_allowed_options(scheme: str, base: str) -> None:
    message = str(refused(f"{scheme}://bucket/x?nonsense=1", "allowed: "))
    allowed = message.partition("allowed: ")[2].split(", ")
    assert {"scheme", "endpoint_override"} < set(allowed)
    for name in allowed:
        value = {"scheme": "http", "retry_limit_seconds": "5"}.get(name, "true")
        try:
            fs.FileSystem.from_uri(str(locate(f"{base}&{name}={value}")))
        except pa.ArrowInvalid:  # an older version of pyarrow
            assert name.startswith(("allow_delayed", "project", "smart", "tls"))
    for name in ("access_key", "secret_key", "session_token", "access_token"):
        with pytest.raises(pa.ArrowInvalid, match="Unexpected query parameter"):
            fs.FileSystem.from_uri(f"{base}&{name}=1")


@pytest.mark.parametrize("value", ["perhaps", "%20"])
def test_a_value_that_pyarrow_refuses_is_a_usage_error(value: str) -> None:
    uri = f"s3://bucket/x?{OFFLINE}&allow_bucket_creation={value}"
    location = locate(uri)
    assert isinstance(location, Remote)
    with pytest.raises(UsageError, match=re.escape(uri)):
        location.sizes()


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "s3:/bucket/x",
        "file:///tmp/a%00b",
        "s3://bucket/a/../b",
        "s3://bucket/a b",
        "s3://bucket:9000/x",
        "s3://[x/y",
        "s3://bucket/x?scheme",
        f"s3://key:a/{SECRET}@bucket/x",
    ],
)
def test_a_wrong_uri_is_one_line_and_writes_nothing(
    uri: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMTKIT_CACHE", str(tmp_path / "cache"))
    synthesize = ("synthesize", "parity", "--length=8", "--sequences=1", "--out", uri)
    for arguments in (("inspect", uri), synthesize):
        result = command(*arguments)
        assert result.code == 2
        assert SECRET not in result.line()
    assert list(tmp_path.iterdir()) == []


def test_a_location_is_a_path_or_a_uri(tmp_path: Path) -> None:
    assert locate("a//b") == Path("a/b")
    assert locate(tmp_path) == tmp_path
    assert locate(f"file://{tmp_path}/with%20space") == tmp_path / "with space"
    for uri in (
        "s3://bucket/a/b",
        "gs://anonymous@bucket/a",
        "s3://b/a?endpoint_override=h:1&scheme=http",
    ):
        assert str(locate(uri)) == uri
    assert str(locate("s3://bucket/a/")) == "s3://bucket/a"
    assert at("s3://b/a?scheme=http").uri_of("x") == "s3://b/a/x?scheme=http"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", r"ftp://host/x: scheme is ftp, allowed: a path, or file://, gs://, s3://"),
        ("file://host/x", "host is host"),
        ("s3://bucket", "expected s3://bucket/name"),
        ("s3:///x", "expected s3://bucket/name"),
        ("s3://bucket/x#1", "expected s3://bucket/name"),
    ],
)
def test_other_schemes_and_incomplete_uris_are_refused(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        locate(uri)


@pytest.mark.parametrize(
    "line",
    [
        "export RNN --out s3://bucket/model.onnx",
        "generate RNN --out s3://bucket/samples.png",
        "report RNN --out s3://bucket/report.html",
        "report RNN --out report.html --csv s3://bucket/numbers",
        "status s3://bucket/artifacts",
    ],
)
def test_a_uri_is_no_file_of_this_machine(
    pipeline: Pipeline, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*line.replace("RNN", str(pipeline.rnn)).split())
    assert result.code == 2
    assert "s3://bucket/" in result.line()
    assert "expected a path on this machine" in result.line()
    assert not list(tmp_path.iterdir())


def test_the_uri_of_a_file_is_its_path(tmp_path: Path) -> None:
    assert local_path((tmp_path / "a b").as_uri(), "out") == tmp_path / "a b"
