import pytest

from engine.atomic_write import atomic_write


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic_write(tmp_path / "a.json") as part:
        part.write_text("whole")
        assert part == tmp_path / "a.json.part"
        assert not (tmp_path / "a.json").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "whole"}


def test_an_existing_file_is_replaced_at_the_end_only(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with atomic_write(tmp_path / "a.json") as part:
        part.write_text("new")
        assert (tmp_path / "a.json").read_text() == "old"
    assert (tmp_path / "a.json").read_text() == "new"


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / "a.json.part").write_text("longer than what comes")
    with atomic_write(tmp_path / "a.json") as part:
        part.write_text("whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "whole"}


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, error):
    (tmp_path / "a.json").write_text("old")

    def write():
        with atomic_write(tmp_path / "a.json") as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}


def test_a_file_that_cannot_take_its_place_leaves_no_part(tmp_path):
    (tmp_path / "a.json").mkdir()

    def write():
        with atomic_write(tmp_path / "a.json") as part:
            part.write_text("whole")

    with pytest.raises(IsADirectoryError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_mode_of_the_part_is_the_mode_of_the_file(tmp_path):
    with atomic_write(tmp_path / "a.bin") as part:
        part.write_bytes(b"x")
        part.chmod(0o644)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644
