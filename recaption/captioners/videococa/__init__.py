"""VideoCoCa: CoCa over the frames of a clip, its tokenizer, checkpoints and the shipped `tiny` weights."""
