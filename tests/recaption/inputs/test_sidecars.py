from recaption.inputs.sidecars import read_sidecar_caption


def test_the_text_next_to_a_video_is_its_original_caption(tmp_path):
    (tmp_path / "b.txt").write_text(" a dog \n")
    assert read_sidecar_caption(str(tmp_path / "b.mp4")) == "a dog"
    assert read_sidecar_caption(str(tmp_path / "a.webm")) == ""
