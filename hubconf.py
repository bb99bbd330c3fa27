"""Entry points for torch.hub.

>>> model = torch.hub.load(
...     "/path/to/this/repository", "shufflenet_v2", source="local", model_size="1.0x", checkpoint="model.pkl"
... )
"""

from typing import Any as _Any

dependencies = ["torch", "torchvision"]


def shufflenet_v2(
    model_size: str | None = None, pretrained: bool = False, checkpoint: str | None = None, **architecture: _Any
) -> _Any:
    """Return a ShuffleNetV2.

    Args:
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'. By default the size of the checkpoint; without a checkpoint 1.0x.
        pretrained: load torchvision's published weights for the 1,000 classes of ImageNet, which are downloaded once.
        checkpoint: load a weight file of this trainer, the original, torchvision or mmpretrain.
        architecture: further arguments of `shufflenetv2.ShuffleNetV2`, such as n_class=10 or in_chans=1, for a network with new
            weights.

    Returns:
        With loaded weights, the network in eval mode; it normalizes its input if the weights need that. Otherwise a network in
        train mode with new weights from torch's global generator.

    Shape:
        images (N, C, H, W), BGR or grey, 0..255 -> logits (N, n_class)

    Raises:
        shufflenetv2.UserError: if arguments contradict each other or the checkpoint, or if the checkpoint cannot be read.
    """
    from shufflenetv2 import ShuffleNetV2, UserError, pretrained_weights, read_weights

    if not (pretrained or checkpoint):
        return ShuffleNetV2(model_size=model_size or "1.0x", **architecture)
    if pretrained and checkpoint:
        raise UserError("`pretrained` and `checkpoint` both give the weights; leave one out")
    if architecture:
        raise UserError(f"`{next(iter(architecture))}` is for a network with new weights; leave it out to load weights")
    weights = read_weights(checkpoint) if checkpoint else pretrained_weights(model_size or "1.0x")
    if model_size and model_size != weights.model_size:
        raise UserError(f"{weights.path} holds a {weights.model_size} model, but `model_size` is {model_size}")
    return weights.network()
