"""Folders and globs: links are followed once, companions are counted, what cannot be read is named, nothing is lost."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from recaption.errors import UsageError
from recaption.inputs.paths import expand_paths, find_inputs


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(found, folder):
    return [name.removeprefix(f"{folder}/") for name in found]


def test_linked_folders_are_followed_and_loops_are_cut(tmp_path):
    make(tmp_path, "nas/deep/n.mp4", "real/r.mp4", "t/own.mp4", "t/sub/v.mp4")
    (tmp_path / "t" / "linked_folder").symlink_to("../nas")
    (tmp_path / "t" / "linked_file.mp4").symlink_to("../real/r.mp4")
    (tmp_path / "t" / "sub" / "loop").symlink_to("..")
    (tmp_path / "t" / "broken.mp4").symlink_to("/nowhere/gone.mp4")
    (tmp_path / "t" / "self").symlink_to("self")
    expected = ["broken.mp4", "linked_file.mp4", "linked_folder/deep/n.mp4", "own.mp4", "sub/v.mp4"]
    assert names(expand_paths([str(tmp_path / "t")]), tmp_path / "t") == sorted([*expected, "self"])
    found = expand_paths([f"{tmp_path}/t/**/*.mp4"])
    assert names(found, tmp_path / "t") == expected
    assert names(expand_paths([f"{tmp_path}/t/*/deep/?.mp4"]), tmp_path / "t") == ["linked_folder/deep/n.mp4"]


def test_a_maze_of_links_ends(tmp_path):
    for one in "abcdefgh":
        make(tmp_path, f"{one}/{one}.mp4")
        for other in "abcdefgh":
            (tmp_path / one / f"to-{other}").symlink_to(f"../{other}")
    assert names(expand_paths([str(tmp_path)]), tmp_path) == [f"{one}/{one}.mp4" for one in "abcdefgh"]
    assert len(expand_paths([f"{tmp_path}/**/*.mp4"])) == 8


def test_companions_of_downloads_are_left_out_and_counted(tmp_path):
    companions = (
        "ok.jpg ok.f140.m4a ok.info.json ok.en.srt ok.description ok.lrc ok.webp dl.mp4.part x.mp4.part-Frag12 "
    )
    companions += "x.mp4.ytdl Thumbs.db desktop.ini archive.sqlite .DS_Store ._ok.mp4 THUMB.JPG "
    companions += ".ipynb_checkpoints/ok-checkpoint.mp4 __MACOSX/._ok.mp4 @eaDir/ok.mp4@SYNO/x.mp4"
    make(tmp_path, *companions.split(), "ok.mp4", "unknown.xyz", "noext")
    found = find_inputs([str(tmp_path)])
    assert names(found.all_names(), tmp_path) == ["noext", "ok.mp4", "unknown.xyz"]
    assert found.num_companions == 19
    glob = find_inputs([f"{tmp_path}/**/*"])
    assert (glob.uris, glob.num_companions) == (found.uris, 17)  # `*` does not match names that start with a dot


def test_what_is_named_itself_is_an_input_whatever_its_name(tmp_path):
    make(tmp_path, "ok.jpg", "b.part", "list.txt")
    (tmp_path / "list.txt").write_text("b.part\n")
    paths = [f"{tmp_path}/ok.jpg", f"{tmp_path}/*.jpg", f"{tmp_path}/list.txt"]
    found = find_inputs(paths)
    assert names(found.all_names(), tmp_path) == ["b.part", "ok.jpg"]
    assert found.num_companions == 0


def test_animated_pictures_are_videos_and_stills_are_not(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    for extension in ("png", "webp"):
        frames[0].save(tmp_path / f"moving.{extension}", save_all=True, append_images=frames[1:], duration=100)
        frames[0].save(tmp_path / f"still_{extension}.{extension}")
    frames[0].save(tmp_path / "thumb.jpg")
    os.replace(
        tmp_path / "moving.png", tmp_path / "animation.png"
    )  # beside moving.webp it is no thumbnail of it either
    found = find_inputs([str(tmp_path)])
    assert names(found.all_names(), tmp_path) == ["animation.png", "moving.webp"]
    assert found.num_companions == 3


def test_a_folder_of_companions_only_says_so(tmp_path):
    make(tmp_path, "a.jpg", "b.txt")
    with pytest.raises(UsageError, match="no video file there, only 2 files that accompany videos"):
        expand_paths([str(tmp_path)])


def test_names_that_are_not_utf8_are_found(tmp_path):
    for name in (b"caf\xe9.mp4", b"f\xff/\xc4\xe3.mp4"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    expected = [f"file://{tmp_path}/{name}" for name in ("caf%E9.mp4", "f%FF/%C4%E3.mp4")]
    assert expand_paths([str(tmp_path)]) == expand_paths([f"{tmp_path}/**/*.mp4"]) == expected


def test_a_folder_that_cannot_be_listed_is_refused_with_the_reason(tmp_path, monkeypatch):
    make(tmp_path, "open/12.mp4", "closed/13.mp4")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("recaption.inputs.folders.os.scandir", denied)
    for path in (str(tmp_path), f"{tmp_path}/**/*.mp4", f"{tmp_path}/*/*.mp4"):
        found = find_inputs([path])
        assert found.refused == {f"{tmp_path}/closed": "Permission denied"}
        assert names(found.all_names(), tmp_path) == ["closed", "open/12.mp4"]
    with pytest.raises(UsageError, match="Permission denied"):
        expand_paths([str(tmp_path / "closed")])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_folder_of_another_user_is_refused(tmp_path):
    make(tmp_path, "open/12.mp4", "closed/13.mp4")
    os.chmod(tmp_path / "closed", 0)
    code = (
        "import sys; sys.path[:0] = " + repr(sys.path) + "\n"
        f"from recaption.inputs.paths import find_inputs; print(find_inputs([{str(tmp_path)!r}]).refused)"
    )
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    try:
        done = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("setpriv is not installed")
    if "setpriv" in done.stderr:
        pytest.skip("capabilities cannot be dropped here")
    assert done.stdout == f"{ {f'{tmp_path}/closed': 'Permission denied'} }\n", done.stderr
