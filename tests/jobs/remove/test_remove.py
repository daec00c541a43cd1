"""A takedown leaves no byte of a video, whenever it is killed, and is remembered."""

import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.prepare.prepare import prepare
from jobs.remove.remove import remove
from jobs.shard import shard
from jobs.verify.verify import verify_run
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger
from recaption.ledger.removed import REMOVED, UNFINISHED
from recaption.ledger.verify import verify
from recaption.run_folder import RunFolder


def contents(run):
    """Name -> everything that can be read in a file: its bytes, the members of a tar, the rows of a table as text."""
    found = {}
    for path in run.fs.find(run.root):
        name, payload = str(path).removeprefix(run.root + "/"), run.fs.cat_file(path)
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(payload))
            columns = [column for column in table.column_names if not pa.types.is_binary(table[column].type)]
            payload += json.dumps(table.select(columns).to_pylist(), default=str, ensure_ascii=False).encode()
            payload += json.dumps({str(k): str(v) for k, v in (table.schema.metadata or {}).items()}).encode()
            payload += b"".join(b for c in set(table.column_names) - {*columns} for b in table[c].to_pylist() if b)
        found[name] = payload
    return found


def members(run, clip_ids):
    """Bytes of the mp4s, latents, previews and embeddings of clips."""
    payloads = {}
    for path in run.fs.glob(run.path("shards/*/*.tar")) + run.fs.glob(run.path("latents/*/*/*.tar")):
        with tarfile.open(fileobj=io.BytesIO(run.fs.cat_file(path))) as tar:
            payloads |= {m.name: tar.extractfile(m).read() for m in tar if m.name.partition(".")[0] in clip_ids}
    for name in run.list("previews/*.parquet"):
        rows = run.read_table(name).to_pylist()
        payloads |= {f"preview of {row['clip_id']}": row["jpeg"] for row in rows if row["clip_id"] in clip_ids}
    return payloads


def of_video(run, video_id):
    """(clip ids, uris, captions) of a video."""
    clips = [row for name in run.list("clips/*.parquet") for row in run.read_table(name).to_pylist()]
    clips = [row for row in clips if row["video_id"] == video_id]
    ids = {row["clip_id"] for row in clips}
    captions = [row for name in run.list("captions/main/part-*.parquet") for row in run.read_table(name).to_pylist()]
    theirs = {row["text"] for row in captions if row["clip_id"] in ids and row["text"]}
    return ids, {row["uri"] for row in clips}, theirs - {row["text"] for row in captions if row["clip_id"] not in ids}


def traces(run, video_id, payloads, ids, uris, texts):
    """Files in which anything of a video is found."""
    needles = [name.encode() for name in {video_id, *ids, *uris, *texts}] + [
        p for p in payloads.values() if len(p) > 100
    ]
    return {
        name: [n[:60] for n in needles if n in data]
        for name, data in contents(run).items()
        if any(n in data for n in needles)
    }


@pytest.fixture
def first_video(run_copy):
    """(video id, uri) of a video of the demo whose bytes two inputs have."""
    rows = [row for name in run_copy.list("videos/*.parquet") for row in run_copy.read_table(name).to_pylist()]
    ids = [row["video_id"] for row in rows]
    row = next(row for row in rows if ids.count(row["video_id"]) == 2)
    return row["video_id"], row["uri"]


def listed(tmp_path, *lines):
    file = tmp_path / "takedown.txt"
    file.write_text("# of 3 May\n" + "\n".join(lines) + "\n")
    return str(file)


def test_no_byte_of_the_video_stays_and_the_run_is_whole(run_copy, small_recipe, first_video, tmp_path):
    video_id, uri = first_video
    ids, uris, texts = of_video(run_copy, video_id)
    payloads = members(run_copy, ids)
    assert any(name.endswith(".mp4") for name in payloads)
    assert any(name.endswith(".npy") for name in payloads)
    before = build_ledger(run_copy, small_recipe.filters).summary()
    assert len(traces(run_copy, video_id, payloads, ids, uris, texts)) > 8

    summary = remove(run_copy, small_recipe, listed(tmp_path, uri))

    assert summary["removed"]["videos"] == len(uris) == 2
    assert summary["removed"]["samples"] >= 1
    assert traces(run_copy, video_id, payloads, ids, uris, texts) == {}
    assert verify_run(run_copy, small_recipe, num_pairs=None)["problems"] == []
    after = build_ledger(run_copy, small_recipe.filters).summary()
    assert after["videos"] == before["videos"] | {"ok": before["videos"]["ok"] - 2, "removed": 2}
    assert after["clips"]["total"] == before["clips"]["total"]
    assert after["clips"]["dropped"]["removed"] == 2 * len(ids)
    assert after["seconds"]["total"] == pytest.approx(before["seconds"]["total"])
    assert after["seconds"]["total"] == pytest.approx(sum(after["seconds"][k] for k in ("kept", "dropped", "failed")))


def test_other_samples_keep_their_bytes_and_finished_parts_stay_finished(
    run_copy, small_recipe, first_video, tmp_path, in_process, scene_videos
):
    kept = {c.clip_id for c in build_ledger(run_copy, small_recipe.filters).clips} - of_video(run_copy, first_video[0])[
        0
    ]
    before = members(run_copy, kept)
    remove(run_copy, small_recipe, listed(tmp_path, first_video[0]))
    assert members(run_copy, kept) == before
    again = prepare([], run_copy.uri, small_recipe, in_process)
    assert again["computed_parts"] == 0


def test_the_same_bytes_do_not_come_back(run_copy, small_recipe, first_video, tmp_path, in_process, scene_videos):
    video_id, _ = first_video
    ids, _, texts = of_video(run_copy, video_id)
    payloads = members(run_copy, ids)
    before = build_ledger(run_copy, small_recipe.filters).summary()
    remove(run_copy, small_recipe, listed(tmp_path, f"{next(iter(ids))}"))
    shutil.copyfile(scene_videos / "scene-00.mp4", tmp_path / "under another name.mp4")

    summary = prepare(
        [str(scene_videos), str(tmp_path / "under another name.mp4")], run_copy.uri, small_recipe, in_process
    )

    assert summary["videos"]["removed"] == 3
    assert summary["videos"]["total"] == before["videos"]["total"] + 1
    assert summary["videos"]["ok"] == before["videos"]["ok"] - 2
    assert summary["clips"]["total"] == before["clips"]["total"]
    assert traces(run_copy, video_id, payloads, ids, [], texts) == {}
    problems = verify_run(run_copy, small_recipe, num_pairs=0)["problems"]
    assert {p["where"] for p in problems} <= {
        "captions/main/part-00003.parquet"
    }  # the new, empty part is not captioned yet
    repeated = remove(run_copy, small_recipe, listed(tmp_path, video_id))
    assert repeated["removed"]["videos"] == 0


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_and_run_again_it_ends_the_same(
    run_copy, small_recipe, first_video, tmp_path, monkeypatch, stride
):
    """A kill after every `stride`-th write or removal of a file."""
    video_id, uri = first_video
    ids, uris, texts = of_video(run_copy, video_id)
    payloads = members(run_copy, ids)
    start = tmp_path / "start"
    shutil.copytree(run_copy.root, start)
    takedown = listed(tmp_path, uri)
    remove(run_copy, small_recipe, takedown)
    expected = {n: d for n, d in contents(run_copy).items() if not n.startswith("verdicts/")}

    class Killed(BaseException):
        pass

    left = [0]

    def killing(original):
        def call(self, name, *arguments):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return original(self, name, *arguments)

        return call

    monkeypatch.setattr(RunFolder, "write_bytes", killing(RunFolder.write_bytes))
    monkeypatch.setattr(RunFolder, "remove", killing(RunFolder.remove))
    kills, was_killed = 0, True
    while was_killed:
        run = RunFolder(str(tmp_path / f"killed-{kills}"))
        shutil.copytree(start, run.root)
        left[0] = kills
        try:
            remove(run, small_recipe, takedown)
            was_killed = False
        except Killed:
            left[0] = 10**6
            if run.exists(UNFINISHED):
                assert "removal_unfinished" in {problem.kind for problem in verify(run, small_recipe.filters)}
            remove(run, small_recipe, takedown)
        else:
            assert kills > 30
        assert traces(run, video_id, payloads, ids, uris, texts) == {}, kills
        assert not run.exists(UNFINISHED)
        assert run.read_table(REMOVED).num_rows == 2
        found = {n: d for n, d in contents(run).items() if not n.startswith("verdicts/")}
        assert {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)} == set(), kills
        shutil.rmtree(run.root)
        kills += stride


def test_shards_stay_current_where_they_have_what_is_planned(run_copy, small_recipe, first_video, tmp_path, in_process):
    remove(run_copy, small_recipe, listed(tmp_path, first_video[0]))
    fresh = shard(run_copy, small_recipe, "main", in_process)
    assert fresh["skipped_parts"] >= 1
    assert verify_run(run_copy, small_recipe, num_pairs=0)["problems"] == [] or fresh["computed_parts"]


def test_unknown_names_are_one_sentence(run_copy, small_recipe, tmp_path, command):
    with pytest.raises(UsageError, match=r"1 of 1 entries are not in .*'nobody\.mp4'"):
        remove(run_copy, small_recipe, listed(tmp_path, "nobody.mp4"))
    code, _, error = command("prepare", "--out", run_copy.uri, "--remove", str(tmp_path / "no.txt"))
    assert code == 2
    assert "no such file" in error
