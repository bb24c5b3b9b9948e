"""
Your own network: a vision transformer on turned images
=======================================================

A small vision transformer learns digits; then the images are transposed. Any module path
can be a split point, and the estimators post-train what lies before it: here at the output, after
the last block and after the first one. How far the features then are from those that give the
labels, :func:`feature_gap` tells.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from featprop_sklearn import FeatureBackpropClassifier, describe, feature_gap

PRETRAINED_ON, EPOCHS = 500, 40


class Block(nn.Module):
    """Attention and an MLP, each beside a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 2 × 2, a class token, learned positions."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, heads=2) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def pretrained(X: Tensor, y: Tensor) -> VisionTransformer:
    """Train a network as one does."""
    torch.manual_seed(0)
    network = VisionTransformer()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X)).split(50):
            loss = nn.functional.cross_entropy(network(X[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def main() -> None:
    """Pretrain, transpose, look, post-train."""
    digits = load_digits()
    X, y = digits.images[:, None].astype("float32") / 16, digits.target
    X, X_rest, y, y_rest = train_test_split(
        X, y, train_size=PRETRAINED_ON, stratify=y, random_state=0
    )
    network = pretrained(torch.from_numpy(X), torch.from_numpy(y))
    X_rest = X_rest.swapaxes(2, 3)
    X, X_test, y, y_test = train_test_split(
        X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
    )
    print(describe(network, X).to_string())
    with torch.no_grad():
        before = (network(torch.from_numpy(X_test)).argmax(1).numpy() == y_test).mean()
    print(f"\nHeld-out accuracy on transposed images: {before:.3f} as it is")
    for split in ("auto", "blocks.2", "blocks.0"):
        classifier = FeatureBackpropClassifier(network, split=split, random_state=0).fit(X, y)
        seconds = classifier.report_["seconds"]
        accuracy = classifier.score(X_test, y_test)
        print(f"  split {classifier.split_:14s} {accuracy:.3f}  {seconds:5.1f} s")
    gap = feature_gap(classifier, X_test[:100], y_test[:100])
    print("\nHow far the features are from those that give the labels:")
    print(gap.round(3).to_string())


if __name__ == "__main__":
    main()
