"""Files are replaced whole, and damage is noticed."""

import errno
import os

import pytest

from ocresnet import files


def test_a_file_is_replaced_or_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.replace_file(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"file cannot be written: No space left on device\.$"):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.replace_file(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_read_only_as_they_were_written(tmp_path):
    path = tmp_path / "bytes"
    files.replace_file(path, b"content")
    wanted = files.digest(b"content")
    assert files.digest_of_file(path) == wanted
    assert files.read_verified(path, wanted) == b"content"
    path.write_bytes(b"contenu")
    with pytest.raises(ValueError, match="bytes is damaged: its content does not fit its checksum"):
        files.read_verified(path, wanted)


def test_a_sealed_object_comes_back_without_its_seal(tmp_path):
    path = tmp_path / "value.json"
    value = {"numbers": [0.1, 1e-30, float("inf")], "deep": {"word": "ä"}, "none": None}
    files.write_json(path, files.sealed(value))
    assert files.read_json(path) == value
    files.write_json(path, value)
    assert files.read_json(path) == value


def test_every_flipped_bit_of_a_sealed_object_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "value.json"
    value = {"rate": 0.125, "names": ["a", "b"], "flag": True}
    files.write_json(path, files.sealed(value))
    content = path.read_bytes()
    noticed = 0
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = files.read_json(path)
            except ValueError as error:
                assert "value.json is damaged: " in str(error)
                noticed += 1
            else:  # white space, or the name of the seal itself
                assert {name: found.get(name) for name in value} == value
    assert noticed > 0.8 * 8 * len(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": "\xc3"}', b"[" * 100_000, b"1" * 5000, b"\xff\xfe"],
)
def test_what_is_not_json_is_said_in_a_sentence(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"value\.json is damaged: .*\.$"):
        files.read_json(path)
