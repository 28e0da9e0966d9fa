"""Data sets for training and tests; importing this package makes them known to `datasets.load_dataset`."""

from . import synthetic_rooms
from .registration import register_builder
from .rooms_render import RoomCamera, RoomFrame, RoomObject, render_room
from .rooms_scene import SYNTHETIC_ROOMS_CLASSES, SYNTHETIC_ROOMS_SEMANTIC_CLASSES
from .synthetic_rooms import RoomsConfig, SyntheticRooms

register_builder("synthetic_rooms", synthetic_rooms, synthetic_rooms.CODE_HASH, reads_files=False)

__all__ = [
    "SYNTHETIC_ROOMS_CLASSES",
    "SYNTHETIC_ROOMS_SEMANTIC_CLASSES",
    "RoomCamera",
    "RoomFrame",
    "RoomObject",
    "RoomsConfig",
    "SyntheticRooms",
    "render_room",
]
