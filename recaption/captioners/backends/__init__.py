"""Captioners of other projects behind the `Captioner` interface, one file each."""
