"""Damaged tars are reported at the sample that is wrong; a tar is complete only with its end blocks."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from recaption.ledger.tar_checks import LATENT_MEMBERS, check_tar, payload_of
from recaption.run_folder import RunFolder

TAR = "shards/17f-96x96-8fps/000000.tar"
SAMPLE = {"mp4": b"m" * 600, "json": b"{}", "txt": b"a text"}
SAMPLE_BYTES = (512 + 1024) + (512 + 512) + (512 + 512)
"""Header and padded payload of .mp4, .json and .txt."""


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in members:
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return sink.getvalue()


def members(key: str, **changes: bytes) -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", payload) for extension, payload in (SAMPLE | changes).items()]


def row(key: str, position: int, **changes: object) -> dict[str, object]:
    expected = {"clip_id": key, "offset_bytes": position * SAMPLE_BYTES, "num_bytes": SAMPLE_BYTES}
    return expected | {"sha256": hashlib.sha256(SAMPLE["mp4"]).hexdigest(), "caption": "a text"} | changes


ROWS = [row("a", 0), row("b", 1)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(str(tmp_path))
    run.write_bytes(TAR, tar_of([*members("a"), *members("b")]))
    return run


def found(run: RunFolder, rows=ROWS, **options) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in check_tar(run, TAR, rows, **options)]


def test_a_tar_that_matches_its_table_has_no_problems(run):
    digest = hashlib.sha256(run.read_bytes(TAR)).hexdigest()
    assert found(run) == found(run, sha256=digest) == []


def test_samples_in_only_one_of_tar_and_table_are_named(run):
    assert found(run, [*ROWS, row("c", 2)]) == [("sample_missing", f"{TAR}:c")]
    assert found(run, ROWS[:1]) == [("sample_unlisted", f"{TAR}:b")]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"offset_bytes": 0}, "offset_wrong"),
        ({"num_bytes": SAMPLE_BYTES - 512}, "offset_wrong"),
        ({"sha256": "0" * 64}, "sha256_wrong"),
        ({"caption": "another text"}, "text_differs"),
    ],
)
def test_a_row_that_does_not_describe_its_sample_is_named(run, changes, kind):
    assert found(run, [ROWS[0], row("b", 1, **changes)]) == [(kind, f"{TAR}:b")]


def test_json_that_does_not_parse_and_missing_members_are_named(run):
    run.write_bytes(TAR, tar_of([*members("a", json=b"{]"), *members("b")]))
    assert found(run) == [("json_unreadable", f"{TAR}:a")]
    run.write_bytes(TAR, tar_of([*members("a"), *members("b")[:2]]))
    assert found(run) == [("members_missing", f"{TAR}:b")]


def test_members_of_one_sample_must_be_contiguous(run):
    first, *rest = members("a")
    run.write_bytes(TAR, tar_of([first, *members("b"), *rest]))
    assert ("keys_scattered", f"{TAR}:a") in found(run)


@pytest.mark.parametrize(
    ("num_bytes", "is_complete"),
    [
        (0, False),
        (SAMPLE_BYTES + 700, False),
        (SAMPLE_BYTES, False),
        (2 * SAMPLE_BYTES, False),
        (2 * SAMPLE_BYTES + 512, False),
        (2 * SAMPLE_BYTES + 1024, True),
    ],
    ids=["empty", "in a member", "between samples", "no end blocks", "one end block", "two end blocks"],
)
def test_a_cut_tar_is_broken(run, num_bytes, is_complete):
    run.write_bytes(TAR, run.read_bytes(TAR)[:num_bytes])
    assert found(run) == ([] if is_complete else [("shard_broken", TAR)])


def test_a_change_that_no_other_check_finds_is_found_by_the_sha256_of_the_tar(run):
    whole = run.read_bytes(TAR)
    run.write_bytes(TAR, whole.replace(b"{}", b"[]", 1))
    assert found(run) == []
    assert found(run, sha256=hashlib.sha256(whole).hexdigest()) == [("bytes_differ", TAR)]


def test_the_payload_of_a_sample_is_its_member_and_what_ends_in_it():
    members = {"npy": b"latent", "json": b"{}", "scale.npy": b"scale", "xnpy": b"no"}
    assert payload_of(members, "npy") == b"latentscale"
    assert payload_of({"mp4": b"m", "json": b"{}"}, "mp4") == b"m"


def test_latents_have_their_own_members_and_payload(run):
    run.write_bytes(TAR, tar_of([("a.npy", b"latent"), ("a.scale.npy", b"scale"), ("a.json", b"{}")]))
    rows = [row("a", 0, num_bytes=3 * 1024, sha256=hashlib.sha256(b"latentscale").hexdigest())]
    assert found(run, rows, extensions=LATENT_MEMBERS, payload="npy") == []
