"""Raw video to captions. Nothing is imported here: the decoding child starts without torch, ray or pyarrow."""
