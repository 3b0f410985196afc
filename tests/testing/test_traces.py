"""What is read out of traces: those of real programs, and such as were made by hand."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aloop.errors import MissingDependencyError
from aloop.testing.power.disks import (
    ROOT,
    Disk,
    Make,
    Mark,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
    read_tree,
    write_tree,
)
from aloop.testing.power.strace import TraceError, strace
from aloop.testing.power.traces import read_trace

ROOT_PATH, MARKS, ELSEWHERE = Path("/r"), Path("/m"), Path("/e")


def x(text):
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def operations(tmp_path, *lines, tree=None):
    """Read a trace in which what is between two broken bars stands for its hexadecimal form."""
    file = tmp_path / "trace"
    pieces = "\n".join(line if line[0].isdigit() else f"1 {line}" for line in lines).split("¦")
    file.write_text("".join(x(piece) if place % 2 else piece for place, piece in enumerate(pieces)))
    return [step.operation for step in read_trace(file, ROOT_PATH, MARKS, tree or {}, ELSEWHERE)]


def opened(path, flags="O_RDWR|O_CREAT", descriptor=3):
    return f'openat(AT_FDCWD<¦/e¦>, "¦{path}¦", {flags}, 0644) = {descriptor}<¦{path}¦>'


def written(text, path="/r/a", descriptor=3, pid=1):
    return f'{pid} write({descriptor}<¦{path}¦>, "¦{text}¦", {len(text)}) = {len(text)}'


def test_a_file_is_made_when_it_is_first_opened(tmp_path):
    assert operations(tmp_path, opened("/r/a"), opened("/r/a")) == [Make(ROOT, "a", 1)]


def test_what_is_elsewhere_or_failed_is_left_out(tmp_path):
    assert not operations(
        tmp_path,
        opened("/r2/a"),
        written("1", "/r2/a"),
        'openat(AT_FDCWD<¦/e¦>, "¦/r/a¦", O_RDONLY) = -1 ENOENT (No such file or directory)',
        'unlink("¦/r/a¦") = -1 ENOENT (No such file or directory)',
        'write(5<¦/r/a¦>, "¦1¦", 1) = ?',
        "+++ exited with 0 +++",
    )


def test_writes_go_on_where_the_last_has_ended(tmp_path):
    found = operations(
        tmp_path,
        opened("/r/a"),
        written("12"),
        "dup(3<¦/r/a¦>) = 4<¦/r/a¦>",
        written("34", descriptor=4),
        "lseek(3<¦/r/a¦>, 1, SEEK_SET) = 1",
        written("5"),
        'pwrite64(3<¦/r/a¦>, "¦6¦", 1, 7) = 1',
        written("8"),
    )
    assert found[1:] == [
        Write(1, 0, b"12"),
        Write(1, 2, b"34"),
        Write(1, 1, b"5"),
        Write(1, 7, b"6"),
        Write(1, 2, b"8"),
    ]


def test_of_a_write_only_what_was_written_counts(tmp_path):
    found = operations(tmp_path, opened("/r/a"), 'write(3<¦/r/a¦>, "¦1234¦", 4) = 2', written("5"))
    assert found[1:] == [Write(1, 0, b"12"), Write(1, 2, b"5")]


def test_who_appends_writes_to_the_end(tmp_path):
    found = operations(
        tmp_path,
        opened("/r/a", "O_WRONLY|O_APPEND"),
        written("12"),
        "ftruncate(3<¦/r/a¦>, 1) = 0",
        'pwrite64(3<¦/r/a¦>, "¦3¦", 1, 9) = 1',
        tree={"a": b"0"},
    )
    assert found == [Write(1, 1, b"12"), Resize(1, 1), Write(1, 1, b"3")]


def test_the_parts_of_a_vector_are_one_write(tmp_path):
    vector = '[{iov_base="¦12¦", iov_len=2}, {iov_base="¦3¦", iov_len=1}]'
    found = operations(tmp_path, opened("/r/a"), f"writev(3<¦/r/a¦>, {vector}, 2) = 3")
    assert found[1:] == [Write(1, 0, b"123")]


def test_a_call_counts_when_it_has_returned_and_syncs_what_was_before_it(tmp_path):
    found = operations(
        tmp_path,
        "1 clone3({flags=CLONE_FILES}, 88) = 2",
        opened("/r/a"),
        written("1"),
        "1 fsync(3<¦/r/a¦> <unfinished ...>",
        written("2", pid=2),
        "1 <... fsync resumed>) = 0",
    )
    assert found[1:] == [Write(1, 0, b"1"), Write(1, 1, b"2"), Sync(1, 2)]


def test_a_number_can_be_given_out_again_before_its_close_returns(tmp_path):
    found = operations(
        tmp_path,
        opened("/r/a"),
        "1 close(3<¦/r/a¦> <unfinished ...>",
        opened("/r/b").replace("openat", "2 openat"),
        "1 <... close resumed>) = 0",
        "1 clone(child_stack=NULL, flags=CLONE_FILES) = 2",
        written("1", "/r/b", pid=2),
    )
    assert found[2:] == [Write(2, 0, b"1")]


def test_a_forked_process_has_descriptors_of_its_own(tmp_path):
    found = operations(
        tmp_path,
        opened("/r/a"),
        "1 clone(child_stack=NULL, flags=SIGCHLD) = 2",
        "2 close(3<¦/r/a¦>) = 0",
        written("1"),
    )
    assert found[1:] == [Write(1, 0, b"1")]


def test_names_are_followed(tmp_path):
    found = operations(
        tmp_path,
        'mkdir("¦/r/d¦", 0777) = 0',
        opened("/r/d/a"),
        'rename("¦/r/d¦", "¦/r/e¦") = 0',
        'chdir("¦/r¦") = 0',
        'renameat2(AT_FDCWD<¦/r¦>, "¦e/a¦", AT_FDCWD<¦/r¦>, "¦b¦", RENAME_NOREPLACE) = 0',
        'unlinkat(AT_FDCWD<¦/r¦>, "¦b¦", 0) = 0',
        'rmdir("¦e¦") = 0',
    )
    assert found == [
        Make(ROOT, "d", 1, True),
        Make(1, "a", 2),
        Rename(ROOT, "d", ROOT, "e"),
        Rename(1, "a", ROOT, "b"),
        Remove(ROOT, "b"),
        Remove(ROOT, "e"),
    ]


def test_a_rename_of_a_file_to_another_name_of_itself_does_nothing(tmp_path):
    found = operations(
        tmp_path,
        opened("/r/a"),
        'link("¦/r/a¦", "¦/r/b¦") = 0',
        'rename("¦/r/a¦", "¦/r/b¦") = 0',
        'unlink("¦/r/a¦") = 0',
    )
    assert found[2:] == [Remove(ROOT, "a")]


def test_what_is_told_keeps_its_place(tmp_path):
    found = operations(
        tmp_path,
        opened("/r/a"),
        opened("/m", "O_WRONLY|O_APPEND|O_CREAT", 4),
        written("one\n", "/m", 4),
        written("1"),
    )
    assert found[1:] == [Mark("one"), Write(1, 0, b"1")]


def test_everything_can_be_synced_at_once(tmp_path):
    found = operations(tmp_path, opened("/r/a"), "sync() = 0")
    assert found[1:] == [Sync(ROOT, 1), Sync(1, 1)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{}>, 0) = 0x7f", "does not see"),
        ("sendfile(3<{}>, 9<{}>, NULL, 9) = 9", "does not see"),
        ("copy_file_range(9<{}>, NULL, 3<{}>, NULL, 9, 0) = 9", "does not see"),
        ("fallocate(3<{}>, FALLOC_FL_PUNCH_HOLE, 0, 9) = 0", "more than lengthen"),
        ('write(3<{}>, "\\x31"..., 99) = 99', "at once"),
        ("fsync(7<{}>) = 0", "nobody knows where"),
        ('symlink("\\x61", "{}") = 0', "neither a file nor"),
        ('rename("\\x2f\\x61", "{}") = 0', "in or out"),
        ('rename("{}", "\\x2f\\x61") = 0', "in or out"),
        ('renameat2(AT_FDCWD<\\x2f>, "{}", AT_FDCWD<\\x2f>, "{}", RENAME_EXCHANGE) = 0', "swaps"),
        ('link("\\x2f\\x61", "{}") = 0', "elsewhere"),
        ('openat(AT_FDCWD<\\x2f>, "{}", O_RDWR|O_TMPFILE) = 4<{}>(deleted)', "without a name"),
    ],
)
def test_what_the_model_does_not_have_is_refused(tmp_path, line, why):
    file = tmp_path / "trace"
    first = 'openat(AT_FDCWD<\\x2f>, "{}", O_RDWR|O_CREAT) = 3<{}>'
    file.write_text("\n".join(f"1 {each}" for each in (first, line)).replace("{}", x("/r/a")))
    with pytest.raises(TraceError, match=why):
        read_trace(file, ROOT_PATH, MARKS, {}, ELSEWHERE)


@pytest.mark.parametrize(
    "line",
    [
        "mmap(NULL, 9, PROT_READ, MAP_SHARED, 3<{}>, 0) = 0x7f",
        "mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_PRIVATE, 3<{}>, 0) = 0x7f",
        "sendfile(9<\\x2f\\x61>, 3<{}>, NULL, 9) = 9",
        "fcntl(3<{}>, F_SETLK, {l_type=F_RDLCK, l_whence=SEEK_SET}) = 0",
    ],
)
def test_what_changes_no_file_is_left_out(tmp_path, line):
    file = tmp_path / "trace"
    first = 'openat(AT_FDCWD<\\x2f>, "{}", O_RDWR|O_CREAT) = 3<{}>'
    file.write_text("\n".join(f"1 {each}" for each in (first, line)).replace("{}", x("/r/a")))
    assert len(read_trace(file, ROOT_PATH, MARKS, {}, ELSEWHERE)) == 1


def test_shared_memory_is_left_out(tmp_path):
    assert not operations(
        tmp_path,
        opened("/r/log-shm"),
        "ftruncate(3<¦/r/log-shm¦>, 3) = 0",
        'unlink("¦/r/log-shm¦") = 0',
    )


def test_without_strace_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="install your system's package"):
        strace(tmp_path / "trace")


PROGRAM = """
    import fcntl, os, sqlite3, subprocess, sys, threading

    kept = open("old", "r+b")
    kept.seek(0, 2)
    kept.write(b"more")
    kept.close()
    one = open("röt 1", "wb")
    one.write(b'quote " backslash \\\\ newline \\n')
    one.flush()
    os.fsync(one.fileno())
    here = os.open(".", os.O_RDONLY)
    os.rename("röt 1", "renamed")
    os.fsync(here)
    one.write(b"after the rename")
    one.close()
    os.makedirs("deep/er")
    two = os.open("two", os.O_CREAT | os.O_WRONLY | os.O_APPEND, dir_fd=here)
    os.writev(two, [b"ab", b"cd"])
    os.ftruncate(two, 1)
    os.posix_fallocate(two, 0, 10)
    os.dup2(two, 77)
    os.write(fcntl.fcntl(77, fcntl.F_DUPFD_CLOEXEC, 100), b"dup")
    threads = [
        threading.Thread(target=os.write, args=(two, bytes([letter]) * 100)) for letter in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.link("two", "deep/er/linked")
    os.rename("deep/er", "er")
    os.rename("er/linked", "deep/linked")
    os.rmdir("er")
    gone = open("gone", "w")
    os.unlink("gone")
    gone.write("to nowhere")
    gone.close()
    try:
        os.unlink("gone")
    except FileNotFoundError:
        pass
    os.truncate("old", 3)
    subprocess.run([sys.executable, "-c", "open('of child', 'w').write('1')"], check=True)
    for mode in ("wal", "delete"):
        with sqlite3.connect("database") as connection:
            connection.execute(f"PRAGMA journal_mode = {mode}")
            connection.execute("CREATE TABLE IF NOT EXISTS some (value)")
            connection.executemany("INSERT INTO some VALUES (?)", [[b"x" * 5000]] * 9)
            connection.commit()
        connection.close()
"""


@pytest.mark.power
def test_a_disk_on_which_nothing_is_lost_is_the_real_one(tmp_path):
    root = (tmp_path / "root").resolve()
    tree = {"old": b"here before", "empty": None}
    root.mkdir()
    write_tree(tree, root)
    trace = tmp_path / "trace"
    program = textwrap.dedent(PROGRAM)
    subprocess.run([*strace(trace), sys.executable, "-c", program], cwd=root, check=True)
    disk = Disk(tree)
    steps = read_trace(trace, root, tmp_path / "marks", tree, root)
    for step in steps:
        disk.apply(step.operation)
    assert disk.now() == read_tree(root)
    assert "the directory was synced" in [step.what for step in steps]
