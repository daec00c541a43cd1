"""Input paths, remote files and sidecar captions."""
