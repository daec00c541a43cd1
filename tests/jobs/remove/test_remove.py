"""A takedown leaves no byte of a video, whenever it is killed, and is remembered."""

import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.prepare.prepare import prepare
from jobs.recipe.flags import changed
from jobs.recipe.run_inputs import write_recipe
from jobs.remove.remove import remove
from jobs.report.page import write_report
from jobs.shard import shard
from jobs.verify.repair import repair_run
from jobs.verify.verify import verify_run
from recaption import open_run
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger
from recaption.ledger.removed import REMOVED, UNFINISHED
from recaption.ledger.verify import verify
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.writer import write_video


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


def test_repair_leaves_an_unfinished_removal_to_the_command(run_copy, small_recipe, in_process):
    run_copy.write_bytes(UNFINISHED, b"{}")
    run_copy.write_bytes("verdicts/part-00000.parquet", b"damaged")
    summary = repair_run(run_copy, small_recipe, in_process, num_pairs=0)
    assert {p["kind"] for p in summary["problems"]} == {"removal_unfinished", "part_unreadable"}
    assert summary["refused"]["verdicts/part-00000.parquet"] == "no stage writes this file"


def test_unknown_names_are_one_sentence(run_copy, small_recipe, tmp_path, command):
    with pytest.raises(UsageError, match=r"1 of 1 entries are not in .*'nobody\.mp4'"):
        remove(run_copy, small_recipe, listed(tmp_path, "nobody.mp4"))
    code, _, error = command("prepare", "--out", run_copy.uri, "--remove", str(tmp_path / "no.txt"))
    assert code == 2
    assert "no such file" in error


def test_encoded_texts_go_and_the_others_are_read_as_before(run_copy, small_recipe, first_video, tmp_path, in_process):
    from jobs.encode.texts import encode_texts
    from train.text.stored import find

    recipe = changed(small_recipe, "encode.text", encoder="captioner:tiny")
    write_recipe(run_copy, recipe)
    encode_texts(run_copy, recipe, in_process)
    _, _, texts = of_video(run_copy, first_video[0])
    stored = find(run_copy, "captioner:tiny")
    table = run_copy.read_table(f"{stored.folder}/part-00000.parquet")["text"].to_pylist()
    before = {text: stored.read(*stored.find(text)) for text in table}
    assert texts
    assert texts <= before.keys()

    summary = remove(run_copy, recipe, listed(tmp_path, first_video[0]))

    assert summary["removed"]["texts"] == len(texts)
    stored = find(run_copy, "captioner:tiny")
    for text, encoded in before.items():
        found = stored.find(text)
        assert (found is None) == (text in texts)
        if found is not None:
            assert all(a.equal(b) for a, b in zip(stored.read(*found), encoded))
    assert verify_run(run_copy, recipe, num_pairs=0)["problems"] == []


def test_copies_of_a_removed_video_do_not_take_its_place(small_recipe, in_process, tmp_path):
    """Of three encodings of one scene the best is kept, and removed: the others stay out, and are named."""
    (tmp_path / "videos").mkdir()
    scene = render(5100, num_frames=25, height_px=96, width_px=96, fps=8, **SIMPLE)
    for name, crf in (("best", 6), ("worse", 20), ("worst", 28)):
        write_video(tmp_path / "videos" / f"{name}.mp4", scene.frames_THWC, fps=8, crf=crf)
    render(5101, num_frames=25, height_px=96, width_px=96, fps=8, **SIMPLE).write(tmp_path / "videos" / "other.mp4")
    run = RunFolder(str(tmp_path / "run"))
    prepare([str(tmp_path / "videos")], run.uri, small_recipe, in_process)
    clips = open_run(run.uri).clips()
    assert sorted(clips.state) == ["dropped", "dropped", "waiting", "waiting"]

    best = clips[(clips.state == "waiting") & ~clips.uri.str.endswith("other.mp4")].uri.iloc[0]
    summary = remove(run, small_recipe, listed(tmp_path, best))

    assert len(summary["similar_videos"]) == 2
    assert "2 other videos look like removed ones" in summary["warnings"][0]
    clips = open_run(run.uri).clips()
    assert clips.reason.tolist().count("rejected") == 2
    assert clips[clips.state == "waiting"].uri.str.endswith("other.mp4").all()
    remove(run, small_recipe, listed(tmp_path, *summary["similar_videos"]))
    assert open_run(run.uri).verdicts().empty
    assert open_run(run.uri).summary()["videos"] == {"total": 4, "ok": 1, "failed": 0, "removed": 3, "waiting": 0}


def test_reports_samples_and_evaluations_that_quote_it_go(run_copy, small_recipe, first_video, tmp_path):
    ids, uris, texts = of_video(run_copy, first_video[0])
    write_report(run_copy, small_recipe.filters, recipe=small_recipe)
    quote = next(iter(texts))
    run_copy.write_bytes("samples/main-000010/samples.json", json.dumps({"prompts": ["a cat", quote]}).encode())
    run_copy.write_bytes("samples/main-000010/000.mp4", b"generated")
    run_copy.write_bytes("samples/other/samples.json", json.dumps({"prompts": ["a cat"]}).encode())
    run_copy.write_bytes(f"exported/{first_video[0]}-0000000-0000017.mp4", b"a copy")
    run_copy.write_bytes("train/main/metrics.jsonl", b"{}")
    run_copy.write_bytes("train/main/evaluation.json", json.dumps({"prompts": [quote]}).encode())
    summary = remove(run_copy, small_recipe, listed(tmp_path, first_video[0]))
    assert traces(run_copy, first_video[0], {}, ids, uris, texts) == {}
    assert not run_copy.exists("samples/main-000010")
    assert run_copy.list("exported/*") == []
    assert run_copy.exists("samples/other/samples.json")
    assert run_copy.exists("train/main/metrics.jsonl")
    assert "models that were trained before have seen it: main" in summary["warnings"][-1]


def test_a_table_of_videos_or_clips_names_them(run_copy, small_recipe, first_video, tmp_path):
    videos = open_run(run_copy.uri).videos()
    file = tmp_path / "takedown.csv"
    videos[videos.video_id == first_video[0]].to_csv(file)
    assert remove(run_copy, small_recipe, str(file))["removed"]["videos"] == 2
    clips = open_run(run_copy.uri).clips()
    clips.head(1).to_parquet(tmp_path / "takedown.parquet")
    assert remove(run_copy, small_recipe, str(tmp_path / "takedown.parquet"))["removed"]["videos"] == 1
    videos[["codec"]].to_csv(file)
    with pytest.raises(UsageError, match="none of the columns clip_id, video_id, uri"):
        remove(run_copy, small_recipe, str(file))


def test_a_remote_run_folder(run_copy, small_recipe, first_video, tmp_path):
    remote = RunFolder("memory://remove/run")
    for path in run_copy.fs.find(run_copy.root):
        remote.fs.pipe_file(remote.path(path.removeprefix(run_copy.root + "/")), run_copy.fs.cat_file(path))
    ids, uris, texts = of_video(remote, first_video[0])
    payloads = members(remote, ids)
    assert remove(remote, small_recipe, listed(tmp_path, first_video[0]))["removed"]["videos"] == 2
    assert traces(remote, first_video[0], payloads, ids, uris, texts) == {}
    assert verify_run(remote, small_recipe, num_pairs=0)["problems"] == []
    remote.fs.rm("/remove", recursive=True)
