"""Copies of networks to work on."""

import numpy as np
import torch
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, describe
from featprop_sklearn.networks import private_copy


class Padded(nn.Module):
    """Attends to sequences of different lengths."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x, padding):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding).mean(dim=1))


def sequences(n_samples):
    rng = np.random.default_rng(0)
    padding = np.arange(6) >= rng.integers(2, 7, size=(n_samples, 1))
    return {"x": rng.normal(size=(n_samples, 6, 4)).astype(np.float32), "padding": padding}


def test_padded_sequences_are_computed_as_in_training():
    torch.manual_seed(0)
    network = Padded()
    arguments = {name: torch.tensor(value) for name, value in sequences(20).items()}
    twin = private_copy(network)
    with torch.no_grad():
        found = twin(**arguments)
    torch.testing.assert_close(found, network.train()(**arguments))
    assert network.encoder.use_nested_tensor


def test_a_classifier_of_padded_sequences():
    X, y = sequences(60), np.arange(60) % 3
    torch.manual_seed(0)
    network = Padded()
    assert describe(network, X)["refitted"].sum() > 0
    classifier = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    assert classifier.score(X, y) > 0.6


def test_embeddings_with_sparse_gradients_are_trained():
    X, y = np.random.default_rng(0).integers(0, 9, (60, 4)), np.arange(60) % 3
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten(), nn.Linear(32, 3))
    classifier = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    assert classifier.score(X, y) > 0.6
    assert not torch.equal(classifier.network_[0].weight, network[0].weight)
    assert network[0].sparse
