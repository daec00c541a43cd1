import json

import pytest
import torch

from recaption.errors import UsageError
from train.compressors.picture_quality import psnr_db
from train.compressors.pixels import to_frames, to_pixels
from train.compressors.registry import load


def test_frames_become_pixels_and_the_same_frames_again():
    frames_BTHWC = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(2, 2, 8, 8, 3)
    pixels_BCTHW = to_pixels(frames_BTHWC)
    assert pixels_BCTHW.shape == (2, 3, 2, 8, 8)
    assert (pixels_BCTHW.min(), pixels_BCTHW.max()) == (-1, 1)
    assert torch.equal(pixels_BCTHW[1, 2, 1, 3, 4], frames_BTHWC[1, 1, 3, 4, 2].float() / 127.5 - 1)
    assert (to_frames(pixels_BCTHW) == frames_BTHWC.numpy()).all()
    assert (to_frames(pixels_BCTHW[0]) == frames_BTHWC[0].numpy()).all()


def test_pixels_out_of_range_become_the_nearest_colour():
    assert to_frames(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2)).tolist() == [[[[0], [255]]]]


def test_psnr_of_equal_clips_is_a_number_that_json_has():
    clip = torch.zeros(1, 3, 2, 4, 4)
    assert psnr_db(clip, clip + 0.02) == pytest.approx(40)
    assert json.loads(json.dumps(psnr_db(clip, clip))) > 100


@pytest.mark.parametrize("options", ["", "stride=2", "frame-stride=4", "stride=4,frame-stride=2"])
def test_pixel_space_gives_its_own_latents_back_and_averages_over_its_stride(options):
    compressor = load(f"pixels:{options}")
    pixels_BCTHW = torch.rand(1, 3, 9, 8, 16) * 2 - 1
    latents = compressor.encode(pixels_BCTHW)
    frames, stride = compressor.frame_stride, compressor.spatial_stride
    assert latents.shape == (1, 3, 1 + 8 // frames, 8 // stride, 16 // stride)
    assert torch.allclose(latents[0, 1, 1, 0, 0], pixels_BCTHW[0, 1, frames, :stride, :stride].mean())
    decoded = compressor.decode(latents)
    assert decoded.shape == pixels_BCTHW.shape
    torch.testing.assert_close(compressor.encode(decoded), latents)
    if not options:
        torch.testing.assert_close(decoded, pixels_BCTHW)
    assert compressor.value_range == (-1, 1)


def test_pixel_space_refuses_what_makes_no_sense():
    assert {load(f"pixels:{o}").name for o in ("", "stride=2", "stride=2,frame-stride=4")} == {
        "pixels",
        "pixels-s2",
        "pixels-s2-f4",
    }
    for spec, message in {"pixels:2": "write pixels or", "pixels:stride=0": "from 1 to 64"}.items():
        with pytest.raises(UsageError, match=message):
            load(spec)
