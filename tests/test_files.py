"""Whole files or none, digests by content, one line for every error; the shared trajectory and profiles."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genreward import errors, files, profiles
from genreward.errors import InputError
from genreward.trajectory import Trajectory, check_frames, uniform_indices


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "kept.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), files.atomic_path(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half-way")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["kept.txt"]


def test_a_reader_meets_the_old_file_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "deep" / "kept.csv"
    files.write_json(target.with_suffix(".json"), {})
    with files.atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".csv"
        temporary.write_text("a,b\n")
        assert not target.exists()
    assert target.read_text() == "a,b\n"
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask  # as readable as any other file


def test_a_failed_folder_leaves_the_old_one_whole(tmp_path):
    target = tmp_path / "goal"
    with files.atomic_dir(target) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), files.atomic_dir(target) as temporary:
        (temporary / "b").write_text("new")
        raise RuntimeError("half-way")
    assert names(tmp_path) == ["goal"] and names(target) == ["a"]
    with files.atomic_dir(target) as temporary:
        (temporary / "b").write_text("new")
    assert names(tmp_path) == ["goal"] and names(target) == ["b"]


def test_a_full_disk_costs_one_line_and_no_file(tmp_path, capsys):
    """`/dev/full` refuses every byte: the real error of a real writer, for plain files and for torch's."""
    import torch

    target = tmp_path / "kept.pt"
    target.write_bytes(b"old")

    def by_torch():
        with files.atomic_path(target) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            torch.save({"weights": torch.zeros(300_000)}, temporary)

    def by_hand():
        with files.atomic_path(target) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("new" * 10_000)

    for write in (by_torch, by_hand):
        with pytest.raises(SystemExit) as end:
            errors.cli(write)
        printed = capsys.readouterr().err
        assert end.value.code == 2
        assert printed.startswith("error: the disk is full") and printed.count("\n") == 1
        assert target.read_bytes() == b"old" and names(tmp_path) == ["kept.pt"]


def test_cli_hides_nothing_but_bad_input_and_files_that_cannot_be_used(tmp_path, capsys):
    def bad():
        raise InputError("no such thing; valid: this, that")

    def denied():
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    def failing(number, *name):
        raise OSError(number, os.strerror(number), *name)

    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for call, told in (
            (bad, "no such thing; valid: this, that"), (denied, "x: Permission denied"),
            (lambda: files.write_json(tmp_path / "folder", {}), f"{tmp_path / 'folder'}: Is a directory"),
            (lambda: files.write_json(tmp_path / "file" / "x.json", {}),
             f"{tmp_path / 'file'} cannot be a folder: a file is in its place or above it")):
        with pytest.raises(SystemExit) as end:
            errors.cli(call)
        assert end.value.code == 2 and capsys.readouterr().err == f"error: {told}\n"
    for given in ((errno.EIO, "x"), (errno.ENOENT,), (errno.ECHILD, "x")):  # a broken disk, no file's name, our fault
        with pytest.raises(OSError):
            errors.cli(lambda given=given: failing(*given))
    with pytest.raises(SystemExit) as end:
        errors.cli(lambda: None)
    assert end.value.code == 0


def test_digest_is_by_content(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "one").write_text("1")
    first = files.digest(folder)
    assert len(first) == 16 and int(first, 16) >= 0
    (folder / ".hidden").write_text("not counted")
    assert files.digest(folder) == first
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one").write_text("1")
    assert files.digest(tmp_path / "b") == first  # where it lies does not matter
    (folder / "one").write_text("2")
    changed = files.digest(folder)
    (folder / "one").rename(folder / "two")
    assert len({first, changed, files.digest(folder)}) == 3
    with pytest.raises(InputError, match="no such file or folder"):
        files.digest(tmp_path / "absent")


def test_digest_of_numbers_is_by_value_and_order_of_keys_is_none():
    sac = profiles.get_profile("smoke").sac
    assert files.digest({"a": 1, "b": (2,)}) == files.digest({"b": [2], "a": np.int64(1)})
    assert files.digest(sac) == files.digest(dataclasses.replace(sac))
    assert files.digest(sac) != files.digest(dataclasses.replace(sac, batch=sac.batch + 1))


def test_json_comes_back_and_damage_is_named(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"b": np.float32(0.5), "a": Path("p/q"), "c": {3}})
    assert files.read_json(path) == {"a": "p/q", "b": 0.5, "c": [3]}
    assert list(json.loads(path.read_text())) == ["a", "b", "c"]
    path.write_text(path.read_text()[:-5])
    with pytest.raises(InputError, match="x.json is not readable JSON"):
        files.read_json(path)
    with pytest.raises(InputError, match="no such file: .*y.json"):
        files.read_json(tmp_path / "y.json")
    for other in ("[1]", "null", '"text"', "3"):
        path.write_text(other)
        with pytest.raises(InputError, match="x.json holds .*where names with their values"):
            files.read_json(path)


def test_arrays_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "x.npz"
    with open(path, "wb") as file:
        np.savez_compressed(file, a=np.arange(500.0), b=np.array("word"))
    kept = files.read_npz(path)
    assert list(kept) == ["a", "b"] and kept["a"].tolist() == list(range(500)) and str(kept["b"]) == "word"
    assert list(files.read_npz(path, "b")) == ["b"]
    with pytest.raises(InputError, match=r"x.npz holds no c, d \(but a, b\)"):
        files.read_npz(path, "a", "c", "d")
    with pytest.raises(InputError, match="no such file: .*y.npz"):
        files.read_npz(tmp_path / "y.npz")
    whole = path.read_bytes()
    middle = whole.find(b"a.npy") + 200  # inside the first array's packed bytes
    np.save(tmp_path / "one.npy", np.arange(3))
    for damaged in (b"", whole[:-30], whole[:len(whole) // 2], b"text", (tmp_path / "one.npy").read_bytes(),
                    whole[:middle] + bytes(20) + whole[middle + 20:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="x.npz is damaged"):
            files.read_npz(path)
    with open(path, "wb") as file:
        np.savez(file, a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="x.npz is damaged"):
        files.read_npz(path)


def test_tables_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2.5\n3,4.25\n")
    assert files.read_table(path, ("a", "b"), dtype=float)["b"].tolist() == [2.5, 4.25]
    with pytest.raises(InputError, match="x.csv has columns a, b; valid: a, c"):
        files.read_table(path, ("a", "c"))
    with pytest.raises(InputError, match="no such file: .*y.csv"):
        files.read_table(tmp_path / "y.csv")
    for damaged, why in ((b"", "not a readable table: No columns"), (b"a,b\n1,2.5\n3,4.2", "row 2 is cut short"),
                         (b"a,b\n1,2,3\n4,5,6,7\n", "not a readable table"), (b"a,b\n\xff\xfe,1\n", "not a file of"),
                         (b"a,b\n1,x\n", "not a readable table")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"x.csv.*{why}"):
            files.read_table(path, dtype=float)


def test_frames_are_spread_over_both_ends():
    assert uniform_indices(257, 9).tolist() == [0, 32, 64, 96, 128, 160, 192, 224, 256]
    assert uniform_indices(2, 4).tolist() == [0, 0, 1, 1]
    assert uniform_indices(5, 1).tolist() == [0]
    for arguments in ((0, 3), (3, 0)):
        with pytest.raises(InputError, match="at least 1"):
            uniform_indices(*arguments)


@pytest.mark.parametrize(("frames", "message"), [
    (np.zeros((2, 4, 4), np.uint8), r"shape \(2, 4, 4\)"),
    (np.zeros((2, 4, 4, 4), np.uint8), r"shape \(2, 4, 4, 4\)"),
    (np.zeros((2, 4, 4, 3), np.float32), "float32"),
    (np.zeros((0, 4, 4, 3), np.uint8), "at least 1 frame, got 0"),
    (np.zeros((2, 4, 6, 3), np.uint8), "4x4 pixels, got 4x6"),
])
def test_wrong_frames_are_refused_by_name(frames, message):
    with pytest.raises(InputError, match=f"the clip .*{message}"):
        check_frames(frames, 4, "the clip")


def test_a_trajectory_of_unequal_lengths_is_refused():
    parts = {"states": np.zeros((4, 39)), "actions": np.zeros((3, 4)), "rewards": np.zeros(3),
             "success": np.array([False, True, False])}
    whole = Trajectory("reach", **parts)
    assert len(whole) == 3 and whole.succeeded
    with pytest.raises(InputError, match="3 actions needs 4 states, got 3"):
        Trajectory("reach", **(parts | {"states": np.zeros((3, 39))}))
    with pytest.raises(InputError, match="needs 4 frames, got 3"):
        Trajectory("reach", **parts, frames=np.zeros((3, 8, 8, 3), np.uint8))


def test_profiles_hold_together():
    with pytest.raises(InputError, match="unknown profile 'lap top'; valid: gpu, laptop, paper, smoke"):
        profiles.get_profile("lap top")
    for profile in profiles.PROFILES.values():
        run = profile.run
        assert run.evaluate_every % profile.episode_steps == 0 or profile.name in ("gpu", "paper")
        assert (profile.video.num_frames - 1) % 8 == 0
        assert 0 < profile.fb.gamma < 1
        assert run.prefill < run.fb_train_until <= run.sac_steps
        assert profile.fb.batch <= run.fb_train_until
    assert profiles.get_profile("paper").reward == profiles.RewardConfig(alpha=0.01, beta=1e-5, interval=128)


def test_paths_follow_the_root(root, monkeypatch):
    where = profiles.paths("smoke")
    assert where.goals == root / "results" / "smoke" / "goals"
    assert where.checkpoints.is_relative_to(root / "build")
    (root / "here").touch()
    for odd in ("nowhere", "here"):
        monkeypatch.setenv("GENREWARD_ROOT", str(root / odd))
        with pytest.raises(InputError, match=f"GENREWARD_ROOT is .*{odd}, which is no folder; make it, or unset"):
            profiles.paths("smoke")
    monkeypatch.setenv("GENREWARD_ROOT", "")
    assert profiles.paths("smoke").root == Path(profiles.__file__).resolve().parent.parent
    assert not profiles.paths("laptop").runs.is_relative_to(where.results)


def test_a_reader_that_stops_listening_is_no_error():
    code = ("from genreward import errors; "
            "errors.cli(lambda: [print('line', flush=True) for _ in range(100_000)] and None)")
    told = subprocess.run(f"{sys.executable} -c \"{code}\" | head -1", shell=True, capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parent.parent)
    assert (told.stdout, told.stderr) == ("line\n", "")
