"""timm's tables of AutoAugment, RandAugment and AugMix: operations, and their probabilities, magnitudes and weights.

The tables are copied from `timm.data.auto_augment`, because importing timm takes about two seconds; a test compares the
copies with timm. Operation names are keys of `operations.OPERATIONS`.
"""

SubPolicy = tuple[tuple[str, float, int], ...]  # (operation, probability, magnitude), applied one after another


def _sub_policies(table: str) -> tuple[SubPolicy, ...]:
    """Parse a table with one sub-policy per line, each a sequence of "operation probability magnitude"."""

    def parse(line: str) -> SubPolicy:
        words = line.split()
        operations = zip(words[0::3], words[1::3], words[2::3], strict=True)
        return tuple((name, float(probability), int(magnitude)) for name, probability, magnitude in operations)

    return tuple(parse(line) for line in table.strip().splitlines())


def _with_increasing_posterize(policies: tuple[SubPolicy, ...]) -> tuple[SubPolicy, ...]:
    """Replace posterization by the variant in Google's research code, which drops more bits at higher magnitudes."""

    def rename(name: str) -> str:
        return "PosterizeIncreasing" if name.startswith("Posterize") else name

    return tuple(
        tuple((rename(name), probability, magnitude) for name, probability, magnitude in policy) for policy in policies
    )


def _names(table: str) -> tuple[str, ...]:
    return tuple(table.split())


def _weights(table: str) -> dict[str, float]:
    """Parse a table of operations, each followed by its weight: a relative probability of being drawn."""
    words = table.split()
    return {name: float(weight) for name, weight in zip(words[0::2], words[1::2], strict=True)}


_ORIGINAL = _sub_policies("""
    PosterizeOriginal 0.4 8   Rotate 0.6 9
    Solarize 0.6 5   AutoContrast 0.6 5
    Equalize 0.8 8   Equalize 0.6 3
    PosterizeOriginal 0.6 7   PosterizeOriginal 0.6 6
    Equalize 0.4 7   Solarize 0.2 4
    Equalize 0.4 4   Rotate 0.8 8
    Solarize 0.6 3   Equalize 0.6 7
    PosterizeOriginal 0.8 5   Equalize 1.0 2
    Rotate 0.2 3   Solarize 0.6 8
    Equalize 0.6 8   PosterizeOriginal 0.4 6
    Rotate 0.8 8   Color 0.4 0
    Rotate 0.4 9   Equalize 0.6 2
    Equalize 0.0 7   Equalize 0.8 8
    Invert 0.6 4   Equalize 1.0 8
    Color 0.6 4   Contrast 1.0 8
    Rotate 0.8 8   Color 1.0 2
    Color 0.8 8   Solarize 0.8 7
    Sharpness 0.4 7   Invert 0.6 8
    ShearX 0.6 5   Equalize 1.0 9
    Color 0.4 0   Equalize 0.6 3
    Equalize 0.4 7   Solarize 0.2 4
    Solarize 0.6 5   AutoContrast 0.6 5
    Invert 0.6 4   Equalize 1.0 8
    Color 0.6 4   Contrast 1.0 8
    Equalize 0.8 8   Equalize 0.6 3
""")

_V0 = _sub_policies("""
    Equalize 0.8 1   ShearY 0.8 4
    Color 0.4 9   Equalize 0.6 3
    Color 0.4 1   Rotate 0.6 8
    Solarize 0.8 3   Equalize 0.4 7
    Solarize 0.4 2   Solarize 0.6 2
    Color 0.2 0   Equalize 0.8 8
    Equalize 0.4 8   SolarizeAdd 0.8 3
    ShearX 0.2 9   Rotate 0.6 8
    Color 0.6 1   Equalize 1.0 2
    Invert 0.4 9   Rotate 0.6 0
    Equalize 1.0 9   ShearY 0.6 3
    Color 0.4 7   Equalize 0.6 0
    Posterize 0.4 6   AutoContrast 0.4 7
    Solarize 0.6 8   Color 0.6 9
    Solarize 0.2 4   Rotate 0.8 9
    Rotate 1.0 7   TranslateYRel 0.8 9
    ShearX 0.0 0   Solarize 0.8 4
    ShearY 0.8 0   Color 0.6 4
    Color 1.0 0   Rotate 0.6 2
    Equalize 0.8 4   Equalize 0.0 8
    Equalize 1.0 4   AutoContrast 0.6 2
    ShearY 0.4 7   SolarizeAdd 0.6 7
    Posterize 0.8 2   Solarize 0.6 10
    Solarize 0.6 8   Equalize 0.6 1
    Color 0.8 6   Rotate 0.4 5
""")

# AutoAugment policies by timm's names; the suffix r stands for increasing posterization
AUTO_POLICIES = {
    "original": _ORIGINAL,
    "originalr": _with_increasing_posterize(_ORIGINAL),
    "v0": _V0,
    "v0r": _with_increasing_posterize(_V0),
    "3a": _sub_policies("""
        Solarize 1.0 5
        Desaturate 1.0 10
        GaussianBlurRand 1.0 10
    """),
}

RAND_OPERATIONS = _names("""
    AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness ShearX
    ShearY TranslateXRel TranslateYRel
""")

RAND_INCREASING_OPERATIONS = _names("""
    AutoContrast Equalize Invert Rotate PosterizeIncreasing SolarizeIncreasing SolarizeAdd ColorIncreasing
    ContrastIncreasing BrightnessIncreasing SharpnessIncreasing ShearX ShearY TranslateXRel TranslateYRel
""")

AUGMIX_OPERATIONS = _names("""
    AutoContrast ColorIncreasing ContrastIncreasing BrightnessIncreasing SharpnessIncreasing Equalize Rotate
    PosterizeIncreasing SolarizeIncreasing ShearX ShearY TranslateXRel0.3 TranslateYRel0.3
""")

# RandAugment with the setting t, for example rand-m9-t3aw, draws from one of these sets of operations: a tuple has equal
# weights, a dict gives the weight of each operation.
RAND_SETS: dict[str, dict[str, float] | tuple[str, ...]] = {
    "3a": ("SolarizeIncreasing", "Desaturate", "GaussianBlur"),
    "3aw": _weights("""
        SolarizeIncreasing 6   Desaturate 6   GaussianBlur 6   Rotate 3   ShearX 2   ShearY 2
        PosterizeIncreasing 1   AutoContrast 1   ColorIncreasing 1   SharpnessIncreasing 1   ContrastIncreasing 1
        BrightnessIncreasing 1   Equalize 1   Invert 1
    """),
    "weights": _weights("""
        Rotate 3   ShearX 2   ShearY 2   TranslateXRel 1   TranslateYRel 1   ColorIncreasing 0.25
        SharpnessIncreasing 0.25   AutoContrast 0.25   SolarizeIncreasing 0.05   SolarizeAdd 0.05
        ContrastIncreasing 0.05   BrightnessIncreasing 0.05   Equalize 0.05   PosterizeIncreasing 0.05
        Invert 0.05
    """),
}
