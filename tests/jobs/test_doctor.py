"""`recaption doctor` says what confines decoding on this machine, and what does not and why."""

from __future__ import annotations

import pytest

from jobs import doctor
from jobs.summary import print_summary
from recaption.decoding.confinement import LAYERS
from recaption.errors import UsageError
from recaption.video_io import process as decoder_process


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_layer_holds_or_has_a_reason(offline, monkeypatch, capsys):
    problems = dict.fromkeys(LAYERS, "") | {"landlock": "Function not implemented"}
    monkeypatch.setattr(decoder_process, "confinement_report", lambda: problems)
    report = doctor.doctor()
    assert set(report["confinement"]) == set(LAYERS)
    assert report["confinement"]["seccomp"] is True
    assert report["confinement"]["landlock"] is False
    assert report["confinement_missing"] == {"landlock": "Function not implemented"}
    print_summary("doctor", report)
    printed = capsys.readouterr().out
    assert "not landlock" in printed
    assert "landlock Function not implemented" in printed


def test_a_layer_that_the_kernel_does_not_confirm_does_not_hold(monkeypatch):
    child = decoder_process._decoder().running_child()
    monkeypatch.setattr(child, "confinement", dict.fromkeys(LAYERS, ""))
    monkeypatch.setattr(decoder_process, "_network_namespace", lambda pid: 7)
    report = decoder_process.confinement_report()
    assert report["network namespace"] == "the kernel does not confirm it"


def test_other_decoders_have_a_version_or_the_reason_why_they_do_not_work(offline, monkeypatch, capsys):
    def start(backend):
        raise UsageError("it finds no shared libraries of FFmpeg")

    monkeypatch.setattr(decoder_process, "start", start)
    monkeypatch.setattr(doctor, "_is_installed", lambda module: module == "torchcodec")
    report = doctor.doctor()
    assert report["decoders"]["decord"] == "not installed: pip install 'recaption[decord]'"
    assert report["decoders"]["torchcodec"] == "it finds no shared libraries of FFmpeg"
    print_summary("doctor", report)
    assert "torchcodec it finds no shared libraries" in " ".join(capsys.readouterr().out.split())
