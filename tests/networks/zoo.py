"""Small networks of the kinds that users bring, each with its view of the digits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

N_CLASSES = 10


# convolutional -------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Residual block; a strided 1x1 convolution where shapes change, as in torchvision."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """``forward`` calls a method, blocks lie in Sequentials."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, N_CLASSES)

    def _forward_impl(self, x):
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x):
        return self._forward_impl(x)


class PreActBlock(nn.Module):
    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(n_in), nn.BatchNorm2d(n_out)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet(nn.Module):
    """Blocks in a ModuleList, the rest in functions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.blocks = nn.ModuleList([PreActBlock(8, 8), PreActBlock(8, 16, 2)])
        self.bn, self.fc = nn.BatchNorm2d(16), nn.Linear(16, N_CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


class LayerNorm2d(nn.LayerNorm):
    """Channels first: a subclass that permutes, as in torchvision and timm."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act, self.gamma = nn.GELU(), nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 2, 2), LayerNorm2d(16))
        self.stage1 = nn.Sequential(ConvNeXtBlock(16))
        self.down = nn.Sequential(LayerNorm2d(16), nn.Conv2d(16, 24, 2, 2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, N_CLASSES)

    def forward(self, x):
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class SqueezeExcitation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool, self.act, self.gate = nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Hardsigmoid()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        width = 2 * n_in
        self.skip = stride == 1 and n_in == n_out
        self.block = nn.Sequential(
            nn.Conv2d(n_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(inplace=True),
            SqueezeExcitation(width),
            nn.Conv2d(width, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x):
        return x + self.block(x) if self.skip else self.block(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)
            ),
            InvertedResidual(8, 16, 2),
            InvertedResidual(16, 16, 1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(16, 32),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(32, N_CLASSES),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


# attention, mixing, recurrence ---------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class TransformerBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token, position embedding and pre-norm blocks, as in timm."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 2, 2)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 16))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(TransformerBlock(16), TransformerBlock(16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, N_CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 2, 2)
        self.blocks = nn.Sequential(MixerBlock(16, 16), MixerBlock(16, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, N_CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class LSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 24, batch_first=True)
        self.hidden, self.fc = nn.Linear(24, 24), nn.Linear(24, N_CLASSES)

    def forward(self, x):
        return self.fc(torch.relu(self.hidden(self.rnn(x)[0][:, -1])))


# libraries -----------------------------------------------------------------------------------


def rtdl_resnet():
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


def rtdl_ft_transformer():
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


def transformers_resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=N_CLASSES,
    )
    return ResNetForImageClassification(config)


def transformers_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=N_CLASSES,
    )
    return ViTForImageClassification(config)


def transformers_convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_channels=1,
        patch_size=2,
        num_stages=2,
        hidden_sizes=[16, 24],
        depths=[1, 1],
        num_labels=N_CLASSES,
    )
    return ConvNextForImageClassification(config)


def monai_resnet():
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


# habits --------------------------------------------------------------------------------------


def dropout_in_place():
    return nn.Sequential(
        nn.Linear(64, 48),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(48, 32),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(32, N_CLASSES),
    )


class Reused(nn.Module):
    """One activation and one linear layer, each used several times."""

    def __init__(self):
        super().__init__()
        self.first, self.loop = nn.Linear(64, 32), nn.Linear(32, 32)
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(32, N_CLASSES)

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(3):
            x = self.act(self.loop(x))
        return self.fc(x)


class Tied(nn.Module):
    """The decoder's weight is the encoder's, transposed."""

    def __init__(self):
        super().__init__()
        self.encode, self.bias = nn.Linear(64, 24), nn.Parameter(torch.zeros(64))
        self.fc = nn.Linear(64, N_CLASSES)

    def forward(self, x):
        x = torch.relu(self.encode(x))
        return self.fc(torch.relu(F.linear(x, self.encode.weight.t(), self.bias)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.upper, self.lower = nn.Linear(32, 16), nn.Linear(32, 16)
        self.mix, self.fc = nn.Linear(32, 24), nn.Linear(24, N_CLASSES)

    def forward(self, upper, lower):
        x = torch.cat([torch.relu(self.upper(upper)), torch.relu(self.lower(lower))], dim=1)
        return self.fc(torch.relu(self.mix(x)))


class Tokens(nn.Module):
    """Reads integers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 4)
        self.hidden, self.fc = nn.Linear(256, 32), nn.Linear(32, N_CLASSES)

    def forward(self, tokens):
        return self.fc(torch.relu(self.hidden(self.embed(tokens).flatten(1))))


class Headed(nn.Module):
    """Two hidden layers; what is returned of the features and the logits is ``finish``'s."""

    def __init__(self, finish, n_outputs=N_CLASSES):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 32), nn.Linear(32, 24), nn.Linear(24, n_outputs)
        self.finish = finish

    def forward(self, x):
        features = torch.relu(self.b(torch.relu(self.a(x))))
        return self.finish(features, self.c(features))


class KeywordBlock(nn.Module):
    """Called by keyword, returns a tuple."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.1)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, *, states, scale):
        mixed = F.gelu(self.up(self.norm(states)))
        return states + self.drop(self.down(mixed)) * scale, mixed


class Keywords(nn.Module):
    """Refuses some values, which torch.fx cannot follow; keeps what its blocks return."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 24)
        self.blocks = nn.ModuleList([KeywordBlock(24), KeywordBlock(24)])
        self.fc = nn.Linear(24, N_CLASSES)

    def forward(self, x):
        if not bool(torch.isfinite(x).all()):
            raise ValueError("not finite")
        states, kept = self.embed(x), []
        for block in self.blocks:
            states, mixed = block(states=states, scale=0.5)
            kept.append(mixed)
        return {"hidden": kept, "logits": self.fc(states.relu())}


def as_tuple(features, logits):
    return logits, features[:, None]


def as_dict(features, logits):
    return {"features": features, "logits": logits}


def as_logits(features, logits):
    return logits


def as_softmax(features, logits):
    return torch.softmax(logits, dim=1)


def as_log_softmax(features, logits):
    return F.log_softmax(logits, dim=-1)


def as_sigmoid(features, logits):
    return torch.sigmoid(logits)


def as_vector(features, logits):
    return logits.squeeze(1)


# views of the digits -------------------------------------------------------------------------


def images(x):
    return x


def volumes(x):
    return x[:, :, None].repeat(2, axis=2)


def vectors(x):
    return x.reshape(len(x), 64)


def rows(x):
    return x[:, 0]


def tokens(x):
    return (vectors(x) * 16).round().astype("int64")


def halves(x):
    return {"upper": vectors(x)[:, :32], "lower": vectors(x)[:, 32:]}


def table(x):
    """Twelve numbers and four codes."""
    pooled = x.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(x), 16)
    codes = (pooled[:, 12:] * 16).round().astype("int64")
    return {"x_cont": pooled[:, :12], "x_cat": codes}


@cache
def _digits():
    return load_digits()


def digits(chosen, *, parity=False):
    """Images in [0, 1] of shape (n, 1, 8, 8), and their labels."""
    data = _digits()
    labels = data.target % 2 if parity else data.target
    return data.images[chosen, None].astype("float32") / 16, labels[chosen]


# the table -----------------------------------------------------------------------------------


def identity(outputs):
    return outputs


@dataclass(frozen=True)
class Case:
    """A network and what is known of it.

    ``middle`` is the path of a module, or the name of a stage, that a target can be set at;
    ``logits`` reads the logits off what the network returns; ``package`` is what brings it.
    """

    name: str
    make: Callable[[], nn.Module]
    view: Callable[[Any], Any] = vectors
    middle: str = "b"
    logits: Callable[[Any], torch.Tensor] = identity
    parity: bool = False
    package: str | None = None
    epochs: int = 30


def _logits(outputs):
    return outputs.logits


def _log_odds(probabilities):
    return torch.logit(probabilities, eps=1e-6)


ZOO = [
    Case("resnet", ResNet, images, "layer1"),
    Case("preact-resnet", PreActResNet, images, "blocks.0"),
    Case("convnext", ConvNeXt, images, "stage1"),
    Case("mobilenet", MobileNet, images, "features.1"),
    Case("vit", ViT, images, "blocks.0"),
    Case("mixer", Mixer, images, "blocks.0"),
    Case("lstm", LSTM, rows, "hidden"),
    Case("rtdl-resnet", rtdl_resnet, vectors, "input_projection", package="rtdl_revisiting_models"),
    Case(
        "rtdl-ft-transformer",
        rtdl_ft_transformer,
        table,
        "backbone.blocks.0.output",
        package="rtdl_revisiting_models",
        epochs=60,  # after 30, one class can have no logit as far ahead as the margin asks
    ),
    Case(
        "transformers-resnet",
        transformers_resnet,
        images,
        "resnet.encoder.stages.0",
        _logits,
        package="transformers",
    ),
    Case(
        "transformers-vit",
        transformers_vit,
        images,
        "vit.layers.0",
        _logits,
        package="transformers",
        epochs=60,  # after 30, eight classes can have no logit as far ahead as the margin asks
    ),
    Case(
        "transformers-convnext",
        transformers_convnext,
        images,
        "convnext.encoder.stages.0",
        _logits,
        package="transformers",
    ),
    Case("monai-resnet-3d", monai_resnet, volumes, "layer2", package="monai"),
    Case("dropout-in-place", dropout_in_place, middle="3"),
    Case("reused-module", Reused, middle="loop"),
    Case("tied-weights", Tied, middle="encode"),
    Case("two-inputs", TwoInputs, halves, "mix"),
    Case("tokens", Tokens, tokens, "hidden"),
    Case("keywords", Keywords, middle="blocks.0", logits=lambda outputs: outputs["logits"]),
    Case("tuple", lambda: Headed(as_tuple), logits=lambda outputs: outputs[0]),
    Case("dict", lambda: Headed(as_dict), logits=lambda outputs: outputs["logits"]),
    Case("softmax", lambda: Headed(as_softmax), logits=torch.log),
    Case("log-softmax", lambda: Headed(as_log_softmax)),
    Case("sigmoids", lambda: Headed(as_sigmoid), logits=_log_odds),
    Case("one-logit", lambda: Headed(as_logits, 1), parity=True),
    Case("one-logit-flat", lambda: Headed(as_vector, 1), parity=True),
    Case("one-sigmoid", lambda: Headed(as_sigmoid, 1), logits=_log_odds, parity=True),
]


def call(network, X):
    """Run a network as its user does, on arrays or a dict of them."""
    if isinstance(X, dict):
        return network(**{name: torch.from_numpy(values) for name, values in X.items()})
    return network(torch.from_numpy(X))


def pretrained(case, images, labels):
    """Train as users do, and leave the network as their loop leaves it: in training mode."""
    torch.manual_seed(0)
    network = case.make()
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(case.epochs):
        for batch in torch.randperm(len(images)).split(40):
            logits = case.logits(call(network, case.view(images[batch.numpy()])))
            y = torch.from_numpy(labels[batch.numpy()])
            if case.parity:
                loss = F.binary_cross_entropy_with_logits(logits.flatten(), y.float())
            else:
                loss = F.cross_entropy(logits, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network
