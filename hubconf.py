"""Entry points for torch.hub:

model = torch.hub.load("/path/to/this/repository", "shufflenet_v2", source="local", model_size="1.0x", checkpoint="model.pkl")
"""

from typing import Any as _Any

dependencies = ["torch", "torchvision"]


def shufflenet_v2(
    model_size: str | None = None, pretrained: bool = False, checkpoint: str | None = None, **architecture: _Any
) -> _Any:
    """ShuffleNetV2, which takes images (N, 3, H, W), BGR, 0..255, and gives logits (N, n_class).

    Args:
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'; of a checkpoint its own, of others 1.0x unless given.
        pretrained: with torchvision's published weights for ImageNet's 1,000 classes, which are downloaded once.
        checkpoint: with the weights in a file: this trainer's, the original's, torchvision's or mmpretrain's.
        architecture: of a network with neither: what else `shufflenetv2.ShuffleNetV2` takes, as n_class=10.

    Returns:
        the network, in eval mode where it has weights from somewhere, and normalising its input where those
        want it; else with new weights, drawn from torch's global generator, in train mode.

    Raises:
        shufflenetv2.UserError: where the arguments contradict each other or the file, or the file cannot be used.
    """
    from shufflenetv2 import ShuffleNetV2, read_weights
    from shufflenetv2.errors import UserError
    from shufflenetv2.weights import pretrained_weights

    if not (pretrained or checkpoint):
        return ShuffleNetV2(model_size=model_size or "1.0x", **architecture)
    if pretrained and checkpoint:
        raise UserError("pretrained and checkpoint both say which weights; give one of them")
    if architecture:
        raise UserError(f"{next(iter(architecture))} is for new weights; those that are loaded have their own")
    weights = read_weights(checkpoint) if checkpoint else pretrained_weights(model_size or "1.0x")
    if model_size and model_size != weights.model_size:
        raise UserError(f"{weights.path} holds a {weights.model_size} model, and model_size says {model_size}")
    return weights.network()
