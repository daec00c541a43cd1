"""VideoCoCa: CoCa on video clips, its tokenizer, checkpoints and the `tiny` weights inside the package."""
