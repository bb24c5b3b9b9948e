"""The networks of the comparison: how each reads an image, and where its logits are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import any_network_modules as modules
import torch
from any_network_modules import N_CLASSES, Headed
from numpy.typing import NDArray
from torch import Tensor, nn

# libraries -----------------------------------------------------------------------------------


def rtdl_resnet() -> nn.Module:
    from rtdl_revisiting_models import ResNet

    return ResNet(
        d_in=64,
        d_out=N_CLASSES,
        n_blocks=2,
        d_block=32,
        d_hidden=None,
        d_hidden_multiplier=2.0,
        dropout1=0.1,
        dropout2=0.0,
    )


def rtdl_ft_transformer() -> nn.Module:
    from rtdl_revisiting_models import FTTransformer

    return FTTransformer(
        n_cont_features=12,
        cat_cardinalities=[17] * 4,
        d_out=N_CLASSES,
        n_blocks=2,
        d_block=16,
        attention_n_heads=2,
        attention_dropout=0.1,
        ffn_d_hidden=None,
        ffn_d_hidden_multiplier=2.0,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    )


def transformers_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=N_CLASSES, **sizes))


def transformers_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1}
    return ViTForImageClassification(
        ViTConfig(intermediate_size=32, num_labels=N_CLASSES, **sizes, **images)
    )


def transformers_convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"num_stages": 2, "hidden_sizes": [16, 24], "depths": [1, 1], "patch_size": 2}
    return ConvNextForImageClassification(
        ConvNextConfig(num_channels=1, num_labels=N_CLASSES, **sizes)
    )


def monai_resnet() -> nn.Module:
    from monai.networks.nets import ResNet

    return ResNet(
        block="basic",
        layers=[1, 1, 1, 1],
        block_inplanes=[4, 4, 8, 8],
        spatial_dims=3,
        n_input_channels=1,
        num_classes=N_CLASSES,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
    )


# what a network reads of an image, or of a volume ---------------------------------------------


def whole(x: Tensor) -> Tensor:
    return x


def vectors(x: Tensor) -> Tensor:
    return x.flatten(1)


def rows(x: Tensor) -> Tensor:
    return x[:, 0]


def halves(x: Tensor) -> dict[str, Tensor]:
    return {"upper": x[:, 0, :4].flatten(1), "lower": x[:, 0, 4:].flatten(1)}


def table(x: Tensor) -> dict[str, Tensor]:
    """Means of 2 × 2 pixels: twelve numbers and four codes."""
    means = nn.functional.avg_pool2d(x, 2).flatten(1)
    return {"x_cont": means[:, :12], "x_cat": (16 * means[:, 12:]).round().long()}


# where its logits are -------------------------------------------------------------------------


def as_they_are(outputs: Any) -> Tensor:
    return outputs


def from_attribute(outputs: Any) -> Tensor:
    return outputs.logits


def from_tuple(outputs: Any) -> Tensor:
    return outputs[0]


def from_probabilities(outputs: Any) -> Tensor:
    return outputs.clamp_min(1e-30).log()


def from_sigmoids(outputs: Any) -> Tensor:
    return torch.logit(outputs, eps=1e-6)


def from_one(outputs: Any) -> Tensor:
    """One logit is the lead of the second class."""
    return nn.functional.pad(outputs, (1, 0))


def from_one_sigmoid(outputs: Any) -> Tensor:
    return from_one(from_sigmoids(outputs))


# the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network, and what is known of it.

    Attributes
    ----------
    make : callable
        Build it with fresh weights.
    view : callable
        From images (n, 1, 8, 8), or volumes, to what it reads.
    logits : callable
        From what it returns to one logit a class.
    shift : {"transposed", "rotated"}
        What changes after pretraining: axes of the images, or all features at once.
    parity : bool
        Whether the label is that of odd or even.
    volumes : bool
        Whether it reads volumes instead of digits.
    """

    name: str
    make: Callable[[], nn.Module]
    view: Callable[[Tensor], Any] = vectors
    logits: Callable[[Any], Tensor] = as_they_are
    shift: str = "transposed"
    parity: bool = False
    volumes: bool = False

    @property
    def file_name(self) -> str:
        """Name without what a shell would trip over."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)

    def given(self, X: NDArray) -> Any:
        """Return arrays as the network's user would pass them."""
        given = self.view(torch.from_numpy(X))
        if isinstance(given, dict):
            return {name: values.numpy() for name, values in given.items()}
        return given.numpy()


class AsImages(nn.Module):
    """A case's network as one from images to logits, which any training loop can train."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.network = case.make()

    def forward(self, x: Tensor) -> Tensor:
        """Read the logits off the network's outputs."""
        given = self.case.view(x)
        outputs = self.network(**given) if isinstance(given, dict) else self.network(given)
        return self.case.logits(outputs)


def _as_tuple(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits, features[:, None]


def _as_logits(features: Tensor, logits: Tensor) -> Tensor:
    return logits


def _as_softmax(features: Tensor, logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1)


def _as_log_softmax(features: Tensor, logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=1)


def _as_sigmoid(features: Tensor, logits: Tensor) -> Tensor:
    return torch.sigmoid(logits)


CASES = (
    Case("ResNet", modules.resnet, whole),
    Case("pre-activation ResNet", modules.PreActivationResNet, whole),
    Case("ConvNeXt", modules.convnext, whole),
    Case("MobileNet", modules.mobilenet, whole),
    Case("ViT", modules.ViT, whole),
    Case("MLP-Mixer", modules.Mixer, whole),
    Case("LSTM", modules.LSTM, rows),
    Case("rtdl ResNet", rtdl_resnet, shift="rotated"),
    Case("rtdl FT-Transformer", rtdl_ft_transformer, table),
    Case("transformers ResNet", transformers_resnet, whole, from_attribute),
    Case("transformers ViT", transformers_vit, whole, from_attribute),
    Case("transformers ConvNeXt", transformers_convnext, whole, from_attribute),
    Case("monai 3-D ResNet", monai_resnet, whole, volumes=True),
    Case("dropout, in-place ReLU", modules.dropout_in_place, shift="rotated"),
    Case("reused layer", modules.Reused, shift="rotated"),
    Case("tied weights", modules.Tied, shift="rotated"),
    Case("two inputs", modules.TwoInputs, halves, shift="rotated"),
    Case("tuple", lambda: Headed(_as_tuple), logits=from_tuple, shift="rotated"),
    Case("softmax", lambda: Headed(_as_softmax), logits=from_probabilities, shift="rotated"),
    Case("log-softmax", lambda: Headed(_as_log_softmax), shift="rotated"),
    Case("sigmoids", lambda: Headed(_as_sigmoid), logits=from_sigmoids, shift="rotated"),
    Case("one logit", lambda: Headed(_as_logits, 1), logits=from_one, shift="rotated", parity=True),
    Case(
        "one sigmoid",
        lambda: Headed(_as_sigmoid, 1),
        logits=from_one_sigmoid,
        shift="rotated",
        parity=True,
    ),
)
