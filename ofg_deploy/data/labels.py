"""Label numbers of the public sets, their names, and where in the body some of them must lie.

Sources: FreeSurfer's colour table; for IXI the 30 structures that TransMorph lists; for OASIS neurite's 35 labels in
their FreeSurfer order; for LPBA40 the 54 cortical and deep regions of the published evaluation (cerebellum 181 and
brain stem 182 are drawn but not evaluated); for Abdomen CT the 13 organs of "Beyond the Cranial Vault".
"""

from __future__ import annotations

from dataclasses import dataclass

_PAIRED = {  # FreeSurfer number of the left structure -> name and number of the right one
    2: ("Cerebral-White-Matter", 41),
    3: ("Cerebral-Cortex", 42),
    4: ("Lateral-Ventricle", 43),
    5: ("Inf-Lat-Vent", 44),
    7: ("Cerebellum-White-Matter", 46),
    8: ("Cerebellum-Cortex", 47),
    10: ("Thalamus", 49),
    11: ("Caudate", 50),
    12: ("Putamen", 51),
    13: ("Pallidum", 52),
    17: ("Hippocampus", 53),
    18: ("Amygdala", 54),
    26: ("Accumbens-area", 58),
    28: ("VentralDC", 60),
    30: ("vessel", 62),
    31: ("choroid-plexus", 63),
}
FREESURFER: dict[int, str] = {
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    24: "CSF",
    **{left: f"Left-{name}" for left, (name, _) in _PAIRED.items()},
    **{right: f"Right-{name}" for name, right in _PAIRED.values()},
}

_NOT_IN_IXI = {5, 44, 26, 58, 30, 62}
IXI: dict[int, str] = {n: FREESURFER[n] for n in sorted(FREESURFER) if n not in _NOT_IN_IXI}

# neurite numbers the structures it kept from 1, in FreeSurfer's order; CSF is not among them.
OASIS: dict[int, str] = {
    n: FREESURFER[number] for n, number in enumerate((n for n in sorted(FREESURFER) if n != 24), start=1)
}

_LPBA40_REGIONS = {  # number of the left region; the right one follows
    21: "superior frontal gyrus",
    23: "middle frontal gyrus",
    25: "inferior frontal gyrus",
    27: "precentral gyrus",
    29: "middle orbitofrontal gyrus",
    31: "lateral orbitofrontal gyrus",
    33: "gyrus rectus",
    41: "postcentral gyrus",
    43: "superior parietal gyrus",
    45: "supramarginal gyrus",
    47: "angular gyrus",
    49: "precuneus",
    61: "superior occipital gyrus",
    63: "middle occipital gyrus",
    65: "inferior occipital gyrus",
    67: "cuneus",
    81: "superior temporal gyrus",
    83: "middle temporal gyrus",
    85: "inferior temporal gyrus",
    87: "parahippocampal gyrus",
    89: "lingual gyrus",
    91: "fusiform gyrus",
    101: "insular cortex",
    121: "cingulate gyrus",
    161: "caudate",
    163: "putamen",
    165: "hippocampus",
}
LPBA40: dict[int, str] = {
    left + step: f"{side} {name}" for left, name in _LPBA40_REGIONS.items() for step, side in enumerate(("L", "R"))
}

ABDOMEN_CT: dict[int, str] = dict(
    enumerate(
        (
            "spleen",
            "right kidney",
            "left kidney",
            "gallbladder",
            "esophagus",
            "liver",
            "stomach",
            "aorta",
            "inferior vena cava",
            "portal and splenic vein",
            "pancreas",
            "left adrenal gland",
            "right adrenal gland",
        ),
        start=1,
    )
)


@dataclass(frozen=True)
class Anatomy:
    """Structures whose order along the body axes is the same in everybody.

    Attributes:
        left, right: numbers of structures of the two sides.
        inferior, superior; posterior, anterior: numbers of structures that lie so to each other.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    inferior: tuple[int, ...]
    superior: tuple[int, ...]
    posterior: tuple[int, ...]
    anterior: tuple[int, ...]


# White matter of both sides; brain stem under the caudates; cerebellum behind the putamina.
IXI_ANATOMY = Anatomy((2, 3), (41, 42), (16,), (11, 50), (8, 47), (12, 51))
OASIS_ANATOMY = Anatomy((1, 2), (20, 21), (13,), (8, 27), (6, 25), (9, 28))
# Hemispheres by odd and even numbers; brain stem under the superior parietal gyri; cuneus behind gyrus rectus.
LPBA40_ANATOMY = Anatomy((21, 23), (22, 24), (182,), (43, 44), (67, 68), (33, 34))
