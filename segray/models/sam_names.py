"""Segment Anything's published weights: names for `--weights` and `--refine`. Imports nothing heavy."""

from dataclasses import dataclass

APACHE = "Apache-2.0"
SA_1B = "Meta, trained on SA-1B (11 M photos, 1.1 billion masks)"


@dataclass(frozen=True, slots=True)
class SamWeights:
    """Weights of SAM on huggingface.co."""

    name: str
    repository: str
    """On huggingface.co; its `config.json` and `model.safetensors` are what is read."""
    kind: str
    """transformers' type of the model: sam, sam2 or sam3."""
    parameters: int
    """Of the network for images; a file of SAM 2 or 3 holds that for videos, too, which is not loaded."""
    licence: str
    origin: str


def _sam2(name: str, size: str, parameters: int) -> SamWeights:
    origin = f"SAM 2.1, Ravi et al. 2024, https://arxiv.org/abs/2408.00714; {SA_1B} and SA-V (51 k videos)"
    return SamWeights(name, f"facebook/sam2.1-hiera-{size}", "sam2", parameters, APACHE, origin)


def _sam1(name: str, size: str, parameters: int) -> SamWeights:
    origin = f"SAM, Kirillov et al. 2023, https://arxiv.org/abs/2304.02643; {SA_1B}"
    return SamWeights(name, f"facebook/sam-vit-{size}", "sam", parameters, APACHE, origin)


SAM_WEIGHTS = {
    each.name: each
    for each in (
        _sam2("sam2-tiny", "tiny", 31_440_721),
        _sam2("sam2-small", "small", 38_538_577),
        _sam2("sam2-base-plus", "base-plus", 73_328_401),
        _sam2("sam2-large", "large", 216_924_865),
        _sam1("sam-vit-b", "base", 93_735_728),
        _sam1("sam-vit-l", "large", 312_343_088),
        _sam1("sam-vit-h", "huge", 641_090_864),
        SamWeights(
            "sam3", "facebook/sam3", "sam3", 458_260_369,
            "SAM License of Meta (not Apache; to be accepted on huggingface.co/facebook/sam3 first)",
            "SAM 3, Carion et al. 2025, https://arxiv.org/abs/2511.16719; Meta, trained on SA-Co",
        ),
    )
}  # fmt: skip
