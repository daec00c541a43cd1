"""The state of every video and clip of a run, and checks that the files of the run folder agree with it."""
