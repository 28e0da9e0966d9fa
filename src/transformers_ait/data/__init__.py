"""Data sets for training and tests; importing this package makes them known to `datasets.load_dataset`."""

from . import ade20k, coco_instances, depth_folders, human36m, mocap, nyu_depth_v2, synthetic_motions, synthetic_rooms
from .ade20k import ADE20K, ADE20KConfig
from .ade20k_files import ADE20K_CLASSES
from .coco_instances import COCOInstances, COCOInstancesConfig
from .depth_folders import DepthFolders, DepthFoldersConfig
from .depth_normals import Pinhole, normals_from_depth
from .human36m import Human36M, Human36MConfig
from .mocap import Mocap, MocapConfig
from .nyu_classes import NYU40_CLASSES
from .nyu_depth_v2 import NYUDepthV2, NYUDepthV2Config
from .registration import register_builder
from .rooms_render import RoomCamera, RoomFrame, RoomObject, render_room
from .rooms_scene import SYNTHETIC_ROOMS_CLASSES, SYNTHETIC_ROOMS_SEMANTIC_CLASSES
from .synthetic_motions import SYNTHETIC_MOTIONS_ACTIONS, MotionsConfig, SyntheticMotions, make_motion
from .synthetic_rooms import RoomsConfig, SyntheticRooms

register_builder("synthetic_rooms", synthetic_rooms, synthetic_rooms.CODE_HASH)
register_builder("synthetic_motions", synthetic_motions, synthetic_motions.CODE_HASH)
register_builder("human36m", human36m, human36m.CODE_HASH)
register_builder("mocap", mocap, mocap.CODE_HASH)
register_builder("nyu_depth_v2", nyu_depth_v2, nyu_depth_v2.CODE_HASH)
register_builder("coco_instances", coco_instances, coco_instances.CODE_HASH)
register_builder("ade20k", ade20k, ade20k.CODE_HASH)
register_builder("depth_folders", depth_folders, depth_folders.CODE_HASH)

__all__ = [
    "ADE20K_CLASSES",
    "NYU40_CLASSES",
    "SYNTHETIC_MOTIONS_ACTIONS",
    "SYNTHETIC_ROOMS_CLASSES",
    "SYNTHETIC_ROOMS_SEMANTIC_CLASSES",
    "ADE20K",
    "ADE20KConfig",
    "COCOInstances",
    "COCOInstancesConfig",
    "DepthFolders",
    "DepthFoldersConfig",
    "Human36M",
    "Human36MConfig",
    "Mocap",
    "MocapConfig",
    "MotionsConfig",
    "NYUDepthV2",
    "NYUDepthV2Config",
    "Pinhole",
    "RoomCamera",
    "RoomFrame",
    "RoomObject",
    "RoomsConfig",
    "SyntheticMotions",
    "SyntheticRooms",
    "make_motion",
    "normals_from_depth",
    "render_room",
]
