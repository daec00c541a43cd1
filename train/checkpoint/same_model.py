"""What the configs of two checkpoints must agree on for the weights of one to fit the model of the other.

differences(checkpoint.config, config)          # ["backbone width 32 there, 64 here"]
"""

from __future__ import annotations

from typing import Any

DIFFUSION_KEYS = ("schedule", "prediction", "zero_terminal_snr")
"""Diffusion settings that define what the model predicts; the distribution of trained noise levels may differ."""


def weights_meaning(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint's config that must agree for its weights to be usable, by name."""
    meaning = {f"backbone {name}": value for name, value in config["backbone"].items()}
    meaning |= {f"diffusion {name}": config["diffusion"][name] for name in DIFFUSION_KEYS}
    return meaning | {
        "patch": config["patch"],
        "text encoder": config["text_encoder"],
        "compressor": config["compressor"]["config"],
    }


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What differs between two of `weights_meaning`, for a message."""
    return [
        f"{name} {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
