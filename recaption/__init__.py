"""Raw video to captions: decoding, shots, clip scores, captioners, caption sets.

The first stretch of the river `recaption -> packing -> train -> jobs`; it imports none of the others. Nothing is
imported here, so that `import recaption` and the decoder's child process stay light.
"""
