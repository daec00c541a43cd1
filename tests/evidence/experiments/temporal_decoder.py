"""The decoder of an image autoencoder before and after temporal layers are trained into it."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment

DECODER = "temporal layers in a decoder (train/compressors/temporal_decoder.py)"

EXPERIMENT = Experiment(
    question="Do temporal layers in the decoder take the flicker out of an image autoencoder?",
    source="Video LDM 2304.08818: reconstruction FVD 390.88 -> 32.94, FID 7.61 -> 9.17 (worse)",
    arms=(
        Arm("image_decoder", readings=(), waits_for=DECODER),
        Arm("temporal_decoder", start_from="image_decoder", readings=(), waits_for=DECODER),
    ),
    claims=(
        Claim("with temporal layers, less flicker", "temporal_decoder", "image_decoder", "flicker"),
        Claim("with temporal layers, a higher PSNR", "temporal_decoder", "image_decoder", "psnr"),
    ),
)
