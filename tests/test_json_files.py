import json
import tracemalloc

import pytest

from hf_gpt import json_files
from hf_gpt.json_files import read_json

HOSTILE = {
    "empty": (b"", "Expecting value"),
    "a list": (b"[]", "expected a JSON object, got list"),
    "null": (b"null", "expected a JSON object, got NoneType"),
    "truncated": (b'{"a": ', "Expecting value"),
    "two objects": (b"{} {}", "Extra data"),
    "a repeated key": (b'{"b": {"a": 1, "c": 0, "a": 2}}', "the key 'a' occurs twice"),
    "nested": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "nested objects": (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "400 digits": (b'{"a": 1' + b"0" * 399 + b"}", "an integer has 400 digits, expected at most 64"),
    "5000 digits": (b'{"a": -' + b"1" * 5000 + b"}", "an integer has 5001 digits"),
    "NaN": (b'{"a": NaN}', "NaN is not a finite number"),
    "-Infinity": (b'{"a": [-Infinity]}', "-Infinity is not a finite number"),
    "a number that is too large": (b'{"a": 1e400}', "1e400 is not a finite number"),
    "a float of many digits": (b'{"a": ' + b"9" * 5000 + b".0}", "9 is not a finite number"),
    "not UTF-8": (b'{"a": "\xff"}', "can't decode byte 0xff in position 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "can't decode byte"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "binary": (bytes(range(256)), "can't decode byte 0x80"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    content, message = HOSTILE[name]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        read_json(tmp_path / "config.json")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_values_are_unchanged(tmp_path):
    content = {"a": 10**30, "b": [-1, 1.5, 1e300, None, True], "c": {"é红": "\u2028", "": {}}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(str(tmp_path / "a.json")) == content


def test_not_a_number_is_accepted_on_request(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"loss": float("inf")}))
    assert read_json(tmp_path / "report.json", allow_nan=True) == {"loss": float("inf")}


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        read_json(tmp_path / "none.json")


def test_size(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES", 100)
    (tmp_path / "a.json").write_bytes(b'{"a": 1}' + b" " * 92)
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_bytes(b'{"a": 1}' + b" " * 93)
    with pytest.raises(ValueError, match=r"a\.json has 101 bytes: expected a JSON file of at most 100"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("item", ["[]", "{}", '{"":0}', '"a"', '"é"', "1.5", '"\U0001f600"', '[["a"]]', '{"a":[]}'])
def test_memory(item, tmp_path):
    """Peak memory is at most 50 bytes per byte of the file."""
    content = '{"a":[' + ",".join([item] * (300_000 // len(item))) + "]}"
    (tmp_path / "a.json").write_text(content)
    tracemalloc.start()
    read_json(tmp_path / "a.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(content.encode())
