"""Hashes of parts and of files."""

from iclora.files import digest, digest_file


def test_a_digest_depends_on_where_its_parts_end():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"ab", "c") == digest("ab", b"c")


def test_a_file_has_the_digest_of_its_bytes(tmp_path):
    """Also of none, and of more than are in memory at once."""
    for data in (b"", b"a", bytes(range(256)) * 8193):
        (tmp_path / "file").write_bytes(data)
        assert digest_file(tmp_path / "file") == digest(data)
