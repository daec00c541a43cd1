"""A scorer and a captioner of your own: `pip install examples/plugins`, then see docs/plugins.md."""

from recaption.captioners.base import BaseCaptioner, GeneratedText, GenerationOutput


class BrightnessScorer:
    columns, version = ("brightness", "contrast"), "1"

    def score(self, frames_THWC):
        luma_THW = frames_THWC.mean(axis=3) / 255
        return {"brightness": luma_THW.mean(), "contrast": luma_THW.std()}


class BrightnessCaptioner(BaseCaptioner):
    name, weights_hash, num_frames, frame_px, max_tokens = "brightness", "1", 4, 64, 16
    supports_beam_search = False

    def __init__(self, rest="", *, device, dtype):
        self.words = rest.split(",") if rest else ["dark", "bright"]  # --captioner brightness:dim,glaring

    def generate(self, batch):
        texts = [f"A clip that is {self.words[int(clip.mean() > 127)]} overall." for clip in batch.clips]
        return GenerationOutput(texts=[GeneratedText(text=text, num_tokens=len(text.split())) for text in texts])
