"""Moving parts of a rendered scene: the object (signed distance functions, textures), its trajectory, the camera.

Lengths are in units of the frame's short side unless a name ends in `_px`. Shapes are signed distances (negative
inside, positive outside, in object radii), so that edges are antialiased at any size and angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recaption.scenes.captions import SceneAttributes
from recaption.scenes.overlays import text_at_bottom

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 130, 15),
    "yellow": (250, 220, 40),
    "green": (30, 160, 60),
    "blue": (35, 80, 225),
    "purple": (125, 45, 170),
    "pink": (252, 125, 190),
    "white": (252, 252, 252),
    "black": (18, 18, 20),
}
"""RGB of the object, the same in every style: sepia changes only the background."""
ROUND_SHAPES = ("circle", "ring")
"""Shapes whose rotation is visible only with a texture."""


# --- shapes: (x, y) in object radii, y downwards -> signed distance in object radii ----------------------------------


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of `shape`, negative inside; accurate near the edge, as needed for antialiasing."""
    return _SHAPES[shape](x, y)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - 0.12
    return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.56


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fifth = 2 * np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2)
    length = np.hypot(x, y)
    tip, notch = np.array([1.08, 0.0]), 0.46 * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    along, across = length * np.cos(angle) - tip[0], length * np.sin(angle)
    return along * normal[0] + across * normal[1]


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    side = 0.62
    u, v = (np.abs(x) + (y - 0.12)) * 0.7071, (np.abs(x) - (y - 0.12)) * 0.7071
    body = np.maximum(np.abs(u), np.abs(v)) - side
    lobe = np.hypot(u, v - side) - side
    return np.minimum(body, lobe)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.32, y - 0.96), np.maximum(x - 0.96, y - 0.32))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.74) - 0.26


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) / 0.6 + np.abs(y) / 1.04 - 1.0) * 0.52


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1.0, 0.82 - np.hypot(x - 0.5, y))


_SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "crescent": _crescent,
}


# --- motion -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pose:
    """Pose of the object in one frame: centre and radius in pixels, angle in radians."""

    x_px: float
    y_px: float
    radius_px: float
    angle: float


@dataclass(frozen=True, slots=True)
class CameraPose:
    """Pose of the camera in one frame: shift of the picture in pixels, and magnification about the centre of the frame."""

    shift_px: float
    zoom: float


ZOOM = 1.7
"""Magnification over a whole zoom."""
PAN = 0.45
"""Length of a pan as a fraction of the frame's width; at most one short side."""


def camera_trajectory(camera: str, num_frames: int, height_px: int, width_px: int) -> list[CameraPose]:
    """One camera pose per frame; under a pan to the left the background moves right."""
    progress = np.linspace(0.0, 1.0, num_frames) if num_frames > 1 else np.zeros(1)
    travel = min(PAN * width_px, float(min(height_px, width_px)))
    if camera == "pans left":
        return [CameraPose(float(travel * (p - 0.5)), 1.0) for p in progress]
    if camera == "pans right":
        return [CameraPose(float(-travel * (p - 0.5)), 1.0) for p in progress]
    if camera == "zooms in":
        return [CameraPose(0.0, float(ZOOM**p)) for p in progress]
    if camera == "zooms out":
        return [CameraPose(0.0, float(ZOOM ** (1 - p))) for p in progress]
    return [CameraPose(0.0, 1.0)] * num_frames


def object_trajectory(
    scene: SceneAttributes, num_frames: int, height_px: int, width_px: int, fps: float, rng: np.random.Generator
) -> list[Pose]:
    """One pose per frame in frame pixels, camera motion included. The object never leaves the frame."""
    unit = float(min(height_px, width_px))
    camera_poses = camera_trajectory(scene.camera, num_frames, height_px, width_px)
    jitter = rng.uniform(-1.0, 1.0, size=4)
    radius = unit * {"small": 0.18 + 0.015 * jitter[0], "large": 0.3 + 0.02 * jitter[0]}.get(scene.size, 0.19)
    progress = np.linspace(0.0, 1.0, num_frames) if num_frames > 1 else np.zeros(1)
    radii = np.full(num_frames, radius)
    if scene.action in ("grows", "shrinks"):
        ratio = progress if scene.action == "grows" else 1.0 - progress
        radii = unit * (0.15 + 0.22 * ratio)
    widest = 1.2 if scene.action == "rotates" else 1.08  # corners extend beyond the radius
    extent = float(radii.max()) * (ZOOM if scene.camera.startswith("zooms") else 1.0) * widest + 1.0
    room_x, room_y = max(width_px / 2 - extent, 0.0), max(height_px / 2 - extent, 0.0)
    if scene.camera.startswith("pans"):
        room_x = max(room_x - abs(camera_poses[0].shift_px), 0.0)
    if scene.camera.startswith("zooms"):
        room_x, room_y = 0.15 * room_x, 0.15 * room_y
    if scene.text:  # keep away from the text where the action permits
        jitter[2] = abs(jitter[2]) * (-1 if text_at_bottom(scene) else 1)
    x, y, angles = _action_offsets(scene.action, progress, num_frames, fps, (room_x, room_y), jitter)
    return [
        Pose(
            float(width_px / 2 + (x[k] * camera_poses[k].zoom) + camera_poses[k].shift_px),
            float(height_px / 2 + y[k] * camera_poses[k].zoom),
            float(radii[k] * camera_poses[k].zoom),
            float(angles[k]),
        )
        for k in range(num_frames)
    ]


def _action_offsets(
    action: str, progress: np.ndarray, num_frames: int, fps: float, room: tuple[float, float], jitter: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets (x, y) from the centre of the frame, at most `room`, and angles, for every frame."""
    room_x, room_y = room
    frame = np.arange(num_frames, dtype=np.float64)
    zeros = np.zeros(num_frames)
    x, y, angles = zeros + 0.5 * room_x * jitter[1], zeros + 0.5 * room_y * jitter[2], zeros
    ramp = 2.0 * progress - 1.0
    if action in ("moves left", "moves right"):
        x = room_x * ramp * (1 if action == "moves right" else -1)
    elif action in ("moves up", "moves down"):
        y = room_y * ramp * (1 if action == "moves down" else -1)
    elif action == "loops around":
        period = min(max(2.5 * fps, 8.0), float(max(num_frames - 1, 1)))
        phase = 2 * np.pi * (frame / period * np.sign(jitter[3]) + jitter[1])
        orbit = min(room_x, room_y)
        x, y = orbit * np.cos(phase), orbit * np.sin(phase)
    elif action == "bounces":
        period = min(max(1.2 * fps, 5.0), max((num_frames - 1) / 1.5, 1.0))
        height = 1.0 - (2.0 * np.mod(frame / period + 0.5, 1.0) - 1.0) ** 2
        y = room_y * (1.0 - 2.0 * height)
    elif action == "rotates":
        step = max(np.deg2rad(110.0) / fps, np.deg2rad(75.0) / max(num_frames - 1, 1))
        angles = frame * min(step, np.deg2rad(25.0)) * np.sign(jitter[3])
    if action in ("grows", "shrinks"):
        x, y = zeros, zeros
    return x, y, angles


# --- the object -------------------------------------------------------------------------------------------------------


def draw_object(frame_HWC: np.ndarray, scene: SceneAttributes, pose: Pose, contour: tuple[int, int, int]) -> None:
    """Draw the object into `frame_HWC` (uint8 RGB) in place; `contour` is the line colour of the outline style."""
    height_px, width_px = frame_HWC.shape[:2]
    extent = pose.radius_px * 1.25 + 2
    x0, x1 = max(int(pose.x_px - extent), 0), min(int(pose.x_px + extent) + 2, width_px)
    y0, y1 = max(int(pose.y_px - extent), 0), min(int(pose.y_px + extent) + 2, height_px)
    if x0 >= x1 or y0 >= y1:
        return
    dx = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - pose.x_px) / pose.radius_px)[None, :]
    dy = ((np.arange(y0, y1, dtype=np.float32) + 0.5 - pose.y_px) / pose.radius_px)[:, None]
    if pose.angle:
        cos, sin = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
        x, y = cos * dx + sin * dy, cos * dy - sin * dx
    else:
        x, y = np.broadcast_arrays(dx, dy)
    distance_px = signed_distance(scene.main_object, x, y) * np.float32(pose.radius_px)
    base = np.asarray(COLOURS[scene.colour], np.float32)
    if scene.texture == "plain":
        paint: np.ndarray = base
    else:
        marks = _coverage(_texture_distance(scene.texture, x, y) * np.float32(pose.radius_px))[..., None]
        paint = base + (_texture_colour(scene.colour) - base) * marks
    if scene.style == "outline":
        line_px = contour_width_px(height_px, width_px)
        edge = _coverage(distance_px + np.float32(line_px))[..., None]
        paint = np.asarray(contour, np.float32) + (paint - np.asarray(contour, np.float32)) * edge
    patch = frame_HWC[y0:y1, x0:x1]
    alpha = _coverage(distance_px)[..., None]
    patch[...] = (patch + (paint - patch) * alpha + 0.5).astype(np.uint8)


def contour_width_px(height_px: int, width_px: int) -> float:
    """Line width of the outline style."""
    return max(1.5, 0.028 * min(height_px, width_px))


def _coverage(distance_px: np.ndarray) -> np.ndarray:
    """Antialiased coverage of each pixel, 0..1, from its signed distance."""
    return np.clip(0.5 - distance_px, 0.0, 1.0).astype(np.float32, copy=False)


def _texture_distance(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (object radii) to the stripes or dots; they cover less than half of the object."""
    if texture == "striped":
        period = 0.58
        return np.abs(np.mod(x + 0.6 * y, period) - period / 2) - 0.34 * period / 2
    period = 0.56
    u, v = np.mod(x, period) - period / 2, np.mod(y, period) - period / 2
    return np.hypot(u, v) - 0.145


def _texture_colour(colour: str) -> np.ndarray:
    """RGB of stripes and dots on an object of this colour."""
    light = {"white": (150, 150, 155), "yellow": (150, 110, 10), "black": (125, 125, 130)}
    return np.asarray(light.get(colour, (250, 250, 250)), np.float32)
