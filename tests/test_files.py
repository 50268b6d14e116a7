"""Files that are replaced as a whole."""

from __future__ import annotations

from nas.files import write_atomically


def test_links_are_replaced_and_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("a.json", ".a.json.unfinished"):
        (tmp_path / name).symlink_to(precious)
    write_atomically(tmp_path / "a.json", "new")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "a.json").read_text() == "new"


def test_what_a_killed_process_left_is_no_hindrance(tmp_path):
    (tmp_path / ".a.json.unfinished").write_text("ha")
    write_atomically(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
