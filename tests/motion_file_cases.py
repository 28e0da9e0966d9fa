"""Motion capture files that tests write."""

from pathlib import Path

import numpy as np

# Joint, parent and offset in centimetres of a figure with Bandai-Namco's names, y up, looking along z: left is x.
FIGURE = (
    *(("Hips", "", (0, 92, 0)), ("Spine", "Hips", (0, 10, 0)), ("Chest", "Spine", (0, 13, 0))),
    *(("Neck", "Chest", (0, 24, 0)), ("Head", "Neck", (0, 9, 2))),
    *(
        ("UpperLeg_L", "Hips", (10, -3, 0)),
        ("LowerLeg_L", "UpperLeg_L", (0, -41, 0)),
        ("Foot_L", "LowerLeg_L", (0, -40, 0)),
    ),
    *(
        ("UpperLeg_R", "Hips", (-10, -3, 0)),
        ("LowerLeg_R", "UpperLeg_R", (0, -41, 0)),
        ("Foot_R", "LowerLeg_R", (0, -40, 0)),
    ),
    *(
        ("UpperArm_L", "Chest", (17, 22, 0)),
        ("LowerArm_L", "UpperArm_L", (27, 0, 0)),
        ("Hand_L", "LowerArm_L", (24, 0, 0)),
    ),
    *(
        ("UpperArm_R", "Chest", (-17, 22, 0)),
        ("LowerArm_R", "UpperArm_R", (-27, 0, 0)),
        ("Hand_R", "LowerArm_R", (-24, 0, 0)),
    ),
)


def figure(frames: int = 61, seed: int = 0, fps: float = 30.0) -> str:
    """A BVH file of a figure that stirs."""
    lines, values = ["HIERARCHY"], []
    rng = np.random.default_rng(seed)
    times = np.arange(frames) / fps

    def add(name: str, offset: tuple[int, ...], depth: int) -> None:
        children = [(child, shift) for child, parent, shift in FIGURE if parent == name]
        channels = "CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation"
        lines.append(f"{'JOINT' if depth else 'ROOT'} {name}\n{{\nOFFSET {' '.join(map(str, offset))}\n{channels}")
        values.append(np.repeat(np.array([offset], float), frames, 0))
        waves = np.sin(2 * np.pi * (np.outer(times, rng.uniform(0.2, 1, 3)) + rng.random(3)))
        values.append(waves * (10 if depth else 5))
        for child, shift in children:
            add(child, shift, depth + 1)
        if not children:
            lines.append("End Site\n{\nOFFSET 0 0 0\n}")
        lines.append("}")

    add("Hips", (0, 92, 0), 0)
    lines.append(f"MOTION\nFrames: {frames}\nFrame Time: {1 / fps:.7f}")
    lines += [" ".join(f"{value:.6f}" for value in row) for row in np.concatenate(values, 1)]
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# Bone, parent, direction and length of a figure with CMU's names in units of 1 inch / 0.45, y up, looking along z.
CMU_BONES = (
    *(("lowerback", "root", (0, 1, 0), 2.05), ("upperback", "lowerback", (0, 1, 0), 2.0)),
    *(("thorax", "upperback", (0, 1, 0), 2.0), ("lowerneck", "thorax", (0, 1, 0), 1.5)),
    *(("upperneck", "lowerneck", (0, 1, 0), 1.5), ("head", "upperneck", (0, 1, 0), 1.6)),
    *(
        bone
        for side, sign in (("l", 1), ("r", -1))
        for bone in (
            *(
                (f"{side}hipjoint", "root", (sign * 0.6, -0.8, 0), 2.4),
                (f"{side}femur", f"{side}hipjoint", (0, -1, 0), 7.2),
            ),
            *((f"{side}tibia", f"{side}femur", (0, -1, 0), 7.1), (f"{side}clavicle", "thorax", (sign, 0, 0), 3.2)),
            *(
                (f"{side}humerus", f"{side}clavicle", (sign, 0, 0), 5.0),
                (f"{side}radius", f"{side}humerus", (sign, 0, 0), 4.1),
            ),
        )
    ),
)


def cmu_files(frames: int = 97, seed: int = 0) -> tuple[str, str]:
    """An ASF skeleton and an AMC motion in which it stirs."""
    bones = "".join(
        f"begin\nid {number}\nname {name}\ndirection {' '.join(map(str, direction))}\nlength {length}\n"
        f"axis 0 0 {10 * number} XYZ\ndof rx ry rz\nend\n"
        for number, (name, _, direction, length) in enumerate(CMU_BONES, 1)
    )
    children: dict[str, list[str]] = {}
    for name, parent, _, _ in CMU_BONES:
        children.setdefault(parent, []).append(name)
    ordered = ["root", *(name for name, *_ in CMU_BONES)]
    tree = "".join(f"{name} {' '.join(children[name])}\n" for name in ordered if name in children)
    asf = (
        ":version 1.10\n:name cmu\n:units\nmass 1.0\nlength 0.45\nangle deg\n:documentation\nnone\n:root\n"
        "order TX TY TZ RX RY RZ\naxis XYZ\nposition 0 0 0\norientation 0 0 0\n"
        f":bonedata\n{bones}:hierarchy\nbegin\n{tree}end\n"
    )
    rng = np.random.default_rng(seed)
    rates, phases = rng.uniform(0.2, 1, (2, len(CMU_BONES), 3))
    amc = "#!OML:ASF\n:FULLY-SPECIFIED\n:DEGREES\n"
    for frame in range(frames):
        amc += f"{frame + 1}\nroot 0 17 {frame * 0.01:.4f} 0 {frame * 0.1:.4f} 0\n"
        angles = 8 * np.sin(2 * np.pi * (rates * frame / 120 + phases))
        amc += "".join(
            f"{bone[0]} {' '.join(f'{angle:.6f}' for angle in turn)}\n"
            for bone, turn in zip(CMU_BONES, angles, strict=True)
        )
    return asf, amc
