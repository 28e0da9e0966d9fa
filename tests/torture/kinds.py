"""The table of kinds."""

from . import annotations, commands, conversions, files, models, pictures
from .case import Kind

KINDS = {
    "images": Kind(pictures.image_case, 15),
    "settings": Kind(pictures.setting_case, 10),
    "depth-maps": Kind(pictures.map_case, 14),
    "outputs": Kind(pictures.output_case, 4),
    "coco": Kind(annotations.coco_or_categories, 12),
    "coco-files": Kind(annotations.coco_files, 6, annotations.prepare),
    "lvis-files": Kind(annotations.lvis_files, 6, annotations.prepare),
    "configurations": Kind(models.config_case, 14),
    "checkpoints": Kind(models.checkpoint_case, 6, models.prepare),
    "recipes": Kind(commands.recipe_case, 8),
    "command-lines": Kind(commands.command_case, 4, commands.prepare),
    "split-lists": Kind(files.list_case, 4, files.prepare),
    "motion-files": Kind(files.motion_case, 4, files.prepare),
    "conversions": Kind(conversions.conversion_case, 5, conversions.prepare),
    "exports": Kind(conversions.export_case, 3, conversions.prepare),
}
