"""Captioners of other projects behind our interface, one file each."""
