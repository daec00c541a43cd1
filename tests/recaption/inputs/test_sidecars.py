"""Side texts: what is a text beside a video is its caption; links that lead out, pipes, folders and floods are refused."""

import os

import fsspec
import pytest

from recaption.inputs.sidecars import MAX_SIDECAR_BYTES, find_sidecar, has_sidecar, read_sidecar_caption


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def test_the_text_next_to_a_video_is_its_original_caption(folder):
    (folder / "b.txt").write_text(" a dog \n")
    assert read_sidecar_caption(str(folder / "b.mp4")) == "a dog"
    assert read_sidecar_caption(str(folder / "a.webm")) == ""
    assert has_sidecar(str(folder / "b.mp4"))
    assert not has_sidecar(str(folder / "a.webm"))


@pytest.mark.parametrize("name", ["a.TXT", "a.mp4.txt", "a.mp4.TXT"])
def test_other_spellings_of_the_name_are_found(folder, name):
    (folder / name).write_text("a dog")
    assert read_sidecar_caption(str(folder / "a.mp4")) == "a dog"


def test_names_with_colons_and_names_that_are_not_utf8_have_texts(folder):
    for name in (b"a::b", b"caf\xe9"):
        with open(os.path.join(os.fsencode(folder), name + b".txt"), "wb") as file:
            file.write(b"a dog")
    from recaption.inputs.names import uri_of_path

    assert read_sidecar_caption(f"{folder}/a::b.mp4") == "a dog"
    assert read_sidecar_caption(uri_of_path(os.fsdecode(os.path.join(os.fsencode(folder), b"caf\xe9.mp4")))) == "a dog"


def test_texts_in_other_encodings_are_decoded_and_binary_is_refused(folder):
    (folder / "a.txt").write_bytes("A café in Zürich.".encode("latin-1"))
    (folder / "b.txt").write_bytes("A dog runs on the beach.".encode("utf-16"))
    (folder / "c.txt").write_bytes(os.urandom(2000))
    assert read_sidecar_caption(f"{folder}/a.mp4") == "A café in Zürich."
    assert read_sidecar_caption(f"{folder}/b.mp4") == "A dog runs on the beach."
    assert find_sidecar(f"{folder}/c.mp4").refusal == "c.txt: is no text"


def make_link_out(path):
    outside = path.parent.parent / "letter.txt"
    outside.write_text("a private text with the number 4711")
    path.symlink_to(outside)


def make_link_out_by_a_folder(path):
    (path.parent.parent / "private").mkdir()
    (path.parent.parent / "private" / "letter.txt").write_text("4711")
    (path.parent / "sub").symlink_to(path.parent.parent / "private")
    path.symlink_to("sub/letter.txt")


REFUSED = {
    "a folder": lambda path: path.mkdir(),
    "not a regular file": os.mkfifo,
    "leads out": make_link_out,
    "leads out of its folder": make_link_out_by_a_folder,
    "a link that leads out": lambda path: path.symlink_to("/proc/self/environ"),
    "a link that": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere.txt"),
    "a link to what is no regular file": lambda path: path.symlink_to(path),
    "longer than": lambda path: path.write_bytes(b"word " * MAX_SIDECAR_BYTES),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_no_text_of_the_folder_is_refused_with_a_reason(folder, why):
    REFUSED[why](folder / "a.txt")
    found = find_sidecar(f"{folder}/a.mp4")
    assert found.text == ""
    assert found.refusal.startswith("a.txt: ")
    assert why in found.refusal


def test_a_link_inside_the_folder_is_followed(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "text.txt").write_text("a dog")
    (folder / "a.txt").symlink_to("sub/text.txt")
    assert read_sidecar_caption(f"{folder}/a.mp4") == "a dog"


def test_a_text_that_may_not_be_read_is_refused(folder, monkeypatch):
    (folder / "a.txt").write_text("a dog")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("recaption.inputs.sidecars.os.open", denied)
    assert find_sidecar(f"{folder}/a.mp4").refusal == "a.txt: Permission denied"


def test_remote_texts_are_bounded_and_never_raise(monkeypatch):
    fs = fsspec.filesystem("memory")
    fs.pipe({"/sidecars/a.txt": b"a dog", "/sidecars/b.mp4.txt": b"a cat", "/sidecars/c.txt": b"x" * 70_000})
    assert read_sidecar_caption("memory://sidecars/a.mp4") == "a dog"
    assert read_sidecar_caption("memory://sidecars/b.mp4") == "a cat"
    assert find_sidecar("memory://sidecars/none.mp4").refusal == ""
    assert "longer than" in find_sidecar("memory://sidecars/c.mp4").refusal

    def broken(*_, **__):
        raise OSError("503")

    monkeypatch.setattr(type(fs), "cat_file", broken)
    assert find_sidecar("memory://sidecars/a.mp4").refusal == "a.txt: OSError: 503"
