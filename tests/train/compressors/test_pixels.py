import json

import pytest
import torch

from train.compressors.picture_quality import psnr_db
from train.compressors.pixels import to_frames, to_pixels


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
