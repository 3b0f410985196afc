"""The model of a disk, held against what POSIX and journaling file systems promise."""

from random import Random

import pytest

from aloop.testing.power.disks import (
    ROOT,
    Disk,
    Link,
    Make,
    Mark,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
    numbered,
    read_tree,
    write_tree,
)

CUTS = 1000


def after(tree, *operations):
    """Give the disk after the operations; syncs are given as nodes, and cover all before them."""
    disk = Disk(tree)
    for place, operation in enumerate(operations):
        disk.apply(Sync(operation, place) if isinstance(operation, int) else operation)
    return disk


def cuts(disk, count=CUTS):
    """Give what many power cuts at this moment leave."""
    return [disk.cut(Random(seed)) for seed in range(count)]  # noqa: S311 - keeps no secret


def outcomes(disk):
    return {tuple(sorted(left.items())) for left in cuts(disk)}


def test_numbers_are_those_of_the_paths():
    tree = {"a": None, "a/b": b"1", "c": b"2"}
    numbers = numbered(tree)
    assert numbers[""] == ROOT
    assert after(tree, Write(numbers["a/b"], 0, b"3")).now() == {**tree, "a/b": b"3"}


def test_what_was_there_to_begin_with_is_on_the_disk():
    tree = {"a": None, "a/b": b"1", "c": b"2"}
    assert all(left == tree for left in cuts(Disk(tree)))


def test_what_was_not_synced_is_there_or_not():
    disk = after({"a": b"old"}, Write(1, 0, b"new"))
    assert outcomes(disk) == {(("a", b"old"),), (("a", b"new"),)}


def test_what_was_synced_stays():
    disk = after({"a": b"old"}, Write(1, 0, b"new"), 1, Write(1, 3, b"er"))
    assert {dict(left)["a"] for left in outcomes(disk)} == {b"new", b"newer", b"new\0\0"}


def test_each_write_is_kept_or_not_whatever_becomes_of_the_others():
    disk = after({"a": b"...."}, Write(1, 0, b"1"), Write(1, 2, b"2"))
    assert {dict(left)["a"] for left in outcomes(disk)} == {b"....", b"1...", b"..2.", b"1.2."}


def test_a_write_is_torn_between_sectors_only():
    disk = after({"a": b"." * 1600}, Write(1, 100, b"x" * 1300))
    found = {left["a"] for left in cuts(disk)}
    bounds = [(100, 512), (512, 1024), (1024, 1400)]
    for content in found:
        assert content[:100] == b"." * 100
        assert content[1400:] == b"." * 200
        assert all(len(set(content[begin:end])) == 1 for begin, end in bounds)
    assert len(found) == 2**3


def test_what_was_lost_before_what_was_kept_is_a_hole():
    disk = after({"a": b""}, Write(1, 0, b"12"), Write(1, 2, b"34"))
    assert b"\0\x0034" in {left["a"] for left in cuts(disk)}


def test_a_file_can_have_its_size_without_its_content():
    disk = after({"a": b""}, Write(1, 0, b"12"))
    assert {left["a"] for left in cuts(disk)} == {b"", b"\0\0", b"12"}


def test_a_cut_off_file_may_have_its_old_end():
    disk = after({"a": b"1234"}, Resize(1, 2))
    assert {left["a"] for left in cuts(disk)} == {b"12", b"1234"}


def test_a_file_that_was_lengthened_ends_in_zeros():
    assert after({"a": b"12"}, Resize(1, 4)).now() == {"a": b"12\0\0"}


def test_a_sync_covers_what_was_done_before_it_was_called():
    disk = after({"a": b"1"}, Write(1, 0, b"2"), Write(1, 0, b"3"), Sync(1, 1))
    assert {left["a"] for left in cuts(disk)} == {b"2", b"3"}


def test_a_synced_file_has_no_name_until_its_directory_is_synced():
    made = [Make(ROOT, "a", 1), Write(1, 0, b"1"), 1]
    assert outcomes(after({}, *made)) == {(), (("a", b"1"),)}
    assert outcomes(after({}, *made, ROOT)) == {(("a", b"1"),)}


def test_a_name_that_was_synced_may_be_that_of_an_empty_file():
    disk = after({}, Make(ROOT, "a", 1), Write(1, 0, b"1"), ROOT)
    assert {left["a"] for left in cuts(disk)} == {b"", b"\0", b"1"}


def test_names_are_kept_in_order():
    disk = after({}, Make(ROOT, "a", 1), Make(ROOT, "b", 2), Remove(ROOT, "a"))
    assert {tuple(sorted(left)) for left in cuts(disk)} == {(), ("a",), ("a", "b"), ("b",)}


def test_what_is_in_a_directory_without_a_name_is_gone():
    disk = after({}, Make(ROOT, "d", 1, True), Make(1, "a", 2), Write(2, 0, b"1"), 2, 1)
    assert outcomes(disk) == {(), (("d", None), ("d/a", b"1"))}


def test_a_rename_is_there_as_a_whole_or_not_at_all():
    disk = after({"a": b"1", "b": b"2"}, Rename(ROOT, "a", ROOT, "b"))
    assert outcomes(disk) == {(("a", b"1"), ("b", b"2")), (("b", b"1"),)}


def test_a_rename_of_a_file_that_was_not_synced_may_leave_an_empty_one():
    disk = after(
        {"b": b"2"}, Make(ROOT, "a", 2), Write(2, 0, b"1"), Rename(ROOT, "a", ROOT, "b"), ROOT
    )
    assert b"" in {left["b"] for left in cuts(disk)}


@pytest.mark.parametrize("synced", ["", "c", "d"])
def test_a_rename_between_directories_is_never_half_there(synced):
    tree = {"c": None, "c/a": b"1", "d": None}
    numbers = numbered(tree)
    source, target = numbers["c"], numbers["d"]
    operations = [
        Make(source, "before", 9),
        Rename(source, "a", target, "a"),
        Make(target, "after", 10),
    ]
    disk = after(tree, *operations, *([numbers[synced]] if synced else []))
    places = {tuple(path for path in left if path.endswith("/a")) for left in cuts(disk)}
    assert places == ({("d/a",)} if synced else {("c/a",), ("d/a",)})


def test_no_directory_is_removed_before_what_was_moved_out_of_it():
    tree = {"c": None, "c/a": b"1", "d": None}
    numbers = numbered(tree)
    disk = after(tree, Rename(numbers["c"], "a", numbers["d"], "a"), Remove(ROOT, "c"))
    found = {tuple(sorted(left)) for left in cuts(disk)}
    assert found == {("c", "c/a", "d"), ("c", "d", "d/a"), ("d", "d/a")}


def test_a_synced_removal_of_a_directory_keeps_what_was_moved_out_of_it():
    tree = {"c": None, "c/a": b"1", "d": None}
    numbers = numbered(tree)
    disk = after(tree, Rename(numbers["c"], "a", numbers["d"], "a"), Remove(ROOT, "c"), ROOT)
    assert {tuple(sorted(left)) for left in cuts(disk)} == {("d", "d/a")}


def test_a_link_is_another_name_of_the_same_file():
    disk = after({"a": b"1"}, Link(ROOT, "b", 1), Write(1, 0, b"2"))
    assert disk.now() == {"a": b"2", "b": b"2"}
    assert all(len(set(left.values())) == 1 for left in cuts(disk))


def test_a_removed_file_that_was_not_forgotten_has_what_was_written_after():
    disk = after({"a": b"1"}, Remove(ROOT, "a"), Write(1, 0, b"2"), 1)
    assert outcomes(disk) == {(), (("a", b"2"),)}


def test_marks_change_nothing():
    assert after({"a": b"1"}, Mark("told")).now() == {"a": b"1"}


def test_the_same_cut_can_be_made_again():
    disk = after({"a": b"." * 4096}, Write(1, 0, b"x" * 4096), Make(ROOT, "b", 2))
    assert cuts(disk, 9) == cuts(disk, 9)
    assert len(outcomes(disk)) > 9


def test_a_tree_is_written_as_it_was_read(tmp_path):
    tree = {"a": None, "a/b": b"1", "a/c": None, "d": b""}
    write_tree(tree, tmp_path)
    (tmp_path / "d-shm").write_bytes(b"memory")
    assert read_tree(tmp_path) == tree
